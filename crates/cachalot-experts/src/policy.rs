//! Which experts stay in memory: pure bookkeeping over slots of equal size, without clock, reads or locks.
//!
//! Owns what is known about every expert's use and whom to displace; runs the same in the engine and on a recorded
//! trace. An expert that was just read can be the next to go: with uses of all experts counted, those that are kept
//! too, admission and eviction are one question.

/// No slot, or no key.
pub(crate) const NONE: u32 = u32::MAX;

/// Whom to displace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// The one whose last use is longest ago.
    Lru,
    /// The one used least often since the start.
    Lfu,
    /// The one with the least uses, when a use counts half after so many tokens.
    FrequencyRecency {
        /// Tokens after which a use counts half.
        half_life: f64,
    },
}

impl Policy {
    /// What `cachalot trace replay` found to win on recorded traces (README).
    pub const DEFAULT: Self = Self::FrequencyRecency { half_life: 64.0 };
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Lru => f.write_str("LRU"),
            Self::Lfu => f.write_str("LFU"),
            Self::FrequencyRecency { half_life } => write!(f, "frequency-recency, half-life {half_life}"),
        }
    }
}

/// What one slot holds.
#[derive(Clone, Copy, Debug)]
struct Slot {
    key: u32,
    /// Those who will still need it: it goes only if nothing else does.
    needed: u32,
}

#[derive(Clone, Copy, Debug)]
struct Use {
    /// Number of the last use.
    last: u64,
    /// LFU: uses. Frequency-recency: the logarithm of the decayed uses, to base 2, at token 0.
    weight: f64,
}

/// Keys `0..keys` in a number of slots.
#[derive(Debug)]
pub struct Residency {
    policy: Policy,
    slot_of: Vec<u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    uses: Vec<Use>,
    clock: u64,
    tokens: f64,
}

impl Residency {
    /// All slots empty, nothing known about any key.
    pub fn new(policy: Policy, keys: usize, slots: usize) -> Self {
        Self {
            policy,
            slot_of: vec![NONE; keys],
            slots: vec![Slot { key: NONE, needed: 0 }; slots],
            free: (0..slots as u32).rev().collect(),
            uses: vec![Use { last: 0, weight: f64::NEG_INFINITY }; keys],
            clock: 0,
            tokens: 0.0,
        }
    }

    /// The slot of `key`.
    pub fn find(&self, key: u32) -> Option<u32> {
        Some(self.slot_of[key as usize]).filter(|slot| *slot != NONE)
    }

    /// The key in `slot`.
    pub fn key(&self, slot: u32) -> Option<u32> {
        Some(self.slots[slot as usize].key).filter(|key| *key != NONE)
    }

    /// `tokens` more have passed.
    pub fn pass(&mut self, tokens: u32) {
        self.tokens += f64::from(tokens);
    }

    /// `key` was used by `tokens` tokens.
    pub fn touch(&mut self, key: u32, tokens: u32) {
        self.clock += 1;
        let entry = &mut self.uses[key as usize];
        entry.last = self.clock;
        let tokens = f64::from(tokens.max(1));
        entry.weight = match self.policy {
            Policy::Lru => 0.0,
            Policy::Lfu => entry.weight.max(0.0) + tokens,
            Policy::FrequencyRecency { half_life } => {
                // log2(2^a + 2^b), without the powers: they leave the range of numbers after some hundred thousand tokens.
                let (old, new) = (entry.weight, self.tokens / half_life + tokens.log2());
                let (low, high) = if old < new { (old, new) } else { (new, old) };
                high + (low - high).exp2().ln_1p() / std::f64::consts::LN_2
            }
        };
    }

    /// How much `key` is worth keeping: more is better.
    fn worth(&self, key: u32) -> (f64, u64) {
        let entry = &self.uses[key as usize];
        (entry.weight, entry.last)
    }

    /// Marks one more need of what is in `slot`.
    pub fn need(&mut self, slot: u32) {
        self.slots[slot as usize].needed += 1;
    }

    /// One need of `key` has passed.
    pub fn release(&mut self, key: u32) {
        if let Some(slot) = self.find(key) {
            let needed = &mut self.slots[slot as usize].needed;
            *needed = needed.saturating_sub(1);
        }
    }

    /// Whether somebody will need what is in `slot`.
    pub fn is_needed(&self, slot: u32) -> bool {
        self.slots[slot as usize].needed > 0
    }

    /// A slot for another key: an empty one, or the least worth keeping of those that `may_go` lets go. Slots that are
    /// needed go last, and only if `urgent`.
    pub fn displace(&self, urgent: bool, may_go: impl Fn(u32) -> bool) -> Option<u32> {
        if let Some(free) = self.free.iter().rev().find(|slot| may_go(**slot)) {
            return Some(*free);
        }
        let mut best: Option<(bool, (f64, u64), u32)> = None;
        for (slot, entry) in (0..).zip(&self.slots) {
            let needed = entry.needed > 0;
            if entry.key == NONE || (needed && !urgent) {
                continue;
            }
            let candidate = (needed, self.worth(entry.key), slot);
            if best.is_none_or(|best| candidate < best) && may_go(slot) {
                best = Some(candidate);
            }
        }
        best.map(|(.., slot)| slot)
    }

    /// Puts `key` into `slot`, in place of whatever was there.
    pub fn assign(&mut self, slot: u32, key: u32) {
        self.clear(slot);
        self.free.retain(|free| *free != slot);
        self.slots[slot as usize] = Slot { key, needed: 0 };
        self.slot_of[key as usize] = slot;
    }

    /// Empties `slot`.
    pub fn clear(&mut self, slot: u32) {
        let key = std::mem::replace(&mut self.slots[slot as usize], Slot { key: NONE, needed: 0 }).key;
        if key != NONE {
            self.slot_of[key as usize] = NONE;
            self.free.push(slot);
        }
    }

    /// Takes `slot` out of service.
    pub fn retire(&mut self, slot: u32) {
        self.clear(slot);
        self.free.retain(|free| *free != slot);
    }

    /// Takes a retired slot into service again.
    pub fn restore(&mut self, slot: u32) {
        self.free.push(slot);
    }

    /// Keys that were used, the one most worth keeping first; at most `most`.
    pub fn hottest(&self, most: usize) -> Vec<u32> {
        let mut keys: Vec<u32> = (0..self.uses.len() as u32).filter(|key| self.uses[*key as usize].last > 0).collect();
        keys.sort_by(|a, b| self.worth(*b).partial_cmp(&self.worth(*a)).unwrap_or(std::cmp::Ordering::Equal));
        keys.truncate(most);
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses `key`, displacing another if need be; whether it was there.
    fn access(cache: &mut Residency, key: u32) -> bool {
        cache.pass(1);
        cache.touch(key, 1);
        if cache.find(key).is_some() {
            return true;
        }
        let slot = cache.displace(false, |_| true).expect("a slot");
        cache.assign(slot, key);
        false
    }

    fn kept(cache: &Residency) -> Vec<u32> {
        (0..cache.slot_of.len() as u32).filter(|key| cache.find(*key).is_some()).collect()
    }

    #[test]
    fn each_policy_displaces_whom_it_says() {
        let run = |policy, keys: &[u32]| {
            let mut cache = Residency::new(policy, 10, 3);
            keys.iter().for_each(|key| {
                access(&mut cache, *key);
            });
            kept(&cache)
        };
        assert_eq!(run(Policy::Lru, &[1, 1, 1, 2, 3, 4]), [2, 3, 4]);
        assert_eq!(run(Policy::Lfu, &[1, 1, 1, 2, 3, 4]), [1, 3, 4]);
        let uses = [1, 1, 2, 3, 2, 3, 4];
        assert_eq!(run(Policy::FrequencyRecency { half_life: 1000.0 }, &uses), [2, 3, 4], "old uses count as well");
        assert_eq!(run(Policy::FrequencyRecency { half_life: 0.5 }, &[1, 1, 1, 1, 2, 3, 4]), [2, 3, 4]);
        assert_eq!(run(Policy::FrequencyRecency { half_life: 1000.0 }, &[1, 1, 1, 1, 2, 3, 4]), [1, 3, 4]);
    }

    #[test]
    fn what_is_needed_goes_last_and_only_in_need() {
        let mut cache = Residency::new(Policy::Lru, 10, 2);
        access(&mut cache, 0);
        access(&mut cache, 1);
        let slot = |cache: &Residency, key| cache.find(key).expect("kept");
        cache.need(slot(&cache, 0));
        assert_eq!(cache.displace(false, |_| true), Some(slot(&cache, 1)));
        assert_eq!(cache.displace(false, |free| free != slot(&cache, 1)), None);
        assert_eq!(cache.displace(true, |free| free != slot(&cache, 1)), Some(slot(&cache, 0)));
        cache.release(0);
        assert_eq!(cache.displace(false, |_| true), Some(slot(&cache, 0)));
        cache.retire(slot(&cache, 0));
        assert_eq!(cache.displace(false, |_| true), Some(slot(&cache, 1)), "a retired slot is not there");
    }

    #[test]
    fn a_million_tokens_later_weights_are_still_numbers() {
        let mut cache = Residency::new(Policy::FrequencyRecency { half_life: 1.0 }, 3, 2);
        access(&mut cache, 0);
        cache.pass(1_000_000);
        access(&mut cache, 1);
        cache.pass(1_000_000);
        access(&mut cache, 1);
        access(&mut cache, 2);
        assert_eq!(kept(&cache), [1, 2]);
        assert!(cache.uses.iter().all(|entry| entry.weight.is_finite()));
        assert_eq!(cache.hottest(2), [2, 1]);
    }
}
