//! What each layer does (spec section 1.5), derived from the lists of the config and checked against each other.

use super::Config;
use crate::family::MAX_LAYERS;
use crate::fields::Fields;

/// What a layer's attention does beyond its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Nothing: the sliding window only.
    Window,
    /// Compresses its own entries and index keys, and selects from them.
    Owner,
    /// Reads another layer's entries at another layer's selection.
    Reuse,
    /// Reads another layer's entries at a selection of its own.
    Reindex,
}

/// One layer of the schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerPlan {
    /// Tokens per compressed entry: 1 or 2, or 0 for a window-only layer.
    pub ratio: usize,
    /// What it does.
    pub role: Role,
    /// The layer whose compressed entries and index keys it reads; itself for an owner.
    pub kv_source: Option<usize>,
    /// The layer whose selection it uses; itself for owners and reindex layers.
    pub index_source: Option<usize>,
    /// Whether it publishes the blocks that restrict later selections.
    pub is_candidate_source: bool,
    /// The layer whose candidate blocks restrict its own selection.
    pub candidates_from: Option<usize>,
    /// Which Engram table it reads before its block.
    pub engram: Option<usize>,
}

/// The plan of all layers, or `None` after noting what contradicts itself.
pub(super) fn plan(text: &Fields<'_>, config: &Config) -> Option<Vec<LayerPlan>> {
    let count = config.num_hidden_layers;
    let stages = config.dspark.as_ref().map_or(0, |dspark| dspark.stages);
    let ratios = text.integers("compress_ratios", 2 * MAX_LAYERS, 0..=2);
    let kv_sources = source_list(text, "kv_source_layer_ids", count);
    let index_sources = source_list(text, "index_source_layer_ids", count);
    if !text.all_right() {
        return None;
    }
    if ratios.len() < count + stages {
        let reason = format!("has {} entries for {count} layers and {stages} draft stages", ratios.len());
        text.wrong("compress_ratios", reason);
        return None;
    }
    let mut right = true;
    let mut wrong = |key: &str, reason: String| {
        text.wrong(key, reason);
        right = false;
    };
    if let Some(stage) = (count..count + stages).find(|stage| ratios[*stage] != 0) {
        wrong("compress_ratios", format!("has ratio {} at draft stage {}", ratios[stage], stage - count));
    }
    for source in &kv_sources {
        if !index_sources.contains(source) {
            wrong("index_source_layer_ids", format!("lacks layer {source}, which is a KV source"));
        }
        if ratios[*source] == 0 {
            wrong("kv_source_layer_ids", format!("has layer {source}, whose compress ratio is 0"));
        }
    }
    for source in index_sources.iter().filter(|source| ratios[**source] == 0) {
        wrong("index_source_layer_ids", format!("has layer {source}, whose compress ratio is 0"));
    }
    let candidates = config.candidate_source_layer_id;
    if let Some(source) = candidates.filter(|source| !kv_sources.contains(source)) {
        wrong("candidate_source_layer_id", format!("is layer {source}, which is no KV source"));
    }
    let mut layers = Vec::with_capacity(count);
    for (layer, ratio) in ratios.into_iter().take(count).enumerate() {
        let latest = |list: &[usize]| list.iter().copied().rfind(|source| *source <= layer);
        let engram = config.engram.as_ref().and_then(|engram| engram.layer_ids.iter().position(|id| *id == layer));
        let mut plan = LayerPlan {
            ratio,
            role: Role::Window,
            kv_source: None,
            index_source: None,
            is_candidate_source: candidates == Some(layer),
            candidates_from: None,
            engram,
        };
        if ratio != 0 {
            let source = latest(&kv_sources);
            let source_ratio =
                source.and_then(|source| layers.get(source)).map_or(ratio, |plan: &LayerPlan| plan.ratio);
            let Some(source) = source.filter(|_| source_ratio == ratio) else {
                wrong(
                    "kv_source_layer_ids",
                    format!("has no source for layer {layer}: the latest before it must have ratio {ratio}"),
                );
                return None;
            };
            // Between a KV source, which selects for itself, and the next one, every selection is from its entries.
            plan.kv_source = Some(source);
            plan.index_source = latest(&index_sources).filter(|selector| *selector >= source);
            plan.role = match (source == layer, plan.index_source == Some(layer)) {
                (true, _) => Role::Owner,
                (false, true) => Role::Reindex,
                (false, false) => Role::Reuse,
            };
            plan.candidates_from = candidates.filter(|from| plan.role == Role::Reindex && *from == source);
        }
        layers.push(plan);
    }
    right.then_some(layers)
}

/// A list of layers, which must ascend.
fn source_list(text: &Fields<'_>, key: &str, layers: usize) -> Vec<usize> {
    let list = text.integers(key, layers, 0..=layers - 1);
    if !list.is_sorted_by(|a, b| a < b) {
        text.wrong(key, "is not ascending");
    }
    list
}
