//! The router and the mixture of experts of one layer (spec section 3.9).

use cachalot_experts::{Certainty, ExpertError, ExpertSource};
use cachalot_kernels::matmul_one;
use smallvec::SmallVec;

use super::Model;
use super::weights::Choice;
use crate::shared::buffer::sized;
use crate::shared::experts::ExpertLayer;
use crate::shared::foresight::Router;
use crate::shared::routing;
use crate::shared::weights::SharedExpert;
use crate::step::{Row, Workspace};
use crate::trace::Trace;

impl Model {
    /// Replaces `work.y` by the experts' output for `work.x`, the normalised input of all rows.
    pub(super) fn moe(
        &self,
        layer: usize,
        shared: &SharedExpert,
        work: &mut Workspace,
        trace: Option<&mut Trace>,
    ) -> Result<(), ExpertError> {
        let (config, trunk, router) = (&self.config, &self.trunk, &self.routers[layer]);
        let (top_k, scaling) = (config.num_experts_per_tok, config.routed_scaling_factor);
        work.inputs.set(&trunk.compute, &work.x, config.hidden_size, trunk.routed);
        sized(&mut work.router, work.rows.len() * config.n_routed_experts);
        matmul_one(&trunk.compute, &router.gate, work.inputs.plain(), &mut work.router);
        work.routes.begin(top_k);
        for (row, logits) in work.rows.iter().zip(work.router.chunks_exact_mut(config.n_routed_experts)) {
            routing::scores(logits);
            match &router.choice {
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
            shared: [&shared.w1, &shared.w3, &shared.w2],
            limit: config.swiglu_limit,
            treatment: trunk.routed,
            experts: config.n_routed_experts,
            next_needs_all: layer + 1 < self.layers.len() && work.rows.len() * top_k >= config.n_routed_experts,
        };
        let (foresight, state) = (&mut work.foresight, &work.collapsed);
        let mut foresee = |source: &dyn ExpertSource| {
            // What a table chooses is known already ([`Model::expect_experts`]).
            let Some(next) = self.routers.get(layer + 1) else { return };
            let Choice::Scores(bias) = &next.choice else { return };
            let router = Router { norm: &next.norm, gate: &next.gate, bias, top_k, eps: config.rms_norm_eps };
            let guess = foresight.guess(&trunk.compute, &state[..config.hidden_size], &router);
            source.prefetch(layer + 1, &mut guess.iter().copied(), Certainty::Guess);
        };
        sized(&mut work.y, work.rows.len() * config.hidden_size);
        work.experts.evaluate(&trunk.compute, &experts, &work.inputs, &work.routes, &mut foresee, &mut work.y)
    }

    /// Says which experts the layers that route by a table will ask for: the tokens alone decide it.
    pub(super) fn expect_experts(&self, work: &mut Workspace) {
        let top_k = self.config.num_experts_per_tok;
        for (layer, router) in self.routers.iter().enumerate() {
            if let Choice::Table(table) = &router.choice {
                let of_row = |row: &Row| &table[row.token as usize * top_k..][..top_k];
                let experts = &mut work.v4.expected;
                experts.clear();
                experts.extend(work.rows.iter().flat_map(of_row).map(|&id| u32::from(id)));
                experts.sort_unstable();
                experts.dedup();
                self.experts.prefetch(layer, &mut experts.iter().copied(), Certainty::Certain);
            }
        }
    }
}
