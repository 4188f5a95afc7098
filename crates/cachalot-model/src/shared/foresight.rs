//! A guess of the experts that the next layer will ask for: its router on this layer's state.
//!
//! A guess decides what is read early and nothing else. Made for single tokens only: long chunks want nearly all experts.

use cachalot_kernels::{Activations, Compute, Matrix, Treatment, matmul_one, rms_norm};

use super::buffer::sized;
use super::experts::Routes;
use super::routing;

/// Reusable buffers of a guess.
#[derive(Default)]
pub struct Foresight {
    x: Vec<f32>,
    input: Activations,
    scores: Vec<f32>,
    routes: Routes,
}

/// The next layer's router.
pub struct Router<'a> {
    /// `[hidden]`
    pub norm: &'a [f32],
    /// `[experts, hidden]`
    pub gate: &'a Matrix,
    /// `[experts]`
    pub bias: &'a [f32],
    /// Experts per token.
    pub top_k: usize,
    /// `rms_norm_eps`
    pub eps: f32,
}

impl Foresight {
    /// The best of the experts that `router` chooses for `state` `[hidden]`, this layer's collapsed streams.
    pub fn guess(&mut self, compute: &Compute, state: &[f32], router: &Router) -> &[u32] {
        rms_norm(compute, state, router.norm, router.eps, sized(&mut self.x, state.len()));
        self.input.set(compute, &self.x, state.len(), Treatment::Float32);
        matmul_one(compute, router.gate, &self.input, sized(&mut self.scores, router.gate.rows()));
        routing::scores(&mut self.scores);
        self.routes.begin(router.top_k);
        self.routes.choose(&self.scores, router.bias, 1.0);
        // The best half, in descending order: the others are wrong too often to be worth a read.
        &self.routes.experts[..router.top_k.div_ceil(2)]
    }
}
