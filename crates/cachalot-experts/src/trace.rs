//! Recorded uses of experts, and what a cache of some size would have made of them.
//!
//! A trace is a text file: one JSON array a line, `[layer, tokens, expert, its tokens, expert, its tokens, ...]`, after
//! a first line that says how many layers and experts there are.

use serde::{Deserialize, Serialize};

use crate::delivery::Wanted;
use crate::policy::{Policy, Residency};

/// One layer of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The layer.
    pub layer: u32,
    /// The experts, ascending.
    pub wanted: Vec<Wanted>,
}

/// The uses of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Layers of the model.
    pub layers: u32,
    /// Experts of a layer.
    pub experts: u32,
    /// In the order of the run.
    pub events: Vec<Event>,
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("line {line} of the trace: {reason}")]
pub struct TraceError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
struct Head {
    layers: u32,
    experts: u32,
}

/// Most keys of a trace: 1,024 layers of 4,096 experts.
const MOST_KEYS: u64 = 1 << 22;

impl Trace {
    /// As text.
    pub fn to_text(&self) -> String {
        let head = serde_json::json!({ "layers": self.layers, "experts": self.experts });
        let mut text = format!("{head}\n");
        for event in &self.events {
            let pairs = event.wanted.iter().flat_map(|wanted| [wanted.expert, wanted.tokens]);
            let line: Vec<u32> = [event.layer].into_iter().chain(pairs).collect();
            text += &format!("{line:?}\n");
        }
        text
    }

    /// From text.
    ///
    /// # Errors
    /// Names the line that is not of a trace.
    pub fn from_text(text: &str) -> Result<Self, TraceError> {
        let mut lines = (1..).zip(text.lines());
        let fail = |line: usize, reason: String| TraceError { line, reason };
        let (_, head) = lines.next().ok_or_else(|| fail(1, "it is empty".to_owned()))?;
        let Head { layers, experts } = serde_json::from_str(head).map_err(|error| fail(1, error.to_string()))?;
        if u64::from(layers) * u64::from(experts) > MOST_KEYS {
            return Err(fail(1, format!("{layers} layers of {experts} experts are more than are replayed")));
        }
        let mut events = Vec::new();
        for (line, text) in lines {
            let numbers: Vec<u32> = serde_json::from_str(text).map_err(|error| fail(line, error.to_string()))?;
            let Some((&layer, pairs)) = numbers.split_first().filter(|(_, pairs)| pairs.len() % 2 == 0) else {
                return Err(fail(line, "a layer and pairs of expert and tokens are expected".to_owned()));
            };
            let wanted: Vec<Wanted> =
                pairs.chunks_exact(2).map(|pair| Wanted { expert: pair[0], tokens: pair[1] }).collect();
            if layer >= layers || wanted.iter().any(|wanted| wanted.expert >= experts) {
                return Err(fail(line, format!("there are {layers} layers of {experts} experts")));
            }
            events.push(Event { layer, wanted });
        }
        Ok(Self { layers, experts, events })
    }

    fn keys(&self) -> usize {
        self.layers as usize * self.experts as usize
    }

    /// Experts asked for, all in all.
    pub fn uses(&self) -> usize {
        self.events.iter().map(|event| event.wanted.len()).sum()
    }

    /// How many of the uses `slots` slots serve under `policy`.
    pub fn replay(&self, policy: Policy, slots: usize) -> usize {
        let mut cache = Residency::new(policy, self.keys(), slots.max(1));
        let (mut hits, mut last) = (0, u32::MAX);
        for event in &self.events {
            let tokens = event.wanted.iter().map(|wanted| wanted.tokens).max().unwrap_or(1);
            if event.layer <= last {
                cache.pass(tokens);
            }
            last = event.layer;
            let key = |wanted: &Wanted| event.layer * self.experts + wanted.expert;
            event.wanted.iter().for_each(|wanted| cache.touch(key(wanted), wanted.tokens));
            let here: Vec<u32> = event.wanted.iter().filter_map(|wanted| cache.find(key(wanted))).collect();
            hits += here.len();
            here.iter().for_each(|slot| cache.need(*slot));
            for key in event.wanted.iter().map(key) {
                if cache.find(key).is_none()
                    && let Some(slot) = cache.displace(true, |_| true)
                {
                    cache.assign(slot, key);
                }
            }
            event.wanted.iter().for_each(|wanted| cache.release(key(wanted)));
        }
        hits
    }

    /// How many of the uses `slots` slots serve at best, with the future known: Belady's rule, where what comes last
    /// is displaced, or not kept in the first place.
    pub fn optimum(&self, slots: usize) -> usize {
        let keys: Vec<u32> = self
            .events
            .iter()
            .flat_map(|event| event.wanted.iter().map(|wanted| event.layer * self.experts + wanted.expert))
            .collect();
        let mut next = vec![usize::MAX; keys.len()];
        let mut seen = vec![usize::MAX; self.keys()];
        for (at, key) in keys.iter().enumerate().rev() {
            next[at] = std::mem::replace(&mut seen[*key as usize], at);
        }
        // Kept keys by the time of their next use.
        let mut kept = std::collections::BTreeMap::new();
        let mut hits = 0;
        for (at, key) in keys.iter().enumerate() {
            hits += usize::from(kept.remove(&at).is_some());
            if next[at] != usize::MAX {
                kept.insert(next[at], *key);
                if kept.len() > slots {
                    kept.pop_last();
                }
            }
        }
        hits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn trace(keys: &[u32]) -> Trace {
        let event = |key: &u32| Event { layer: 0, wanted: vec![Wanted { expert: *key, tokens: 1 }] };
        Trace { layers: 1, experts: 16, events: keys.iter().map(event).collect() }
    }

    #[test]
    fn the_text_form_keeps_everything_and_refuses_other_text() {
        let mut trace = trace(&[3, 1, 3]);
        trace.layers = 2;
        trace.events[1].wanted.push(Wanted { expert: 9, tokens: 70 });
        trace.events[2].layer = 1;
        assert_eq!(Trace::from_text(&trace.to_text()).expect("reads"), trace);
        for (text, line) in [("", 1), ("{}", 1), ("{\"layers\":9999999,\"experts\":9999999}", 1)] {
            assert_eq!(Trace::from_text(text).expect_err(text).line, line);
        }
        let head = "{\"layers\":2,\"experts\":4}\n";
        for (text, line) in [("[0,1,1]\n[5,1,1]", 3), ("[0,4,1]", 2), ("[0,1]", 2), ("[]", 2), ("[-1]", 2), ("x", 2)] {
            assert_eq!(Trace::from_text(&format!("{head}{text}")).expect_err(text).line, line, "{text}");
        }
    }

    #[test]
    fn the_optimum_of_a_cycle_is_known() {
        // Belady's classic: a cycle of four in three slots hits two of three in the long run; LRU never.
        let keys: Vec<u32> = (0..400).map(|at| at % 4).collect();
        let cycle = trace(&keys);
        assert_eq!(cycle.replay(Policy::Lru, 3), 0);
        assert_eq!(cycle.replay(Policy::Lru, 4), 396);
        assert_eq!(cycle.optimum(4), 396);
        assert!((295..300).contains(&cycle.optimum(3)), "{}", cycle.optimum(3));
    }

    proptest! {
        /// No policy beats the optimum, and more slots never make the optimum worse.
        #[test]
        fn nothing_beats_the_optimum(keys in prop::collection::vec(0u32..16, 0..200), slots in 1usize..12) {
            let trace = trace(&keys);
            let best = trace.optimum(slots);
            prop_assert!(best <= trace.optimum(slots + 1));
            for policy in [Policy::Lru, Policy::Lfu, Policy::FrequencyRecency { half_life: 8.0 }, Policy::DEFAULT] {
                prop_assert!(trace.replay(policy, slots) <= best, "{policy}");
            }
        }
    }
}
