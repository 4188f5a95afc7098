//! What was measured, for people and for programs.

use std::fmt;

use serde::Serialize;

/// One kernel on one matrix.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    /// The matrix.
    pub shape: String,
    /// How it is stored.
    pub format: &'static str,
    /// Outputs and inputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Tokens in the batch: 1 is a matrix-vector product.
    pub tokens: usize,
    /// Where the weights lie: `memory` or `cache`.
    pub weights: &'static str,
    /// Instruction set.
    pub isa: &'static str,
    /// `exact` or `fast`.
    pub arithmetic: &'static str,
    /// `GB/s` of weights, scales included, or `Gop/s`, two for a multiply-add.
    pub rate: f64,
    /// Its unit.
    pub unit: &'static str,
    /// Share of the ceiling measured just before, middle of all rounds: the plain read, or the float32 multiply-add peak.
    pub ratio: f64,
}

/// All measurements of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Threads that computed.
    pub threads: usize,
    /// Instruction sets measured.
    pub isas: Vec<&'static str>,
    /// Best float32 multiply-add rate of all instruction sets, Gop/s.
    pub multiply_add_peak: f64,
    /// Plain read from memory on all threads, best of all shapes, GB/s.
    pub read_memory: f64,
    /// The table.
    pub measurements: Vec<Measurement>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} threads; plain read {:.1} GB/s ({:.1} per thread); float32 multiply-add peak {:.0} Gop/s",
            self.threads,
            self.read_memory,
            self.read_memory / self.threads as f64,
            self.multiply_add_peak
        )?;
        writeln!(
            f,
            "{:<12} {:<5} {:>13} {:>6} {:<7} {:<12} {:<6} {:>14} {:>6}",
            "matrix", "format", "rows x cols", "tokens", "weights", "isa", "arith.", "rate", "ratio"
        )?;
        for m in &self.measurements {
            writeln!(
                f,
                "{:<12} {:<5} {:>13} {:>6} {:<7} {:<12} {:<6} {:>8.1} {:<5} {:>6.2}",
                m.shape,
                m.format,
                format!("{} x {}", m.rows, m.cols),
                m.tokens,
                m.weights,
                m.isa,
                m.arithmetic,
                m.rate,
                m.unit,
                m.ratio
            )?;
        }
        write!(
            f,
            "rate: best burst; ratio: middle of all rounds, of the plain read of the same bytes by the same threads just before\n(GB/s), or of the float32 multiply-add peak (Gop/s)"
        )
    }
}
