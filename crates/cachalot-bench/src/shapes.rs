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

/// A released model: what dominates its time.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    /// Its name on the command line.
    pub name: &'static str,
    /// Matrices; of the head a quarter.
    pub shapes: &'static [Shape],
    /// Attention, and index scores of a context of 16384 tokens.
    pub attention: &'static [AttentionTask],
}

/// All that can be measured.
pub const RELEASES: [Release; 3] = [
    Release { name: "v4-flash", shapes: V4_FLASH, attention: V4_FLASH_ATTENTION },
    Release { name: "v4-pro", shapes: V4_PRO, attention: V4_PRO_ATTENTION },
    Release { name: "v4.1-flash", shapes: V41_FLASH, attention: V41_ATTENTION },
];

/// V4.1's scales.
const FP8: Format = Format::Fp8 { block: [32, 32] };
/// V4's scales.
const FP8_WIDE: Format = Format::Fp8 { block: [128, 128] };

/// DeepSeek-V4-Flash (spec V4 section 2.3).
const V4_FLASH: &[Shape] = &[
    Shape { name: "experts.w1", format: Format::Fp4, rows: 2048, cols: 4096 },
    Shape { name: "experts.w2", format: Format::Fp4, rows: 4096, cols: 2048 },
    Shape { name: "attn.wq_b", format: FP8_WIDE, rows: 32768, cols: 1024 },
    Shape { name: "attn.wo_b", format: FP8_WIDE, rows: 4096, cols: 8192 },
    Shape { name: "attn.wq_a", format: FP8_WIDE, rows: 1024, cols: 4096 },
    Shape { name: "compressor", format: Format::Bf16, rows: 1024, cols: 4096 },
    Shape { name: "hc_fn", format: Format::F32, rows: 24, cols: 4 * 4096 },
    Shape { name: "head", format: Format::Bf16, rows: 129_280 / 4, cols: 4096 },
];

/// DeepSeek-V4-Pro.
const V4_PRO: &[Shape] = &[
    Shape { name: "experts.w1", format: Format::Fp4, rows: 3072, cols: 7168 },
    Shape { name: "experts.w2", format: Format::Fp4, rows: 7168, cols: 3072 },
    Shape { name: "attn.wq_b", format: FP8_WIDE, rows: 65536, cols: 1536 },
    Shape { name: "attn.wo_b", format: FP8_WIDE, rows: 7168, cols: 16384 },
    Shape { name: "attn.wq_a", format: FP8_WIDE, rows: 1536, cols: 7168 },
    Shape { name: "compressor", format: Format::Bf16, rows: 1024, cols: 7168 },
    Shape { name: "hc_fn", format: Format::F32, rows: 24, cols: 4 * 7168 },
    Shape { name: "head", format: Format::Bf16, rows: 129_280 / 4, cols: 7168 },
];

/// DeepSeek-V4.1-Flash (spec V4.1 section 2.3).
const V41_FLASH: &[Shape] = &[
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

/// DeepSeek-V4-Flash: a CSA layer, an HCA layer at a context of 131,072 tokens.
const V4_FLASH_ATTENTION: &[AttentionTask] = &[
    AttentionTask { name: "CSA", index: false, heads: 64, keys: 128 + 512, dim: 512 },
    AttentionTask { name: "HCA", index: false, heads: 64, keys: 128 + 1024, dim: 512 },
    AttentionTask { name: "index scores", index: true, heads: 64, keys: 16_384 / 4, dim: 128 },
];

/// DeepSeek-V4-Pro, likewise.
const V4_PRO_ATTENTION: &[AttentionTask] = &[
    AttentionTask { name: "CSA", index: false, heads: 128, keys: 128 + 1024, dim: 512 },
    AttentionTask { name: "HCA", index: false, heads: 128, keys: 128 + 1024, dim: 512 },
    AttentionTask { name: "index scores", index: true, heads: 64, keys: 16_384 / 4, dim: 128 },
];

/// DeepSeek-V4.1-Flash: window and selected keys of a layer; index keys of a context of 16384 tokens at ratio 1.
const V41_ATTENTION: &[AttentionTask] = &[
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
