//! Routed experts from the disk: a number of slots of equal size, filled by reads that go on while others compute.
//!
//! Owns which expert is in which slot, what is being read, and what is to be read next. All slots are allocated at the
//! start and used again and again. Refuses to decide a number: an expert is what is stored, whenever it arrives.
//!
//! One lock guards the bookkeeping; it is never held while something is read or packed.

mod reading;
mod source;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use cachalot_checkpoint::CheckpointError;
use cachalot_storage::{Priority, Reader, Target};

use crate::delivery::{Certainty, Delivery, Interrupt, Place, Wanted};
use crate::guard::Guard;
use crate::layout::{ExpertLayout, Layout};
use crate::load::Load;
use crate::policy::{Policy, Residency};
use crate::stats::ExpertStats;
use crate::trace::{Event, Trace};
use crate::{Expert, ExpertError, ExpertSource};

/// Fewest slots: what is computed together has to fit, and some room to read into.
pub const FEWEST_SLOTS: usize = 16;
/// Experts being read at the same time, at most.
const LOADS: usize = 48;
/// Of these, what is only expected leaves so many to what is asked for.
const RESERVED: usize = 16;
/// How long a waiting caller sleeps before it looks whether it was interrupted.
const PATIENCE: Duration = Duration::from_millis(20);
/// Most uses recorded in a trace.
const MOST_EVENTS: usize = 1 << 22;

/// How a [`StreamedExperts`] works.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// Bytes of experts kept; [`FEWEST_SLOTS`] slots are there in any case.
    pub budget_bytes: u64,
    /// Whom to displace.
    pub policy: Policy,
    /// Ends waiting.
    pub interrupt: Interrupt,
    /// Whether guesses may be read where they pay.
    pub guess: bool,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self { budget_bytes: u64::MAX, policy: Policy::DEFAULT, interrupt: Interrupt::new(), guess: true }
    }
}

/// Experts from the checkpoint, as many kept as the budget allows.
pub struct StreamedExperts {
    shared: Arc<Shared>,
}

struct Shared {
    me: Weak<Self>,
    layout: Layout,
    reader: Arc<Reader>,
    options: StreamOptions,
    state: Mutex<State>,
    change: Condvar,
    loads: Vec<Load>,
}

struct State {
    residency: Residency,
    slots: Vec<SlotState>,
    /// Slots that were given back to the system.
    retired: Vec<u32>,
    free_loads: Vec<usize>,
    /// To be read when there is room, the most certain first.
    planned: VecDeque<Planned>,
    /// Experts that could not be read and that somebody waits for.
    failed: Vec<(u32, ExpertError)>,
    stats: ExpertStats,
    guard: Guard,
    /// Layer of the last order, and when its step began.
    layer: usize,
    step: Option<Instant>,
    /// Whether the current step is one token that found experts missing.
    decoding: bool,
    missed: bool,
    trace: Option<Vec<Event>>,
    closed: bool,
}

struct SlotState {
    expert: Arc<Expert>,
    /// The load that fills it.
    load: Option<usize>,
    /// Read because it was expected, and not asked for yet.
    expected: Option<Certainty>,
}

#[derive(Clone, Copy)]
struct Planned {
    key: u32,
    /// `None`: remembered from an earlier run.
    certainty: Option<Certainty>,
}

impl StreamedExperts {
    /// Experts that `layout` describes, read by `reader`.
    ///
    /// # Errors
    /// If the slots cannot be allocated.
    pub fn new(layout: ExpertLayout, reader: Arc<Reader>, options: StreamOptions) -> Result<Self, CheckpointError> {
        let (keys, layout) = (layout.count(), layout.0);
        let slot_bytes = layout.blank()?.bytes().max(1) as u64;
        let affordable = usize::try_from(options.budget_bytes / slot_bytes).unwrap_or(usize::MAX);
        let count = affordable.max(FEWEST_SLOTS).min(keys);
        let mut slots = Vec::with_capacity(count);
        for _ in 0..count {
            slots.push(SlotState { expert: Arc::new(layout.blank()?), load: None, expected: None });
        }
        let loads: Vec<Load> = (0..LOADS.min(count)).map(|_| Load::new()).collect();
        let state = State {
            residency: Residency::new(options.policy, keys, count),
            slots,
            retired: Vec::new(),
            free_loads: (0..loads.len()).collect(),
            planned: VecDeque::new(),
            failed: Vec::new(),
            stats: ExpertStats { slots: count, slot_bytes, ..ExpertStats::default() },
            guard: Guard::default(),
            layer: usize::MAX,
            step: None,
            decoding: false,
            missed: false,
            trace: None,
            closed: false,
        };
        let shared = Arc::new_cyclic(|me| Shared {
            me: Weak::clone(me),
            layout,
            reader,
            options,
            state: Mutex::new(state),
            change: Condvar::new(),
            loads,
        });
        Ok(Self { shared })
    }

    /// What it has done so far.
    pub fn stats(&self) -> ExpertStats {
        let state = self.shared.lock();
        let mut stats = state.stats;
        stats.prefetch.set_verdict(state.guard.verdict());
        stats.kept_bytes = stats.kept as u64 * stats.slot_bytes;
        stats
    }

    /// Bytes of the slots that hold nothing: memory that will be taken, but mostly has not been.
    pub fn unfilled_bytes(&self) -> u64 {
        let stats = self.shared.lock().stats;
        stats.slots.saturating_sub(stats.kept) as u64 * stats.slot_bytes
    }

    /// Where experts lie, for a measurement of the disk.
    pub fn targets(&self) -> Vec<Target> {
        self.shared.layout.targets()
    }

    /// Bytes of one expert in the files.
    pub fn record_bytes(&self) -> usize {
        self.shared.layout.record_bytes()
    }

    /// Starts to record uses, forgetting what was recorded.
    pub fn start_trace(&self) {
        self.shared.lock().trace = Some(Vec::new());
    }

    /// Ends recording, and hands over what was recorded.
    pub fn take_trace(&self) -> Trace {
        let (layers, experts) = self.shared.layout.size();
        let events = self.shared.lock().trace.take().unwrap_or_default();
        Trace { layers: layers as u32, experts: experts as u32, events }
    }

    /// Layer and expert of those most worth keeping, the hottest first, as many as there are slots.
    pub fn hottest(&self) -> Vec<(u32, u32)> {
        let state = self.shared.lock();
        let keys = state.residency.hottest(state.stats.slots);
        keys.into_iter()
            .map(|key| self.shared.layout.of_key(key))
            .map(|(layer, expert)| (layer as u32, expert))
            .collect()
    }

    /// Reads every expert once, so that as many are kept as there are slots.
    ///
    /// # Errors
    /// If one cannot be read, or the caller was interrupted.
    pub fn read_all(&self) -> Result<(), ExpertError> {
        let (layers, experts) = self.shared.layout.size();
        let wanted: Vec<Wanted> = (0..experts as u32).map(|expert| Wanted { expert, tokens: 1 }).collect();
        let mut delivery = Delivery::new();
        for layer in 0..layers {
            self.order(layer, &wanted, &mut delivery)?;
            for place in 0..experts {
                let outcome = self.wait(&mut delivery, place..place + 1);
                self.release(&mut delivery, if outcome.is_ok() { place..place + 1 } else { place..experts });
                outcome?;
            }
        }
        Ok(())
    }

    /// Reads these experts while nothing else is read, into slots that are empty.
    pub fn warm(&self, hot: &[(u32, u32)]) {
        let (layers, experts) = self.shared.layout.size();
        let known = hot.iter().filter(|(layer, expert)| (*layer as usize) < layers && (*expert as usize) < experts);
        let keys = known.map(|(layer, expert)| self.shared.layout.key(*layer as usize, *expert));
        let mut state = self.shared.lock();
        state.planned.extend(keys.map(|key| Planned { key, certainty: None }));
        self.shared.pump(&mut state);
    }

    /// Gives memory back to the system: slots are emptied, those least worth keeping first, until `bytes` are given
    /// back or only [`FEWEST_SLOTS`] are left. Returns the bytes given back.
    pub fn shrink(&self, bytes: u64) -> u64 {
        let mut state = self.shared.lock();
        let mut given = 0;
        while given < bytes && state.stats.slots > FEWEST_SLOTS {
            let State { residency, slots, .. } = &*state;
            let may_go = |slot: u32| slots[slot as usize].is_idle();
            let Some(slot) = residency.displace(false, may_go) else { break };
            state.vacate(slot);
            state.residency.retire(slot);
            let empty = || cachalot_kernels::Matrix::empty();
            state.slots[slot as usize].expert = Arc::new(Expert { w1: empty(), w3: empty(), w2: empty() });
            state.stats.slots -= 1;
            state.retired.push(slot);
            given += state.stats.slot_bytes;
        }
        given
    }

    /// Bytes of the slots that were given back.
    pub fn retired_bytes(&self) -> u64 {
        let state = self.shared.lock();
        state.retired.len() as u64 * state.stats.slot_bytes
    }

    /// Takes slots back that were given up, at most `bytes` of them. Returns the bytes taken.
    pub fn grow(&self, bytes: u64) -> u64 {
        let mut state = self.shared.lock();
        let mut taken = 0;
        while taken + state.stats.slot_bytes <= bytes
            && let Some(&slot) = state.retired.last()
            && let Ok(blank) = self.shared.layout.blank()
        {
            state.retired.pop();
            state.slots[slot as usize].expert = Arc::new(blank);
            state.residency.restore(slot);
            state.stats.slots += 1;
            taken += state.stats.slot_bytes;
        }
        taken
    }
}

impl Drop for StreamedExperts {
    fn drop(&mut self) {
        // Reads that are queued are not issued any more; they keep the rest alive until they are gone.
        let mut state = self.shared.lock();
        state.closed = true;
        state.planned.clear();
        for load in &self.shared.loads {
            load.abandon(self.shared.layout.pieces(load.key()).len());
        }
    }
}

impl SlotState {
    /// Nobody reads into it, and nobody computes with it.
    fn is_idle(&self) -> bool {
        self.load.is_none() && Arc::strong_count(&self.expert) == 1
    }
}

impl State {
    /// Takes whatever is in `slot` out of it.
    fn vacate(&mut self, slot: u32) {
        if self.residency.key(slot).is_some() {
            self.residency.clear(slot);
            self.stats.kept -= 1;
        }
        if self.slots[slot as usize].expected.take().is_some() {
            self.stats.prefetch.wasted += 1;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, layer: usize, experts: impl IntoIterator<Item = u32>) -> Result<(), ExpertError> {
        let (layers, count) = self.layout.size();
        let outside = |expert: &u32| layer >= layers || *expert as usize >= count;
        match experts.into_iter().find(outside) {
            Some(expert) => Err(ExpertError::NoExpert { layer, expert, layers, experts: count }),
            None => Ok(()),
        }
    }

    /// Books the beginning of a step and the uses of one of its layers.
    fn begin_layer(&self, state: &mut State, layer: usize, wanted: &[Wanted]) {
        let most = wanted.iter().map(|wanted| wanted.tokens).max().unwrap_or(1);
        if layer <= state.layer {
            let now = Instant::now();
            if let Some(step) = state.step.replace(now).filter(|_| state.decoding && state.missed) {
                state.guard.took(now - step);
            }
            (state.decoding, state.missed) = (true, false);
            state.residency.pass(most);
        }
        state.decoding &= most == 1;
        state.layer = layer;
        for wanted in wanted {
            state.residency.touch(self.layout.key(layer, wanted.expert), wanted.tokens);
        }
        if let Some(trace) = state.trace.as_mut().filter(|trace| trace.len() < MOST_EVENTS) {
            trace.push(Event { layer: layer as u32, wanted: wanted.to_vec() });
        }
    }

    /// Asks for the experts of `delivery` that have not been asked for, in order, as far as there is room.
    fn advance(&self, state: &mut State, delivery: &mut Delivery) {
        while delivery.started < delivery.len() {
            let key = self.layout.key(delivery.layer, delivery.wanted[delivery.started].expert);
            let Some(slot) = state.residency.find(key) else {
                if !self.start(state, key, None) {
                    return;
                }
                if let Some(slot) = state.residency.find(key) {
                    state.residency.need(slot);
                }
                state.stats.misses += 1;
                state.missed = true;
                delivery.started += 1;
                continue;
            };
            let entry = &mut state.slots[slot as usize];
            let was_expected = entry.expected.take();
            state.stats.prefetch.used += u64::from(was_expected.is_some());
            state.stats.prefetch.guessed_right += u64::from(was_expected == Some(Certainty::Guess));
            match entry.load {
                None => {
                    delivery.put(delivery.started, Arc::clone(&entry.expert));
                    state.stats.hits += 1;
                    state.stats.hit_bytes += state.stats.slot_bytes;
                }
                Some(load) => {
                    state.stats.misses += 1;
                    state.missed = true;
                    if !self.loads[load].demanded.swap(true, Ordering::SeqCst) {
                        self.submit(load, self.loads[load].generation(), key, Priority::Demand);
                    }
                }
            }
            delivery.started += 1;
        }
    }

    /// Hands over what has arrived of the experts in `range`; whether there is any to compute with.
    fn collect(
        &self,
        state: &mut State,
        delivery: &mut Delivery,
        range: std::ops::Range<usize>,
    ) -> Result<bool, ExpertError> {
        let mut any = false;
        for index in range.start..range.end.min(delivery.started) {
            match delivery.places[index] {
                Place::Arrived(_) => any = true,
                Place::Done => {}
                Place::Waiting => {
                    let key = self.layout.key(delivery.layer, delivery.wanted[index].expert);
                    if let Some(at) = state.failed.iter().position(|(failed, _)| *failed == key) {
                        return Err(state.failed.swap_remove(at).1);
                    }
                    match state.residency.find(key) {
                        Some(slot) if state.slots[slot as usize].load.is_none() => {
                            delivery.put(index, Arc::clone(&state.slots[slot as usize].expert));
                            any = true;
                        }
                        Some(_) => {}
                        // Displaced before it was taken, by another sequence: once more.
                        None => {
                            self.start(state, key, None);
                        }
                    }
                }
            }
        }
        Ok(any)
    }
}
