//! What the planner makes of models at full size: more memory never makes anything worse.

use cachalot_checkpoint::{Checkpoint, Inspection};
use cachalot_engine::planner::{Available, Forecast, Late, MemoryPlan, MemoryRequest, PlanError, Rates, sizes};
use cachalot_experts::{ExpertLayout, LayerLayout};
use cachalot_storage::Directory;
use cachalot_synth::{Options, Preset, Shrink, synth};
use std::sync::Arc;

/// Fewest tokens per step where there is room for them.
const GOOD_CHUNK: usize = 512;

fn more_memory_never_makes_a_prompt_slower(preset: Preset) {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("model");
    let config = preset.config(&Shrink::default()).expect("a config");
    synth(config, &path, &Options { headers_only: true, ..Options::default() }, &|_, _| true).expect("written");
    let checkpoint = Arc::new(Checkpoint::open_headers(Arc::new(Directory::new(&path))).expect("a checkpoint"));
    let trunk = checkpoint.architecture().trunk();
    let layout = ExpertLayout::new(Arc::clone(&checkpoint), trunk.num_hidden_layers, trunk.n_routed_experts);
    let layers = LayerLayout::new(Arc::clone(&checkpoint), trunk.num_hidden_layers).expect("layers");
    let inspection = Inspection::of(&checkpoint);
    let sizes = sizes(&checkpoint, &inspection, &layout.expect("experts"), &layers).expect("sizes");
    // A machine that computes at once: the disk alone counts.
    let fast = 1e15;
    let (disk, layer) = (Some([1.5e9; 2]), 0.0);
    let rates = Rates { fp4: fast, fp8: fast, bf16: fast, f32: fast, operations: fast * 1e3, layer, disk };
    for context in [None, Some(4096), Some(128 << 10)] {
        let plan = |memory| {
            let free = Some(Available { bytes: u64::MAX - 1, by: "the test".to_owned() });
            MemoryPlan::new(&sizes, &MemoryRequest { memory: Some(memory), context, experts: None }, free)
        };
        let (mut before, mut fitted) = (None::<(MemoryPlan, f64)>, false);
        let mut memory = 2_000_000_000;
        while memory < 1_000_000_000_000 {
            match plan(memory) {
                Err(error) => assert!(before.is_none() && matches!(error, PlanError::TooSmall { .. }), "{error}"),
                Ok(plan) => {
                    let forecast = Forecast::new(&inspection, &plan, &rates, Late::of(checkpoint.architecture()));
                    let seconds = forecast.prompts[2].seconds[1];
                    assert!(plan.total <= memory, "{plan:?}");
                    // Where nearly all experts fit, smaller steps may leave room for the others.
                    let few = plan.experts < sizes.experts / 4 * 3;
                    if let Some((less, slower)) = &before {
                        let name = preset.name();
                        assert!(!few || plan.chunk >= less.chunk, "{name}: {less:?} {plan:?}");
                        assert!(plan.context >= less.context, "{name}: {less:?} {plan:?}");
                        assert!(plan.streamed_layers.len() <= less.streamed_layers.len(), "{name}: {less:?} {plan:?}");
                        // A longer context takes some of what experts have.
                        let longer = plan.context > less.context;
                        assert!(longer || seconds <= slower * 1.000_001, "{name}: {seconds} {slower} {plan:?}");
                    }
                    fitted |= plan.experts_fit;
                    before = Some((plan, seconds));
                }
            }
            memory += (memory / 40).min(500_000_000);
        }
        let (most, _) = before.expect("it fits");
        assert!(fitted && most.experts_fit && most.chunk > GOOD_CHUNK, "{most:?}");
    }
    // With all layers in memory, and with nothing but the least number of experts.
    let least = |memory| {
        let free = Some(Available { bytes: u64::MAX - 1, by: "the test".to_owned() });
        MemoryPlan::new(&sizes, &MemoryRequest { memory: Some(memory), ..MemoryRequest::default() }, free)
            .expect("fits")
    };
    let plan = least(inspection.memory.resident_bytes * 3 / 2);
    assert!(plan.chunk >= GOOD_CHUNK && plan.context >= 4096, "{plan:?}");
}

#[test]
fn of_v4_flash() {
    more_memory_never_makes_a_prompt_slower(Preset::V4Flash);
}

#[test]
fn of_v4_pro() {
    more_memory_never_makes_a_prompt_slower(Preset::V4Pro);
}

#[test]
fn of_v41_flash() {
    more_memory_never_makes_a_prompt_slower(Preset::V41Flash);
}

#[test]
fn of_one_trillion() {
    more_memory_never_makes_a_prompt_slower(Preset::OneTrillion);
}

#[test]
fn of_lite() {
    more_memory_never_makes_a_prompt_slower(Preset::Lite);
}
