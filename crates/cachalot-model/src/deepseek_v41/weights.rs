//! The weights that every token needs, in released precision; routed experts and table rows stay with their sources.
//!
//! Follows spec section 2.3. Matrices are `[out, in]`.

use cachalot_checkpoint::CheckpointError;
use cachalot_checkpoint::deepseek_v41::Config;
use cachalot_kernels::Matrix;

use crate::shared::stack;
use crate::shared::weights::{Attention, HyperConnection, Indexer, Reader, SharedExpert};

pub(super) struct Layer {
    pub engram: Option<Engram>,
    pub attention_site: HyperConnection,
    /// `[hidden]`
    pub attention_norm: Vec<f32>,
    pub attention: Attention,
    /// On KV sources.
    pub compressor: Option<Compressor>,
    /// On index sources.
    pub indexer: Option<Indexer>,
    pub ffn_site: HyperConnection,
    pub shared: SharedExpert,
}

pub(super) struct Compressor {
    /// `[head_dim, hidden]`
    pub wkv: Matrix,
    /// `[head_dim, hidden]`, at ratio 2.
    pub wgate: Option<Matrix>,
    /// `[head_dim]`
    pub norm: Vec<f32>,
    /// `[index_head_dim, head_dim]`
    pub wk: Matrix,
    /// `[index_head_dim]`
    pub k_norm: Vec<f32>,
}

/// What chooses a layer's experts. Always in memory: the layer before looks at it.
pub(super) struct Router {
    /// `[hidden]`
    pub norm: Vec<f32>,
    /// `[experts, hidden]`
    pub gate: Matrix,
    /// `[experts]`, for text tokens.
    pub bias: Vec<f32>,
    /// `[experts]`, for tokens of an image span.
    pub bias_vl: Vec<f32>,
}

pub(super) struct Engram {
    /// Which table, counted over the Engram layers.
    pub table: usize,
    /// `[(S + 1) * hidden, columns * engram_head_dim]`: keys of the `S` streams, then the shared value.
    pub wkv: Matrix,
    /// `q_weight * k_weight`, `[S, hidden]`.
    pub gate: Vec<f32>,
}

impl Layer {
    /// Reads layer `layer`; `reader` stands at its prefix.
    pub fn read(reader: &mut Reader, config: &Config, layer: usize) -> Result<Self, CheckpointError> {
        let plan = &config.layers[layer];
        Ok(Self {
            engram: plan.engram.map(|table| Engram::read(reader, table)).transpose()?,
            attention_site: reader.site("hc_attn")?,
            attention_norm: reader.vector("attn_norm.weight")?,
            attention: reader.attention()?,
            compressor: (plan.kv_source == Some(layer)).then(|| Compressor::read(reader, plan.ratio)).transpose()?,
            indexer: (plan.index_source == Some(layer)).then(|| reader.indexer()).transpose()?,
            ffn_site: reader.site("hc_ffn")?,
            shared: reader.shared_expert()?,
        })
    }
}

impl stack::Layer for Layer {
    fn matrices<'a>(&'a mut self, each: &mut dyn FnMut(&'static str, &'a mut Matrix)) {
        if let Some(engram) = &mut self.engram {
            each("engram.wkv", &mut engram.wkv);
        }
        self.attention.matrices(each);
        if let Some(compressor) = &mut self.compressor {
            each("attn.compressor.wkv", &mut compressor.wkv);
            if let Some(wgate) = &mut compressor.wgate {
                each("attn.compressor.wgate", wgate);
            }
            each("attn.indexer.wk", &mut compressor.wk);
        }
        if let Some(indexer) = &mut self.indexer {
            indexer.matrices(each);
        }
        self.shared.matrices(each);
    }
}

impl Router {
    /// Reads a layer's router; `reader` stands at its prefix.
    pub fn read(reader: &mut Reader) -> Result<Self, CheckpointError> {
        Ok(Self {
            norm: reader.vector("ffn_norm.weight")?,
            gate: reader.matrix("ffn.gate")?,
            bias: reader.vector("ffn.gate.bias")?,
            bias_vl: reader.vector("ffn.gate.bias_vl")?,
        })
    }
}

impl Compressor {
    fn read(reader: &mut Reader, ratio: usize) -> Result<Self, CheckpointError> {
        Ok(Self {
            wkv: reader.matrix("attn.compressor.wkv")?,
            wgate: (ratio > 1).then(|| reader.matrix("attn.compressor.wgate")).transpose()?,
            norm: reader.vector("attn.compressor.norm.weight")?,
            wk: reader.matrix("attn.indexer.wk")?,
            k_norm: reader.vector("attn.indexer.k_norm.weight")?,
        })
    }
}

impl Engram {
    fn read(reader: &mut Reader, table: usize) -> Result<Self, CheckpointError> {
        let wkv = reader.matrix("engram.wkv")?;
        let mut gate = reader.vector("engram.q_weight")?;
        gate.iter_mut().zip(reader.vector("engram.k_weight")?).for_each(|(q, k)| *q *= k);
        Ok(Self { table, wkv, gate })
    }
}
