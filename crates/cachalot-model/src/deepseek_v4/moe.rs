//! The router and the mixture of experts of one layer (spec section 3.9).

use cachalot_experts::ExpertError;
use cachalot_kernels::matmul_one;
use smallvec::SmallVec;

use super::Model;
use super::weights::Choice;
use crate::shared::buffer::sized;
use crate::shared::experts::ExpertLayer;
use crate::shared::routing;
use crate::step::Workspace;
use crate::trace::Trace;

impl Model {
    /// Replaces `work.y` by the experts' output for `work.x`, the normalised input of all rows.
    pub(super) fn moe(&self, layer: usize, work: &mut Workspace, trace: Option<&mut Trace>) -> Result<(), ExpertError> {
        let (config, trunk) = (&self.config, &self.trunk);
        let weights = &self.layers[layer].moe;
        let (top_k, scaling) = (config.num_experts_per_tok, config.routed_scaling_factor);
        work.inputs.set(&trunk.compute, &work.x, config.hidden_size, trunk.routed);
        sized(&mut work.router, work.rows.len() * config.n_routed_experts);
        matmul_one(&trunk.compute, &weights.gate, work.inputs.plain(), &mut work.router);
        work.routes.begin(top_k);
        for (row, logits) in work.rows.iter().zip(work.router.chunks_exact_mut(config.n_routed_experts)) {
            routing::scores(logits);
            match &weights.choice {
                Choice::Scores(bias) => work.routes.choose(logits, bias, scaling),
                Choice::Table(table) => {
                    let ids = &table[row.token as usize * top_k..][..top_k];
                    let mut ids: SmallVec<[u32; 16]> = ids.iter().map(|&id| u32::from(id)).collect();
                    work.routes.push(logits, &mut ids, scaling);
                }
            }
        }
        if let Some(trace) = trace {
            trace.record_routes(layer, &work.routes);
        }
        let experts = ExpertLayer {
            layer,
            source: &*self.experts,
            shared: [&weights.shared.w1, &weights.shared.w3, &weights.shared.w2],
            limit: config.swiglu_limit,
            treatment: trunk.routed,
            experts: config.n_routed_experts,
            next: Some(layer + 1).filter(|next| *next < self.layers.len()),
        };
        sized(&mut work.y, work.rows.len() * config.hidden_size);
        work.experts.evaluate(&trunk.compute, &experts, &work.inputs, &work.routes, &mut work.y)
    }
}
