//! States on the disk, so that they survive the program.
//!
//! Owns a directory: an embedded database is the index, [`Segments`] hold the data. A state is stored as blocks of
//! [`BLOCK`] tokens, which all states that begin with the same tokens share, and a tail of its own. Tokens are stored with
//! them and compared: a state is never used for tokens that it has not seen. Data are written and synced before the index
//! mentions them, so a program that is killed leaves a sound store. What is damaged is dropped and said, never used.
//! Refuses to hold up answers: a thread writes, and what comes while it is busy is not kept.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cachalot_model::Sequence;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use xxhash_rust::xxh3::Xxh3;

use super::segments::{Place, Segments};

/// Tokens of a block.
const BLOCK: usize = 1024;
/// Shorter states are made anew sooner than read.
const FEWEST_TOKENS: usize = 64;
/// Segments that a full store consists of, about.
const SEGMENTS: u64 = 16;
/// Smallest and largest segment, in bytes.
const SEGMENT_BYTES: [u64; 2] = [256 << 10, 256 << 20];
/// States that may wait to be written.
const WAITING: usize = 4;
/// How long nothing is written after a failure.
const PAUSE: Duration = Duration::from_secs(60);

/// Segment, offset, length and checksum of a block or a tail, by the hash of the tokens that it completes.
const RECORDS: TableDefinition<u128, (u32, u64, u64, u64)> = TableDefinition::new("records");
/// States, oldest first: tokens, the earliest position it can return to, and the hashes of the tokens up to there and
/// up to its end.
const STATES: TableDefinition<u64, (u64, u64, u128, u128)> = TableDefinition::new("states");
/// What a tail's key differs in from a block's that ends at the same token.
const TAIL: u128 = 1;

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another program has it.
    #[error("another cachalot uses the states kept in {0}; this one keeps its own in memory only")]
    Busy(PathBuf),
    /// The directory cannot be used.
    #[error("no states are kept on the disk: {path}: {error}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

/// Something went wrong inside.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("index: {0}")]
    Index(#[from] redb::Error),
    #[error(transparent)]
    State(#[from] cachalot_model::StoredError),
    #[error("{0}")]
    Damaged(&'static str),
    /// A piece of this segment.
    #[error("a piece of it cannot be read: {1}")]
    Piece(u32, io::Error),
}

macro_rules! index_faults {
    ($($error:ty),*) => { $(impl From<$error> for Fault { fn from(error: $error) -> Self { Self::Index(error.into()) } })* };
}
index_faults!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);

/// A state that is stored.
#[derive(Clone, Copy, Debug)]
struct Entry {
    id: u64,
    tokens: usize,
    floor: usize,
    floor_hash: u128,
    hash: u128,
}

struct Inner {
    directory: PathBuf,
    database: Database,
    segments: Segments,
    entries: Vec<Entry>,
    budget: u64,
    notes: Notes,
    paused: Option<Instant>,
}

/// What went wrong: told at once if somebody listens.
#[derive(Default)]
struct Notes {
    untold: Vec<String>,
    listener: Option<Listener>,
}

type Listener = Box<dyn Fn(&str) + Send>;

impl Notes {
    fn push(&mut self, note: String) {
        match &self.listener {
            Some(listener) => listener(&note),
            None => self.untold.push(note),
        }
    }
}

/// States of one model on the disk.
pub struct PrefixStore {
    inner: Arc<Mutex<Inner>>,
    sender: Option<SyncSender<(Vec<u32>, Sequence)>>,
    writer: Option<JoinHandle<()>>,
}

impl PrefixStore {
    /// The store of the model called `identity` in `directory`, which is made; it holds at most `budget` bytes or so.
    ///
    /// # Errors
    /// If another program uses it, or it cannot be written. A damaged one is begun anew, which [`PrefixStore::notes`]
    /// says.
    pub fn open(directory: &Path, identity: &str, budget: u64) -> Result<Self, StoreError> {
        let directory = directory.join(format!("prefixes-{identity}"));
        let failed = |error: io::Error| StoreError::Io { path: directory.clone(), error };
        make_private(&directory).map_err(failed)?;
        let mut inner = match Inner::open(&directory, budget) {
            Ok(inner) => inner,
            Err(Fault::Index(redb::Error::DatabaseAlreadyOpen)) => return Err(StoreError::Busy(directory)),
            Err(fault) => {
                std::fs::remove_dir_all(&directory).and_then(|()| make_private(&directory)).map_err(failed)?;
                let mut inner = Inner::open(&directory, budget).map_err(|fault| failed(fault.into_io()))?;
                inner
                    .notes
                    .push(format!("the states kept in {} were damaged and are dropped ({fault})", directory.display()));
                inner
            }
        };
        inner.check();
        let inner = Arc::new(Mutex::new(inner));
        let (sender, receiver) = sync_channel::<(Vec<u32>, Sequence)>(WAITING);
        let writer = {
            let inner = Arc::clone(&inner);
            let write = move || receiver.iter().for_each(|(tokens, state)| lock(&inner).write(&tokens, &state));
            std::thread::Builder::new().name("prefixes".to_owned()).spawn(write).map_err(failed)?
        };
        Ok(Self { inner, sender: Some(sender), writer: Some(writer) })
    }

    /// Writes `state`, which has seen `tokens`, when there is time.
    pub fn keep(&self, tokens: &[u32], state: &Sequence) {
        if tokens.len() < FEWEST_TOKENS {
            return;
        }
        if let Some(sender) = &self.sender {
            // If the writer is behind it is not kept: answers do not wait.
            let _ = sender.try_send((tokens.to_vec(), state.clone()));
        }
    }

    /// The state that spares most of `prompt`, if it spares more than `better_than` tokens of it, with the tokens that it
    /// has seen; `fresh` is a state without tokens. What the two do not share is to be rolled back.
    pub fn longest(&self, prompt: &[u32], better_than: usize, fresh: &Sequence) -> Option<(Vec<u32>, Sequence)> {
        lock(&self.inner).longest(prompt, better_than, fresh)
    }

    /// What went wrong since it was asked last, for people.
    pub fn notes(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.inner).notes.untold)
    }

    /// Has what goes wrong from now on told to `listener` as it happens, instead of kept for [`PrefixStore::notes`]. Answers
    /// may wait while it listens, and it must not ask the store.
    pub fn tell(&self, listener: impl Fn(&str) + Send + 'static) {
        lock(&self.inner).notes.listener = Some(Box::new(listener));
    }

    /// States and bytes stored.
    pub fn size(&self) -> (usize, u64) {
        let inner = lock(&self.inner);
        (inner.entries.len(), inner.segments.bytes())
    }
}

impl Drop for PrefixStore {
    /// Waits until everything that was kept is written.
    fn drop(&mut self) {
        drop(self.sender.take());
        // A panic of the thread has been printed.
        let _ = self.writer.take().map(JoinHandle::join);
    }
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

fn make_private(directory: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

impl Fault {
    fn into_io(self) -> io::Error {
        match self {
            Self::Io(error) => error,
            other => io::Error::other(other.to_string()),
        }
    }
}

/// Hashes of the tokens up to each of `lengths`, which ascend and are not longer than `tokens`.
fn hashes(tokens: &[u32], lengths: impl IntoIterator<Item = usize>) -> HashMap<usize, u128> {
    let (mut hash, mut done, mut found) = (Xxh3::new(), 0, HashMap::new());
    for length in lengths {
        tokens[done..length].iter().for_each(|token| hash.update(&token.to_le_bytes()));
        done = length;
        // The lowest bit tells tails from blocks.
        found.insert(length, hash.digest128() & !TAIL);
    }
    found
}

impl Inner {
    fn open(directory: &Path, budget: u64) -> Result<Self, Fault> {
        let database = Database::create(directory.join("index.redb")).map_err(redb::Error::from)?;
        let full = (budget / SEGMENTS).clamp(SEGMENT_BYTES[0], SEGMENT_BYTES[1]);
        let segments = Segments::open(directory, full)?;
        let transaction = database.begin_write()?;
        let mut entries = Vec::new();
        {
            transaction.open_table(RECORDS)?;
            for state in transaction.open_table(STATES)?.iter()? {
                let (id, state) = state?;
                let (tokens, floor, floor_hash, hash) = state.value();
                if floor > tokens {
                    return Err(Fault::Damaged("a state that returns to its future"));
                }
                entries.push(Entry {
                    id: id.value(),
                    tokens: tokens as usize,
                    floor: floor as usize,
                    floor_hash,
                    hash,
                });
            }
        }
        transaction.commit()?;
        let directory = directory.to_owned();
        Ok(Self { directory, database, segments, entries, budget, notes: Notes::default(), paused: None })
    }

    /// Drops what points at data that are not there, and data that nothing points at.
    fn check(&mut self) {
        let checked = self.change(|segments, records, _| {
            let (mut used, mut lost) = (HashSet::new(), Vec::new());
            for record in records.iter()? {
                let (key, place) = record?;
                let place = Place::from(place.value());
                if segments.holds(&place) {
                    used.insert(place.segment)
                } else {
                    lost.push(key.value());
                    true
                };
            }
            lost.iter().try_for_each(|key| records.remove(key).map(drop))?;
            let unused = segments.numbers().into_iter().filter(|number| !used.contains(number));
            unused.collect::<Vec<_>>().into_iter().for_each(|number| segments.remove(number));
            Ok(lost.len())
        });
        match checked {
            Ok(0) => {}
            Ok(lost) => {
                let path = self.directory.display();
                self.notes.push(format!("of the states kept in {path} {lost} pieces were lost; the rest is used"));
            }
            Err(fault) => self.fail(&fault),
        }
        self.drop_without_tail();
    }

    /// Changes the index: all of it, or nothing.
    fn change<T>(
        &mut self,
        change: impl FnOnce(
            &mut Segments,
            &mut redb::Table<'_, u128, (u32, u64, u64, u64)>,
            &mut redb::Table<'_, u64, (u64, u64, u128, u128)>,
        ) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let transaction = self.database.begin_write()?;
        let outcome = {
            let mut records = transaction.open_table(RECORDS)?;
            let mut states = transaction.open_table(STATES)?;
            change(&mut self.segments, &mut records, &mut states)?
        };
        transaction.commit()?;
        Ok(outcome)
    }

    fn place(&self, key: u128) -> Result<Option<Place>, Fault> {
        let place = self.database.begin_read()?.open_table(RECORDS)?.get(key)?;
        Ok(place.map(|place| Place::from(place.value())))
    }

    fn longest(&mut self, prompt: &[u32], better_than: usize, fresh: &Sequence) -> Option<(Vec<u32>, Sequence)> {
        let mut floors: Vec<usize> =
            self.entries.iter().map(|entry| entry.floor).filter(|f| *f < prompt.len()).collect();
        floors.sort_unstable();
        floors.dedup();
        let found = hashes(prompt, floors);
        let mut candidates: Vec<Entry> =
            self.entries.iter().copied().filter(|entry| found.get(&entry.floor) == Some(&entry.floor_hash)).collect();
        // Of several that reach as far, the newest.
        candidates.sort_by_key(|entry| std::cmp::Reverse((entry.tokens.min(prompt.len() - 1), entry.id)));
        for entry in candidates {
            if entry.tokens.min(prompt.len() - 1) <= better_than {
                break;
            }
            match self.load(&entry, fresh.clone()) {
                Ok(loaded) => return Some(loaded),
                Err(fault) => {
                    let path = self.directory.display();
                    self.notes.push(format!(
                        "a state of {} tokens kept in {path} is damaged and is dropped ({fault})",
                        entry.tokens
                    ));
                    if let Fault::Piece(segment, _) = fault {
                        self.scrub(segment);
                    }
                    self.forget(&[entry.id]);
                }
            }
        }
        None
    }

    /// Forgets what is damaged in a segment: it would be taken for stored.
    fn scrub(&mut self, segment: u32) {
        let scrubbed = self.change(|segments, records, _| {
            let sound = |place: (u32, u64, u64, u64)| place.0 != segment || segments.read(&place.into()).is_ok();
            Ok(records.retain(|_, place| sound(place))?)
        });
        scrubbed.unwrap_or_else(|fault| self.fail(&fault));
    }

    fn read(&self, key: u128) -> Result<Vec<u8>, Fault> {
        let place = self.place(key)?.ok_or(Fault::Damaged("a piece of it is gone"))?;
        self.segments.read(&place).map_err(|error| Fault::Piece(place.segment, error))
    }

    /// Reads a state and the tokens that it has seen.
    fn load(&self, entry: &Entry, mut state: Sequence) -> Result<(Vec<u32>, Sequence), Fault> {
        let whole = entry.tokens / BLOCK;
        let tail = self.read(entry.hash | TAIL)?;
        let (keys, tail) = split(&tail, whole * size_of::<u128>())?;
        let mut tokens = Vec::with_capacity(entry.tokens);
        for (block, key) in keys.as_chunks::<16>().0.iter().enumerate() {
            let bytes = self.read(u128::from_le_bytes(*key))?;
            let (of_block, records) = split_tokens(&bytes, BLOCK)?;
            state.read_records(block * BLOCK..(block + 1) * BLOCK, records)?;
            tokens.extend(of_block);
        }
        let (rest, tail) = split_tokens(tail, entry.tokens - whole * BLOCK)?;
        tokens.extend(rest);
        let (length, tail) = split(tail, size_of::<u64>())?;
        let length = length.as_chunks::<8>().0.first().map_or(0, |length| u64::from_le_bytes(*length));
        let (records, bytes) = split(tail, usize::try_from(length).map_err(|_| TOO_SHORT)?)?;
        state.read_records(whole * BLOCK..entry.tokens, records)?;
        state.read_rest(bytes)?;
        if state.position() != entry.tokens || hashes(&tokens, [entry.tokens])[&entry.tokens] != entry.hash {
            return Err(Fault::Damaged("it is another state"));
        }
        Ok((tokens, state))
    }

    /// Stores a state. A failure is noted, and for a while nothing more is tried.
    fn write(&mut self, tokens: &[u32], state: &Sequence) {
        if self.paused.is_some_and(|since| since.elapsed() < PAUSE) {
            return;
        }
        self.paused = None;
        if let Err(fault) = self.try_write(tokens, state) {
            self.fail(&fault);
        }
    }

    fn fail(&mut self, fault: &Fault) {
        self.paused = Some(Instant::now());
        self.notes
            .push(format!("states could not be kept in {}: {fault}; nothing else is lost", self.directory.display()));
    }

    fn try_write(&mut self, tokens: &[u32], state: &Sequence) -> Result<(), Fault> {
        let (end, floor, whole) = (tokens.len(), state.floor(), tokens.len() / BLOCK);
        let mut lengths: Vec<usize> = (1..=whole).map(|block| block * BLOCK).chain([floor, end]).collect();
        lengths.sort_unstable();
        let keys = hashes(tokens, lengths);
        let id = self.entries.iter().map(|entry| entry.id + 1).max().unwrap_or(0);
        let entry = Entry { id, tokens: end, floor, floor_hash: keys[&floor], hash: keys[&end] };
        let same: Vec<u64> = self.entries.iter().filter(|old| old.hash == entry.hash).map(|old| old.id).collect();
        // What lies in the oldest files will go soon: it is written again.
        let numbers = self.segments.numbers();
        let old = numbers.get(numbers.len() / 3).copied().unwrap_or(0);
        let full = numbers.len() as u64 >= SEGMENTS / 2;
        self.change(|segments, records, states| {
            let mut bytes = Vec::new();
            let kept = |records: &redb::Table<'_, u128, (u32, u64, u64, u64)>, key| -> Result<bool, Fault> {
                let place = records.get(key)?.map(|place| Place::from(place.value()));
                Ok(place.is_some_and(|place| !(full && place.segment <= old)))
            };
            for block in 0..whole {
                let range = block * BLOCK..(block + 1) * BLOCK;
                let key = keys[&range.end];
                if !kept(records, key)? {
                    bytes.clear();
                    put_tokens(&tokens[range.clone()], &mut bytes);
                    state.write_records(range, &mut bytes);
                    records.insert(key, segments.append(&bytes)?.into_value())?;
                }
            }
            if !kept(records, entry.hash | TAIL)? || same.is_empty() {
                let range = whole * BLOCK..end;
                let mut written = Vec::new();
                state.write_records(range.clone(), &mut written);
                bytes.clear();
                for block in 1..=whole {
                    bytes.extend_from_slice(&keys[&(block * BLOCK)].to_le_bytes());
                }
                put_tokens(&tokens[range], &mut bytes);
                bytes.extend_from_slice(&(written.len() as u64).to_le_bytes());
                bytes.extend_from_slice(&written);
                state.write_rest(&mut bytes);
                records.insert(entry.hash | TAIL, segments.append(&bytes)?.into_value())?;
            }
            segments.sync()?;
            same.iter().try_for_each(|id| states.remove(id).map(drop))?;
            states.insert(id, (end as u64, floor as u64, entry.floor_hash, entry.hash))?;
            Ok(())
        })?;
        self.entries.retain(|old| !same.contains(&old.id));
        self.entries.push(entry);
        self.shrink()
    }

    /// Drops the oldest files until the rest is within the budget.
    fn shrink(&mut self) -> Result<(), Fault> {
        while self.segments.bytes() > self.budget {
            let numbers = self.segments.numbers();
            let [oldest, _, ..] = numbers[..] else { break };
            self.change(|segments, records, _| {
                records.retain(|_, place| place.0 != oldest)?;
                segments.remove(oldest);
                Ok(())
            })?;
        }
        self.drop_without_tail();
        Ok(())
    }

    /// Forgets states whose tails are gone; those that miss a block are found out when they are read.
    fn drop_without_tail(&mut self) {
        let gone = self.entries.iter().filter(|entry| matches!(self.place(entry.hash | TAIL), Ok(None)));
        let gone: Vec<u64> = gone.map(|entry| entry.id).collect();
        self.forget(&gone);
    }

    fn forget(&mut self, ids: &[u64]) {
        if ids.is_empty() {
            return;
        }
        self.entries.retain(|entry| !ids.contains(&entry.id));
        if let Err(fault) = self.change(|_, _, states| Ok(ids.iter().try_for_each(|id| states.remove(id).map(drop))?)) {
            self.fail(&fault);
        }
    }
}

fn put_tokens(tokens: &[u32], out: &mut Vec<u8>) {
    tokens.iter().for_each(|token| out.extend_from_slice(&token.to_le_bytes()));
}

const TOO_SHORT: Fault = Fault::Damaged("a piece of it is too short");

fn split(bytes: &[u8], at: usize) -> Result<(&[u8], &[u8]), Fault> {
    bytes.split_at_checked(at).ok_or(TOO_SHORT)
}

/// The `count` tokens at the beginning of `bytes`, and what follows them.
fn split_tokens(bytes: &[u8], count: usize) -> Result<(impl Iterator<Item = u32>, &[u8]), Fault> {
    let (tokens, rest) = split(bytes, count * size_of::<u32>())?;
    Ok((tokens.as_chunks::<4>().0.iter().map(|token| u32::from_le_bytes(*token)), rest))
}

impl From<(u32, u64, u64, u64)> for Place {
    fn from((segment, offset, length, checksum): (u32, u64, u64, u64)) -> Self {
        Self { segment, offset, length, checksum }
    }
}

impl Place {
    fn into_value(self) -> (u32, u64, u64, u64) {
        (self.segment, self.offset, self.length, self.checksum)
    }
}
