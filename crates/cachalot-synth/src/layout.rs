//! Which tensor lies where: one part of the model a shard, and within a shard by type, then by name, as published.

use cachalot_checkpoint::{Architecture, Dtype, Shape};

/// One tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Shape,
}

impl Tensor {
    /// Its elements; a config that has been read describes no tensor beyond 64 bits.
    pub fn elements(&self) -> u64 {
        self.shape.elements().unwrap_or(u64::MAX)
    }

    pub fn bytes(&self) -> u64 {
        self.elements().saturating_mul(self.dtype.bytes())
    }
}

/// The tensors of one shard, in the order of their data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shard {
    pub tensors: Vec<Tensor>,
}

impl Shard {
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(Tensor::bytes).sum()
    }

    /// The file's beginning: the length of the header, and the header, padded so that data starts at a multiple of 8.
    pub fn header(&self) -> Vec<u8> {
        let mut entries = serde_json::Map::new();
        entries.insert("__metadata__".to_owned(), serde_json::json!({"format": "pt"}));
        let mut start = 0;
        for tensor in &self.tensors {
            let end = start + tensor.bytes();
            let entry = serde_json::json!({
                "dtype": tensor.dtype.name(), "shape": *tensor.shape, "data_offsets": [start, end]
            });
            entries.insert(tensor.name.clone(), entry);
            start = end;
        }
        let mut json = serde_json::Value::Object(entries).to_string().into_bytes();
        json.resize(json.len().next_multiple_of(8), b' ');
        [&(json.len() as u64).to_le_bytes()[..], &json].concat()
    }
}

/// The order of types in a shard: that of the `safetensors` library, which puts wide types first.
fn rank(dtype: Dtype) -> u8 {
    match dtype {
        Dtype::I64 => 0,
        Dtype::F32 => 1,
        Dtype::BF16 => 2,
        Dtype::F8_E8M0 => 3,
        Dtype::F8_E4M3 => 4,
        Dtype::I8 => 5,
    }
}

/// The part of the model that a tensor belongs to: its shard.
fn part(name: &str) -> String {
    let mut words = name.split('.');
    match (words.next(), words.next()) {
        (Some("layers"), Some(layer)) if name.contains(".engram.embed.") => format!("engram.{layer}"),
        (Some(kind @ ("layers" | "mtp")), Some(number)) => format!("{kind}.{number}"),
        (Some("embed"), _) => "embed".to_owned(),
        (Some(kind), _) if kind.starts_with("image_") || ["vision", "aligner"].contains(&kind) => "vision".to_owned(),
        _ => "head".to_owned(),
    }
}

/// All tensors of a model of this config, shard by shard: embedding, head, layers, draft stages, image path.
pub fn shards(architecture: &Architecture) -> Vec<Shard> {
    let mut parts: Vec<(String, Shard)> = Vec::new();
    architecture.for_each_tensor(|tensor| {
        let name = part(tensor.name);
        let place = parts.iter().rposition(|(other, _)| *other == name).unwrap_or_else(|| {
            parts.push((name, Shard::default()));
            parts.len() - 1
        });
        let (name, dtype, shape) = (tensor.name.to_owned(), tensor.dtype, tensor.shape);
        parts[place].1.tensors.push(Tensor { name, dtype, shape });
    });
    let mut shards: Vec<Shard> = parts.into_iter().map(|(_, shard)| shard).collect();
    for shard in &mut shards {
        shard.tensors.sort_by(|a, b| rank(a.dtype).cmp(&rank(b.dtype)).then_with(|| a.name.cmp(&b.name)));
    }
    shards
}
