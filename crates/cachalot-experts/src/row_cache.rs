//! Which rows of one table are in memory: slots of equal size, and a hand that goes round them.
//!
//! Pure bookkeeping and bytes, without reads or locks. A row that was used since the hand last passed stays.

use std::collections::HashMap;

/// What a slot is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowState {
    /// Nothing.
    Empty,
    /// So many reads have not arrived.
    Reading(u8),
    /// The row is here.
    Ready,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct RowSlot {
    pub(crate) row: u64,
    pub(crate) state: RowState,
    /// Changes with every row.
    pub(crate) generation: u32,
    /// Parts that have been issued, one bit each.
    pub(crate) issued: u8,
    /// Someone has asked for it.
    pub(crate) demanded: bool,
    /// Whoever began to read it waits for it: if it fails, that is told. A read that began before anybody waited, and
    /// fails, is made again: the disk may have recovered.
    pub(crate) told: bool,
    used: bool,
    /// Fetches that need it.
    pub(crate) pins: u32,
}

pub(crate) struct RowCache {
    size: usize,
    slots: Vec<RowSlot>,
    bytes: Vec<u8>,
    places: HashMap<u64, u32>,
    hand: usize,
}

impl RowCache {
    /// Slots for rows of `size` bytes in `budget` bytes, at least `fewest`, at most `rows`.
    pub(crate) fn new(size: usize, budget: usize, fewest: usize, rows: u64) -> Self {
        let count = (budget / size.max(1)).max(fewest).min(usize::try_from(rows).unwrap_or(usize::MAX));
        let empty = RowSlot {
            row: 0,
            state: RowState::Empty,
            generation: 0,
            issued: 0,
            demanded: false,
            told: false,
            used: false,
            pins: 0,
        };
        let places = HashMap::with_capacity(count);
        Self { size, slots: vec![empty; count], bytes: vec![0; count * size], places, hand: 0 }
    }

    /// Bytes that the rows take at most.
    pub(crate) fn capacity_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn find(&self, row: u64) -> Option<usize> {
        self.places.get(&row).map(|place| *place as usize)
    }

    pub(crate) fn slot(&mut self, place: usize) -> &mut RowSlot {
        self.slots[place].used = true;
        &mut self.slots[place]
    }

    pub(crate) fn bytes(&mut self, place: usize) -> &mut [u8] {
        &mut self.bytes[place * self.size..(place + 1) * self.size]
    }

    /// A slot for `row`, which is to be read in `parts` reads; `None` if all are in use.
    pub(crate) fn assign(&mut self, row: u64, parts: u8) -> Option<usize> {
        // Twice round: the first time the hand only takes the marks away.
        for _ in 0..2 * self.slots.len() {
            let place = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[place];
            let busy = slot.pins > 0 || matches!(slot.state, RowState::Reading(_));
            if busy || (slot.state == RowState::Ready && std::mem::take(&mut slot.used)) {
                continue;
            }
            if slot.state == RowState::Ready {
                self.places.remove(&slot.row);
            }
            let generation = slot.generation.wrapping_add(1);
            let state = RowState::Reading(parts);
            *slot = RowSlot { row, state, generation, issued: 0, demanded: false, told: false, used: true, pins: 0 };
            self.places.insert(row, place as u32);
            return Some(place);
        }
        None
    }

    /// Empties a slot whose row could not be read.
    pub(crate) fn clear(&mut self, place: usize) {
        self.places.remove(&self.slots[place].row);
        self.slots[place].state = RowState::Empty;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrive(cache: &mut RowCache, row: u64) -> usize {
        let place = cache.assign(row, 1).expect("room");
        cache.slot(place).state = RowState::Ready;
        place
    }

    #[test]
    fn rows_in_use_stay_and_the_others_make_room() {
        let mut cache = RowCache::new(4, 12, 1, 100);
        assert_eq!(cache.capacity_bytes(), 12);
        for row in [10, 11, 12] {
            let place = arrive(&mut cache, row);
            cache.bytes(place).fill(row as u8);
        }
        let place = cache.find(11).expect("kept");
        assert_eq!(cache.bytes(place), [11; 4]);
        cache.slot(place).pins = 1;
        for row in 20..30 {
            arrive(&mut cache, row);
        }
        assert_eq!((cache.find(11), cache.find(10)), (Some(place), None));
        let reading = [40, 41].map(|row| cache.assign(row, 2).expect("room"));
        assert_eq!(cache.assign(42, 1), None, "one is pinned and two are being read");
        cache.clear(reading[0]);
        assert!(cache.find(40).is_none() && cache.assign(42, 1).is_some());
        assert_eq!(RowCache::new(4, 1000, 1, 3).capacity_bytes(), 12, "no more slots than rows");
    }
}
