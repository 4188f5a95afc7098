//! The internal choices of a step, for whoever checks the engine.

/// What a step records when asked; rows are appended in the order of the tokens.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Per layer: chosen experts, `[tokens, top_k]`, descending by weight.
    pub experts: Vec<Vec<i32>>,
    /// Per layer: their weights, normalised and scaled.
    pub expert_weights: Vec<Vec<f32>>,
    /// Per Engram layer: table rows, `[tokens, columns]`, offsets included.
    pub engram_rows: Vec<Vec<i64>>,
    /// Per index source: selected compressed entries, `[tokens, index_topk]`, ascending, then -1.
    pub index_selection: Vec<Vec<i32>>,
    /// Per layer, and once more after the last: residual streams, `[tokens, streams, hidden]`; only if wanted.
    pub streams: Option<Vec<Vec<f32>>>,
}

impl Trace {
    /// An empty trace; `streams` asks for the residual streams too.
    pub fn new(streams: bool) -> Self {
        Self { streams: streams.then(Vec::new), ..Self::default() }
    }

    /// The list of `index`, made when first needed.
    pub(super) fn list<T>(lists: &mut Vec<Vec<T>>, index: usize) -> &mut Vec<T> {
        if lists.len() <= index {
            lists.resize_with(index + 1, Vec::new);
        }
        &mut lists[index]
    }
}
