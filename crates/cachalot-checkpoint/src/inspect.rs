//! What a checkpoint holds, in people's units (spec sections 1.2, 1.3, 4.1 and 7).
//!
//! Owns the figures and how they read. Works on headers alone: data that has not arrived is counted by what the index
//! and the config say of it.

use crate::architecture::Architecture;
use crate::checkpoint::{Arrival, Checkpoint};
use crate::family::Trunk;
use crate::family::tensors::SET_ASIDE;
use crate::{Dtype, Group, Shape};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Contexts for which cache sizes are given.
const CONTEXTS: [u64; 3] = [4096, 131_072, 1_048_576];

/// The figures of one checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// Where it is.
    pub location: String,
    /// `model_type` of its config.
    pub model_type: &'static str,
    /// Layers, draft stages not counted.
    pub layers: usize,
    /// Rows of embedding and head.
    pub vocabulary: usize,
    /// Longest context, in tokens.
    pub max_context: usize,
    /// All tensors.
    pub total: Amount,
    /// `metadata.total_size` of the index.
    pub declared_bytes: Option<u64>,
    /// What the tensors are for.
    pub groups: Vec<GroupAmount>,
    /// How they are stored.
    pub dtypes: Vec<DtypeAmount>,
    /// The files.
    pub shards: Vec<ShardState>,
    /// Whether it can see images.
    pub vision: bool,
    /// Whether it can draft tokens.
    pub draft: bool,
    /// Where the bytes live while the text model runs.
    pub memory: Memory,
    /// What one decoded token takes.
    pub token: Token,
    /// What a sequence keeps and reads.
    pub cache: Vec<Cache>,
}

/// A number of tensors and their size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// Tensors, scales included.
    pub tensors: u64,
    /// Numbers, without the scales.
    pub parameters: u64,
    /// Bytes, scales included.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, dtype: Dtype, shape: &Shape, bytes: u64) {
        let elements = shape.elements().unwrap_or(0);
        self.tensors += 1;
        self.bytes += bytes;
        self.parameters += match dtype {
            Dtype::F8_E8M0 => 0,
            Dtype::I8 => 2 * elements,
            _ => elements,
        };
    }
}

/// One group's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GroupAmount {
    /// The group.
    pub group: Group,
    /// Its size.
    #[serde(flatten)]
    pub amount: Amount,
}

/// The size of all tensors of one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DtypeAmount {
    /// The type.
    pub dtype: Dtype,
    /// Their size.
    #[serde(flatten)]
    pub amount: Amount,
}

/// How much of a file there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShardState {
    /// Its name.
    pub name: String,
    /// Bytes that are there.
    pub bytes: Option<u64>,
    /// Bytes that it will have, where its header has arrived.
    pub expected: Option<u64>,
    /// Whether all of it is there.
    pub complete: bool,
}

/// Where the bytes of the text model live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Always needed: everything but what follows.
    pub resident_bytes: u64,
    /// Routed experts, read one by one.
    pub experts_bytes: u64,
    /// Number of routed experts.
    pub experts: u64,
    /// Bytes of one.
    pub expert_bytes: u64,
    /// Token embedding and Engram tables, read by row.
    pub rows_bytes: u64,
}

/// What one decoded token takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Token {
    /// Parameters that take part: all layers with the routed experts of one token, Engram projections, head.
    pub active_parameters: u64,
    /// Bytes of its routed experts.
    pub experts_bytes: u64,
    /// Bytes of all other layer weights.
    pub layers_bytes: u64,
    /// Bytes of the head and the final norm.
    pub head_bytes: u64,
    /// Bytes of its embedding row and Engram rows.
    pub rows_bytes: u64,
}

impl Token {
    /// All weight bytes that one decoded token reads.
    pub fn bytes(&self) -> u64 {
        self.experts_bytes + self.layers_bytes + self.head_bytes + self.rows_bytes
    }
}

/// A sequence's caches at one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// Length, in tokens.
    pub tokens: u64,
    /// Bytes that are kept.
    pub stored_bytes: u64,
    /// Bytes that the next token reads.
    pub read_bytes: u64,
}

impl Inspection {
    /// Counts what `checkpoint` holds.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let architecture = checkpoint.architecture();
        let trunk = architecture.trunk();
        let (mut groups, mut dtypes) = (BTreeMap::<Group, Amount>::new(), BTreeMap::<Dtype, Amount>::new());
        let mut total = Amount::default();
        let mut final_norm = Amount::default();
        let mut count = |group, dtype: Dtype, shape: &Shape, bytes| {
            groups.entry(group).or_default().add(dtype, shape, bytes);
            dtypes.entry(dtype).or_default().add(dtype, shape, bytes);
            total.add(dtype, shape, bytes);
        };
        checkpoint.for_each_expected(|expected, held| {
            let dtype = held.map_or(expected.dtype, |held| held.dtype);
            let bytes = expected.shape.elements().unwrap_or(0).saturating_mul(dtype.bytes());
            count(expected.group, dtype, &expected.shape, bytes);
            if expected.name == "norm.weight" {
                final_norm.add(dtype, &expected.shape, bytes);
            }
        });
        let abilities = checkpoint.abilities();
        for tensor in checkpoint.tensors() {
            let draft = tensor.name.starts_with("mtp.");
            let aside = SET_ASIDE.iter().any(|prefix| tensor.name.starts_with(prefix));
            if aside && !(if draft { abilities.draft } else { abilities.vision }) {
                count(Group::SetAside, tensor.dtype, &tensor.shape, tensor.bytes);
            }
        }
        let amount = |group: Group| groups.get(&group).copied().unwrap_or_default();
        let memory = memory(trunk, amount);
        Self {
            location: checkpoint.label().to_owned(),
            model_type: architecture.model_type(),
            layers: trunk.num_hidden_layers,
            vocabulary: trunk.vocab_size,
            max_context: trunk.max_position_embeddings,
            total,
            declared_bytes: checkpoint.declared_bytes(),
            token: token(architecture, amount, final_norm, memory),
            memory,
            groups: groups.iter().map(|(group, amount)| GroupAmount { group: *group, amount: *amount }).collect(),
            dtypes: dtypes.iter().map(|(dtype, amount)| DtypeAmount { dtype: *dtype, amount: *amount }).collect(),
            shards: checkpoint.shards().iter().map(shard_state).collect(),
            vision: abilities.vision,
            draft: abilities.draft,
            cache: caches(architecture),
        }
    }

    /// The size of one group.
    pub fn group(&self, group: Group) -> Amount {
        let found = self.groups.iter().find(|entry| entry.group == group);
        found.map(|entry| entry.amount).unwrap_or_default()
    }
}

fn shard_state(shard: &crate::Shard) -> ShardState {
    let (bytes, expected) = match shard.arrival {
        Arrival::Complete => (shard.length(), shard.length()),
        Arrival::Partial { found, expected } => (Some(found), Some(expected)),
        Arrival::Absent => (None, None),
    };
    ShardState { name: shard.name.clone(), bytes, expected, complete: shard.arrival == Arrival::Complete }
}

/// Weights of the layers that every token reads in full.
const LAYER_GROUPS: [Group; 7] = [
    Group::Norms,
    Group::Attention,
    Group::Indexers,
    Group::Mixers,
    Group::Routers,
    Group::SharedExperts,
    Group::EngramProjections,
];

fn memory(trunk: &Trunk, amount: impl Fn(Group) -> Amount) -> Memory {
    let resident = LAYER_GROUPS.into_iter().chain([Group::Head, Group::HashTables]);
    let experts = (trunk.num_hidden_layers * trunk.n_routed_experts) as u64;
    let experts_bytes = amount(Group::RoutedExperts).bytes;
    Memory {
        resident_bytes: resident.map(|group| amount(group).bytes).sum(),
        experts_bytes,
        experts,
        expert_bytes: experts_bytes / experts.max(1),
        rows_bytes: amount(Group::Embedding).bytes + amount(Group::EngramTables).bytes,
    }
}

fn token(architecture: &Architecture, amount: impl Fn(Group) -> Amount, final_norm: Amount, memory: Memory) -> Token {
    let trunk = architecture.trunk();
    let chosen = (trunk.num_hidden_layers * trunk.num_experts_per_tok) as u64;
    let part = |whole: u64, of: u64| whole / of.max(1);
    let layer_parameters: u64 = LAYER_GROUPS.iter().map(|group| amount(*group).parameters).sum();
    let layer_bytes: u64 = LAYER_GROUPS.iter().map(|group| amount(*group).bytes).sum();
    let (head, routed) = (amount(Group::Head), amount(Group::RoutedExperts));
    let embedding_row = part(amount(Group::Embedding).bytes, trunk.vocab_size as u64);
    Token {
        // As the spec counts: without the final norm.
        active_parameters: layer_parameters - final_norm.parameters
            + head.parameters
            + chosen * part(routed.parameters, memory.experts),
        experts_bytes: chosen * memory.expert_bytes,
        layers_bytes: layer_bytes - final_norm.bytes,
        head_bytes: head.bytes + final_norm.bytes,
        rows_bytes: embedding_row + architecture.table_row_bytes(),
    }
}

fn caches(architecture: &Architecture) -> Vec<Cache> {
    let longest = architecture.trunk().max_position_embeddings as u64;
    let mut lengths: Vec<u64> = CONTEXTS.into_iter().filter(|tokens| *tokens < longest).collect();
    lengths.push(longest);
    let at = |tokens| Cache {
        tokens,
        stored_bytes: architecture.fixed_cache_bytes() + architecture.entry_cache_bytes(tokens),
        read_bytes: architecture.cache_read_bytes(tokens),
    };
    lengths.into_iter().map(at).collect()
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number with three or four digits and one of `units`, each a thousand times the one before.
fn scaled(number: u64, units: [&str; 5]) -> String {
    let mut value = number as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{number}{}", units[0]) } else { format!("{value:.1}{}", units[unit]) }
}

fn bytes(number: u64) -> String {
    scaled(number, [" bytes", " kB", " MB", " GB", " TB"])
}

fn parameters(number: u64) -> String {
    scaled(number, ["", " thousand", " million", " billion", " trillion"])
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.location, self.model_type)?;
        writeln!(
            f,
            "  {} parameters in {} tensors, {} ({} bytes) in {} shards",
            parameters(self.total.parameters),
            grouped(self.total.tensors),
            bytes(self.total.bytes),
            grouped(self.total.bytes),
            self.shards.len()
        )?;
        if let Some(declared) = self.declared_bytes.filter(|declared| *declared != self.total.bytes) {
            writeln!(f, "  the index says {} bytes", grouped(declared))?;
        }
        let abilities = [("text", true), ("vision", self.vision), ("draft", self.draft)];
        let able: Vec<&str> = abilities.iter().filter(|(_, able)| *able).map(|(name, _)| *name).collect();
        writeln!(
            f,
            "  {} layers, vocabulary {}, context up to {} tokens; can do: {}",
            self.layers,
            grouped(self.vocabulary as u64),
            grouped(self.max_context as u64),
            able.join(", ")
        )?;
        self.show_shards(f)?;
        writeln!(f, "\n  {:<28}{:>16}{:>14}{:>10}", "what for", "parameters", "size", "tensors")?;
        for GroupAmount { group, amount } in &self.groups {
            let (count, size) = (parameters(amount.parameters), bytes(amount.bytes));
            writeln!(f, "  {:<28}{count:>16}{size:>14}{:>10}", group.label(), grouped(amount.tensors))?;
        }
        writeln!(f, "\n  {:<28}{:>16}{:>14}{:>10}", "stored as", "", "size", "tensors")?;
        for DtypeAmount { dtype, amount } in &self.dtypes {
            let tensors = grouped(amount.tensors);
            writeln!(f, "  {:<28}{:>16}{:>14}{tensors:>10}", dtype.name(), "", bytes(amount.bytes))?;
        }
        self.show_use(f)
    }
}

impl Inspection {
    fn show_shards(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for shard in self.shards.iter().filter(|shard| !shard.complete) {
            match (shard.bytes, shard.expected) {
                (Some(found), Some(expected)) => {
                    writeln!(f, "  not complete: {}, {} of {}", shard.name, bytes(found), bytes(expected))?;
                }
                _ => writeln!(f, "  not there: {}", shard.name)?,
            }
        }
        Ok(())
    }

    fn show_use(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Memory { resident_bytes, experts_bytes, experts, expert_bytes, rows_bytes } = self.memory;
        writeln!(f, "\n  in memory always          {:>12}", bytes(resident_bytes))?;
        let (experts, one) = (grouped(experts), bytes(expert_bytes));
        writeln!(f, "  routed experts            {:>12}   {experts} of {one}", bytes(experts_bytes))?;
        let engram = if self.group(Group::EngramTables).tensors > 0 { " and Engram tables" } else { "" };
        writeln!(f, "  read by row               {:>12}   token embedding{engram}", bytes(rows_bytes))?;
        let token = &self.token;
        writeln!(
            f,
            "\n  one decoded token: {} active parameters, {} of weights ({} experts, {} layers, {} head, {} rows)",
            parameters(token.active_parameters),
            bytes(token.bytes()),
            bytes(token.experts_bytes),
            bytes(token.layers_bytes),
            bytes(token.head_bytes),
            bytes(token.rows_bytes)
        )?;
        for Cache { tokens, stored_bytes, read_bytes } in &self.cache {
            let (stored, read) = (bytes(*stored_bytes), bytes(*read_bytes));
            writeln!(f, "  cache at {:>9} tokens: {stored:>10}, of which a token reads {read}", grouped(*tokens))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            ["0", "999", "1,000", "510,286,023,000"],
            [0, 999, 1000, 510_286_023_000].map(grouped).each_ref().map(|text| text.as_str())
        );
        let texts = [0, 999, 1000, 18_800_640, 999_949_999, 999_960_000, 510_286_023_000, u64::MAX].map(bytes);
        assert_eq!(
            texts.each_ref().map(|text| text.as_str()),
            ["0 bytes", "999 bytes", "1.0 kB", "18.8 MB", "999.9 MB", "1.0 GB", "510.3 GB", "18446744.1 TB"]
        );
        assert_eq!(parameters(763_205_315_794), "763.2 billion");
    }
}
