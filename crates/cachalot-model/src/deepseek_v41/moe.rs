//! The router and the mixture of experts of one layer (spec section 3.11).

use cachalot_experts::{Certainty, ExpertError, ExpertSource};
use cachalot_kernels::matmul_one;

use super::Model;
use crate::shared::buffer::sized;
use crate::shared::experts::ExpertLayer;
use crate::shared::foresight::Router;
use crate::shared::routing;
use crate::shared::weights::SharedExpert;
use crate::step::Workspace;
use crate::trace::Trace;

impl Model {
    /// Replaces `work.y` by the experts' output for `work.x`, the normalised input of all rows; `next_rows` of them will
    /// pass through the next layer.
    pub(super) fn moe(
        &self,
        layer: usize,
        shared: &SharedExpert,
        next_rows: usize,
        work: &mut Workspace,
        trace: Option<&mut Trace>,
    ) -> Result<(), ExpertError> {
        let (config, trunk, weights) = (&self.config, &self.trunk, &self.routers[layer]);
        work.inputs.set(&trunk.compute, &work.x, config.hidden_size, trunk.routed);
        sized(&mut work.router, work.rows.len() * config.n_routed_experts);
        matmul_one(&trunk.compute, &weights.gate, work.inputs.plain(), &mut work.router);
        // Chosen by biased score, weighted by the unbiased one.
        work.routes.begin(config.num_experts_per_tok);
        for (row, logits) in work.rows.iter().zip(work.router.chunks_exact_mut(config.n_routed_experts)) {
            routing::scores(logits);
            let bias = if row.image { &weights.bias_vl } else { &weights.bias };
            work.routes.choose(logits, bias, config.routed_scaling_factor);
        }
        if let Some(trace) = trace {
            trace.record_routes(layer, &work.routes);
        }
        let experts = ExpertLayer {
            layer,
            source: &*self.experts,
            shared: [&shared.w1, &shared.w3, &shared.w2],
            limit: config.swiglu_limit,
            treatment: trunk.routed,
            experts: config.n_routed_experts,
            next_needs_all: next_rows * config.num_experts_per_tok >= config.n_routed_experts,
        };
        let (foresight, state, image) = (&mut work.foresight, &work.collapsed, work.rows[0].image);
        let mut foresee = |source: &dyn ExpertSource| {
            let Some(next) = self.routers.get(layer + 1) else { return };
            let router = Router {
                norm: &next.norm,
                gate: &next.gate,
                bias: if image { &next.bias_vl } else { &next.bias },
                top_k: config.num_experts_per_tok,
                eps: config.rms_norm_eps,
            };
            let guess = foresight.guess(&trunk.compute, &state[..config.hidden_size], &router);
            source.prefetch(layer + 1, &mut guess.iter().copied(), Certainty::Guess);
        };
        sized(&mut work.y, work.rows.len() * config.hidden_size);
        work.experts.evaluate(&trunk.compute, &experts, &work.inputs, &work.routes, &mut foresee, &mut work.y)
    }
}
