//! A sublayer's input, prepared once for all matrices that read it.

use cachalot_kernels::{Activations, Compute, Treatment};

/// How the linear layers with FP8 and FP4 weights treat their inputs (issue of fidelity: the README states what each
/// costs and gains). All other arithmetic is float32 in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// Float32 inputs: the reference's float32 path.
    Exact,
    /// 16-bit integer inputs where that is faster.
    #[default]
    Fast,
    /// Inputs rounded to FP8 in groups of 32 (V4.1) or 128 (V4), as the vendor's kernels do; for comparison only.
    Vendor,
}

impl Arithmetic {
    /// What it means for an input that FP4 weights read too; `block` values share a scale in the vendor's kernels.
    pub(crate) fn treatment(self, block: usize) -> Treatment {
        match self {
            Self::Exact => Treatment::Float32,
            Self::Fast => Treatment::Int16,
            Self::Vendor => Treatment::Fp8 { block },
        }
    }
}

/// One input `[rows, columns]`, as float32 and as quantised layers want it.
#[derive(Default)]
pub struct Inputs {
    plain: Activations,
    rounded: Activations,
    separate: bool,
}

impl Inputs {
    /// Takes over `x`, rows of `columns` values.
    pub fn set(&mut self, compute: &Compute, x: &[f32], columns: usize, treatment: Treatment) {
        // Float32 values survive in every treatment but the vendor's.
        self.separate = matches!(treatment, Treatment::Fp8 { .. });
        if self.separate {
            self.plain.set(compute, x, columns, Treatment::Float32);
            self.rounded.set(compute, x, columns, treatment);
        } else {
            self.plain.set(compute, x, columns, treatment);
        }
    }

    /// For BF16 and F32 weights.
    pub fn plain(&self) -> &Activations {
        &self.plain
    }

    /// For FP8 and FP4 weights.
    pub fn quantised(&self) -> &Activations {
        if self.separate { &self.rounded } else { &self.plain }
    }
}
