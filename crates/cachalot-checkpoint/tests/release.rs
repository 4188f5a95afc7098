//! The release's config and headers, made in memory: counts and sizes are those that were published.

#[path = "support/release.rs"]
mod support;

use cachalot_checkpoint::deepseek_v41::{Config, Role};
use cachalot_checkpoint::{Checkpoint, Dtype, Group, Inspection};
use std::collections::HashMap;
use std::sync::Arc;
use support::Release;

const CONFIG: &[u8] = include_bytes!("../../../fixtures/configs/v41-flash.json");

fn config() -> Config {
    Config::from_json(CONFIG).expect("the release's config")
}

#[test]
fn inventory_and_figures_are_the_published_ones() {
    for complete in [true, false] {
        let files = Arc::new(Release::new(CONFIG, complete, |visit| config().for_each_tensor(visit)));
        let opened = if complete { Checkpoint::open(files) } else { Checkpoint::open_headers(files) };
        let inspection = Inspection::of(&opened.expect("the release"));
        let total = inspection.total;
        assert_eq!((total.tensors, total.parameters, total.bytes), (96_085, 763_205_315_794, 510_286_023_000));
        assert_eq!(inspection.declared_bytes, Some(510_286_023_000));
        assert_eq!(inspection.shards.iter().filter(|shard| shard.complete == complete).count(), 48);
        assert!(inspection.vision && inspection.draft);
        check_groups(&inspection);
        check_use(&inspection);
    }
}

/// Spec section 1.2.
fn check_groups(inspection: &Inspection) {
    let sum = |groups: &[Group]| {
        let amounts = groups.iter().map(|group| inspection.group(*group));
        amounts.fold((0, 0), |(parameters, bytes), amount| (parameters + amount.parameters, bytes + amount.bytes))
    };
    let rows: &[(&[Group], u64, u64)] = &[
        (&[Group::Embedding, Group::Head], 1_323_827_200, 2_647_654_400),
        (&[Group::RoutedExperts], 543_581_798_400, 288_777_830_400),
        (&[Group::SharedExperts], 1_415_577_600, 1_416_960_000),
        (&[Group::Routers], 78_673_920, 157_409_280),
        (&[Group::Attention], 5_064_696_320, 5_069_721_600),
        (&[Group::Indexers], 61_868_544, 81_835_008),
        (&[Group::Mixers], 39_323_760, 157_295_040),
        (&[Group::Norms], 414_720, 829_440),
        (&[Group::EngramTables], 196_613_849_600, 202_758_032_400),
        (&[Group::EngramProjections], 314_654_720, 315_043_840),
        (&[Group::DraftExperts], 13_589_544_960, 7_219_445_760),
        (&[Group::Draft], 635_817_570, 713_428_872),
        (&[Group::Vision], 485_268_480, 970_536_960),
    ];
    for (groups, parameters, bytes) in rows {
        assert_eq!(sum(groups), (*parameters, *bytes), "{groups:?}");
    }
}

/// Spec sections 1.2, 1.3, 4.1 and 7.
fn check_use(inspection: &Inspection) {
    let memory = inspection.memory;
    // The resident set of section 1.2 counts the embedding, which is read by row here.
    assert_eq!(memory.resident_bytes + 1_323_827_200, 9_846_748_608);
    assert_eq!((memory.experts, memory.expert_bytes), (15_360, 18_800_640));
    let token = inspection.token;
    assert_eq!(token.active_parameters, 16_130_583_664);
    assert_eq!((token.experts_bytes, token.layers_bytes), (4_512_153_600, 7_199_083_968));
    // Head and final norm; embedding row and Engram rows.
    assert_eq!((token.head_bytes, token.rows_bytes), (1_323_827_200 + 10_240, 22_912));
    let cache: Vec<_> = inspection.cache.iter().map(|at| (at.tokens, at.stored_bytes, at.read_bytes)).collect();
    let fixed = 2_703_360 + 12_288;
    assert_eq!(
        cache,
        [
            (4_096, 3_645_440 + fixed, 2_703_360 + 5_603_328 + 1_810_432),
            (131_072, 116_654_080 + fixed, 2_703_360 + 5_603_328 + 26_738_688),
            (1_048_576, 933_232_640 + fixed, 2_703_360 + 5_603_328 + 182_714_368),
        ]
    );
    let text = inspection.to_string();
    for part in ["763.2 billion parameters in 96,085 tensors, 510.3 GB", "16.1 billion active", "15,360 of 18.8 MB"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn names_types_and_shapes_of_section_2_3() {
    let mut tensors = HashMap::new();
    config().for_each_tensor(|tensor| {
        assert!(tensors.insert(tensor.name.to_owned(), (tensor.dtype, tensor.shape.to_vec())).is_none());
    });
    let rows: &[(&str, Dtype, &[u64])] = &[
        ("embed.weight", Dtype::BF16, &[129_280, 5120]),
        ("norm.weight", Dtype::BF16, &[5120]),
        ("image_newline", Dtype::BF16, &[5120]),
        ("layers.39.ffn_norm.weight", Dtype::BF16, &[5120]),
        ("layers.0.attn.wq_a.weight", Dtype::F8_E4M3, &[1280, 5120]),
        ("layers.0.attn.wq_a.scale", Dtype::F8_E8M0, &[40, 160]),
        ("layers.0.attn.q_norm.weight", Dtype::BF16, &[1280]),
        ("layers.0.attn.wq_b.weight", Dtype::F8_E4M3, &[32_768, 1280]),
        ("layers.0.attn.wkv.scale", Dtype::F8_E8M0, &[16, 160]),
        ("layers.0.attn.wo_a.weight", Dtype::F8_E4M3, &[8192, 4096]),
        ("layers.0.attn.wo_a.scale", Dtype::F8_E8M0, &[256, 128]),
        ("layers.0.attn.wo_b.weight", Dtype::F8_E4M3, &[5120, 8192]),
        ("layers.0.attn.attn_sink", Dtype::F32, &[64]),
        ("layers.0.ffn.gate.bias_vl", Dtype::F32, &[384]),
        ("layers.0.ffn.shared_experts.w2.scale", Dtype::F8_E8M0, &[160, 72]),
        ("layers.7.ffn.experts.383.w1.weight", Dtype::I8, &[2304, 2560]),
        ("layers.7.ffn.experts.383.w3.scale", Dtype::F8_E8M0, &[2304, 160]),
        ("layers.7.ffn.experts.383.w2.weight", Dtype::I8, &[5120, 1152]),
        ("layers.7.ffn.experts.383.w2.scale", Dtype::F8_E8M0, &[5120, 72]),
        ("layers.7.hc_ffn_fn", Dtype::F32, &[24, 20_480]),
        ("layers.7.hc_attn_scale", Dtype::F32, &[3]),
        ("layers.20.attn.compressor.wkv.weight", Dtype::BF16, &[512, 5120]),
        ("layers.14.attn.compressor.wgate.weight", Dtype::BF16, &[512, 5120]),
        ("layers.14.attn.indexer.wk.weight", Dtype::BF16, &[128, 512]),
        ("layers.36.attn.indexer.wq_b.weight", Dtype::F8_E4M3, &[4096, 1280]),
        ("layers.36.attn.indexer.weights_proj.weight", Dtype::BF16, &[32, 5120]),
        ("layers.14.engram.embed.scale", Dtype::F8_E8M0, &[384_016_682, 8]),
        ("layers.1.engram.wkv.weight", Dtype::F8_E4M3, &[25_600, 6144]),
        ("layers.1.engram.q_weight", Dtype::BF16, &[4, 5120]),
        ("mtp.1.ffn.gate.weight", Dtype::BF16, &[128, 5120]),
        ("mtp.0.main_proj.weight", Dtype::F8_E4M3, &[5120, 15_360]),
        ("mtp.2.confidence_head.proj.weight", Dtype::BF16, &[1, 5376]),
        ("mtp.2.markov_head.head.weight", Dtype::BF16, &[129_280, 256]),
        ("vision.patch_embed.proj.weight", Dtype::BF16, &[1024, 588]),
        ("vision.blocks.31.mlp.w1.weight", Dtype::BF16, &[5632, 1024]),
        ("aligner.w1.weight", Dtype::BF16, &[5120, 9216]),
    ];
    for (name, dtype, shape) in rows {
        let found = tensors.get(*name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!((found.0, &*found.1), (*dtype, *shape), "{name}");
    }
    for absent in ["layers.20.attn.compressor.wgate.weight", "layers.24.attn.indexer.wk.weight", "mtp.1.norm.weight"] {
        assert!(!tensors.contains_key(absent), "{absent}");
    }
}

/// Spec section 1.5.
#[test]
fn the_schedule_of_the_release() {
    let config = config();
    for (layer, plan) in config.layers.iter().enumerate() {
        let source = match layer {
            0..2 => None,
            2..8 => Some(2),
            8..14 => Some(8),
            14..20 => Some(14),
            _ => Some(20),
        };
        let selector = if layer < 24 { source } else { Some(layer / 4 * 4) };
        assert_eq!((plan.kv_source, plan.index_source), (source, selector), "layer {layer}");
        let role = match (source, selector) {
            (None, _) => Role::Window,
            (Some(source), _) if source == layer => Role::Owner,
            (_, Some(selector)) if selector == layer => Role::Reindex,
            _ => Role::Reuse,
        };
        assert_eq!(plan.role, role, "layer {layer}");
        assert_eq!(plan.candidates_from, (role == Role::Reindex).then_some(20));
        assert_eq!(plan.is_candidate_source, layer == 20);
        assert_eq!(
            plan.ratio,
            if layer < 2 {
                0
            } else if layer < 20 {
                2
            } else {
                1
            }
        );
        assert_eq!(plan.engram, [1, 14].iter().position(|id| *id == layer));
    }
    // 890 bytes a token (spec section 4.1).
    assert_eq!(config.entry_cache_bytes(2), 2 * 890);
    assert_eq!(config.kv_sources().map(|(layer, _)| layer).collect::<Vec<_>>(), [2, 8, 14, 20]);
    assert_eq!(config.index_sources().map(|(layer, _)| layer).collect::<Vec<_>>(), [2, 8, 14, 20, 24, 28, 32, 36]);
    assert_eq!(config.eos_token_ids, [1]);
    assert_eq!((config.bos_token_id, config.pad_token_id, config.image_token_id), (Some(0), Some(2), Some(129_264)));
}
