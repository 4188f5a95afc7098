//! Reads: what is begun, given up and received, and which slot it goes into.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cachalot_storage::{Priority, Read, Sink, StorageError};

use super::{Planned, RESERVED, Shared, State};
use crate::delivery::{Certainty, Wanted};
use crate::error::ExpertError;
use crate::load::{Abandoned, Token};
use crate::pieces::Piece;

impl Shared {
    /// Begins to read expert `key` into a slot; false if there is no room now.
    pub(super) fn start(&self, state: &mut State, key: u32, expected: Option<Option<Certainty>>) -> bool {
        let Some(&load) = state.free_loads.last() else { return false };
        if expected.is_some() && state.free_loads.len() <= RESERVED.min(self.loads.len() / 2) {
            return false;
        }
        let (slots, residency) = (&state.slots, &state.residency);
        let unasked = |slot: u32| slots[slot as usize].expected.is_none();
        let idle = |slot: u32| slots[slot as usize].is_idle();
        let mut found = residency.displace(false, |slot| idle(slot) && unasked(slot));
        if expected.is_none() {
            // What is asked for may displace what is only expected, and in need what will be needed later.
            found = found.or_else(|| residency.displace(false, idle)).or_else(|| residency.displace(true, idle));
        }
        let Some(slot) = found else { return false };
        if expected == Some(None) && state.residency.key(slot).is_some() {
            // What is remembered from an earlier run only fills what is empty.
            return false;
        }
        state.vacate(slot);
        state.free_loads.pop();
        let entry = &mut state.slots[slot as usize];
        let Some(expert) = Arc::get_mut(&mut entry.expert) else { return false };
        let pieces = self.layout.pieces(key);
        let generation = self.loads[load].begin(key, slot, pieces.len(), expected.is_none(), expert);
        entry.load = Some(load);
        entry.expected = expected.flatten();
        state.residency.assign(slot, key);
        state.stats.kept += 1;
        let bytes = self.layout.record_bytes() as u64;
        match expected {
            None => state.stats.demand_bytes += bytes,
            Some(certainty) => {
                state.stats.prefetch_bytes += bytes;
                state.stats.prefetch.issued += u64::from(certainty.is_some());
            }
        }
        let priority = match expected {
            None => Priority::Demand,
            Some(Some(Certainty::Certain | Certainty::Likely)) => Priority::Prefetch,
            Some(Some(Certainty::Guess) | None) => Priority::Guess,
        };
        self.submit(load, generation, key, priority);
        true
    }

    /// Queues the pieces of a load that have not been issued.
    pub(super) fn submit(&self, load: usize, generation: u32, key: u32, priority: Priority) {
        let Some(me) = self.me.upgrade() else { return };
        let sink: Arc<dyn Sink> = me;
        for (number, piece) in self.layout.pieces(key).iter().enumerate() {
            if self.loads[load].is_waiting(number) {
                let token = Token { generation, load, piece: number }.pack();
                let file = Arc::clone(self.layout.file(piece.file));
                let read = Read { file, offset: piece.offset, length: piece.bytes, token };
                self.reader.submit(read, priority, &sink);
            }
        }
    }

    /// Starts what is planned, as far as there is room for it.
    pub(super) fn pump(&self, state: &mut State) {
        while let Some(&Planned { key, certainty }) = state.planned.front() {
            let there = state.residency.find(key).is_some();
            if there || self.start(state, key, Some(certainty)) {
                state.planned.pop_front();
            } else {
                if certainty.is_none() && state.free_loads.len() > RESERVED {
                    // The slots are full: what is remembered has come too late.
                    state.planned.retain(|planned| planned.certainty.is_some());
                }
                return;
            }
        }
    }

    /// Drops what was expected of `layer` and is not among `wanted`.
    pub(super) fn drop_useless(&self, state: &mut State, layer: usize, wanted: &[Wanted]) {
        let is_wanted = |key: u32| {
            let (_, expert) = self.layout.of_key(key);
            wanted.binary_search_by_key(&expert, |wanted| wanted.expert).is_ok()
        };
        let of_layer = |key: u32| self.layout.of_key(key).0 == layer;
        // Those that are wanted are started now, in order; none of them stays planned.
        state.planned.retain(|planned| planned.certainty.is_none() || !of_layer(planned.key));
        for slot in 0..state.slots.len() {
            let Some(key) = state.residency.key(slot as u32).filter(|key| of_layer(*key)) else { continue };
            let Some(expected) = state.slots[slot].expected else { continue };
            if is_wanted(key) {
                continue;
            }
            if let Some(load) = state.slots[slot].load {
                self.abandon(state, slot as u32, load);
            } else if expected == Certainty::Guess {
                // A wrong guess is an expert like any other from now on.
                state.slots[slot].expected = None;
                state.stats.prefetch.wasted += 1;
            }
        }
    }

    /// Reads no more of a load that turned out useless; its slot is empty from now on.
    fn abandon(&self, state: &mut State, slot: u32, load: usize) {
        let Some(key) = state.residency.key(slot) else { return };
        let pieces = self.layout.pieces(key);
        let outcome = self.loads[load].abandon(pieces.len());
        let (Abandoned::Ended(open) | Abandoned::Ending(open)) = outcome else { return };
        let unread = |(number, piece): (usize, &Piece)| if open >> number & 1 == 1 { piece.bytes as u64 } else { 0 };
        let unread: u64 = pieces.iter().enumerate().map(unread).sum();
        state.stats.prefetch_bytes -= unread;
        if unread == self.layout.record_bytes() as u64 {
            state.slots[slot as usize].expected = None;
            state.stats.prefetch.dropped += 1;
            state.stats.prefetch.issued -= 1;
        }
        if matches!(outcome, Abandoned::Ended(_)) {
            self.end_load(state, slot, load);
        }
        state.vacate(slot);
    }

    /// Takes a load's matrices back.
    fn end_load(&self, state: &mut State, slot: u32, load: usize) -> Option<ExpertError> {
        let entry = &mut state.slots[slot as usize];
        entry.load = None;
        let outcome = Arc::get_mut(&mut entry.expert).map(|expert| self.loads[load].end(expert));
        state.free_loads.push(load);
        outcome.and_then(Result::err)
    }
}

impl Sink for Shared {
    fn claim(&self, token: u64) -> bool {
        let token = Token::unpack(token);
        self.loads[token.load].claim(token)
    }

    fn arrived(&self, token: u64, bytes: Result<&[u8], StorageError>) {
        let token = Token::unpack(token);
        let load = &self.loads[token.load];
        let key = load.key();
        let (layer, expert) = self.layout.of_key(key);
        let pieces = self.layout.pieces(key);
        let piece = &pieces[token.piece];
        match bytes {
            Err(source) => {
                let tensors = self.layout.names(key, piece);
                load.fail(ExpertError::Disk { layer, expert, tensors, source: Box::new(source) });
            }
            Ok(bytes) => {
                for part in &piece.parts {
                    let packed = load.with_matrix(part.matrix(), |matrix| self.layout.pack(key, part, bytes, matrix));
                    if let Err(source) = packed {
                        load.fail(ExpertError::Read { layer, expert, source: Box::new(source) });
                    }
                }
            }
        }
        if !load.piece_done() {
            return;
        }
        let mut state = self.lock();
        let state = &mut *state;
        let (slot, abandoned) = (load.slot(), load.is_abandoned());
        let outcome = self.end_load(state, slot, token.load);
        if let Some(error) = outcome.filter(|_| !abandoned) {
            state.slots[slot as usize].expected = None;
            state.vacate(slot);
            if load.demanded.load(Ordering::SeqCst) {
                state.failed.push((key, error));
            }
        }
        if !state.closed {
            self.pump(state);
        }
        self.change.notify_all();
    }
}
