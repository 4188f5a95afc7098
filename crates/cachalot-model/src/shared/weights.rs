//! The weights of the shared blocks, and how any are read: in released precision, by the names of the release.
//!
//! Matrices are `[out, in]`.

use cachalot_checkpoint::{Checkpoint, CheckpointError};
use cachalot_kernels::Matrix;

use super::stack::Layer;

/// Predictor of one site's stream coefficients, for `S` streams.
pub struct HyperConnection {
    /// `[2 S + S^2, S * hidden]`
    pub function: Matrix,
    /// `[2 S + S^2]`
    pub base: Vec<f32>,
    /// `[3]`
    pub scale: Vec<f32>,
}

/// What every attention layer has.
pub struct Attention {
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
}

/// Queries of the lightning indexer.
pub struct Indexer {
    /// `[index_n_heads * index_head_dim, q_lora_rank]`
    pub wq_b: Matrix,
    /// `[index_n_heads, hidden]`
    pub weights_proj: Matrix,
}

/// The expert that every token uses.
pub struct SharedExpert {
    /// Gate branch, `[moe_intermediate, hidden]`.
    pub w1: Matrix,
    /// Up branch, `[moe_intermediate, hidden]`.
    pub w3: Matrix,
    /// Down, `[hidden, moe_intermediate]`.
    pub w2: Matrix,
}

impl Layer for Attention {
    fn matrices<'a>(&'a mut self, each: &mut dyn FnMut(&'static str, &'a mut Matrix)) {
        each("attn.wq_a", &mut self.wq_a);
        each("attn.wq_b", &mut self.wq_b);
        each("attn.wkv", &mut self.wkv);
        each("attn.wo_a", &mut self.wo_a);
        each("attn.wo_b", &mut self.wo_b);
    }
}

impl Layer for Indexer {
    fn matrices<'a>(&'a mut self, each: &mut dyn FnMut(&'static str, &'a mut Matrix)) {
        each("attn.indexer.wq_b", &mut self.wq_b);
        each("attn.indexer.weights_proj", &mut self.weights_proj);
    }
}

impl Layer for SharedExpert {
    fn matrices<'a>(&'a mut self, each: &mut dyn FnMut(&'static str, &'a mut Matrix)) {
        each("ffn.shared_experts.w1", &mut self.w1);
        each("ffn.shared_experts.w3", &mut self.w3);
        each("ffn.shared_experts.w2", &mut self.w2);
    }
}

/// Reads tensors of one prefix.
pub struct Reader<'a> {
    /// Where they are.
    pub checkpoint: &'a Checkpoint,
    /// What their names begin with.
    pub prefix: String,
    /// Tensors that are not read now: each is an empty matrix.
    pub streamed: &'a [String],
    /// Hears of the bytes of each matrix as it arrives.
    pub done: &'a mut dyn FnMut(usize),
}

impl Reader<'_> {
    /// The matrix `name.weight`.
    pub fn matrix(&mut self, name: &str) -> Result<Matrix, CheckpointError> {
        self.named(&format!("{name}.weight"))
    }

    /// The matrix called `name`.
    pub fn named(&mut self, name: &str) -> Result<Matrix, CheckpointError> {
        let name = format!("{}{name}", self.prefix);
        if self.streamed.contains(&name) {
            return Ok(Matrix::empty());
        }
        let matrix = self.checkpoint.matrix(&name)?;
        (self.done)(matrix.bytes());
        Ok(matrix)
    }

    /// The BF16 or F32 tensor called `name`.
    pub fn vector(&mut self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        self.checkpoint.vector(&format!("{}{name}", self.prefix))
    }

    /// The site `hc_attn`, `hc_ffn` or `hc_head`.
    pub fn site(&mut self, name: &str) -> Result<HyperConnection, CheckpointError> {
        Ok(HyperConnection {
            function: self.named(&format!("{name}_fn"))?,
            base: self.vector(&format!("{name}_base"))?,
            scale: self.vector(&format!("{name}_scale"))?,
        })
    }

    /// What every attention layer has.
    pub fn attention(&mut self) -> Result<Attention, CheckpointError> {
        Ok(Attention {
            wq_a: self.matrix("attn.wq_a")?,
            q_norm: self.vector("attn.q_norm.weight")?,
            wq_b: self.matrix("attn.wq_b")?,
            wkv: self.matrix("attn.wkv")?,
            kv_norm: self.vector("attn.kv_norm.weight")?,
            wo_a: self.matrix("attn.wo_a")?,
            wo_b: self.matrix("attn.wo_b")?,
            sinks: self.vector("attn.attn_sink")?,
        })
    }

    /// Queries of the indexer.
    pub fn indexer(&mut self) -> Result<Indexer, CheckpointError> {
        Ok(Indexer { wq_b: self.matrix("attn.indexer.wq_b")?, weights_proj: self.matrix("attn.indexer.weights_proj")? })
    }

    /// The shared expert.
    pub fn shared_expert(&mut self) -> Result<SharedExpert, CheckpointError> {
        Ok(SharedExpert {
            w1: self.matrix("ffn.shared_experts.w1")?,
            w3: self.matrix("ffn.shared_experts.w3")?,
            w2: self.matrix("ffn.shared_experts.w2")?,
        })
    }
}
