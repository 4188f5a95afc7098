//! Which way of reading is fastest on this machine, for these files: found by reading them.
//!
//! Reads are real, of the sizes and in the number that the model will ask for, at places spread over its files. Disks
//! shared with others vary from second to second, so every way gets several short turns and its best one counts.

use crate::lane::{Priority, Read, Sink};
use crate::reader::{Interface, Method, Reader};
use crate::{Storage, StorageError};
use serde::Serialize;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Turns of each way.
const ROUNDS: u32 = 2;
/// Depth at which the ways are compared, and the depths that the best is then tried at.
const DEPTH: usize = 8;
const DEPTHS: [usize; 2] = [4, 16];
/// What the system's cache must be faster by to be used: its pages are not ours, and go when others want them.
const CACHE_MUST_WIN_BY: f64 = 1.25;
/// What io_uring must be faster by to be used: with threads, those that unpack what has arrived keep nobody from reading,
/// and small reads find a thread of their own.
const URING_MUST_WIN_BY: f64 = 1.15;
/// What another depth must be faster by: what is asked for next waits behind all that is in flight.
const DEPTH_MUST_WIN_BY: f64 = 1.1;
/// Reads queued for one turn, at most; a turn ends by time.
const MOST_READS: usize = 4096;

/// A range of a file in which records lie.
#[derive(Clone)]
pub struct Target {
    /// The file.
    pub file: Arc<dyn Storage>,
    /// The range, in bytes.
    pub range: Range<u64>,
}

/// What one way of reading gave.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tried {
    /// The way.
    pub method: Method,
    /// Bytes per second in its best turn; absent if it was refused.
    pub bytes_per_second: Option<f64>,
    /// Bytes per second in its worst turn.
    pub slowest: Option<f64>,
    /// What the system said when it refused.
    pub refused: Option<String>,
}

/// The way chosen, and what it was chosen from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Probe {
    /// The way.
    pub method: Method,
    /// Bytes per second of that way; absent if nothing was measured.
    pub bytes_per_second: Option<f64>,
    /// Bytes of one read.
    pub read_bytes: usize,
    /// All that was tried.
    pub tried: Vec<Tried>,
}

impl Probe {
    /// Nothing was measured: the plain way.
    pub fn unmeasured(read_bytes: usize) -> Self {
        Self { method: Method::PLAIN, bytes_per_second: None, read_bytes, tried: Vec::new() }
    }

    /// Bytes per second of the way chosen, in its worst turn and its best.
    pub fn range(&self) -> Option<[f64; 2]> {
        let turns = self.tried.iter().filter(|tried| tried.method == self.method);
        let worst = turns.filter_map(|tried| tried.slowest).reduce(f64::min)?;
        Some([worst, self.bytes_per_second?])
    }

    /// What was refused here and would be tried elsewhere, in one line; `None` if nothing was.
    pub fn fallback(&self) -> Option<String> {
        let refused = self.tried.iter().filter_map(|tried| Some((tried.method, tried.refused.as_ref()?)));
        let words: Vec<String> = refused
            .map(|(method, reason)| {
                let what = if method.interface == Interface::IoUring { "io_uring" } else { "O_DIRECT" };
                format!("{what} is not possible here ({reason})")
            })
            .collect();
        (!words.is_empty()).then(|| format!("{}; reading with {}", words.join(", "), self.method))
    }
}

/// Reads pieces of `read_bytes` from `targets` in several ways, for about `budget` all in all, and chooses.
///
/// Never fails: where nothing can be read, the plain way is chosen, and whoever reads will hear why.
pub fn probe(targets: &[Target], read_bytes: usize, budget: Duration) -> Probe {
    let mut report = Probe::unmeasured(read_bytes);
    let targets: Vec<&Target> =
        targets.iter().filter(|target| target.range.end - target.range.start >= read_bytes as u64).collect();
    let Some(first) = targets.first() else { return report };
    for (interface, direct) in [(Interface::IoUring, true), (Interface::Pread, true), (Interface::Pread, false)] {
        let method = Method { interface, direct, depth: DEPTH };
        let refused = refusal(method, first, read_bytes);
        report.tried.push(Tried { method, bytes_per_second: None, slowest: None, refused });
    }
    // A kernel without O_DIRECT for this file may still have io_uring.
    if report.tried[0].refused.is_some() && report.tried[1].refused.is_some() {
        let method = Method { interface: Interface::IoUring, direct: false, depth: DEPTH };
        let refused = refusal(method, first, read_bytes);
        report.tried.push(Tried { method, bytes_per_second: None, slowest: None, refused });
    }
    let turns = ROUNDS * (report.tried.len() + DEPTHS.len()) as u32;
    let mut turn = Turn { targets: &targets, read_bytes, time: budget / turns.max(1), seed: 1 };
    turn.best(&mut report.tried);
    let Some(best) = choose(&report.tried) else { return report };
    let depths = DEPTHS.map(|depth| Method { depth, ..best.method });
    let mut deeper =
        depths.map(|method| Tried { method, bytes_per_second: None, slowest: None, refused: None }).to_vec();
    turn.best(&mut deeper);
    report.tried.append(&mut deeper);
    if let Some(best) = choose(&report.tried) {
        (report.method, report.bytes_per_second) = (best.method, best.bytes_per_second);
    }
    report
}

/// Bytes per second that `method` reads pieces of `read_bytes` from `targets` with, over `time`; another `seed` reads at
/// other places.
///
/// # Errors
/// What the system says if it cannot be read that way.
pub fn measure(
    targets: &[Target],
    read_bytes: usize,
    method: Method,
    time: Duration,
    seed: u64,
) -> Result<f64, String> {
    let targets: Vec<&Target> =
        targets.iter().filter(|target| target.range.end - target.range.start >= read_bytes as u64).collect();
    if targets.is_empty() {
        return Err("there is nothing to read".to_owned());
    }
    Turn { targets: &targets, read_bytes, time, seed }.measure(method)
}

fn choose(tried: &[Tried]) -> Option<Tried> {
    let worth = |tried: &Tried| {
        let Method { interface, direct, depth } = tried.method;
        let odds = [
            (direct, CACHE_MUST_WIN_BY),
            (interface == Interface::Pread, URING_MUST_WIN_BY),
            (depth == DEPTH, DEPTH_MUST_WIN_BY),
        ];
        let odds: f64 = odds.iter().filter(|(given, _)| *given).map(|(_, odds)| odds).product();
        tried.bytes_per_second.unwrap_or(0.0) * odds
    };
    let measured = tried.iter().filter(|tried| tried.bytes_per_second.is_some());
    measured.max_by(|a, b| worth(a).total_cmp(&worth(b))).cloned()
}

/// Why this way is not possible, by one read.
fn refusal(method: Method, target: &Target, read_bytes: usize) -> Option<String> {
    let disk = target.file.disk();
    if method.direct && !disk.is_some_and(crate::DiskFile::has_direct) {
        return Some("the file system refuses it".to_owned());
    }
    if method.interface == Interface::IoUring {
        if disk.is_none() {
            return Some("it is no file of the system".to_owned());
        }
        #[cfg(target_os = "linux")]
        if let Err(error) = crate::uring::available() {
            return Some(error.to_string());
        }
        #[cfg(not(target_os = "linux"))]
        return Some("this system has none".to_owned());
    }
    let sink = Arc::new(Count::until(Instant::now() + Duration::from_secs(3600)));
    let read =
        Read { file: Arc::clone(&target.file), offset: target.range.start, length: read_bytes.min(65536), token: 0 };
    match Reader::new(method, read_bytes, [target.file.device()]) {
        Err(error) => Some(error.to_string()),
        Ok(reader) => {
            reader.submit(read, Priority::Demand, &(Arc::clone(&sink) as Arc<dyn Sink>));
            sink.wait(1);
            sink.failed.lock().unwrap_or_else(PoisonError::into_inner).take()
        }
    }
}

struct Turn<'a> {
    targets: &'a [&'a Target],
    read_bytes: usize,
    time: Duration,
    seed: u64,
}

impl Turn<'_> {
    /// Gives every way its turns; the best of each is kept.
    fn best(&mut self, tried: &mut [Tried]) {
        for _ in 0..ROUNDS {
            for tried in tried.iter_mut().filter(|tried| tried.refused.is_none()) {
                match self.measure(tried.method) {
                    Ok(rate) => {
                        tried.bytes_per_second = Some(tried.bytes_per_second.unwrap_or(0.0).max(rate));
                        tried.slowest = Some(tried.slowest.unwrap_or(f64::INFINITY).min(rate));
                    }
                    Err(reason) => (tried.bytes_per_second, tried.refused) = (None, Some(reason)),
                }
            }
        }
    }

    /// Bytes per second over one turn.
    fn measure(&mut self, method: Method) -> Result<f64, String> {
        let devices = self.targets.iter().map(|target| target.file.device());
        let reader = Reader::new(method, self.read_bytes, devices).map_err(|error| error.to_string())?;
        let reads: Vec<Read> = (0..MOST_READS).map(|number| self.place(number)).collect();
        if !method.direct {
            for read in &reads {
                if let Some(disk) = read.file.disk() {
                    disk.forget(read.offset..read.offset + read.length as u64);
                }
            }
        }
        let start = Instant::now();
        let sink = Arc::new(Count::until(start + self.time));
        let shared: Arc<dyn Sink> = Arc::clone(&sink) as _;
        reads.into_iter().for_each(|read| reader.submit(read, Priority::Prefetch, &shared));
        sink.wait(MOST_READS as u64);
        let took = start.elapsed().as_secs_f64();
        if let Some(reason) = sink.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(reason);
        }
        let read = sink.arrived.load(Ordering::Relaxed) * self.read_bytes as u64;
        Ok(read as f64 / took.max(1e-9))
    }

    /// The next place: the files in turn, anywhere in each.
    fn place(&mut self, number: usize) -> Read {
        // Knuth's linear congruential generator: the upper bits are random enough to spread reads.
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let target = self.targets[number % self.targets.len()];
        let room = target.range.end - target.range.start - self.read_bytes as u64;
        let offset = target.range.start + (self.seed >> 16) % (room + 1);
        Read { file: Arc::clone(&target.file), offset, length: self.read_bytes, token: number as u64 }
    }
}

/// Counts what arrives, and wants nothing more once its time is over.
struct Count {
    end: Instant,
    asked: AtomicU64,
    claimed: AtomicU64,
    arrived: AtomicU64,
    failed: Mutex<Option<String>>,
    lock: Mutex<()>,
    change: Condvar,
}

impl Count {
    fn until(end: Instant) -> Self {
        let (asked, claimed, arrived) = Default::default();
        Self { end, asked, claimed, arrived, failed: Mutex::default(), lock: Mutex::default(), change: Condvar::new() }
    }

    /// Waits until all of `count` reads have arrived or were dropped.
    fn wait(&self, count: u64) {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || {
            let asked = self.asked.load(Ordering::SeqCst);
            asked < count || self.arrived.load(Ordering::SeqCst) < self.claimed.load(Ordering::SeqCst)
        };
        while open() {
            let wait = self.change.wait_timeout(guard, Duration::from_millis(20));
            guard = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Sink for Count {
    fn claim(&self, _token: u64) -> bool {
        let wanted = Instant::now() < self.end;
        if wanted {
            self.claimed.fetch_add(1, Ordering::SeqCst);
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.change.notify_all();
        wanted
    }

    fn arrived(&self, _token: u64, bytes: Result<&[u8], StorageError>) {
        if let Err(error) = bytes {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
        }
        self.arrived.fetch_add(1, Ordering::SeqCst);
        self.change.notify_all();
    }
}
