//! Which experts a token goes to (spec V4 section 3.9, V4.1 section 3.11).

use cachalot_numerics::math;
use smallvec::SmallVec;

use super::experts::Routes;

impl Routes {
    /// No rows yet, `top_k` experts each.
    pub fn begin(&mut self, top_k: usize) {
        self.top_k = top_k;
        self.experts.clear();
        self.weights.clear();
    }

    /// Adds a row that goes to the experts with the largest `scores` plus `bias`; ties go to the lower id.
    pub fn choose(&mut self, scores: &[f32], bias: &[f32], scaling: f32) {
        let mut best = SmallVec::<[(f32, u32); 16]>::new();
        for (expert, (score, bias)) in scores.iter().zip(bias).enumerate() {
            let key = score + bias;
            // A later expert must beat an equal earlier one.
            let place = best.iter().position(|&(other, _)| key > other).unwrap_or(best.len());
            if place < self.top_k {
                best.truncate(self.top_k - 1);
                best.insert(place, (key, expert as u32));
            }
        }
        let mut chosen: SmallVec<[u32; 16]> = best.into_iter().map(|(_, expert)| expert).collect();
        self.push(scores, &mut chosen, scaling);
    }

    /// Adds a row that goes to the experts `chosen`, distinct and `top_k` of them: in descending order of `scores`,
    /// weighted by their share of the chosen ones' scores times `scaling`.
    pub fn push(&mut self, scores: &[f32], chosen: &mut [u32], scaling: f32) {
        let score = |expert: u32| scores[expert as usize];
        chosen.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
        let sum = chosen.iter().map(|&expert| score(expert)).sum::<f32>() + 1e-20;
        for &expert in &*chosen {
            self.experts.push(expert);
            self.weights.push(score(expert) / sum * scaling);
        }
    }
}

/// Turns the router's logits into scores: the root of their softplus.
pub fn scores(logits: &mut [f32]) {
    logits.iter_mut().for_each(|logit| *logit = math::softplus(*logit).sqrt());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bias_chooses_and_scores_weigh() {
        let mut routes = Routes::default();
        routes.begin(2);
        routes.choose(&[1.0, 3.0, 2.0, 2.0], &[5.0, 0.0, 0.0, 0.0], 4.0);
        assert_eq!(routes.experts, [1, 0]);
        assert_eq!(routes.weights, [3.0, 1.0]);
        routes.choose(&[1.0, 2.0, 2.0, 2.0], &[0.0; 4], 1.0);
        assert_eq!(routes.experts[2..], [1, 2], "ties go to the lower id");
        routes.push(&[1.0, 3.0, 2.0, 2.0], &mut [0, 1], 4.0);
        assert_eq!((&routes.experts[4..], &routes.weights[4..]), (&[1, 0][..], &[3.0, 1.0][..]));
    }
}
