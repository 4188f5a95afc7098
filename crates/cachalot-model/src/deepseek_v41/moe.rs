//! The router and the mixture of experts of one layer (spec section 3.11).

use cachalot_experts::ExpertError;
use cachalot_kernels::matmul_one;
use cachalot_numerics::math;
use smallvec::SmallVec;

use super::Model;
use super::step::Workspace;
use super::trace::Trace;
use crate::shared::buffer::sized;
use crate::shared::experts::ExpertLayer;

impl Model {
    /// Replaces `work.y` by the experts' output for `work.x`, the normalised input of all rows.
    pub(super) fn moe(&self, layer: usize, work: &mut Workspace, trace: Option<&mut Trace>) -> Result<(), ExpertError> {
        let config = &self.config;
        let weights = &self.weights.layers[layer].moe;
        work.inputs.set(&self.compute, &work.x, config.hidden_size, self.arithmetic);
        sized(&mut work.router, work.rows.len() * config.n_routed_experts);
        matmul_one(&self.compute, &weights.gate, work.inputs.plain(), &mut work.router);
        self.route(layer, work);
        if let Some(trace) = trace {
            let experts = work.routes.experts.iter().map(|&expert| expert as i32);
            Trace::list(&mut trace.experts, layer).extend(experts);
            Trace::list(&mut trace.expert_weights, layer).extend_from_slice(&work.routes.weights);
        }
        let experts = ExpertLayer {
            layer,
            source: &*self.experts,
            shared: [&weights.shared.w1, &weights.shared.w3, &weights.shared.w2],
            limit: config.swiglu_limit,
            arithmetic: self.arithmetic,
        };
        sized(&mut work.y, work.rows.len() * config.hidden_size);
        work.experts.evaluate(&self.compute, &experts, &work.inputs, &work.routes, &mut work.y)
    }

    /// Chooses each row's experts by biased score and weighs them by the unbiased one.
    fn route(&self, layer: usize, work: &mut Workspace) {
        let config = &self.config;
        let weights = &self.weights.layers[layer].moe;
        let (count, top_k) = (config.n_routed_experts, config.num_experts_per_tok);
        let routes = &mut work.routes;
        routes.top_k = top_k;
        routes.experts.clear();
        routes.weights.clear();
        for (row, logits) in work.rows.iter().zip(work.router.chunks_exact_mut(count)) {
            logits.iter_mut().for_each(|logit| *logit = math::softplus(*logit).sqrt());
            let bias = if row.image { &weights.bias_vl } else { &weights.bias };
            let mut best = SmallVec::<[(f32, u32); 16]>::new();
            for (expert, (score, bias)) in logits.iter().zip(bias).enumerate() {
                let key = score + bias;
                // A later expert must beat an equal earlier one, so ties go to the lower id.
                let place = best.iter().position(|&(other, _)| key > other).unwrap_or(best.len());
                if place < top_k {
                    best.truncate(top_k - 1);
                    best.insert(place, (key, expert as u32));
                }
            }
            let score = |expert: u32| logits[expert as usize];
            best.sort_by(|&(_, a), &(_, b)| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
            let sum = best.iter().map(|&(_, expert)| score(expert)).sum::<f32>() + 1e-20;
            for &(_, expert) in &best {
                routes.experts.push(expert);
                routes.weights.push(score(expert) / sum * config.routed_scaling_factor);
            }
        }
    }
}
