//! Which way of reading is fastest on this machine, for these files: found by reading them.
//!
//! Reads are real, of the sizes and in the number that the model will ask for, at places spread over its files. Disks
//! shared with others vary from second to second, so every way gets several short turns and its best one counts.
//!
//! Of a model on several disks each is measured, all at once: they are read at once, and the one that is slowest for its
//! share of the bytes says how long that takes.

use crate::lane::{Priority, Read, Sink};
use crate::reader::{Interface, Method, Reader};
use crate::{Storage, StorageError};
use serde::Serialize;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
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

/// One of the disks that a model lies on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceRate {
    /// Share of the bytes that lie there.
    pub share: f64,
    /// Bytes per second from there.
    pub bytes_per_second: f64,
}

/// What one way of reading gave.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tried {
    /// The way.
    pub method: Method,
    /// Bytes per second in its best turn, all disks together, each with its share; absent if it was refused.
    pub bytes_per_second: Option<f64>,
    /// Bytes per second in its worst turn.
    pub slowest: Option<f64>,
    /// The disks in its best turn.
    pub devices: Vec<DeviceRate>,
    /// What the system said when it refused on every disk.
    pub refused: Option<String>,
    /// What it said when it refused on some: these are read in another way.
    pub partly: Option<String>,
}

impl Tried {
    fn new(method: Method) -> Self {
        Self { method, bytes_per_second: None, slowest: None, devices: Vec::new(), refused: None, partly: None }
    }
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
        Some([self.chosen()?.slowest?, self.bytes_per_second?])
    }

    /// The disks, as the way chosen reads them.
    pub fn devices(&self) -> &[DeviceRate] {
        self.chosen().map_or(&[], |tried| &tried.devices)
    }

    fn chosen(&self) -> Option<&Tried> {
        self.tried.iter().find(|tried| tried.method == self.method)
    }

    /// What was refused here and would be tried elsewhere, in one line; `None` if nothing was.
    pub fn fallback(&self) -> Option<String> {
        // A file system that refuses O_DIRECT refuses it to both interfaces; io_uring is to blame if no way of it is left.
        let rings = self.tried.iter().filter(|tried| tried.method.interface == Interface::IoUring);
        let ring = rings.map(|tried| tried.refused.as_ref()).reduce(|sooner, later| sooner.and(later)).flatten();
        let plain = Method { direct: true, depth: DEPTH, ..Method::PLAIN };
        let direct = self.tried.iter().find(|tried| tried.method == plain);
        let everywhere = [("io_uring", ring), ("O_DIRECT", direct.and_then(|tried| tried.refused.as_ref()))];
        let mut words: Vec<String> = everywhere
            .into_iter()
            .filter_map(|(what, reason)| Some(format!("{what} is not possible here ({})", reason?)))
            .collect();
        if let Some(reason) = direct.and_then(|tried| tried.partly.as_ref()) {
            words.push(format!("O_DIRECT is not possible on every disk ({reason})"));
        }
        (!words.is_empty()).then(|| format!("{}; reading with {}", words.join(", "), self.method))
    }
}

/// Reads pieces of `read_bytes` from `targets` in several ways, for about `budget` all in all, and chooses.
///
/// Never fails: where nothing can be read, the plain way is chosen, and whoever reads will hear why.
pub fn probe(targets: &[Target], read_bytes: usize, budget: Duration) -> Probe {
    let mut report = Probe::unmeasured(read_bytes);
    let devices = Device::of(targets, read_bytes);
    if devices.is_empty() {
        return report;
    }
    let ways = [(Interface::IoUring, true), (Interface::Pread, true), (Interface::Pread, false)];
    report.tried.extend(ways.map(|(interface, direct)| way(interface, direct, &devices, read_bytes)));
    // A kernel without O_DIRECT for these files may still have io_uring.
    if report.tried[0].refused.is_some() && report.tried[1].refused.is_some() {
        report.tried.push(way(Interface::IoUring, false, &devices, read_bytes));
    }
    let turns = ROUNDS * (report.tried.len() + DEPTHS.len()) as u32;
    let mut turn = Turn { devices: &devices, read_bytes, time: budget / turns.max(1), seed: 1 };
    turn.best(&mut report.tried);
    let Some(best) = choose(&report.tried) else { return report };
    let mut deeper = DEPTHS.map(|depth| Tried::new(Method { depth, ..best.method }));
    turn.best(&mut deeper);
    report.tried.extend(deeper);
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
    let devices = Device::of(targets, read_bytes);
    if devices.is_empty() {
        return Err("there is nothing to read".to_owned());
    }
    let rates = Turn { devices: &devices, read_bytes, time, seed }.measure(method)?;
    Ok(together(&rates))
}

/// The ranges that lie on one device, and what share of all they are.
struct Device<'a> {
    number: u64,
    targets: Vec<&'a Target>,
    share: f64,
}

impl<'a> Device<'a> {
    /// The devices of those `targets` that hold a read of `read_bytes`.
    fn of(targets: &'a [Target], read_bytes: usize) -> Vec<Self> {
        let bytes = |target: &Target| target.range.end - target.range.start;
        let (mut devices, mut sum) = (Vec::<Self>::new(), 0.0);
        for target in targets.iter().filter(|target| bytes(target) >= read_bytes as u64) {
            let number = target.file.device();
            let place = devices.iter().position(|device| device.number == number).unwrap_or_else(|| {
                devices.push(Self { number, targets: Vec::new(), share: 0.0 });
                devices.len() - 1
            });
            devices[place].targets.push(target);
            devices[place].share += bytes(target) as f64;
            sum += bytes(target) as f64;
        }
        devices.iter_mut().for_each(|device| device.share /= sum);
        devices
    }
}

/// Bytes per second of all devices, which are read at once and each hold a share.
fn together(devices: &[DeviceRate]) -> f64 {
    devices.iter().map(|device| device.bytes_per_second / device.share).fold(f64::INFINITY, f64::min)
}

/// A way, and what each device says to it.
fn way(interface: Interface, direct: bool, devices: &[Device], read_bytes: usize) -> Tried {
    let method = Method { interface, direct, depth: DEPTH };
    let first = devices.iter().filter_map(|device| device.targets.first());
    let mut refusals = first.filter_map(|target| Some((target.file.name(), refusal(method, target, read_bytes)?)));
    let Some((file, reason)) = refusals.next() else { return Tried::new(method) };
    match refusals.count() + 1 == devices.len() {
        true => Tried { refused: Some(reason), ..Tried::new(method) },
        false => Tried { partly: Some(format!("{file}: {reason}")), ..Tried::new(method) },
    }
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
    let sink = Arc::new(Count::new(Instant::now(), Duration::MAX));
    let read =
        Read { file: Arc::clone(&target.file), offset: target.range.start, length: read_bytes.min(65536), token: 0 };
    match Reader::new(method, read_bytes, [target.file.device()]) {
        Err(error) => Some(error.to_string()),
        Ok(reader) => {
            reader.submit(read, Priority::Demand, &(Arc::clone(&sink) as Arc<dyn Sink>));
            sink.wait(1).err()
        }
    }
}

struct Turn<'a> {
    devices: &'a [Device<'a>],
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
                    Ok(devices) => {
                        let rate = together(&devices);
                        if tried.bytes_per_second.is_none_or(|best| rate > best) {
                            (tried.bytes_per_second, tried.devices) = (Some(rate), devices);
                        }
                        tried.slowest = Some(tried.slowest.unwrap_or(f64::INFINITY).min(rate));
                    }
                    Err(reason) => (tried.bytes_per_second, tried.refused) = (None, Some(reason)),
                }
            }
        }
    }

    /// What each device gives over one turn, while the others are read, too.
    fn measure(&mut self, method: Method) -> Result<Vec<DeviceRate>, String> {
        let numbers = self.devices.iter().map(|device| device.number);
        let reader = Reader::new(method, self.read_bytes, numbers).map_err(|error| error.to_string())?;
        let devices = self.devices;
        let mut reads: Vec<Read> = Vec::with_capacity(MOST_READS * devices.len());
        for number in 0..MOST_READS {
            reads.extend(devices.iter().map(|device| self.place(device, number)));
        }
        for read in &reads {
            if let Some(disk) = read.file.disk().filter(|disk| !(method.direct && disk.has_direct())) {
                disk.forget(read.offset..read.offset + read.length as u64);
            }
        }
        let start = Instant::now();
        let sinks: Vec<Arc<Count>> = devices.iter().map(|_| Arc::new(Count::new(start, self.time))).collect();
        let shared: Vec<Arc<dyn Sink>> = sinks.iter().map(|sink| Arc::clone(sink) as _).collect();
        reads
            .into_iter()
            .zip(shared.iter().cycle())
            .for_each(|(read, sink)| reader.submit(read, Priority::Prefetch, sink));
        let rate = |(sink, device): (&Arc<Count>, &Device)| {
            let bytes_per_second = sink.wait(MOST_READS as u64)? * self.read_bytes as f64;
            Ok(DeviceRate { share: device.share, bytes_per_second })
        };
        sinks.iter().zip(devices).map(rate).collect()
    }

    /// The next place: the files in turn, anywhere in each.
    fn place(&mut self, device: &Device, number: usize) -> Read {
        // Knuth's linear congruential generator: the upper bits are random enough to spread reads.
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let target = device.targets[number % device.targets.len()];
        let room = target.range.end - target.range.start - self.read_bytes as u64;
        let offset = target.range.start + (self.seed >> 16) % (room + 1);
        Read { file: Arc::clone(&target.file), offset, length: self.read_bytes, token: number as u64 }
    }
}

/// Counts what arrives from one device, and wants nothing more once its time is over.
struct Count {
    start: Instant,
    time: Duration,
    state: Mutex<Counted>,
    change: Condvar,
}

#[derive(Default)]
struct Counted {
    asked: u64,
    claimed: u64,
    arrived: u64,
    /// When the last one arrived, since the start.
    last: Duration,
    failed: Option<String>,
}

impl Count {
    fn new(start: Instant, time: Duration) -> Self {
        Self { start, time, state: Mutex::default(), change: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, Counted> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads per second, once all of `count` have arrived or were dropped; the error of one that failed.
    fn wait(&self, count: u64) -> Result<f64, String> {
        let open = |state: &mut Counted| state.asked < count || state.arrived < state.claimed;
        let mut state = self.change.wait_while(self.state(), open).unwrap_or_else(PoisonError::into_inner);
        match state.failed.take() {
            Some(reason) => Err(reason),
            None => Ok(state.arrived as f64 / state.last.as_secs_f64().max(1e-9)),
        }
    }
}

impl Sink for Count {
    fn claim(&self, _token: u64) -> bool {
        let mut state = self.state();
        let wanted = self.start.elapsed() < self.time;
        state.asked += 1;
        state.claimed += u64::from(wanted);
        self.change.notify_all();
        wanted
    }

    fn arrived(&self, _token: u64, bytes: Result<&[u8], StorageError>) {
        let mut state = self.state();
        state.failed = bytes.err().map(|error| error.to_string()).or(state.failed.take());
        state.arrived += 1;
        state.last = self.start.elapsed();
        self.change.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A probe of which the ways were refused as said: io_uring with O_DIRECT, pread with it, io_uring without.
    fn refused(ways: [Option<&str>; 3]) -> Probe {
        let [direct_ring, direct, ring] = ways;
        let tried = |interface, direct, refused: Option<&str>| {
            let refused = refused.map(str::to_owned);
            Tried { refused, ..Tried::new(Method { interface, direct, depth: DEPTH }) }
        };
        let mut report = Probe::unmeasured(1);
        report.tried = vec![
            tried(Interface::IoUring, true, direct_ring),
            tried(Interface::Pread, true, direct),
            tried(Interface::Pread, false, None),
        ];
        if direct_ring.is_some() && direct.is_some() {
            report.tried.push(tried(Interface::IoUring, false, ring));
        }
        report
    }

    #[test]
    fn what_is_not_possible_is_named_once_and_nothing_else() {
        let (fs, os) = (Some("the file system refuses it"), Some("Operation not permitted"));
        let said = |ways| refused(ways).fallback();
        assert_eq!(said([None, None, None]), None);
        let cases = [
            ([fs, fs, None], "O_DIRECT is not possible here (the file system refuses it)"),
            ([os, None, None], "io_uring is not possible here (Operation not permitted)"),
            (
                [fs, fs, os],
                "io_uring is not possible here (Operation not permitted), O_DIRECT is not possible here (the file \
                 system refuses it)",
            ),
        ];
        for (ways, words) in cases {
            assert_eq!(said(ways), Some(format!("{words}; reading with {}", Method::PLAIN)), "{ways:?}");
        }
        let mut some = refused([None, None, None]);
        some.tried[1].partly = Some("b: the file system refuses it".to_owned());
        assert!(some.fallback().is_some_and(|words| words.starts_with("O_DIRECT is not possible on every disk (b: ")));
    }
}
