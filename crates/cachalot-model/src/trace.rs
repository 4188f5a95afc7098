//! The internal choices of a step, for whoever checks the engine.

use crate::shared::experts::Routes;
use crate::shared::selection::Selection;

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

    /// The streams as they enter layer `layer`, if they are wanted.
    pub(crate) fn record_streams(&mut self, layer: usize, values: &[f32]) {
        if let Some(streams) = &mut self.streams {
            Self::list(streams, layer).extend_from_slice(values);
        }
    }

    /// The experts of layer `layer`.
    pub(crate) fn record_routes(&mut self, layer: usize, routes: &Routes) {
        Self::list(&mut self.experts, layer).extend(routes.experts.iter().map(|&expert| expert as i32));
        Self::list(&mut self.expert_weights, layer).extend_from_slice(&routes.weights);
    }

    /// The choice of index source number `source`, filled up to `limit`.
    pub(crate) fn record_selection(&mut self, source: usize, selection: &Selection, limit: usize) {
        let list = Self::list(&mut self.index_selection, source);
        for row in 0..selection.rows() {
            let chosen = selection.of(row);
            list.extend(chosen.iter().map(|&id| id as i32));
            list.extend(std::iter::repeat_n(-1, limit - chosen.len()));
        }
    }

    /// The list of `index`, made when first needed.
    pub(crate) fn list<T>(lists: &mut Vec<Vec<T>>, index: usize) -> &mut Vec<T> {
        if lists.len() <= index {
            lists.resize_with(index + 1, Vec::new);
        }
        &mut lists[index]
    }
}
