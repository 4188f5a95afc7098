//! The files: shards side by side from several threads, the index last.
//!
//! A shard carries another name until all of it is on the disk. If anything fails, what had been written is removed.

use crate::layout::{Shard, Tensor};
use crate::weights::Fill;
use crate::{Options, SynthError, Written};
use cachalot_checkpoint::{CONFIG_FILE, INDEX_FILE};
use serde_json::{Map, Value, json};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Bytes that are made and written at a time.
const BLOCK: usize = 8 << 20;
/// Bytes of all files but the shards, and what a file system needs beside the files.
const ALLOWANCE: u64 = 64 << 20;
/// The tokenizer's file.
const TOKENIZER_FILE: &str = "tokenizer.json";

/// Files and directories of this run, to be removed if it fails.
struct Cleanup {
    directory: PathBuf,
    made_directory: bool,
    files: Mutex<Vec<PathBuf>>,
}

impl Cleanup {
    fn add(&self, path: &Path) {
        self.files.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(path.to_owned());
    }

    /// Removes what can be removed; the reason for it is reported, not what stands in its way.
    fn run(self) {
        for path in self.files.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            let _ = fs::remove_file(path);
        }
        if self.made_directory {
            let _ = fs::remove_dir(self.directory);
        }
    }
}

fn write_error(path: &Path) -> impl FnOnce(io::Error) -> SynthError + '_ {
    move |source| SynthError::Write { path: path.to_owned(), source }
}

/// Writes a checkpoint of these parts.
pub fn checkpoint(
    directory: &Path,
    config: &[u8],
    tokenizer: &[u8],
    shards: &[Shard],
    fill: &Fill,
    options: &Options,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Written, SynthError> {
    let made_directory = !directory.exists();
    fs::create_dir_all(directory).map_err(write_error(directory))?;
    if fs::read_dir(directory).map_err(write_error(directory))?.next().is_some() {
        return Err(SynthError::NotEmpty { path: directory.to_owned() });
    }
    let bytes = shards.iter().map(Shard::bytes).sum();
    let cleanup = Cleanup { directory: directory.to_owned(), made_directory, files: Mutex::default() };
    let written = room(directory, if options.headers_only { 0 } else { bytes }).and_then(|()| {
        let names: Vec<String> =
            (1..=shards.len()).map(|n| format!("model-{n:05}-of-{:05}.safetensors", shards.len())).collect();
        all_shards(directory, shards, &names, fill, options, progress, &cleanup)?;
        small_file(directory, CONFIG_FILE, config, &cleanup)?;
        small_file(directory, TOKENIZER_FILE, tokenizer, &cleanup)?;
        small_file(directory, INDEX_FILE, &index(shards, &names, bytes), &cleanup)
    });
    match written {
        Ok(()) => {
            let tensors = shards.iter().map(|shard| shard.tensors.len()).sum();
            Ok(Written { shards: shards.len(), tensors, bytes })
        }
        Err(error) => {
            cleanup.run();
            Err(error)
        }
    }
}

/// Whether `bytes` fit on the disk of `directory`.
fn room(directory: &Path, bytes: u64) -> Result<(), SynthError> {
    let system = rustix::fs::statvfs(directory).map_err(|error| write_error(directory)(error.into()))?;
    enough(directory, system.f_bavail.saturating_mul(system.f_frsize), bytes.saturating_add(ALLOWANCE))
}

fn enough(directory: &Path, free: u64, needed: u64) -> Result<(), SynthError> {
    if free >= needed { Ok(()) } else { Err(SynthError::Space { path: directory.to_owned(), free, needed }) }
}

fn all_shards(
    directory: &Path,
    shards: &[Shard],
    names: &[String],
    fill: &Fill,
    options: &Options,
    progress: &(dyn Fn(u64, u64) + Sync),
    cleanup: &Cleanup,
) -> Result<(), SynthError> {
    let (next, done, failed) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let total = shards.iter().map(Shard::bytes).sum();
    let report = |bytes: usize| progress(done.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64, total);
    let work = || -> Result<(), SynthError> {
        let mut block = vec![0; BLOCK];
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let (Some(shard), Some(name)) = (shards.get(number), names.get(number)) else { break };
            let (path, part) = (directory.join(name), directory.join(format!("{name}.part")));
            cleanup.add(&path);
            cleanup.add(&part);
            let written = if options.headers_only {
                headers(&part, shard)
            } else {
                whole(&part, shard, fill, &mut block, &|bytes| {
                    report(bytes);
                    !failed.load(Ordering::Relaxed)
                })
            };
            // What another thread's failure stopped keeps its other name until it is removed.
            let renamed = written.and_then(|whole| if whole { fs::rename(&part, &path) } else { Ok(()) });
            renamed.map_err(|source| {
                failed.store(true, Ordering::Relaxed);
                SynthError::Write { path: path.clone(), source }
            })?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads.clamp(1, shards.len().max(1))).map(|_| scope.spawn(work)).collect();
        // The first failure in the order of the threads; the others only stopped.
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// A header over a file of the right length whose data was never written.
fn headers(path: &Path, shard: &Shard) -> io::Result<bool> {
    let header = shard.header();
    let mut file = File::create_new(path)?;
    file.write_all(&header)?;
    file.set_len(header.len() as u64 + shard.bytes())?;
    file.sync_all()?;
    Ok(true)
}

/// Header and data; `go_on` hears of every block and may stop the work. Returns whether it is all there.
fn whole(path: &Path, shard: &Shard, fill: &Fill, block: &mut [u8], go_on: &dyn Fn(usize) -> bool) -> io::Result<bool> {
    let mut file = File::create_new(path)?;
    file.write_all(&shard.header())?;
    let mut filled = 0;
    for tensor in &shard.tensors {
        let more = for_each_piece(tensor, fill, block, &mut filled, &mut |bytes| {
            file.write_all(bytes)?;
            Ok(go_on(bytes.len()))
        })?;
        if !more {
            return Ok(false);
        }
    }
    file.write_all(&block[..filled])?;
    go_on(filled);
    // A disk that is full may say so only now.
    file.sync_all()?;
    Ok(true)
}

/// Appends the bytes of `tensor` to the first `filled` ones of `block`, which goes to `write` whenever it is full and
/// until that says no.
fn for_each_piece(
    tensor: &Tensor,
    fill: &Fill,
    block: &mut [u8],
    filled: &mut usize,
    write: &mut dyn FnMut(&[u8]) -> io::Result<bool>,
) -> io::Result<bool> {
    let (kind, key, length) = (fill.kind(tensor), fill.key(tensor), tensor.bytes());
    let granule = kind.granule();
    let mut offset = 0;
    while offset < length {
        let room = block.len() - *filled;
        let left = usize::try_from(length - offset).unwrap_or(usize::MAX);
        if left > room && room < granule {
            if !write(&block[..*filled])? {
                return Ok(false);
            }
            *filled = 0;
            continue;
        }
        let piece = if left <= room { left } else { room / granule * granule };
        kind.fill(key, offset, &mut block[*filled..*filled + piece]);
        *filled += piece;
        offset += piece as u64;
    }
    Ok(true)
}

fn index(shards: &[Shard], names: &[String], bytes: u64) -> Vec<u8> {
    let mut map = Map::new();
    for (shard, name) in shards.iter().zip(names) {
        map.extend(shard.tensors.iter().map(|tensor| (tensor.name.clone(), Value::from(name.as_str()))));
    }
    map.sort_keys();
    json!({"metadata": {"total_size": bytes}, "weight_map": map}).to_string().into_bytes()
}

fn small_file(directory: &Path, name: &str, bytes: &[u8], cleanup: &Cleanup) -> Result<(), SynthError> {
    let path = directory.join(name);
    cleanup.add(&path);
    let write = || {
        let mut file = File::create_new(&path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(write_error(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named_with_its_numbers() {
        assert!(enough(Path::new("/d"), 10, 10).is_ok());
        let error = enough(Path::new("/d"), 1_500_000_000, 20_000_000_000).expect_err("full").to_string();
        assert!(error.starts_with("/d has 1.5 GB free, and 20.0 GB are needed"), "{error}");
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = SynthError::Write { path: "/d/x".into(), source: full }.to_string();
        assert!(error.starts_with("cannot write /d/x: ") && error.ends_with("removed again"), "{error}");
    }
}
