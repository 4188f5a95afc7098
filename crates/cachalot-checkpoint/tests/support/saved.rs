//! The V4 fixture in other types and under Transformers' names, as a checkpoint of one file in memory.

use crate::decode::{bytes_of, decoded};
use cachalot_checkpoint::{CONFIG_FILE, Checkpoint, Dtype, SINGLE_FILE};
use cachalot_storage::{Directory, Embedded, Files};
use std::path::Path;
use std::sync::Arc;

/// The fixture as it is.
pub fn fixture() -> Arc<dyn Files> {
    Arc::new(Directory::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/v4-tiny")))
}

/// A tensor to be written.
#[derive(Clone)]
pub struct Stored {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

fn safetensors(tensors: &[Stored]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for tensor in tensors {
        let start = data.len();
        data.extend_from_slice(&tensor.bytes);
        let entry = serde_json::json!({
            "dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [start, data.len()]
        });
        header.insert(tensor.name.clone(), entry);
    }
    let json = serde_json::to_vec(&header).expect("JSON");
    [&(json.len() as u64).to_le_bytes()[..], &json, &data].concat()
}

/// A checkpoint of one shard without an index.
pub fn single(tensors: &[Stored]) -> Embedded {
    // Wide types first: every range then starts at a multiple of its type.
    let mut sorted = tensors.to_vec();
    sorted.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bytes()));
    let config = fixture().read_all(CONFIG_FILE, 1 << 20).expect("there");
    Embedded::new("copy").with(CONFIG_FILE, config).with(SINGLE_FILE, safetensors(&sorted))
}

/// The fixture, and its tensors as they are stored.
pub fn released() -> (Checkpoint, Vec<Stored>) {
    let checkpoint = Checkpoint::open(fixture()).expect("the fixture");
    let stored = checkpoint.tensors().iter().map(|tensor| Stored {
        name: tensor.name.to_string(),
        dtype: tensor.dtype,
        shape: tensor.shape.to_vec(),
        bytes: bytes_of(&checkpoint, tensor),
    });
    let stored = stored.collect();
    (checkpoint, stored)
}

/// Floating-point values as they are stored.
pub fn to_bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let bf16 = |value: &f32| {
        // Round to nearest, ties to even.
        let bits = value.to_bits();
        (((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16).to_le_bytes()
    };
    match dtype {
        Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(bf16).collect(),
        other => panic!("{other}"),
    }
}

/// All floating-point tensors of the fixture in one type, without scales.
pub fn plain(dtype: Dtype) -> Vec<Stored> {
    let (checkpoint, stored) = released();
    let stored = stored.into_iter().filter(|tensor| !tensor.name.ends_with(".scale"));
    let convert = |tensor: Stored| {
        if tensor.dtype == Dtype::I64 {
            return tensor;
        }
        let (values, shape) = match *tensor.shape {
            [_, _] => {
                let (rows, columns, values) = decoded(&checkpoint, &tensor.name);
                (values, vec![rows as u64, columns as u64])
            }
            _ => (checkpoint.vector(&tensor.name).expect("a vector"), tensor.shape),
        };
        Stored { name: tensor.name, dtype, shape, bytes: to_bytes(dtype, &values) }
    };
    stored.map(convert).collect()
}

/// Transformers' name of a tensor that is not an expert's (spec section 2.5).
fn saved_name(name: &str) -> String {
    let Some(rest) = name.strip_prefix("layers.") else {
        let name = match name {
            "head.weight" => return "lm_head.weight".to_owned(),
            "embed.weight" => "embed_tokens.weight",
            "norm.weight" => "norm.weight",
            _ => return name.replace("hc_head_", "model.hc_head.hc_"),
        };
        return format!("model.{name}");
    };
    let steps = [
        (".attn_norm.", ".input_layernorm."),
        (".ffn_norm.", ".post_attention_layernorm."),
        (".hc_attn_", ".attn_hc."),
        (".hc_ffn_", ".ffn_hc."),
        (".attn.", ".self_attn."),
        (".ffn.gate.bias", ".ffn.gate.e_score_correction_bias"),
        (".ffn.", ".mlp."),
        (".shared_experts.w1", ".shared_experts.gate_proj"),
        (".shared_experts.w3", ".shared_experts.up_proj"),
        (".shared_experts.w2", ".shared_experts.down_proj"),
        (".indexer.compressor.", ".compressor.indexer."),
        (".self_attn.indexer.wq_b", ".self_attn.compressor.indexer.q_b_proj"),
        (".self_attn.indexer.weights_proj", ".self_attn.compressor.indexer.scorer.weights_proj"),
        (".compressor.norm.", ".compressor.kv_norm."),
        (".compressor.indexer.norm.", ".compressor.indexer.kv_norm."),
        (".wq_a.", ".q_a_proj."),
        (".q_norm.", ".q_a_norm."),
        (".wq_b.", ".q_b_proj."),
        (".wkv.", ".kv_proj."),
        (".wgate.", ".gate_proj."),
        (".ape", ".position_bias"),
        (".wo_a.", ".o_a_proj."),
        (".wo_b.", ".o_b_proj."),
        (".attn_sink", ".sinks"),
        (".scale", ".weight_scale_inv"),
    ];
    // The scale of a mixer is no scale of a matrix.
    let mixer = rest.contains(".hc_");
    let steps = steps.iter().filter(|(from, _)| !mixer || *from != ".scale");
    format!("model.layers.{}", steps.fold(rest.to_owned(), |name, (from, to)| name.replace(from, to)))
}

/// Under Transformers' names, experts stacked, without the draft module.
pub fn saved(tensors: &[Stored]) -> Vec<Stored> {
    let trunk = tensors.iter().filter(|tensor| !tensor.name.starts_with("mtp."));
    let (experts, others): (Vec<_>, Vec<_>) = trunk.partition(|tensor| tensor.name.contains(".ffn.experts."));
    let mut saved: Vec<_> =
        others.into_iter().map(|tensor| Stored { name: saved_name(&tensor.name), ..tensor.clone() }).collect();
    for layer in 0..8 {
        for (stack, matrices) in [("gate_up_proj", &["w1", "w3"][..]), ("down_proj", &["w2"])] {
            for (part, suffix) in [("weight", ""), ("scale", "_scale_inv")] {
                let names = (0..8).flat_map(|expert| {
                    matrices.iter().map(move |matrix| format!("layers.{layer}.ffn.experts.{expert}.{matrix}.{part}"))
                });
                let found: Vec<_> =
                    names.filter_map(|name| experts.iter().find(|tensor| tensor.name == name)).collect();
                let Some(first) = found.first() else { continue };
                saved.push(Stored {
                    name: format!("model.layers.{layer}.mlp.experts.{stack}{suffix}"),
                    dtype: first.dtype,
                    shape: vec![8, matrices.len() as u64 * first.shape[0], first.shape[1]],
                    bytes: found.iter().flat_map(|tensor| tensor.bytes.iter().copied()).collect(),
                });
            }
        }
    }
    saved
}
