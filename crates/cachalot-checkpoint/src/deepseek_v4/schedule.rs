//! What each layer does (spec sections 1.2 to 1.4), read from the released lists or from those of Transformers.

use super::Config;
use crate::family::{MAX_LAYERS, Trunk};
use crate::fields::Fields;

/// What a layer's attention sees beyond its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Nothing: the sliding window only (ratio 0).
    Sliding,
    /// Compressed sparse attention: the best compressed entries of 4 tokens, chosen by an indexer (ratio 4).
    Csa,
    /// Heavily compressed attention: all compressed entries of 128 tokens (ratio 128).
    Hca,
}

impl Role {
    const ALL: [Self; 3] = [Self::Sliding, Self::Csa, Self::Hca];

    /// Tokens per compressed entry; 0 without any.
    pub const fn ratio(self) -> usize {
        match self {
            Self::Sliding => 0,
            Self::Csa => 4,
            Self::Hca => 128,
        }
    }

    /// Transformers' name.
    const fn layer_type(self) -> &'static str {
        match self {
            Self::Sliding => "sliding_attention",
            Self::Csa => "compressed_sparse_attention",
            Self::Hca => "heavily_compressed_attention",
        }
    }
}

/// How a layer chooses a token's experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Routing {
    /// From a table, by the token's id.
    Hashed,
    /// By the router's scores.
    Scored,
}

impl Routing {
    const ALL: [Self; 2] = [Self::Hashed, Self::Scored];

    /// Transformers' name.
    const fn layer_type(self) -> &'static str {
        match self {
            Self::Hashed => "hash_moe",
            Self::Scored => "moe",
        }
    }
}

/// One layer of the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerPlan {
    /// Tokens per compressed entry: 4, 128, or 0 for a window-only layer.
    pub ratio: usize,
    /// What its attention does.
    pub role: Role,
    /// How it chooses experts.
    pub routing: Routing,
}

/// The plan of all layers, or `None` after noting what contradicts itself.
pub(super) fn plan(root: &Fields<'_>, trunk: &Trunk) -> Option<Vec<LayerPlan>> {
    let layers = trunk.num_hidden_layers;
    let roles = roles(root, layers)?;
    let routings = routings(root, layers)?;
    let plan = |(role, routing): (Role, Routing)| LayerPlan { ratio: role.ratio(), role, routing };
    Some(roles.into_iter().zip(routings).map(plan).collect())
}

/// `compress_ratios`, `layer_types`, or both if they say the same.
fn roles(root: &Fields<'_>, layers: usize) -> Option<Vec<Role>> {
    let rates = root.optional_object("compress_rates");
    for role in [Role::Csa, Role::Hca] {
        if let Some(rates) = &rates {
            rates.fixed(role.layer_type(), role.ratio());
        }
    }
    root.fixed("compress_rate_csa", Role::Csa.ratio());
    root.fixed("compress_rate_hca", Role::Hca.ratio());
    let named = named(root, "layer_types", layers, &Role::ALL.map(|role| (role.layer_type(), role)));
    if named.is_some() && root.optional("compress_ratios").is_none() {
        return named;
    }
    let ratios = root.integers("compress_ratios", 2 * MAX_LAYERS, 0..=usize::MAX);
    if !root.all_right() {
        return None;
    }
    // One entry more for an MTP block, three for the stages of DSpark (spec section 1.3).
    if ![layers, layers + 1, layers + 3].contains(&ratios.len()) {
        let reason = format!(
            "has {} entries for {layers} layers; {layers}, {} with an MTP block or {} with DSpark are possible",
            ratios.len(),
            layers + 1,
            layers + 3
        );
        root.wrong("compress_ratios", reason);
        return None;
    }
    let mut roles = Vec::with_capacity(layers);
    for (layer, ratio) in ratios.into_iter().enumerate() {
        match Role::ALL.into_iter().find(|role| role.ratio() == ratio) {
            Some(role) if layer < layers => roles.push(role),
            Some(Role::Sliding) => {}
            Some(_) => root.wrong("compress_ratios", format!("has ratio {ratio} at draft stage {}", layer - layers)),
            None => {
                root.wrong("compress_ratios", format!("has ratio {ratio} at layer {layer}; 0, 4 and 128 are known"))
            }
        }
    }
    if named.is_some_and(|named| named != roles) {
        root.wrong("layer_types", "contradicts compress_ratios");
    }
    root.all_right().then_some(roles)
}

/// `num_hash_layers`, `mlp_layer_types`, or both if they say the same.
fn routings(root: &Fields<'_>, layers: usize) -> Option<Vec<Routing>> {
    let named = named(root, "mlp_layer_types", layers, &Routing::ALL.map(|routing| (routing.layer_type(), routing)));
    if named.is_some() && root.optional("num_hash_layers").is_none() {
        return named;
    }
    let hashed = root.integer("num_hash_layers", 0..=layers);
    let routing = |layer| if layer < hashed { Routing::Hashed } else { Routing::Scored };
    let routings: Vec<_> = (0..layers).map(routing).collect();
    if named.is_some_and(|named| named != routings) {
        root.wrong("mlp_layer_types", "contradicts num_hash_layers");
    }
    root.all_right().then_some(routings)
}

/// A list that names something of `known` for each of the `layers`.
fn named<T: Copy>(root: &Fields<'_>, key: &str, layers: usize, known: &[(&str, T)]) -> Option<Vec<T>> {
    root.optional(key)?;
    let words = root.words(key, 2 * MAX_LAYERS, known);
    if root.all_right() && words.len() != layers {
        root.wrong(key, format!("has {} entries for {layers} layers", words.len()));
    }
    root.all_right().then_some(words)
}

impl Config {
    /// Layers that keep compressed entries, ascending.
    pub fn compressed(&self) -> impl Iterator<Item = (usize, &LayerPlan)> {
        self.layers.iter().enumerate().filter(|(_, plan)| plan.role != Role::Sliding)
    }
}
