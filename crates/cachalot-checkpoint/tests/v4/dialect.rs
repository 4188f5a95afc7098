//! The fixture under other names and in other types: every matrix still stands for the same numbers.

use super::decode::decoded;
use super::saved::{Stored, fixture, plain, released, saved, single, to_bytes};
use super::seen::seen;
use cachalot_checkpoint::deepseek_v4::Draft;
use cachalot_checkpoint::family::Weights;
use cachalot_checkpoint::{CONFIG_FILE, Checkpoint, CheckpointError, Dtype, INDEX_FILE, Inspection};
use cachalot_storage::Embedded;
use std::sync::Arc;

fn open(files: Embedded) -> Checkpoint {
    Checkpoint::open(Arc::new(files)).unwrap_or_else(|error| panic!("{error}"))
}

fn problems(files: Embedded) -> Vec<String> {
    match Checkpoint::open(Arc::new(files)).expect_err("refused") {
        CheckpointError::Invalid(problems) => problems.list().iter().map(ToString::to_string).collect(),
        other => panic!("another error: {other}"),
    }
}

/// Every matrix of `checkpoint` as the kernels see it is the fixture's, rounded as `round` does.
fn same_values(checkpoint: &Checkpoint, round: impl Fn(f32) -> f32) {
    let (fixture, _) = released();
    for name in [
        "head.weight",
        "hc_head_fn",
        "layers.0.attn.wq_a.weight",
        "layers.0.attn.wo_a.weight",
        "layers.2.attn.indexer.wq_b.weight",
        "layers.2.attn.indexer.compressor.wgate.weight",
        "layers.3.attn.compressor.wkv.weight",
        "layers.4.ffn.gate.weight",
        "layers.4.ffn.shared_experts.w3.weight",
        "layers.5.ffn.experts.0.w1.weight",
        "layers.5.ffn.experts.6.w3.weight",
        "layers.5.ffn.experts.7.w2.weight",
        "layers.5.hc_ffn_fn",
    ] {
        let (_, columns, values) = decoded(&fixture, name);
        let values: Vec<f32> = values.into_iter().map(&round).collect();
        assert!(seen(&checkpoint.matrix(name).expect(name), columns) == values, "{name}");
    }
    for name in ["norm.weight", "layers.2.attn.kv_norm.weight", "layers.7.attn.attn_sink", "layers.3.ffn.gate.bias"] {
        let values: Vec<f32> = fixture.vector(name).expect(name).into_iter().map(&round).collect();
        assert_eq!(checkpoint.vector(name).expect(name), values, "{name}");
    }
    let table = "layers.1.ffn.gate.tid2eid";
    assert_eq!(checkpoint.token_experts(table, 8).expect("ids"), fixture.token_experts(table, 8).expect("ids"));
}

#[test]
fn saved_by_transformers() {
    for dtype in [Dtype::F32, Dtype::BF16] {
        let checkpoint = open(single(&saved(&plain(dtype))));
        let config = checkpoint.architecture().deepseek_v4().expect("a V4 model");
        assert_eq!((config.build.dense, config.build.experts), (Weights::Plain, Weights::Plain));
        assert_eq!((config.build.draft, checkpoint.abilities().draft), (None, false));
        let round = |value: f32| match dtype {
            Dtype::BF16 => {
                let bytes = to_bytes(Dtype::BF16, &[value]);
                f32::from_le_bytes([0, 0, bytes[0], bytes[1]])
            }
            _ => value,
        };
        same_values(&checkpoint, round);
        let inspection = Inspection::of(&checkpoint);
        let (fixture, _) = released();
        let draft = |inspection: &Inspection| {
            let groups = inspection.groups.iter().filter(|entry| entry.group.label().starts_with("draft"));
            groups.map(|entry| entry.amount.parameters).sum::<u64>()
        };
        let whole = Inspection::of(&fixture);
        assert_eq!(inspection.total.parameters, whole.total.parameters - draft(&whole));
        // Four matrices of one layer are two stacks in the file, and counted as the release counts.
        assert_eq!(
            checkpoint.tensors().iter().filter(|tensor| tensor.name.contains("layers.3.ffn.experts.")).count(),
            24
        );
    }
}

#[test]
fn quantised_and_stacked() {
    let (_, tensors) = released();
    let checkpoint = open(single(&saved(&tensors)));
    let config = checkpoint.architecture().deepseek_v4().expect("a V4 model");
    assert_eq!((config.build.dense, config.build.experts), (Weights::Fp8 { block: [128, 128] }, Weights::Fp4));
    same_values(&checkpoint, |value| value);
    // A name may lack its prefix, and stay as released.
    let mixed: Vec<_> = saved(&tensors)
        .into_iter()
        .map(|tensor| Stored { name: tensor.name.replacen("model.", "", 1), ..tensor })
        .collect();
    same_values(&open(single(&mixed)), |value| value);
}

/// What `save_pretrained` of Transformers 5.23 writes unless told otherwise: released names behind `model.`, but for
/// the norm of keys.
#[test]
fn saved_under_restored_names() {
    let restored = plain(Dtype::F32).into_iter().filter(|tensor| !tensor.name.starts_with("mtp.")).map(|tensor| {
        let name = tensor.name.replace(".attn.kv_norm.", ".attn.norm.").replace("hc_head_", "hc_head.hc_");
        let name = name.replace("embed.weight", "embed_tokens.weight");
        let prefix = if name.starts_with("head.") { "" } else { "model." };
        Stored { name: format!("{prefix}{name}"), ..tensor }
    });
    same_values(&open(single(&restored.collect::<Vec<_>>())), |value| value);
}

/// Experts of the `-Base` builds: FP8 with a scale per 128 x 128.
#[test]
fn experts_in_fp8() {
    let (_, tensors) = released();
    let experts = tensors.into_iter().map(|mut tensor| {
        if !tensor.name.contains(".ffn.experts.") {
            return tensor;
        }
        let [rows, columns] = if tensor.name.contains(".w2.") { [256, 96] } else { [96, 256u64] };
        let weight = tensor.name.ends_with(".weight");
        let [high, wide] = if weight { [rows, columns] } else { [rows.div_ceil(128), columns.div_ceil(128)] };
        tensor.dtype = if weight { Dtype::F8_E4M3 } else { Dtype::F8_E8M0 };
        tensor.shape = vec![high, wide];
        let byte = |place: u64| if weight { (place * 37 % 0x7f) as u8 } else { 120 + place as u8 };
        tensor.bytes = (0..high * wide).map(byte).collect();
        tensor
    });
    let mut tensors: Vec<_> = experts.collect();
    for name in ["mtp.0.emb.tok_emb.weight", "mtp.0.head.weight"] {
        let bytes = vec![0; 768 * 256 * 2];
        tensors.push(Stored { name: name.to_owned(), dtype: Dtype::BF16, shape: vec![768, 256], bytes });
    }
    let checkpoint = open(single(&tensors));
    let build = checkpoint.architecture().deepseek_v4().expect("a V4 model").build;
    assert_eq!((build.experts, build.draft), (Weights::Fp8 { block: [128, 128] }, Some(Draft::Mtp { copies: true })));
    for name in ["layers.3.ffn.experts.2.w1.weight", "layers.3.ffn.experts.2.w2.weight"] {
        let (_, columns, values) = decoded(&checkpoint, name);
        assert!(seen(&checkpoint.matrix(name).expect(name), columns) == values, "{name}");
    }
    tensors.retain(|tensor| tensor.name != "mtp.0.head.weight");
    assert_eq!(problems(single(&tensors)), ["mtp.0.head.weight is missing (BF16 [768, 256])"]);
    let stacked = problems(single(&saved(&tensors)));
    assert!(
        stacked[0]
            .starts_with("model.layers.0.mlp.experts.gate_up_proj_scale_inv in model.safetensors has shape [8, 2, 2]"),
        "{stacked:?}"
    );
}

#[test]
fn what_does_not_fit_is_named() {
    let edited = |edit: &dyn Fn(&mut Vec<Stored>)| {
        let mut tensors = saved(&plain(Dtype::F32));
        edit(&mut tensors);
        problems(single(&tensors))
    };
    let stack = "model.layers.2.mlp.experts.down_proj";
    let other = edited(&|tensors| {
        let tensor = tensors.iter_mut().find(|tensor| tensor.name == stack).expect("there");
        tensor.shape = vec![4, 512, 96];
    });
    assert!(other[0].starts_with(&format!("{stack} in model.safetensors has shape [4, 512, 96]: it must be [8,")));
    let twice = edited(&|tensors| {
        let norm = tensors.iter().find(|tensor| tensor.name == "model.norm.weight").expect("there").clone();
        tensors.push(Stored { name: "norm.weight".to_owned(), ..norm });
    });
    assert!(twice[0].starts_with("norm.weight is there twice"), "{twice:?}");
    let unknown = edited(&|tensors| {
        let norm = tensors.iter_mut().find(|tensor| tensor.name == "model.norm.weight").expect("there");
        norm.name = "model.layers.0.self_attn.q_proj.weight".to_owned();
    });
    assert_eq!(unknown[0], "norm.weight is missing (BF16 [256])");
    assert!(unknown[1].starts_with("layers.0.attn.q_proj.weight in model.safetensors is unknown"), "{unknown:?}");
    let scale = edited(&|tensors| {
        tensors.push(Stored {
            name: "model.layers.0.self_attn.q_a_proj.weight_scale_inv".to_owned(),
            dtype: Dtype::F8_E8M0,
            shape: vec![2, 2],
            bytes: vec![127; 4],
        });
    });
    assert!(scale[0].starts_with("layers.0.attn.wq_a.scale in model.safetensors is unknown"), "{scale:?}");
    // A checkpoint of neither an index nor a single file says what it misses.
    let none = Embedded::new("none").with(CONFIG_FILE, fixture().read_all(CONFIG_FILE, 1 << 20).expect("there"));
    let error = Checkpoint::open(Arc::new(none)).expect_err("nothing there").to_string();
    assert_eq!(error, format!("{INDEX_FILE} is not there"));
}
