//! An opened checkpoint: config, index and shard headers read and checked, tensors readable by range.
//!
//! Owns the order in which files are trusted (config, index, headers, inventory) and every read of tensor bytes.
//! Refuses to open what is not complete and sound; [`Checkpoint::open_headers`] lets data that has not arrived pass,
//! for whoever only wants to know what there is.

use crate::architecture::Architecture;
use crate::error::CheckpointError;
use crate::family::MAX_CONFIG_BYTES;
use crate::family::tensors::SET_ASIDE;
use crate::index::{Index, MAX_INDEX_BYTES};
use crate::inventory::{self, Expected, Held, Problem, Visit};
use crate::problems::Problems;
use crate::safetensors::{Header, PREFIX_BYTES, header_length};
use crate::{Dtype, Shape, deepseek_v4};
use cachalot_storage::{Files, Storage, StorageError};
use std::ops::ControlFlow;
use std::sync::Arc;

/// The config file.
pub const CONFIG_FILE: &str = "config.json";
/// The index file.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The only shard of a checkpoint without an index, as Transformers writes small ones.
pub const SINGLE_FILE: &str = "model.safetensors";

/// One tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its released name, whatever the file calls it.
    pub name: Box<str>,
    /// Its stored type.
    pub dtype: Dtype,
    /// Its stored shape.
    pub shape: Shape,
    /// Its length in bytes.
    pub bytes: u64,
    pub(crate) shard: u32,
    pub(crate) start: u64,
}

/// How much of a shard there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// All of it.
    Complete,
    /// Its header, and not all of its data.
    Partial {
        /// Length of the file.
        found: u64,
        /// Length it will have.
        expected: u64,
    },
    /// Not its header.
    Absent,
}

/// One file of tensors.
pub struct Shard {
    /// Its name.
    pub name: String,
    /// How much of it there is.
    pub arrival: Arrival,
    file: Option<Arc<dyn Storage>>,
}

impl Shard {
    /// Length of the file, if it is there and its header has arrived.
    pub fn length(&self) -> Option<u64> {
        self.file.as_ref().map(|file| file.length())
    }

    /// Whether most of the file is holes.
    pub fn is_sparse(&self) -> bool {
        self.file.as_ref().and_then(|file| file.disk()).is_some_and(|disk| disk.is_sparse())
    }
}

/// Which optional parts a checkpoint has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// It can see images.
    pub vision: bool,
    /// It can draft tokens for speculation.
    pub draft: bool,
}

/// A checkpoint whose config, index, headers and inventory have passed every check.
pub struct Checkpoint {
    label: String,
    architecture: Architecture,
    abilities: Abilities,
    shards: Vec<Shard>,
    tensors: Vec<TensorInfo>,
    absent: Vec<(Box<str>, u32)>,
    total_size: Option<u64>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoint({}, {} tensors)", self.label, self.tensor_count())
    }
}

impl Checkpoint {
    /// Opens a complete checkpoint.
    ///
    /// # Errors
    /// The first file that cannot be read; wrong fields of the config; else everything that is wrong with shards and
    /// tensors, up to [`crate::MAX_PROBLEMS`] problems.
    pub fn open(files: Arc<dyn Files>) -> Result<Self, CheckpointError> {
        Self::load(&*files, false)
    }

    /// Opens what there is: shards may be cut behind their header, or not be there.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], but for data that has not arrived.
    pub fn open_headers(files: Arc<dyn Files>) -> Result<Self, CheckpointError> {
        Self::load(&*files, true)
    }

    fn load(files: &dyn Files, partial: bool) -> Result<Self, CheckpointError> {
        let architecture = Architecture::from_config(&files.read_all(CONFIG_FILE, MAX_CONFIG_BYTES)?)?;
        let index = match files.read_all(INDEX_FILE, MAX_INDEX_BYTES) {
            Err(error) if error.is_not_found() => index_of_single_file(files, partial)?.ok_or(error)?,
            json => Index::from_json(&json?)?,
        };
        let total_size = index.total_size;
        let mut problems = Problems::default();
        let mut opened = Opened::read(files, index, partial, &mut problems);
        if let Some(config) = architecture.deepseek_v4() {
            let Opened { shards, tensors, absent } = &mut opened;
            let shard = |number: u32| shards[number as usize].name.clone();
            deepseek_v4::dialect::translate(config, tensors, absent, shard, &mut problems);
        }
        let mut checkpoint = Self {
            label: files.label(),
            architecture,
            abilities: Abilities::default(),
            shards: opened.shards,
            tensors: opened.tensors,
            absent: opened.absent,
            total_size,
        };
        checkpoint.abilities = checkpoint.settle();
        // With a shard unread, every tensor of it would be reported as missing: one report is enough.
        if problems.is_empty() {
            checkpoint.compare_inventory(&mut problems);
        }
        if problems.is_empty() { Ok(checkpoint) } else { Err(CheckpointError::Invalid(problems)) }
    }

    /// Which optional parts there are. Of V4.1, one is there if the config declares it and any tensor of it is held;
    /// the comparison then asks for all of them. Of V4, the tensors decide.
    fn settle(&mut self) -> Abilities {
        let mut held: Vec<(&str, Option<Dtype>)> = {
            let known = self.tensors.iter().map(|tensor| (&*tensor.name, Some(tensor.dtype)));
            known.chain(self.absent.iter().map(|(name, _)| (&**name, None))).collect()
        };
        held.sort_unstable_by(|a, b| a.0.cmp(b.0));
        let any = |prefixes: &[&str]| held.iter().any(|(name, _)| prefixes.iter().any(|start| name.starts_with(start)));
        match &mut self.architecture {
            Architecture::DeepseekV4(config) => {
                config.settle(&held);
                Abilities { vision: config.build.vision, draft: config.build.draft.is_some() }
            }
            Architecture::DeepseekV41(config) => Abilities {
                vision: config.vision.is_some() && any(&["vision.", "aligner.", "image_"]),
                draft: config.dspark.is_some() && any(&["mtp."]),
            },
        }
    }

    fn compare_inventory(&self, problems: &mut Problems<Problem>) {
        let names: Vec<Held<'_>> = {
            let known =
                self.tensors.iter().map(|tensor| (&*tensor.name, Some((tensor.dtype, tensor.shape)), tensor.shard));
            let absent = self.absent.iter().map(|(name, shard)| (&**name, None, *shard));
            let held = |(name, stored, shard): (_, _, u32)| Held {
                name,
                stored,
                shard: self.shards[shard as usize].name.as_str(),
            };
            let mut names: Vec<_> = known.chain(absent).map(held).collect();
            names.sort_unstable_by(|a, b| a.name.cmp(b.name));
            names
        };
        let model_type = self.architecture.model_type();
        let visit = |visit: &mut Visit<'_>| self.architecture.visit(self.abilities, visit);
        inventory::compare(&names, model_type, &SET_ASIDE, visit, problems);
    }

    /// Calls `visit` with every tensor that this checkpoint must hold, and with what it holds under that name
    /// (`None` while the shard has not arrived).
    pub fn for_each_expected(&self, mut visit: impl FnMut(Expected<'_>, Option<&TensorInfo>)) {
        let _ = self.architecture.visit(self.abilities, &mut |expected| {
            visit(expected, self.find(expected.name));
            ControlFlow::Continue(())
        });
    }

    /// Where the checkpoint is, for people.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What kind of model it holds, and its config.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Which optional parts it has.
    pub fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// Its files of tensors, in the order of the index.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The tensors of all shards that have arrived, ascending by name.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Number of tensors, counted as the release does: an expert's matrices one by one.
    pub fn tensor_count(&self) -> usize {
        self.tensors.len() + self.absent.len()
    }

    /// `metadata.total_size` of the index.
    pub fn declared_bytes(&self) -> Option<u64> {
        self.total_size
    }

    /// The tensor called `name`, if it is held.
    pub fn find(&self, name: &str) -> Option<&TensorInfo> {
        let place = self.tensors.binary_search_by(|tensor| (*tensor.name).cmp(name)).ok()?;
        Some(&self.tensors[place])
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`CheckpointError::NoTensor`], or [`CheckpointError::NotArrived`] if it will be in a shard that is not there.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, CheckpointError> {
        self.find(name).ok_or_else(|| {
            let tensor = name.to_owned();
            match self.absent.iter().find(|(absent, _)| **absent == *name) {
                Some((_, shard)) => {
                    CheckpointError::NotArrived { tensor, shard: self.shards[*shard as usize].name.clone() }
                }
                None => CheckpointError::NoTensor { tensor },
            }
        })
    }

    /// The shard that holds `tensor`, a tensor of this checkpoint.
    pub fn shard_of(&self, tensor: &TensorInfo) -> &Shard {
        &self.shards[tensor.shard as usize]
    }

    /// Fills `buffer` with the bytes `from..from + buffer.len()` of `tensor`.
    ///
    /// # Errors
    /// If the range lies outside the tensor, or cannot be read.
    pub fn read(&self, tensor: &TensorInfo, from: u64, buffer: &mut [u8]) -> Result<(), CheckpointError> {
        let end = from.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > tensor.bytes) {
            let what = format!("the range of {} bytes from {from}", buffer.len());
            return Err(CheckpointError::Range { tensor: tensor.name.to_string(), what });
        }
        let shard = self.shard_of(tensor);
        let absent = || StorageError::NotFound { file: shard.name.clone() };
        shard.file.as_ref().ok_or_else(absent)?.read_at(tensor.start + from, buffer)?;
        Ok(())
    }

    /// Where `tensor` starts in its shard, in bytes.
    pub fn file_offset(&self, tensor: &TensorInfo) -> u64 {
        tensor.start
    }

    /// The file that `tensor` lies in, if it has arrived.
    pub fn file_of(&self, tensor: &TensorInfo) -> Option<&Arc<dyn Storage>> {
        self.shard_of(tensor).file.as_ref()
    }

    /// Whether reads of `tensor` may wait for a device.
    pub fn waits(&self, tensor: &TensorInfo) -> bool {
        self.shard_of(tensor).file.as_ref().is_some_and(|file| file.waits())
    }
}

/// The index of a checkpoint that consists of one shard and has no index file, if there is such a shard.
fn index_of_single_file(files: &dyn Files, partial: bool) -> Result<Option<Index>, CheckpointError> {
    // A file that is not there is opened only to be told so.
    match open_shard(files, SINGLE_FILE, partial) {
        Ok(Some((_, header, _))) => {
            let names = header.entries.into_iter().map(|entry| entry.name);
            Ok(Some(Index::of_single_file(SINGLE_FILE, names)?))
        }
        Ok(None) => Ok(None),
        Err(problem) => match *problem {
            Problem::Storage(error) if error.is_not_found() => Ok(None),
            problem => {
                let mut problems = Problems::default();
                problems.push(problem);
                Err(CheckpointError::Invalid(problems))
            }
        },
    }
}

/// Index and headers brought together.
struct Opened {
    shards: Vec<Shard>,
    tensors: Vec<TensorInfo>,
    absent: Vec<(Box<str>, u32)>,
}

impl Opened {
    fn read(files: &dyn Files, index: Index, partial: bool, problems: &mut Problems<Problem>) -> Self {
        let mut placed: Vec<Option<Placed>> = Vec::new();
        placed.resize_with(index.tensors.len(), || None);
        let mut shards: Vec<Shard> = Vec::with_capacity(index.shards.len());
        let mut unread = vec![false; index.shards.len()];
        for (number, name) in index.shards.iter().enumerate() {
            let opened = open_shard(files, name, partial).unwrap_or_else(|problem| {
                problems.push(*problem);
                None
            });
            let Some((file, header, data_start)) = opened else {
                unread[number] = true;
                shards.push(Shard { name: name.clone(), arrival: Arrival::Absent, file: None });
                continue;
            };
            let arrival = arrival(&*file, data_start, &header, partial, problems);
            if !partial && is_hollow(&*file, data_start) {
                problems.push(Problem::Hollow { shard: name.clone() });
            }
            place_tensors(&index, number as u32, header, data_start, &mut placed, problems);
            shards.push(Shard { name: name.clone(), arrival, file: Some(Arc::from(file)) });
        }
        let (mut tensors, mut absent) = (Vec::with_capacity(index.tensors.len()), Vec::new());
        for ((name, shard), placed) in index.tensors.into_iter().zip(placed) {
            match placed {
                Some(Placed { dtype, shape, start, bytes }) => {
                    tensors.push(TensorInfo { name, dtype, shape, bytes, shard, start });
                }
                None if unread[shard as usize] => absent.push((name, shard)),
                None => {
                    let shard = index.shards[shard as usize].clone();
                    problems.push(Problem::NotInShard { tensor: name.into(), shard });
                }
            }
        }
        Self { shards, tensors, absent }
    }
}

struct Placed {
    dtype: Dtype,
    shape: Shape,
    start: u64,
    bytes: u64,
}

/// A shard's file, header, and where its data starts.
type OpenedShard = (Box<dyn Storage>, Header, u64);

/// Opens a shard and reads its header; `None` if it has not arrived and need not have.
fn open_shard(files: &dyn Files, name: &str, partial: bool) -> Result<Option<OpenedShard>, Box<Problem>> {
    let storage_error = |error: StorageError| Box::new(Problem::from(error));
    let file = match files.open(name) {
        Err(error) if partial && error.is_not_found() => return Ok(None),
        opened => opened.map_err(storage_error)?,
    };
    let header_error = |error| Box::new(Problem::Header { shard: name.to_owned(), error });
    let mut prefix = [0; PREFIX_BYTES as usize];
    if file.length() >= PREFIX_BYTES {
        file.read_at(0, &mut prefix).map_err(storage_error)?;
    }
    let length = match header_length(prefix, file.length()) {
        // The header itself has not arrived in full.
        Err(_) if partial && u64::from_le_bytes(prefix) <= crate::safetensors::MAX_HEADER_BYTES => return Ok(None),
        length => length.map_err(header_error)?,
    };
    let mut json = vec![0; length];
    file.read_at(PREFIX_BYTES, &mut json).map_err(storage_error)?;
    let header = Header::from_json(&json).map_err(header_error)?;
    Ok(Some((file, header, PREFIX_BYTES + length as u64)))
}

fn arrival(
    file: &dyn Storage,
    data_start: u64,
    header: &Header,
    partial: bool,
    problems: &mut Problems<Problem>,
) -> Arrival {
    let (found, expected) = (file.length(), data_start.saturating_add(header.data_bytes));
    let shard = || file.name().to_owned();
    if found > expected {
        problems.push(Problem::Trailing { shard: shard(), bytes: found - expected });
    } else if found < expected {
        if !partial {
            problems.push(Problem::Truncated { shard: shard(), expected, found });
        }
        return Arrival::Partial { found, expected };
    }
    Arrival::Complete
}

/// Whether a shard has a header, and behind it nothing but a hole: most of the file takes no space, and what is read here
/// and there are zeros. Some file systems do not say how much space a file takes, so the zeros are looked at, too.
fn is_hollow(file: &dyn Storage, data_start: u64) -> bool {
    const SAMPLES: u64 = 8;
    let room = file.length().saturating_sub(data_start);
    let is_zero = |place: u64| {
        let mut bytes = [0; 4096];
        let length = bytes.len().min(room as usize);
        let offset = data_start + (room - length as u64) / SAMPLES * place;
        file.read_at(offset, &mut bytes[..length]).is_ok() && bytes == [0; 4096]
    };
    room > 0 && file.disk().is_some_and(|disk| disk.is_sparse()) && (0..=SAMPLES).all(is_zero)
}

/// Enters the tensors of shard `number` into `placed`, where the index expects them.
fn place_tensors(
    index: &Index,
    number: u32,
    header: Header,
    data_start: u64,
    placed: &mut [Option<Placed>],
    problems: &mut Problems<Problem>,
) {
    let shard = || index.shards[number as usize].clone();
    for entry in header.entries {
        let Some(place) = index.position(&entry.name) else {
            problems.push(Problem::NotInIndex { tensor: entry.name.into(), shard: shard() });
            continue;
        };
        let expected = index.tensors[place].1;
        if expected != number {
            let index = index.shards[expected as usize].clone();
            problems.push(Problem::OtherShard { tensor: entry.name.into(), shard: shard(), index });
            continue;
        }
        let start = data_start.saturating_add(entry.start);
        placed[place] = Some(Placed { dtype: entry.dtype, shape: entry.shape, start, bytes: entry.bytes });
    }
}
