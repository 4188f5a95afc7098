//! `forward`: all logits and internal choices of a list of token ids, as a safetensors file for whoever checks us.
//!
//! Tensors: `logits` [T, V] f32; `experts` [L, T, K] i32 and `expert_weights` [L, T, K] f32; `engram_rows` [E, T, C] i64
//! where the model has Engram; `index_selection` [sources, T, index_topk] i32 where it has index sources; on request
//! `streams` [L + 1, T, S, D] f32. All positions, all layers: nothing is skipped or approximated.

use std::path::{Path, PathBuf};

use cachalot_model::{LogitsOf, Model, Segment, StepError, Trace, Workspace};
use safetensors::tensor::{Dtype, SafeTensorError, TensorView};

/// How positions are computed; every mode gives the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardMode {
    /// All positions in one step.
    Prefill,
    /// One position a step.
    Decode,
    /// This many positions a step.
    Chunk(usize),
}

impl std::str::FromStr for ForwardMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let chunk = |size: &str| size.parse().ok().filter(|&size| size > 0).map(Self::Chunk);
        match text {
            "prefill" => Ok(Self::Prefill),
            "decode" => Ok(Self::Decode),
            _ => text
                .strip_prefix("chunk=")
                .and_then(chunk)
                .ok_or_else(|| format!("'{text}' is no mode; use prefill, decode or chunk=N")),
        }
    }
}

/// What a forward pass computed.
#[derive(Debug)]
pub struct ForwardReport {
    tokens: usize,
    vocabulary: usize,
    top_k: usize,
    index_topk: usize,
    streams: [usize; 2],
    logits: Vec<f32>,
    trace: Trace,
}

/// Why a report could not be made or written.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Nothing to compute.
    #[error("the list of token ids is empty")]
    Empty,
    /// The model could not take a step.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: SafeTensorError,
    },
}

impl ForwardReport {
    /// Runs `ids` through `model` from an empty sequence; `streams` records the residual streams too.
    ///
    /// # Errors
    /// If there are no ids, or the model cannot take a step.
    pub fn run(
        model: &Model,
        ids: &[u32],
        mode: ForwardMode,
        streams: bool,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self, ForwardError> {
        if ids.is_empty() {
            return Err(ForwardError::Empty);
        }
        let chunk = match mode {
            ForwardMode::Prefill => ids.len(),
            ForwardMode::Decode => 1,
            ForwardMode::Chunk(size) => size.max(1),
        };
        let mut sequence = model.sequence();
        let (mut work, mut trace) = (Workspace::new(), Trace::new(streams));
        let mut logits = Vec::new();
        for tokens in ids.chunks(chunk) {
            let mut segments = [Segment { sequence: &mut sequence, tokens, embeddings: None, logits: LogitsOf::All }];
            logits.extend_from_slice(model.advance(&mut work, &mut segments, Some(&mut trace))?);
            progress(sequence.position());
        }
        let config = model.config();
        Ok(Self {
            tokens: ids.len(),
            vocabulary: config.vocab_size,
            top_k: config.num_experts_per_tok,
            index_topk: config.index_topk,
            streams: [config.hc_mult, config.hidden_size],
            logits,
            trace,
        })
    }

    /// `[tokens, vocabulary]`
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The internal choices.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Writes the report.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ForwardError> {
        let (trace, tokens) = (&self.trace, self.tokens);
        let mut tensors = vec![Tensor::f32("logits", [&*self.logits], vec![tokens, self.vocabulary])];
        let layers = |count: usize, rest: &[usize]| [&[count, tokens], rest].concat();
        let experts = layers(trace.experts.len(), &[self.top_k]);
        tensors.push(Tensor::i32("experts", &trace.experts, experts.clone()));
        tensors.push(Tensor::f32("expert_weights", trace.expert_weights.iter().map(Vec::as_slice), experts));
        if let Some(first) = trace.engram_rows.first() {
            let shape = layers(trace.engram_rows.len(), &[first.len() / tokens]);
            tensors.push(Tensor::new("engram_rows", Dtype::I64, &trace.engram_rows, shape, |id| id.to_le_bytes()));
        }
        if !trace.index_selection.is_empty() {
            let shape = layers(trace.index_selection.len(), &[self.index_topk]);
            tensors.push(Tensor::i32("index_selection", &trace.index_selection, shape));
        }
        if let Some(streams) = &trace.streams {
            let shape = layers(streams.len(), &self.streams);
            tensors.push(Tensor::f32("streams", streams.iter().map(Vec::as_slice), shape));
        }
        let write = || -> Result<(), SafeTensorError> {
            let views = tensors.iter().map(|tensor| Ok((tensor.name, tensor.view()?)));
            let views: Vec<_> = views.collect::<Result<_, SafeTensorError>>()?;
            safetensors::serialize_to_file(views, None, path)
        };
        write().map_err(|source| ForwardError::Write { path: path.to_owned(), source })
    }
}

/// One tensor of the file.
struct Tensor {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn new<'a, T: Copy + 'a, const N: usize>(
        name: &'static str,
        dtype: Dtype,
        parts: impl IntoIterator<Item = &'a Vec<T>>,
        shape: Vec<usize>,
        bytes: impl Fn(T) -> [u8; N],
    ) -> Self {
        let bytes = parts.into_iter().flatten().flat_map(|&value| bytes(value)).collect();
        Self { name, dtype, shape, bytes }
    }

    fn i32(name: &'static str, parts: &[Vec<i32>], shape: Vec<usize>) -> Self {
        Self::new(name, Dtype::I32, parts, shape, i32::to_le_bytes)
    }

    fn f32<'a>(name: &'static str, parts: impl IntoIterator<Item = &'a [f32]>, shape: Vec<usize>) -> Self {
        let bytes = parts.into_iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
        Self { name, dtype: Dtype::F32, shape, bytes }
    }

    fn view(&self) -> Result<TensorView<'_>, SafeTensorError> {
        TensorView::new(self.dtype, self.shape.clone(), &self.bytes)
    }
}
