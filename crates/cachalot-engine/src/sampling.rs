//! From logits to a token: penalties, temperature, filters, a seeded draw, and log-probabilities.
//!
//! The order is the field's: penalties, temperature, top-k, top-p, min-p. Log-probabilities are of the model's own
//! distribution, before any of these. The same seed, parameters and logits give the same token on every machine.

use std::collections::HashMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// 0 takes the most likely token; 1 is the model's own distribution. `[0, 2]`
    pub temperature: f64,
    /// Only this many of the most likely tokens; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability. `(0, 1]`
    pub top_p: f64,
    /// Only tokens at least this likely, relative to the most likely. `[0, 1]`
    pub min_p: f64,
    /// Divides (or multiplies) positive (negative) logits of every token seen, prompt included; 1 does nothing.
    pub repetition_penalty: f64,
    /// Subtracted once from the logit of every token generated. `[-2, 2]`
    pub presence_penalty: f64,
    /// Subtracted from a token's logit for every time it was generated. `[-2, 2]`
    pub frequency_penalty: f64,
    /// Start of the random numbers.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

/// Why a token could not be sampled.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SamplingError {
    /// A parameter outside its range.
    #[error("{name} is {value}; it must be {range}")]
    OutOfRange {
        /// The parameter.
        name: &'static str,
        /// What was given.
        value: f64,
        /// What is allowed.
        range: &'static str,
    },
    /// Logits that are no numbers: a damaged model.
    #[error("the model's logits are not finite; its weights may be damaged")]
    NotFinite,
}

impl SamplingParams {
    /// Checks every parameter.
    ///
    /// # Errors
    /// Names the first one outside its range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let check = |name, value: f64, ok: bool, range| {
            if ok { Ok(()) } else { Err(SamplingError::OutOfRange { name, value, range }) }
        };
        let between = |value: f64, low: f64, high: f64| (low..=high).contains(&value);
        check("temperature", self.temperature, between(self.temperature, 0.0, 2.0), "between 0 and 2")?;
        check("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1")?;
        check("min_p", self.min_p, between(self.min_p, 0.0, 1.0), "between 0 and 1")?;
        let penalty = self.repetition_penalty;
        check("repetition_penalty", penalty, penalty > 0.0 && penalty <= 10.0, "above 0 and at most 10")?;
        check(
            "presence_penalty",
            self.presence_penalty,
            between(self.presence_penalty, -2.0, 2.0),
            "between -2 and 2",
        )?;
        check(
            "frequency_penalty",
            self.frequency_penalty,
            between(self.frequency_penalty, -2.0, 2.0),
            "between -2 and 2",
        )
    }
}

/// A token's log-probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogProb {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f64,
}

/// Which tokens may be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// All but these.
    AllBut(Vec<u32>),
    /// Those whose bits are set: bit `id % 32` of number `id / 32`.
    Only(Vec<u32>),
}

impl Allowed {
    /// Whether `id` may be chosen.
    pub fn contains(&self, id: u32) -> bool {
        match self {
            Self::AllBut(ids) => !ids.contains(&id),
            Self::Only(bits) => bits.get(id as usize / 32).is_some_and(|bits| bits >> (id % 32) & 1 == 1),
        }
    }
}

/// Draws the tokens of one answer.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
    /// Tokens seen: how often each was generated (0: in the prompt only).
    seen: HashMap<u32, u32>,
    /// A token that only a prompt may hold.
    forbidden: Option<u32>,
    /// Tokens still in play, most likely first once sorted.
    candidates: Vec<(f64, u32)>,
}

impl Sampler {
    /// A sampler for an answer to `prompt`.
    ///
    /// # Errors
    /// If a parameter is outside its range.
    pub fn new(params: SamplingParams, prompt: &[u32]) -> Result<Self, SamplingError> {
        params.validate()?;
        let rng = ChaCha8Rng::seed_from_u64(params.seed);
        // Without a repetition penalty the prompt does not matter.
        let prompt = if params.repetition_penalty == 1.0 { &[][..] } else { prompt };
        let seen = prompt.iter().map(|&id| (id, 0)).collect();
        Ok(Self { params, rng, seen, forbidden: None, candidates: Vec::new() })
    }

    /// Never chooses `id`, however likely: the placeholder of an image, behind which a model cannot go on.
    #[must_use]
    pub fn forbid(mut self, id: Option<u32>) -> Self {
        self.forbidden = id;
        self
    }

    /// Chooses the next token from its `logits` `[vocabulary]`.
    ///
    /// # Errors
    /// If a logit is no number or none is finite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SamplingError> {
        self.sample_among(logits, &Allowed::AllBut(Vec::new()))?.ok_or(SamplingError::NotFinite)
    }

    /// Chooses the next token among those `allowed`; none if no token is. All parameters apply to what is allowed.
    ///
    /// # Errors
    /// If a logit is no number or none is finite.
    pub fn sample_among(&mut self, logits: &[f32], allowed: &Allowed) -> Result<Option<u32>, SamplingError> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return Err(SamplingError::NotFinite);
        }
        self.candidates.clear();
        self.candidates.extend(logits.iter().enumerate().map(|(id, &logit)| (f64::from(logit), id as u32)));
        self.penalise();
        if !self.candidates.iter().any(|(logit, _)| logit.is_finite()) {
            return Err(SamplingError::NotFinite);
        }
        self.rule_out(allowed);
        let best = self.candidates.iter().copied().reduce(|a, b| if b.0 > a.0 { b } else { a });
        let Some((max, best)) = best.filter(|(max, _)| *max > f64::NEG_INFINITY) else { return Ok(None) };
        if !max.is_finite() {
            return Err(SamplingError::NotFinite);
        }
        let id = if self.params.temperature == 0.0 { best } else { self.draw(max) };
        *self.seen.entry(id).or_default() += 1;
        Ok(Some(id))
    }

    fn rule_out(&mut self, allowed: &Allowed) {
        let forbidden = self.forbidden.as_slice();
        let ids = match allowed {
            Allowed::AllBut(ids) => ids.as_slice(),
            Allowed::Only(_) => {
                self.candidates.retain(|(_, id)| allowed.contains(*id) && !forbidden.contains(id));
                return;
            }
        };
        for id in ids.iter().chain(forbidden) {
            if let Some((logit, _)) = self.candidates.get_mut(*id as usize) {
                *logit = f64::NEG_INFINITY;
            }
        }
    }

    fn penalise(&mut self) {
        let params = &self.params;
        for (&id, &count) in &self.seen {
            let Some((logit, _)) = self.candidates.get_mut(id as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / params.repetition_penalty } else { *logit * params.repetition_penalty };
            if count > 0 {
                *logit -= params.presence_penalty + params.frequency_penalty * f64::from(count);
            }
        }
    }

    /// Draws one of the candidates that the filters leave; `max` is their largest logit.
    fn draw(&mut self, max: f64) -> u32 {
        let params = &self.params;
        for (value, _) in &mut self.candidates {
            *value = libm::exp((*value - max) / params.temperature);
        }
        let vocabulary = self.candidates.len();
        let keep = if params.top_k == 0 { vocabulary } else { params.top_k.min(vocabulary) };
        let likelier = |a: &(f64, u32), b: &(f64, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if keep < vocabulary {
            self.candidates.select_nth_unstable_by(keep - 1, likelier);
            self.candidates.truncate(keep);
        }
        if params.top_p < 1.0 {
            self.candidates.sort_unstable_by(likelier);
            let total: f64 = self.candidates.iter().map(|(weight, _)| weight).sum();
            let mut reached = 0.0;
            let enough = self.candidates.iter().position(|(weight, _)| {
                reached += weight;
                reached >= params.top_p * total
            });
            self.candidates.truncate(enough.map_or(vocabulary, |index| index + 1));
        }
        // The most likely candidate has weight 1.
        self.candidates.retain(|&(weight, _)| weight > 0.0 && weight >= params.min_p);
        // Summed in the order of ids: the order that selection left is nobody's promise.
        self.candidates.sort_unstable_by_key(|&(_, id)| id);
        let total: f64 = self.candidates.iter().map(|(weight, _)| weight).sum();
        let mut rest = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * total;
        for &(weight, id) in &self.candidates {
            rest -= weight;
            if rest < 0.0 {
                return id;
            }
        }
        // Rounding may leave a crumb behind the last one.
        self.candidates.last().map_or(0, |&(_, id)| id)
    }
}

/// A seed for an answer that nobody chose one for: 32 bits, so that it can be read out and typed again.
pub fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library's hash keys come from the system's random numbers.
    std::collections::hash_map::RandomState::new().build_hasher().finish() & u64::from(u32::MAX)
}

/// Log-probabilities under the model's own distribution: of token `id`, and of the `top` most likely, best first.
pub fn logprobs(logits: &[f32], id: u32, top: usize) -> (LogProb, Vec<LogProb>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| libm::exp(f64::from(logit) - f64::from(max))).sum();
    let norm = f64::from(max) + libm::log(sum);
    let of = |id: u32| {
        let logit = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        LogProb { id, logprob: f64::from(logit) - norm }
    };
    if top == 0 {
        return (of(id), Vec::new());
    }
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if top < ids.len() {
        ids.select_nth_unstable_by(top, likelier);
        ids.truncate(top);
    }
    ids.sort_unstable_by(likelier);
    (of(id), ids.into_iter().map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(change: impl FnOnce(&mut SamplingParams)) -> Sampler {
        let mut params = SamplingParams::default();
        change(&mut params);
        Sampler::new(params, &[]).unwrap()
    }

    /// How often each of four tokens is drawn in 4,000 draws.
    fn histogram(mut sampler: Sampler, logits: &[f32]) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        for _ in 0..4000 {
            sampler.seen.clear();
            counts[sampler.sample(logits).unwrap() as usize] += 1;
        }
        counts
    }

    /// Probabilities 0.5, 0.25, 0.125, 0.125.
    const LOGITS: [f32; 4] =
        [0.0, -std::f32::consts::LN_2, -2.0 * std::f32::consts::LN_2, -2.0 * std::f32::consts::LN_2];

    #[test]
    fn draws_follow_the_distribution() {
        let counts = histogram(sampler(|_| ()), &LOGITS);
        for (count, expected) in counts.iter().zip([2000.0, 1000.0, 500.0, 500.0]) {
            assert!((*count as f64 - expected).abs() < 150.0, "{counts:?}");
        }
        let cold = histogram(sampler(|params| params.temperature = 0.5), &LOGITS);
        assert!((cold[0] as f64 - 4000.0 * 16.0 / 22.0).abs() < 150.0, "{cold:?}");
    }

    #[test]
    fn filters_leave_the_likely_tokens() {
        let only = |counts: Vec<usize>| counts.iter().map(|&count| count > 0).collect::<Vec<_>>();
        assert_eq!(only(histogram(sampler(|params| params.top_k = 2), &LOGITS)), [true, true, false, false]);
        assert_eq!(only(histogram(sampler(|params| params.top_k = 3), &LOGITS)), [true, true, true, false]);
        assert_eq!(only(histogram(sampler(|params| params.top_p = 0.6), &LOGITS)), [true, true, false, false]);
        assert_eq!(only(histogram(sampler(|params| params.top_p = 0.01), &LOGITS)), [true, false, false, false]);
        assert_eq!(only(histogram(sampler(|params| params.min_p = 0.4), &LOGITS)), [true, true, false, false]);
        assert_eq!(only(histogram(sampler(|params| params.temperature = 0.0), &LOGITS)), [true, false, false, false]);
    }

    #[test]
    fn only_what_is_allowed_is_chosen_whatever_the_parameters() {
        let only = |ids: &[u32]| Allowed::Only(vec![ids.iter().fold(0, |bits, id| bits | 1 << id)]);
        let changes: [fn(&mut SamplingParams); 6] = [
            |_| (),
            |params| params.temperature = 0.0,
            |params| params.top_k = 1,
            |params| params.top_p = 0.1,
            |params| params.min_p = 1.0,
            |params| params.presence_penalty = 2.0,
        ];
        for change in changes {
            let mut sampler = sampler(change);
            for _ in 0..50 {
                assert_eq!(sampler.sample_among(&LOGITS, &only(&[2])), Ok(Some(2)));
                assert_ne!(sampler.sample_among(&LOGITS, &Allowed::AllBut(vec![0])), Ok(Some(0)));
            }
        }
        let mut sampler = sampler(|_| ()).forbid(Some(3));
        assert_eq!(sampler.sample_among(&LOGITS, &only(&[])), Ok(None));
        assert_eq!(sampler.sample_among(&LOGITS, &only(&[3])), Ok(None));
        assert_eq!(sampler.sample_among(&[f32::NAN, 0.0], &only(&[1])), Err(SamplingError::NotFinite));
    }

    #[test]
    fn what_is_allowed_keeps_its_proportions() {
        let mut sampler = sampler(|_| ());
        let mut counts = [0; 4];
        for _ in 0..4000 {
            counts[sampler.sample_among(&LOGITS, &Allowed::Only(vec![0b0110])).unwrap().unwrap() as usize] += 1;
            sampler.seen.clear();
        }
        assert!(counts[0] + counts[3] == 0 && (counts[1] as f64 - 4000.0 * 2.0 / 3.0).abs() < 150.0, "{counts:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let draw = |seed| {
            let mut sampler = sampler(|params| params.seed = seed);
            (0..50).map(|_| sampler.sample(&LOGITS).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn penalties_push_tokens_away() {
        let greedy = |change: fn(&mut SamplingParams), prompt: &[u32]| {
            let mut params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
            change(&mut params);
            let mut sampler = Sampler::new(params, prompt).unwrap();
            (0..3).map(|_| sampler.sample(&[1.0, 0.9, 0.2]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(greedy(|_| (), &[0]), [0, 0, 0]);
        assert_eq!(greedy(|params| params.repetition_penalty = 2.0, &[0]), [1, 0, 0]);
        assert_eq!(greedy(|params| params.presence_penalty = 0.5, &[0]), [0, 1, 0]);
        assert_eq!(greedy(|params| params.frequency_penalty = 0.45, &[]), [0, 1, 0]);
    }

    #[test]
    fn a_forbidden_token_is_never_chosen() {
        for temperature in [0.0, 2.0] {
            let counts = histogram(sampler(|params| params.temperature = temperature).forbid(Some(0)), &LOGITS);
            assert_eq!(counts[0], 0);
            assert_eq!(counts.iter().sum::<usize>(), 4000);
        }
        assert_eq!(sampler(|_| ()).forbid(Some(0)).sample(&[1.0]), Err(SamplingError::NotFinite));
        assert_eq!(sampler(|_| ()).forbid(Some(9)).sample(&[1.0]), Ok(0));
    }

    #[test]
    fn log_probabilities_are_the_models_own() {
        let (chosen, top) = logprobs(&LOGITS, 1, 3);
        assert!((chosen.logprob - 0.25f64.ln()).abs() < 1e-6);
        assert_eq!(top.iter().map(|entry| entry.id).collect::<Vec<_>>(), [0, 1, 2]);
        assert!((top[0].logprob - 0.5f64.ln()).abs() < 1e-6);
        assert_eq!(logprobs(&LOGITS, 0, 20).1.len(), 4);
    }

    #[test]
    fn bad_parameters_and_bad_logits_are_refused() {
        let refused = |params: SamplingParams| params.validate().unwrap_err().to_string();
        let base = SamplingParams::default;
        assert!(refused(SamplingParams { temperature: 2.1, ..base() }).contains("temperature is 2.1"));
        assert!(refused(SamplingParams { temperature: f64::NAN, ..base() }).contains("temperature"));
        assert!(refused(SamplingParams { top_p: 0.0, ..base() }).contains("top_p"));
        assert!(refused(SamplingParams { repetition_penalty: 0.0, ..base() }).contains("repetition_penalty"));
        let mut sampler = sampler(|_| ());
        assert_eq!(sampler.sample(&[0.0, f32::NAN]), Err(SamplingError::NotFinite));
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 2]), Err(SamplingError::NotFinite));
    }
}
