//! The rates that a forecast needs, measured in a second or two: the kernels at a model's shapes, on all threads.

use std::sync::Arc;

use cachalot_checkpoint::{Group, Inspection, family::Trunk};
use cachalot_engine::planner::Rates;
use cachalot_kernels::{Compute, Format, MatrixError, Treatment};
use cachalot_runtime::Pool;

use crate::shapes::{AttentionTask, Shape};
use crate::{Contender, matrices, matrices_of, rate, run_all};

/// Weights that one burst reads, bytes: more than the caches hold.
const BURST_BYTES: usize = 96 << 20;
/// Bursts of each kind; the middle one counts, as a model runs for minutes and not for its best moment.
const BURSTS: usize = 5;
/// Times that a layer wakes the pool.
const WAKES_PER_LAYER: usize = 20;
/// Most operations of one prefill burst.
const BURST_OPERATIONS: usize = 6_000_000_000;

/// Measures for a model of these dimensions, as `threads` threads run it in steps of `chunk` tokens. The disk is the
/// caller's to add.
///
/// # Errors
/// If there is not the memory for a burst.
pub fn rates(
    trunk: &Trunk,
    inspection: &Inspection,
    fp8_block: [usize; 2],
    threads: usize,
    chunk: usize,
) -> Result<Rates, MatrixError> {
    let pool = Arc::new(Pool::new(threads));
    let compute = Compute::new(Arc::clone(&pool));
    let fp8 = Format::Fp8 { block: fp8_block };
    let (hidden, width) = (trunk.hidden_size, trunk.moe_intermediate_size);
    let shape = |name, format, rows, cols| Shape { name, format, rows, cols };
    let expert = shape("expert", Format::Fp4, width, hidden);
    let attention = shape("attention", fp8, trunk.num_attention_heads * trunk.head_dim, trunk.q_lora_rank);
    let head = shape("head", Format::Bf16, trunk.vocab_size.min(16_384), hidden);
    let mixer = shape("mixer", Format::F32, 24, trunk.hc_mult * hidden);
    let weights = |shape: &Shape, treatment| -> Result<f64, MatrixError> {
        middle_rate(&compute, &matrices(shape, BURST_BYTES)?, shape.cols, 1, treatment)
    };
    // Each expert sees its part of a step's tokens; everything else sees them all.
    let routed_tokens = (chunk * trunk.num_experts_per_tok / trunk.n_routed_experts).clamp(1, 64);
    let operations = |shape: &Shape, tokens: usize, treatment| -> Result<f64, MatrixError> {
        let per_matrix = 2 * shape.rows * shape.cols * tokens;
        let matrices = matrices_of(shape, (BURST_OPERATIONS / per_matrix).clamp(1, 4))?;
        let bytes = middle_rate(&compute, &matrices, shape.cols, tokens, treatment)?;
        Ok(bytes * per_matrix as f64 / matrices[0].bytes() as f64)
    };
    let routed = inspection.group(Group::RoutedExperts).parameters as f64 * trunk.num_experts_per_tok as f64
        / trunk.n_routed_experts as f64;
    let head_parameters = inspection.group(Group::Head).parameters as f64;
    let dense = (inspection.token.active_parameters as f64 - head_parameters - routed).max(0.0);
    let dense_rate = operations(&attention, chunk.min(64), Treatment::Float32)?;
    let routed_rate = operations(&expert, routed_tokens, Treatment::Int16)?;
    Ok(Rates {
        fp4: weights(&expert, Treatment::Int16)?,
        fp8: weights(&attention, Treatment::Float32)?,
        bf16: weights(&head, Treatment::Float32)?,
        f32: weights(&mixer, Treatment::Float32)?,
        operations: (dense + routed) / (dense / dense_rate + routed / routed_rate),
        layer: layer_seconds(&pool, trunk),
        disk: None,
    })
}

/// Bytes per second of products with `tokens` inputs, the middle of some bursts.
fn middle_rate(
    compute: &Compute,
    matrices: &[cachalot_kernels::Matrix],
    cols: usize,
    tokens: usize,
    treatment: Treatment,
) -> Result<f64, MatrixError> {
    let mut contender = Contender::new(compute.clone(), cols, tokens, treatment);
    let mut bursts: Vec<f64> = (0..BURSTS)
        .map(|_| {
            contender.best = 0.0;
            run_all(std::slice::from_mut(&mut contender), matrices, 1, |_| 0.0);
            contender.best * 1e9
        })
        .collect();
    bursts.sort_by(f64::total_cmp);
    Ok(bursts[BURSTS / 2])
}

/// Seconds of a layer besides its weights: waking the pool, and attention over window and selected keys.
fn layer_seconds(pool: &Arc<Pool>, trunk: &Trunk) -> f64 {
    let wakes = 200;
    let per_second = rate(|| {
        (0..wakes).for_each(|_| pool.run(pool.threads(), |_| ()));
        wakes as f64
    }) * 1e9;
    let keys = trunk.sliding_window;
    let task =
        AttentionTask { name: "window", index: false, heads: trunk.num_attention_heads, keys, dim: trunk.head_dim };
    let mut burst = task.prepare(&Compute::new(Arc::new(Pool::new(1))));
    let attention = 1.0
        / (rate(|| {
            burst();
            burst();
            2.0
        }) * 1e9);
    WAKES_PER_LAYER as f64 / per_second + attention / pool.threads() as f64
}
