//! The weights that every token needs, in released precision; routed experts and embedding stay with their sources.
//!
//! Follows spec section 2.3. Matrices are `[out, in]`.

use cachalot_checkpoint::CheckpointError;
use cachalot_checkpoint::deepseek_v4::{Config, Role, Routing};
use cachalot_kernels::Matrix;

use crate::shared::stack;
use crate::shared::weights::{Attention, HyperConnection, Indexer, Reader, SharedExpert};

pub(super) struct Layer {
    pub attention_site: HyperConnection,
    /// `[hidden]`
    pub attention_norm: Vec<f32>,
    pub attention: Attention,
    pub compressed: Option<Compressed>,
    pub ffn_site: HyperConnection,
    pub shared: SharedExpert,
}

/// How a layer compresses what lies before its window.
pub(super) struct Compressed {
    /// Number of its cache among those of a sequence.
    pub cache: usize,
    /// Of the entries.
    pub compressor: Compressor,
    /// CSA: what selects among the entries, and the compressor of its keys.
    pub indexer: Option<(Indexer, Compressor)>,
}

/// Pools groups of `m` tokens, in one series of `d` channels, or two (spec section 3.6).
pub(super) struct Compressor {
    /// `m`
    pub ratio: usize,
    /// Series; with two, the first one of a group goes into the next group's row.
    pub series: usize,
    /// `[series * d, hidden]`
    pub wkv: Matrix,
    /// `[series * d, hidden]`
    pub wgate: Matrix,
    /// Added to the gates by the token's place in its group, `[m, series * d]`.
    pub ape: Vec<f32>,
    /// `[d]`
    pub norm: Vec<f32>,
}

/// What chooses a layer's experts. Always in memory: the layer before looks at it.
pub(super) struct Router {
    /// `[hidden]`
    pub norm: Vec<f32>,
    /// `[experts, hidden]`
    pub gate: Matrix,
    pub choice: Choice,
}

/// How a token's experts are chosen.
pub(super) enum Choice {
    /// By token id, `[vocabulary, top_k]`.
    Table(Vec<u16>),
    /// By score plus this bias, `[experts]`.
    Scores(Vec<f32>),
}

impl Layer {
    /// Reads layer `layer`; `reader` stands at its prefix, `cache` is the number of its compressed cache, if any.
    pub fn read(reader: &mut Reader, config: &Config, layer: usize, cache: usize) -> Result<Self, CheckpointError> {
        let plan = &config.layers[layer];
        Ok(Self {
            attention_site: reader.site("hc_attn")?,
            attention_norm: reader.vector("attn_norm.weight")?,
            attention: reader.attention()?,
            compressed: Compressed::read(reader, plan.role, cache)?,
            ffn_site: reader.site("hc_ffn")?,
            shared: reader.shared_expert()?,
        })
    }

    /// What selects among its entries, with CSA.
    pub fn indexer(&self) -> Option<&(Indexer, Compressor)> {
        self.compressed.as_ref()?.indexer.as_ref()
    }
}

impl stack::Layer for Layer {
    fn matrices<'a>(&'a mut self, each: &mut dyn FnMut(&'static str, &'a mut Matrix)) {
        self.attention.matrices(each);
        if let Some(Compressed { compressor, indexer, .. }) = &mut self.compressed {
            each("attn.compressor.wkv", &mut compressor.wkv);
            each("attn.compressor.wgate", &mut compressor.wgate);
            if let Some((indexer, compressor)) = indexer {
                indexer.matrices(each);
                each("attn.indexer.compressor.wkv", &mut compressor.wkv);
                each("attn.indexer.compressor.wgate", &mut compressor.wgate);
            }
        }
        self.shared.matrices(each);
    }
}

impl Router {
    /// Reads the router of layer `layer`; `reader` stands at its prefix.
    pub fn read(reader: &mut Reader, config: &Config, layer: usize) -> Result<Self, CheckpointError> {
        Ok(Self {
            norm: reader.vector("ffn_norm.weight")?,
            gate: reader.matrix("ffn.gate")?,
            choice: match config.layers[layer].routing {
                Routing::Scored => Choice::Scores(reader.vector("ffn.gate.bias")?),
                Routing::Hashed => {
                    let name = format!("{}ffn.gate.tid2eid", reader.prefix);
                    Choice::Table(reader.checkpoint.token_experts(&name, config.n_routed_experts)?)
                }
            },
        })
    }
}

impl Compressed {
    fn read(reader: &mut Reader, role: Role, cache: usize) -> Result<Option<Self>, CheckpointError> {
        let (ratio, sparse) = (role.ratio(), role == Role::Csa);
        if role == Role::Sliding {
            return Ok(None);
        }
        Ok(Some(Self {
            cache,
            compressor: Compressor::read(reader, "attn.compressor", ratio, if sparse { 2 } else { 1 })?,
            indexer: if sparse {
                Some((reader.indexer()?, Compressor::read(reader, "attn.indexer.compressor", ratio, 2)?))
            } else {
                None
            },
        }))
    }
}

impl Compressor {
    fn read(reader: &mut Reader, name: &str, ratio: usize, series: usize) -> Result<Self, CheckpointError> {
        Ok(Self {
            ratio,
            series,
            wkv: reader.matrix(&format!("{name}.wkv"))?,
            wgate: reader.matrix(&format!("{name}.wgate"))?,
            ape: reader.vector(&format!("{name}.ape"))?,
            norm: reader.vector(&format!("{name}.norm.weight"))?,
        })
    }

    /// Channels of a pooled row.
    pub fn dim(&self) -> usize {
        self.norm.len()
    }

    /// Values, and gates, of one token.
    pub fn width(&self) -> usize {
        self.series * self.dim()
    }
}
