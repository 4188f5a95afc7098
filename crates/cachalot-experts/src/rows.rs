//! Rows of the Engram tables and of the token embedding, read from the file by row (spec sections 2.2 and 3.10 e).
//!
//! Tables of 200 GB are never in memory: a bounded cache of rows is. What a step needs is read all at once, rows that
//! are asked for twice once, and rows that are known beforehand while something else is computed.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use cachalot_checkpoint::{Checkpoint, TensorInfo};
use cachalot_storage::{Priority, Read, Reader, Sink, StorageError};

use crate::delivery::Interrupt;
use crate::row_cache::{RowCache, RowState};
use crate::table::Table;
use crate::{RowError, RowSource};

/// Rows of a table that have room at least.
const FEWEST_ROWS: usize = 64;
/// Rows that hold nobody up.
const FEW_ROWS: usize = 256;
/// How long a waiting caller sleeps before it looks whether it was interrupted.
const PATIENCE: Duration = Duration::from_millis(20);

/// What the rows have cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowStats {
    /// Distinct rows asked for that were in memory, or on their way.
    pub hits: u64,
    /// Distinct rows that were not.
    pub misses: u64,
    /// Bytes of rows read.
    pub bytes: u64,
    /// Time that somebody waited for rows.
    pub waited: Duration,
}

/// Rows straight from the checkpoint.
pub struct CheckpointRows {
    shared: Arc<Shared>,
    scratch: Mutex<Vec<Scratch>>,
}

struct Shared {
    me: Weak<Self>,
    checkpoint: Arc<Checkpoint>,
    reader: Arc<Reader>,
    interrupt: Interrupt,
    tables: Vec<Table>,
    state: Mutex<State>,
    change: Condvar,
}

struct State {
    caches: Vec<RowCache>,
    /// Rows that could not be read, for whoever began to read them and waits: table, row, why.
    failed: Vec<(usize, u64, RowError)>,
    stats: RowStats,
    closed: bool,
}

/// Buffers of one fetch, kept for the next.
#[derive(Default)]
struct Scratch {
    /// Row and place in the output, ascending.
    order: Vec<(u64, u32)>,
    /// Slots of the rows that are being fetched, and where in `order` each begins and ends.
    held: Vec<(usize, usize, usize)>,
    reads: Vec<Read>,
}

/// Which read of which row.
struct Token {
    table: usize,
    place: usize,
    part: usize,
    generation: u32,
}

impl Token {
    fn pack(&self) -> u64 {
        (self.generation as u64) << 32 | (self.table as u64 & 0x7f) << 25 | (self.place as u64) << 1 | self.part as u64
    }

    fn unpack(token: u64) -> Self {
        let low = token as u32;
        Self {
            table: (low >> 25) as usize,
            place: (low >> 1 & 0xff_ffff) as usize,
            part: (low & 1) as usize,
            generation: (token >> 32) as u32,
        }
    }
}

impl CheckpointRows {
    /// The tables of a checkpoint: those of Engram in the order of the config (V4.1), then the token embedding. About
    /// `budget_bytes` of rows are kept.
    ///
    /// # Errors
    /// If a table is missing, not of the released form, or has rows longer than `reader` reads.
    pub fn new(
        checkpoint: Arc<Checkpoint>,
        reader: Arc<Reader>,
        interrupt: Interrupt,
        budget_bytes: usize,
    ) -> Result<Self, RowError> {
        let engram = checkpoint.architecture().deepseek_v41().and_then(|config| config.engram.clone());
        let engram = engram.iter().flat_map(|engram| &engram.layer_ids);
        let names = engram.map(|layer| format!("layers.{layer}.engram.embed")).chain(["embed".to_owned()]);
        let tables: Vec<Table> = names.map(|name| Table::open(&checkpoint, &name)).collect::<Result<_, _>>()?;
        if let Some(table) = tables.iter().find(|table| table.bytes[0] > reader.largest()) {
            return Err(table.form("a table of rows that are read at once").into());
        }
        // A slot's number has 24 bits.
        let share = (budget_bytes / tables.len().max(1)).min((1 << 24) - 1);
        let cache = |table: &Table| RowCache::new(table.row_bytes(), share, FEWEST_ROWS, table.rows());
        let caches = tables.iter().map(cache).collect();
        let state = State { caches, failed: Vec::new(), stats: RowStats::default(), closed: false };
        let shared = Arc::new_cyclic(|me| Shared {
            me: Weak::clone(me),
            checkpoint,
            reader,
            interrupt,
            tables,
            state: Mutex::new(state),
            change: Condvar::new(),
        });
        Ok(Self { shared, scratch: Mutex::default() })
    }

    /// Number of tables.
    pub fn tables(&self) -> usize {
        self.shared.tables.len()
    }

    /// What the rows have cost so far.
    pub fn stats(&self) -> RowStats {
        self.shared.lock().stats
    }

    /// Bytes that kept rows take at most.
    pub fn capacity_bytes(&self) -> usize {
        self.shared.lock().caches.iter().map(RowCache::capacity_bytes).sum()
    }

    fn with_scratch<T>(&self, work: impl FnOnce(&mut Scratch) -> T) -> T {
        let pool = || self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = pool().pop().unwrap_or_default();
        let result = work(&mut scratch);
        pool().push(scratch);
        result
    }
}

impl Drop for CheckpointRows {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tensor(&self, table: usize, part: usize) -> &TensorInfo {
        let table = &self.tables[table];
        if part == 0 { &table.weight } else { table.scale.as_ref().unwrap_or(&table.weight) }
    }

    fn parts(&self, table: usize) -> u8 {
        1 + u8::from(self.tables[table].scale.is_some())
    }

    /// Lists the reads of a row that have not been issued.
    fn list_reads(&self, state: &mut State, table: usize, place: usize, reads: &mut Vec<Read>) {
        let slot = *state.caches[table].slot(place);
        for part in 0..usize::from(self.parts(table)) {
            let tensor = self.tensor(table, part);
            let length = self.tables[table].bytes[part];
            let offset = self.checkpoint.file_offset(tensor) + slot.row * length as u64;
            let token = Token { table, place, part, generation: slot.generation }.pack();
            if slot.issued >> part & 1 == 0
                && let Some(file) = self.checkpoint.file_of(tensor)
            {
                reads.push(Read { file: Arc::clone(file), offset, length, token });
            }
        }
    }

    /// Hands reads to the reader; those of files in memory are made here and now.
    fn issue(&self, reads: &mut Vec<Read>, priority: Priority) {
        let Some(me) = self.me.upgrade() else { return };
        let sink: Arc<dyn Sink> = me;
        for read in reads.drain(..) {
            if read.file.waits() {
                self.reader.submit(read, priority, &sink);
            } else if self.claim(read.token) {
                let mut bytes = smallvec::SmallVec::<[u8; 1024]>::from_elem(0, read.length);
                let outcome = read.file.read_at(read.offset, &mut bytes);
                self.arrived(read.token, outcome.map(|()| &bytes[..]));
            }
        }
    }

    /// Takes hold of the rows `scratch.order[from..]`, as many as have room; returns where the next ones begin.
    fn hold(&self, table: usize, scratch: &mut Scratch, from: usize) -> usize {
        let mut state = self.lock();
        let state = &mut *state;
        let Scratch { order, held, reads } = scratch;
        held.clear();
        let mut at = from;
        while at < order.len() {
            let row = order[at].0;
            let end = at + order[at..].iter().take_while(|(other, _)| *other == row).count();
            let place = match state.caches[table].find(row) {
                Some(place) => {
                    state.stats.hits += 1;
                    place
                }
                None => {
                    let Some(place) = state.caches[table].assign(row, self.parts(table)) else { break };
                    state.stats.misses += 1;
                    state.failed.retain(|(other, failed, _)| *other != table || *failed != row);
                    state.caches[table].slot(place).told = true;
                    place
                }
            };
            let slot = state.caches[table].slot(place);
            slot.pins += 1;
            if matches!(slot.state, RowState::Reading(_)) && !std::mem::replace(&mut slot.demanded, true) {
                self.list_reads(state, table, place, reads);
            }
            held.push((place, at, end));
            at = end;
        }
        at
    }

    /// Waits for the rows held and decodes them to their places; false if one was lost, whose failure another caller
    /// has been told.
    fn deliver(&self, table: usize, scratch: &Scratch, out: &mut [f32]) -> Result<bool, RowError> {
        let mut state = self.lock();
        let start = Instant::now();
        let outcome = loop {
            if let Some(at) = state.failed.iter().position(|(other, row, _)| {
                let first = |(_, at, _): &(usize, usize, usize)| scratch.order[*at].0;
                *other == table && scratch.held.iter().any(|held| first(held) == *row)
            }) {
                break Err(state.failed.swap_remove(at).2);
            }
            let cache = &mut state.caches[table];
            if scratch.held.iter().all(|(place, ..)| cache.slot(*place).state == RowState::Ready) {
                break Ok(true);
            }
            if scratch.held.iter().any(|(place, ..)| cache.slot(*place).state == RowState::Empty) {
                break Ok(false);
            }
            if self.interrupt.is_set() {
                break Err(RowError::Interrupted);
            }
            state = self.change.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
        };
        state.stats.waited += start.elapsed();
        let (form, cache) = (&self.tables[table], &mut state.caches[table]);
        for (place, first, end) in &scratch.held {
            let slot = cache.slot(*place);
            slot.pins -= 1;
            // What is still on its way has nobody who waits for it.
            slot.told &= matches!(outcome, Ok(true));
            if !matches!(outcome, Ok(true)) {
                continue;
            }
            let at = |index: usize| scratch.order[index].1 as usize * form.width;
            form.decode_row(cache.bytes(*place), &mut out[at(*first)..][..form.width]);
            for index in first + 1..*end {
                out.copy_within(at(*first)..at(*first) + form.width, at(index));
            }
        }
        outcome
    }
}

impl Sink for Shared {
    fn claim(&self, token: u64) -> bool {
        let token = Token::unpack(token);
        let mut state = self.lock();
        let wanted = !state.closed;
        let slot = state.caches[token.table].slot(token.place);
        let open = slot.generation == token.generation && slot.issued >> token.part & 1 == 0;
        slot.issued |= u8::from(open && wanted) << token.part;
        open && wanted
    }

    fn arrived(&self, token: u64, bytes: Result<&[u8], StorageError>) {
        let Token { table, place, part, generation } = Token::unpack(token);
        let mut state = self.lock();
        let State { caches, failed, stats, .. } = &mut *state;
        let (form, cache) = (&self.tables[table], &mut caches[table]);
        let slot = *cache.slot(place);
        let RowState::Reading(missing) = slot.state else { return };
        if slot.generation != generation {
            // The other part of this row failed, and the slot has gone to another row.
            return;
        }
        let mut outcome = match bytes {
            Ok(bytes) => {
                stats.bytes += bytes.len() as u64;
                let start = if part == 0 { 0 } else { form.bytes[0] };
                cache.bytes(place)[start..start + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
            Err(error) => {
                let tensor = self.tensor(table, part).name.to_string();
                Err(RowError::Disk { tensor, row: slot.row, source: Box::new(error) })
            }
        };
        if missing == 1 && outcome.is_ok() {
            outcome = form.check_stored(&self.checkpoint, slot.row, cache.bytes(place)).map_err(RowError::from);
        }
        match outcome {
            Ok(()) if missing == 1 => cache.slot(place).state = RowState::Ready,
            Ok(()) => cache.slot(place).state = RowState::Reading(missing - 1),
            Err(error) => {
                // What else of the row is on its way finds the slot without it.
                cache.clear(place);
                if slot.told {
                    failed.push((table, slot.row, error));
                }
            }
        }
        drop(state);
        self.change.notify_all();
    }
}

impl RowSource for CheckpointRows {
    fn fetch(&self, table: usize, rows: &[u64], out: &mut [f32]) -> Result<(), RowError> {
        let tables = self.shared.tables.len();
        let form = self.shared.tables.get(table).ok_or(RowError::NoTable { table, tables })?;
        form.check(rows, out.len())?;
        self.with_scratch(|scratch| {
            scratch.list(rows);
            let mut from = 0;
            while from < scratch.order.len() {
                let next = self.shared.hold(table, scratch, from);
                self.shared.issue(&mut scratch.reads, Priority::Small);
                if !self.shared.deliver(table, scratch, out)? {
                    continue;
                }
                if next == from {
                    // Every slot is in use by others; they only take a moment.
                    if self.shared.interrupt.is_set() {
                        return Err(RowError::Interrupted);
                    }
                    std::thread::sleep(Duration::from_micros(100));
                }
                from = next;
            }
            Ok(())
        })
    }

    fn prefetch(&self, table: usize, rows: &[u64]) {
        let Some(form) = self.shared.tables.get(table) else { return };
        self.with_scratch(|scratch| {
            scratch.list(rows);
            scratch.order.dedup_by_key(|(row, _)| *row);
            let most = self.room(table);
            let mut state = self.shared.lock();
            for (row, _) in scratch.order.iter().filter(|(row, _)| *row < form.rows()).take(most) {
                if state.caches[table].find(*row).is_none()
                    && let Some(place) = state.caches[table].assign(*row, self.shared.parts(table))
                {
                    state.stats.misses += 1;
                    // A failure that nobody has waited for any more is not one of this read.
                    state.failed.retain(|(other, failed, _)| *other != table || failed != row);
                    self.shared.list_reads(&mut state, table, place, &mut scratch.reads);
                }
            }
            drop(state);
            // Those of a few tokens are read before anything else; those of a long chunk would hold up its experts.
            let few = scratch.order.len() <= FEW_ROWS;
            self.shared.issue(&mut scratch.reads, if few { Priority::Small } else { Priority::Prefetch });
        });
    }

    fn room(&self, table: usize) -> usize {
        let Some(form) = self.shared.tables.get(table) else { return 0 };
        let slots = self.shared.lock().caches[table].capacity_bytes() / form.row_bytes().max(1);
        // Half of the slots are left to what is asked for now, unless all rows have one.
        if slots as u64 >= form.rows() { usize::MAX } else { slots / 2 }
    }

    fn width(&self, table: usize) -> usize {
        self.shared.tables.get(table).map_or(0, |table| table.width)
    }
}

impl Scratch {
    fn list(&mut self, rows: &[u64]) {
        self.order.clear();
        self.order.extend(rows.iter().zip(0..).map(|(row, place)| (*row, place)));
        self.order.sort_unstable();
    }
}
