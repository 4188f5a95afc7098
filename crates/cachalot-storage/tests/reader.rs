//! Many reads in flight: the right bytes by every way, urgent ones first, what is no longer wanted not at all.

use cachalot_storage::{
    Bytes, DiskFile, Fault, Faulty, Interface, Memory, Method, Plan, Priority, Read, Reader, Sink, Storage,
    StorageError, Target, measure, probe,
};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// A read's token, and what came of it.
type Arrived = (u64, Result<Vec<u8>, String>);

/// Keeps what arrives, in the order in which it does.
#[derive(Default)]
struct Kept {
    arrived: Mutex<Vec<Arrived>>,
    unwanted: Mutex<Vec<u64>>,
    /// In the order in which they were issued.
    issued: Mutex<Vec<u64>>,
    change: Condvar,
}

impl Sink for Kept {
    fn claim(&self, token: u64) -> bool {
        let wanted = !self.unwanted.lock().unwrap().contains(&token);
        if wanted {
            self.issued.lock().unwrap().push(token);
        }
        wanted
    }

    fn arrived(&self, token: u64, bytes: Result<&[u8], StorageError>) {
        let bytes = bytes.map(<[u8]>::to_vec).map_err(|error| error.to_string());
        self.arrived.lock().unwrap().push((token, bytes));
        self.change.notify_all();
    }
}

impl Kept {
    fn wait(&self, count: usize) -> Vec<(u64, Result<Vec<u8>, String>)> {
        let arrived = self.arrived.lock().unwrap();
        let (arrived, timeout) =
            self.change.wait_timeout_while(arrived, Duration::from_secs(20), |arrived| arrived.len() < count).unwrap();
        assert!(!timeout.timed_out(), "{} of {count} arrived", arrived.len());
        arrived.clone()
    }
}

fn content(length: usize) -> Vec<u8> {
    (0..length as u64).map(|place| (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn disk(path: &Path, bytes: &[u8]) -> Arc<dyn Storage> {
    std::fs::write(path, bytes).unwrap();
    Arc::new(DiskFile::open(path, "shard").unwrap())
}

fn methods() -> Vec<Method> {
    let interfaces = [Interface::Pread, Interface::IoUring];
    let ways = interfaces.into_iter().flat_map(|interface| [false, true].map(|direct| (interface, direct)));
    ways.flat_map(|(interface, direct)| [1, 5].map(|depth| Method { interface, direct, depth })).collect()
}

/// A reader, or none where a container forbids this way.
fn reader(method: Method, largest: usize, file: &Arc<dyn Storage>) -> Option<Reader> {
    let reader = Reader::new(method, largest, [file.device()]);
    if method.interface == Interface::Pread {
        return Some(reader.unwrap());
    }
    reader.map_err(|error| eprintln!("{method}: {error}")).ok()
}

#[test]
fn every_way_reads_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = content(1_000_003);
    let plan = Plan::new();
    plan.on_calls(3..9, Fault::Short(1000));
    let files: [Arc<dyn Storage>; 3] = [
        disk(&directory.path().join("f"), &bytes),
        Arc::new(Memory::new("m", Bytes::from(bytes.clone()))),
        Arc::new(Faulty::new(Box::new(Memory::new("f", Bytes::from(bytes.clone()))), plan)),
    ];
    for (method, file) in methods().into_iter().flat_map(|method| files.iter().map(move |file| (method, file))) {
        let Some(reader) = reader(method, 200_000, file) else { continue };
        let kept = Arc::new(Kept::default());
        let sink: Arc<dyn Sink> = Arc::clone(&kept) as _;
        let ranges: Vec<(usize, usize)> =
            (0..40).map(|n| (n * 24_989 % 800_000, 1 + n * 4999)).chain([(1_000_002, 1), (800_003, 200_000)]).collect();
        for (token, (offset, length)) in ranges.iter().enumerate() {
            let read = Read { file: Arc::clone(file), offset: *offset as u64, length: *length, token: token as u64 };
            reader.submit(read, if token % 2 == 0 { Priority::Demand } else { Priority::Prefetch }, &sink);
        }
        let mut arrived = kept.wait(ranges.len());
        arrived.sort_by_key(|(token, _)| *token);
        for ((token, read), (offset, length)) in arrived.into_iter().zip(&ranges) {
            assert!(read.unwrap() == bytes[*offset..offset + length], "{method}: read {token}");
        }
        let activity = reader.activity();
        assert_eq!(activity.reads, ranges.len() as u64);
        assert_eq!(activity.bytes, ranges.iter().map(|(_, length)| *length as u64).sum::<u64>());
        assert!(activity.busy > Duration::ZERO);
    }
}

#[test]
fn the_end_of_a_file_is_an_error_by_every_way() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("f");
    let file = disk(&path, &content(50_000));
    for method in methods() {
        let Some(reader) = reader(method, 20_000, &file) else { continue };
        let kept = Arc::new(Kept::default());
        let read = Read { file: Arc::clone(&file), offset: 45_000, length: 10_000, token: 7 };
        reader.submit(read, Priority::Demand, &(Arc::clone(&kept) as Arc<dyn Sink>));
        let expected = "shard: 10000 bytes at offset 45000 were asked for, but the file ends after 5000 of them";
        assert_eq!(kept.wait(1), [(7, Err(expected.to_owned()))], "{method}");
    }
    // Cut while it is open.
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10_000).unwrap();
    for method in methods() {
        let Some(reader) = reader(method, 20_000, &file) else { continue };
        let kept = Arc::new(Kept::default());
        for (token, offset) in [(1, 9000), (2, 100)] {
            let read = Read { file: Arc::clone(&file), offset, length: 4000, token };
            reader.submit(read, Priority::Demand, &(Arc::clone(&kept) as Arc<dyn Sink>));
        }
        let arrived = kept.wait(2);
        assert!(arrived.iter().all(|(_, read)| read.is_err()), "{method}: {arrived:?}");
    }
}

#[test]
fn urgent_reads_go_first_and_unwanted_ones_are_dropped() {
    let plan = Plan::new();
    plan.on_calls(0..1, Fault::Delay(Duration::from_millis(200)));
    let file: Arc<dyn Storage> = Arc::new(Faulty::new(Box::new(Memory::new("m", content(100))), Arc::clone(&plan)));
    let reader = Reader::new(Method { depth: 1, ..Method::PLAIN }, 10, [file.device()]).unwrap();
    let kept = Arc::new(Kept::default());
    let sink: Arc<dyn Sink> = Arc::clone(&kept) as _;
    let read = |token| Read { file: Arc::clone(&file), offset: token, length: 1, token };
    reader.submit(read(0), Priority::Demand, &sink);
    while kept.issued.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    for token in [1, 2, 3] {
        reader.submit(read(token), Priority::Prefetch, &sink);
    }
    reader.submit(read(6), Priority::Guess, &sink);
    for token in [4, 5] {
        reader.submit(read(token), Priority::Demand, &sink);
    }
    reader.submit(read(7), Priority::Small, &sink);
    kept.unwanted.lock().unwrap().push(2);
    kept.wait(7);
    assert_eq!(*kept.issued.lock().unwrap(), [0, 7, 4, 5, 1, 3, 6]);
    assert_eq!(plan.calls(), 7, "the unwanted read was never made");
}

#[test]
fn errors_reach_the_sink_and_the_next_read_is_made() {
    let plan = Plan::new();
    plan.on_calls(1..2, Fault::Eio);
    let file: Arc<dyn Storage> = Arc::new(Faulty::new(Box::new(Memory::new("m", content(100))), plan));
    let reader = Reader::new(Method { depth: 1, ..Method::PLAIN }, 50, [0]).unwrap();
    let kept = Arc::new(Kept::default());
    for token in 0..3 {
        let read = Read { file: Arc::clone(&file), offset: token * 10, length: 5, token };
        reader.submit(read, Priority::Demand, &(Arc::clone(&kept) as Arc<dyn Sink>));
    }
    let mut arrived = kept.wait(3);
    arrived.sort_by_key(|(token, _)| *token);
    assert!(arrived[0].1.is_ok() && arrived[2].1.is_ok());
    let error = arrived[1].1.as_ref().unwrap_err();
    assert!(error.starts_with("m: reading 5 bytes at offset 10 failed"), "{error}");
}

#[test]
fn a_reader_can_be_dropped_while_a_disk_hangs() {
    let plan = Plan::new();
    plan.on_calls(0..9, Fault::Delay(Duration::from_secs(20)));
    let file: Arc<dyn Storage> = Arc::new(Faulty::new(Box::new(Memory::new("m", content(100))), plan));
    let start = std::time::Instant::now();
    let reader = Reader::new(Method::PLAIN, 10, [0]).unwrap();
    reader.submit(Read { file, offset: 0, length: 1, token: 0 }, Priority::Demand, &(Arc::<Kept>::default() as _));
    drop(reader);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_probe_chooses_what_works() {
    let directory = tempfile::tempdir().unwrap();
    let file = disk(&directory.path().join("f"), &content(4 << 20));
    let target = |file: &Arc<dyn Storage>| Target { file: Arc::clone(file), range: 1000..4 << 20 };
    let found = probe(&[target(&file)], 300_000, Duration::from_millis(120));
    assert!(found.bytes_per_second.unwrap() > 0.0);
    assert!(found.tried.iter().any(|tried| tried.method == found.method && tried.refused.is_none()));
    assert!(found.tried.iter().all(|tried| tried.refused.is_some() || tried.bytes_per_second.is_some()), "{found:?}");

    // A file without a descriptor: neither O_DIRECT nor io_uring, said in one line.
    let memory: Arc<dyn Storage> = Arc::new(Memory::new("m", content(4 << 20)));
    let found = probe(&[target(&memory)], 300_000, Duration::from_millis(60));
    assert_eq!((found.method.interface, found.method.direct), (Interface::Pread, false));
    let said = found.fallback().unwrap();
    let once = |what: &str| said.matches(what).count() == 1;
    assert!(once("io_uring is not possible here") && once("O_DIRECT is not possible here"), "{said}");

    assert!(measure(&[target(&memory)], 300_000, found.method, Duration::from_millis(300), 7).unwrap() > 0.0);
    assert!(measure(&[], 300_000, found.method, Duration::from_millis(10), 7).is_err());

    // Nothing to read: nothing is measured, and nothing fails.
    assert_eq!(probe(&[target(&memory)], 5 << 20, Duration::from_millis(10)).bytes_per_second, None);
}

/// A file on a device of its own that takes its time.
struct Slow(Memory, u64, Duration);

impl Storage for Slow {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn length(&self) -> u64 {
        self.0.length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        std::thread::sleep(self.2);
        self.0.read_at(offset, buffer)
    }

    fn device(&self) -> u64 {
        self.1
    }
}

/// Both are read at once, and a model is not there before its slowest part is: a fast disk does not hide a slow one.
#[test]
fn of_two_disks_the_one_that_is_slowest_for_its_share_counts() {
    const READ: usize = 1000;
    let slow = |name: &str, device, bytes, milliseconds| {
        let file = Slow(Memory::new(name, content(bytes)), device, Duration::from_millis(milliseconds));
        Target { file: Arc::new(file), range: 0..bytes as u64 }
    };
    let targets = [slow("a", 1, 3 * READ, 1), slow("b", 2, READ, 25), slow("c", 1, 4 * READ, 1)];
    let found = probe(&targets, READ, Duration::from_millis(1000));
    let shares: Vec<f64> = found.devices().iter().map(|device| device.share).collect();
    assert_eq!(shares, [7.0 / 8.0, 1.0 / 8.0]);
    // At most 16 reads are in flight, of 25 ms each, for an eighth of the bytes.
    let most = 8.0 * 16.0 * READ as f64 / 0.025;
    let rate = found.bytes_per_second.unwrap();
    assert!(rate <= most, "{rate} {found:?}");
    let [fast, slow] = found.devices() else { panic!("{found:?}") };
    assert!(rate <= slow.bytes_per_second * 8.0 + 1.0 && rate <= fast.bytes_per_second * 8.0 / 7.0 + 1.0, "{found:?}");
    assert!(slow.bytes_per_second * 2.0 < fast.bytes_per_second, "{found:?}");
    let again = measure(&targets, READ, found.method, Duration::from_millis(200), 3).unwrap();
    assert!(again <= most, "{again}");
}

/// What one disk refuses is no reason to do without it on the others.
#[test]
fn each_disk_is_asked_what_it_refuses() {
    let directory = tempfile::tempdir().unwrap();
    let targets = [disk(&directory.path().join("f"), &content(1 << 20)), Arc::new(Memory::new("m", content(1 << 20)))]
        .map(|file: Arc<dyn Storage>| Target { file, range: 0..1 << 20 });
    let has_direct = targets[0].file.disk().is_some_and(DiskFile::has_direct);
    for order in [[0, 1], [1, 0]] {
        let found = probe(&order.map(|place| targets[place].clone()), 100_000, Duration::from_millis(100));
        let direct = found.tried.iter().find(|tried| tried.method.direct && tried.method.interface == Interface::Pread);
        let direct = direct.unwrap();
        assert_eq!(direct.refused.is_none(), has_direct, "{found:?}");
        if has_direct {
            assert_eq!(direct.partly.as_deref(), Some("m: the file system refuses it"));
            assert_eq!(direct.devices.len(), 2);
        }
    }
}
