//! The weights that every token needs, in released precision; routed experts and table rows stay with their sources.
//!
//! Follows spec section 2.3. Matrices are `[out, in]`.

use cachalot_checkpoint::deepseek_v41::Config;
use cachalot_checkpoint::{Checkpoint, CheckpointError};
use cachalot_kernels::Matrix;

/// The backbone without routed experts, embedding and Engram tables.
pub(super) struct Weights {
    pub layers: Vec<Layer>,
    /// `[hidden]`
    pub norm: Vec<f32>,
    /// `[vocabulary, hidden]`
    pub head: Matrix,
}

pub(super) struct Layer {
    pub engram: Option<Engram>,
    pub attention_site: HyperConnection,
    /// `[hidden]`
    pub attention_norm: Vec<f32>,
    pub attention: Attention,
    pub ffn_site: HyperConnection,
    /// `[hidden]`
    pub ffn_norm: Vec<f32>,
    pub moe: Moe,
}

/// Predictor of one site's stream coefficients, for `S` streams.
pub(super) struct HyperConnection {
    /// `[2 S + S^2, S * hidden]`
    pub function: Matrix,
    /// `[2 S + S^2]`
    pub base: Vec<f32>,
    /// `[3]`
    pub scale: Vec<f32>,
}

pub(super) struct Attention {
    /// `[q_lora_rank, hidden]`
    pub wq_a: Matrix,
    /// `[q_lora_rank]`
    pub q_norm: Vec<f32>,
    /// `[heads * head_dim, q_lora_rank]`
    pub wq_b: Matrix,
    /// `[head_dim, hidden]`
    pub wkv: Matrix,
    /// `[head_dim]`
    pub kv_norm: Vec<f32>,
    /// `[o_groups * o_lora_rank, heads / o_groups * head_dim]`
    pub wo_a: Matrix,
    /// `[hidden, o_groups * o_lora_rank]`
    pub wo_b: Matrix,
    /// `[heads]`
    pub sinks: Vec<f32>,
    /// On KV sources.
    pub compressor: Option<Compressor>,
    /// On index sources.
    pub indexer: Option<Indexer>,
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

pub(super) struct Indexer {
    /// `[index_n_heads * index_head_dim, q_lora_rank]`
    pub wq_b: Matrix,
    /// `[index_n_heads, hidden]`
    pub weights_proj: Matrix,
}

pub(super) struct Moe {
    /// `[experts, hidden]`
    pub gate: Matrix,
    /// `[experts]`, for text tokens.
    pub bias: Vec<f32>,
    /// `[experts]`, for tokens of an image span.
    pub bias_vl: Vec<f32>,
    pub shared: SharedExpert,
}

pub(super) struct SharedExpert {
    /// Gate branch, `[moe_intermediate, hidden]`.
    pub w1: Matrix,
    /// Up branch, `[moe_intermediate, hidden]`.
    pub w3: Matrix,
    /// Down, `[hidden, moe_intermediate]`.
    pub w2: Matrix,
}

pub(super) struct Engram {
    /// Which table, counted over the Engram layers.
    pub table: usize,
    /// `[(S + 1) * hidden, columns * engram_head_dim]`: keys of the `S` streams, then the shared value.
    pub wkv: Matrix,
    /// `q_weight * k_weight`, `[S, hidden]`.
    pub gate: Vec<f32>,
}

/// Reads tensors of one prefix.
struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    prefix: String,
    done: &'a mut dyn FnMut(usize),
}

impl Reader<'_> {
    fn matrix(&mut self, name: &str) -> Result<Matrix, CheckpointError> {
        self.named(&format!("{name}.weight"))
    }

    fn named(&mut self, name: &str) -> Result<Matrix, CheckpointError> {
        let matrix = self.checkpoint.matrix(&format!("{}{name}", self.prefix))?;
        (self.done)(matrix.bytes());
        Ok(matrix)
    }

    fn vector(&mut self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        self.checkpoint.vector(&format!("{}{name}", self.prefix))
    }

    fn layer(&mut self, config: &Config, layer: usize) -> Result<Layer, CheckpointError> {
        Ok(Layer {
            engram: self.engram(config, layer)?,
            attention_site: self.site("hc_attn")?,
            attention_norm: self.vector("attn_norm.weight")?,
            attention: self.attention(config, layer)?,
            ffn_site: self.site("hc_ffn")?,
            ffn_norm: self.vector("ffn_norm.weight")?,
            moe: Moe {
                gate: self.matrix("ffn.gate")?,
                bias: self.vector("ffn.gate.bias")?,
                bias_vl: self.vector("ffn.gate.bias_vl")?,
                shared: SharedExpert {
                    w1: self.matrix("ffn.shared_experts.w1")?,
                    w3: self.matrix("ffn.shared_experts.w3")?,
                    w2: self.matrix("ffn.shared_experts.w2")?,
                },
            },
        })
    }

    fn site(&mut self, name: &str) -> Result<HyperConnection, CheckpointError> {
        Ok(HyperConnection {
            function: self.named(&format!("{name}_fn"))?,
            base: self.vector(&format!("{name}_base"))?,
            scale: self.vector(&format!("{name}_scale"))?,
        })
    }

    fn attention(&mut self, config: &Config, layer: usize) -> Result<Attention, CheckpointError> {
        let role = &config.layers[layer];
        let compressor = if role.kv_source == Some(layer) {
            Some(Compressor {
                wkv: self.matrix("attn.compressor.wkv")?,
                wgate: if role.ratio > 1 { Some(self.matrix("attn.compressor.wgate")?) } else { None },
                norm: self.vector("attn.compressor.norm.weight")?,
                wk: self.matrix("attn.indexer.wk")?,
                k_norm: self.vector("attn.indexer.k_norm.weight")?,
            })
        } else {
            None
        };
        let indexer = if role.index_source == Some(layer) {
            Some(Indexer {
                wq_b: self.matrix("attn.indexer.wq_b")?,
                weights_proj: self.matrix("attn.indexer.weights_proj")?,
            })
        } else {
            None
        };
        Ok(Attention {
            wq_a: self.matrix("attn.wq_a")?,
            q_norm: self.vector("attn.q_norm.weight")?,
            wq_b: self.matrix("attn.wq_b")?,
            wkv: self.matrix("attn.wkv")?,
            kv_norm: self.vector("attn.kv_norm.weight")?,
            wo_a: self.matrix("attn.wo_a")?,
            wo_b: self.matrix("attn.wo_b")?,
            sinks: self.vector("attn.attn_sink")?,
            compressor,
            indexer,
        })
    }

    fn engram(&mut self, config: &Config, layer: usize) -> Result<Option<Engram>, CheckpointError> {
        let Some(table) = config.layers[layer].engram else { return Ok(None) };
        let wkv = self.matrix("engram.wkv")?;
        let mut gate = self.vector("engram.q_weight")?;
        gate.iter_mut().zip(self.vector("engram.k_weight")?).for_each(|(q, k)| *q *= k);
        Ok(Some(Engram { table, wkv, gate }))
    }
}

impl Weights {
    /// Reads all of them; `done` hears of the bytes of each matrix as it arrives.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &Config,
        done: &mut dyn FnMut(usize),
    ) -> Result<Self, CheckpointError> {
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let mut reader = Reader { checkpoint, prefix: format!("layers.{layer}."), done };
            layers.push(reader.layer(config, layer)?);
        }
        let mut reader = Reader { checkpoint, prefix: String::new(), done };
        Ok(Self { layers, norm: reader.vector("norm.weight")?, head: reader.matrix("head")? })
    }
}
