//! The side that the model sees: experts are ordered, waited for and given back, and expected before they are asked for.

use std::ops::Range;
use std::sync::PoisonError;
use std::time::Instant;

use super::{PATIENCE, Planned, State, StreamedExperts};
use crate::delivery::{Certainty, Delivery, Place, Wanted};
use crate::{ExpertError, ExpertSource};

impl ExpertSource for StreamedExperts {
    fn order(&self, layer: usize, wanted: &[Wanted], delivery: &mut Delivery) -> Result<(), ExpertError> {
        let shared = &*self.shared;
        shared.check(layer, wanted.iter().map(|wanted| wanted.expert))?;
        delivery.reset(layer, wanted);
        let mut state = shared.lock();
        let state = &mut *state;
        state.failed.clear();
        shared.begin_layer(state, layer, wanted);
        shared.drop_useless(state, layer, wanted);
        for wanted in wanted {
            if let Some(slot) = state.residency.find(shared.layout.key(layer, wanted.expert)) {
                state.residency.need(slot);
            }
        }
        shared.advance(state, delivery);
        shared.pump(state);
        Ok(())
    }

    fn wait(&self, delivery: &mut Delivery, range: Range<usize>) -> Result<(), ExpertError> {
        let shared = &*self.shared;
        let mut state = shared.lock();
        let start = Instant::now();
        let outcome = loop {
            shared.advance(&mut state, delivery);
            match shared.collect(&mut state, delivery, range.clone()) {
                Ok(false) => {}
                Ok(true) => break Ok(()),
                Err(error) => break Err(error),
            }
            if range.clone().all(|index| matches!(delivery.places.get(index), None | Some(Place::Done))) {
                break Ok(());
            }
            if shared.options.interrupt.is_set() {
                break Err(ExpertError::Interrupted);
            }
            let waited = shared.change.wait_timeout(state, PATIENCE);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        state.stats.waited += start.elapsed();
        outcome
    }

    fn release(&self, delivery: &mut Delivery, range: Range<usize>) {
        let shared = &*self.shared;
        let mut state = shared.lock();
        for index in range {
            let done = matches!(delivery.places[index], Place::Done);
            delivery.take(index);
            if !done {
                let key = shared.layout.key(delivery.layer, delivery.wanted[index].expert);
                state.residency.release(key);
            }
        }
        shared.advance(&mut state, delivery);
        shared.pump(&mut state);
        shared.change.notify_all();
    }

    fn prefetch(&self, layer: usize, experts: &mut dyn Iterator<Item = u32>, certainty: Certainty) {
        let shared = &*self.shared;
        let mut state = shared.lock();
        let state = &mut *state;
        // Certain knowledge goes before guesses, and both before what is remembered.
        let place = |state: &State, rank: u8| {
            let rank_of = |planned: &Planned| planned.certainty.map_or(3, |certainty| certainty as u8);
            state.planned.iter().position(|planned| rank_of(planned) > rank).unwrap_or(state.planned.len())
        };
        for expert in experts {
            if shared.check(layer, [expert]).is_err() {
                continue;
            }
            let key = shared.layout.key(layer, expert);
            if state.residency.find(key).is_none() {
                state.stats.prefetch.guessed += u64::from(certainty == Certainty::Guess);
                let at = place(state, certainty as u8);
                state.planned.insert(at, Planned { key, certainty: Some(certainty) });
            }
        }
        shared.pump(state);
    }

    fn guesses(&self) -> bool {
        let state = self.shared.lock();
        // Where nothing was missing, there is nothing to guess.
        self.shared.options.guess && state.decoding && state.missed && state.guard.on()
    }
}
