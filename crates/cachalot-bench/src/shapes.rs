//! What is measured: the matrices that dominate a released model, as data.

use cachalot_kernels::Format;

/// A matrix of a released model.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Its name in the checkpoint, shortened.
    pub name: &'static str,
    /// How it is stored.
    pub format: Format,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
}

const FP8: Format = Format::Fp8 { block: [32, 32] };

/// DeepSeek-V4.1-Flash (spec V4.1 section 2.3).
pub const V41_FLASH: &[Shape] = &[
    Shape { name: "experts.w1", format: Format::Fp4, rows: 2304, cols: 5120 },
    Shape { name: "experts.w2", format: Format::Fp4, rows: 5120, cols: 2304 },
    Shape { name: "attn.wq_b", format: FP8, rows: 32768, cols: 1280 },
    Shape { name: "attn.wo_b", format: FP8, rows: 5120, cols: 8192 },
    Shape { name: "attn.wq_a", format: FP8, rows: 1280, cols: 5120 },
    Shape { name: "head", format: Format::Bf16, rows: 129_280 / 4, cols: 5120 },
];

/// What one token's attention computes besides matrix products.
#[derive(Clone, Debug)]
pub struct AttentionTask {
    /// Its name.
    pub name: &'static str,
    /// Scores of packed index keys, or attention over decoded keys.
    pub index: bool,
    /// Heads.
    pub heads: usize,
    /// Keys.
    pub keys: usize,
    /// Elements of a head and of a key.
    pub dim: usize,
}

/// DeepSeek-V4.1-Flash: window and selected keys of a layer; index keys of a context of 16384 tokens.
pub const V41_ATTENTION: &[AttentionTask] = &[
    AttentionTask { name: "attention", index: false, heads: 64, keys: 640, dim: 512 },
    AttentionTask { name: "index scores", index: true, heads: 32, keys: 16_384, dim: 128 },
];

/// `fp4`, `fp8`, `bf16` or `f32`.
pub fn format_name(format: Format) -> &'static str {
    match format {
        Format::Fp4 => "fp4",
        Format::Fp8 { .. } => "fp8",
        Format::Bf16 => "bf16",
        Format::F32 => "f32",
    }
}
