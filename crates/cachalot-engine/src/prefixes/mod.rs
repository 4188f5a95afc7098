//! States kept of prompts and answers, so that what begins alike is not processed again.
//!
//! Owns which states are kept in memory, within a budget of bytes: the least recently used goes first. States are forks of
//! one another and share pages; each page counts once. [`PrefixStore`] keeps them on the disk, too. Refuses to decide what
//! a state holds: the model does.

mod segments;
mod store;

use std::collections::HashSet;

use std::sync::Arc;

use cachalot_model::Sequence;

pub use store::{PrefixStore, StoreError};

/// States by the tokens that they have seen.
pub struct Prefixes {
    kept: Vec<Kept>,
    /// Bytes of all of them together.
    budget: u64,
    clock: u64,
    store: Option<Arc<PrefixStore>>,
}

struct Kept {
    tokens: Vec<u32>,
    state: Sequence,
    used: u64,
}

impl Kept {
    /// How much of `prompt` need not be processed again when going on from here: at least its last token always must.
    fn reach(&self, prompt: &[u32]) -> usize {
        let shared = self.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count().min(prompt.len() - 1);
        // A prompt that was cut off may have promised more tokens than this one has.
        let usable = self.state.floor() <= shared && self.state.owed() <= prompt.len();
        if usable { self.state.position().min(shared) } else { 0 }
    }
}

impl Prefixes {
    /// Nothing yet, and never more than `budget` bytes; what `store` has is found, too, and what is kept is stored.
    pub fn new(budget: u64, store: Option<Arc<PrefixStore>>) -> Self {
        Self { kept: Vec::new(), budget, clock: 0, store }
    }

    /// A fork of the state that spares most of `prompt` (which is not empty), rolled back to what the two share; `fresh`
    /// is a state without tokens.
    pub fn longest(&mut self, prompt: &[u32], fresh: &Sequence) -> Option<Sequence> {
        let best = self.kept.iter().map(|kept| kept.reach(prompt)).max().unwrap_or(0);
        let stored = self.store.as_ref().and_then(|store| store.longest(prompt, best, fresh));
        if let Some((tokens, state)) = stored {
            self.insert(&tokens, state);
        }
        let reaches = self.kept.iter().enumerate().map(|(index, kept)| (kept.reach(prompt), kept.used, index));
        let (reach, _, index) = reaches.max().filter(|(reach, ..)| *reach > 0)?;
        self.clock += 1;
        self.kept[index].used = self.clock;
        let mut state = self.kept[index].state.clone();
        // Within reach, as was just checked; were it not, starting anew is always right.
        (state.position() == reach || state.roll_back(reach).is_ok()).then_some(state)
    }

    /// Keeps `state`, which has seen `tokens`.
    pub fn keep(&mut self, tokens: &[u32], state: Sequence) {
        if let Some(store) = &self.store {
            store.keep(tokens, &state);
        }
        self.insert(tokens, state);
    }

    fn insert(&mut self, tokens: &[u32], state: Sequence) {
        if state.position() == 0 {
            return;
        }
        self.clock += 1;
        // What the new state can do as well: be rolled back to, or be gone on from.
        let replaced = |kept: &Kept| {
            let reached = (state.floor()..=state.position()).contains(&kept.tokens.len());
            reached && state.owed() <= kept.state.owed() && tokens.starts_with(&kept.tokens)
        };
        self.kept.retain(|kept| !replaced(kept));
        self.kept.push(Kept { tokens: tokens.to_vec(), state, used: self.clock });
        self.shrink(self.budget);
    }

    /// Drops the states longest unused until the rest takes at most `bytes`.
    pub fn shrink(&mut self, bytes: u64) {
        while self.bytes() > bytes {
            let oldest = self.kept.iter().enumerate().min_by_key(|(_, kept)| kept.used).map(|(index, _)| index);
            let Some(oldest) = oldest else { return };
            self.kept.swap_remove(oldest);
        }
    }

    /// Bytes of all states; pages that several share count once.
    pub fn bytes(&self) -> u64 {
        let mut seen = HashSet::new();
        let mut bytes = 0;
        for kept in &self.kept {
            bytes += kept.state.own_bytes() + kept.tokens.len() * size_of::<u32>();
            kept.state.pages(&mut |page, size| bytes += if seen.insert(page) { size } else { 0 });
        }
        bytes as u64
    }

    /// States kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Tokens of all states; those that several begin with count once.
    pub fn tokens(&self) -> usize {
        let mut all: Vec<&[u32]> = self.kept.iter().map(|kept| kept.tokens.as_slice()).collect();
        // In this order a state shares most with the one before it.
        all.sort_unstable();
        let shared = |pair: &[&[u32]]| pair[0].iter().zip(pair[1]).take_while(|(a, b)| a == b).count();
        all.iter().map(|tokens| tokens.len()).sum::<usize>() - all.windows(2).map(shared).sum::<usize>()
    }

    /// Tokens of the longest state kept.
    pub fn longest_tokens(&self) -> usize {
        self.kept.iter().map(|kept| kept.tokens.len()).max().unwrap_or(0)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.kept.clear();
    }
}
