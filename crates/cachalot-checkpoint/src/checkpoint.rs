//! An opened checkpoint: config, index and shard headers read and checked, tensors readable by range.
//!
//! Owns the order in which files are trusted (config, index, headers, inventory) and every read of tensor bytes.
//! Refuses to open what is not complete and sound; [`Checkpoint::open_headers`] lets data that has not arrived pass,
//! for whoever only wants to know what there is.

use crate::deepseek_v41::{self, config};
use crate::error::CheckpointError;
use crate::index::{Index, MAX_INDEX_BYTES};
use crate::inventory::{self, Expected, Held, Problem, Visit};
use crate::problems::Problems;
use crate::safetensors::{Header, PREFIX_BYTES, header_length};
use crate::{Dtype, Shape};
use cachalot_storage::{Files, Storage, StorageError};
use std::ops::ControlFlow;
use std::sync::Arc;

/// The config file.
pub const CONFIG_FILE: &str = "config.json";
/// The index file.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// What kind of model a checkpoint holds.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Architecture {
    /// DeepSeek-V4.1.
    DeepseekV41(Box<deepseek_v41::Config>),
}

impl Architecture {
    /// Reads a config file's bytes; `model_type` and `architectures` decide what kind of config it is.
    ///
    /// # Errors
    /// If it is no JSON object, names an unknown model, or has fields that are missing or wrong.
    pub fn from_config(json: &[u8]) -> Result<Self, CheckpointError> {
        let map: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(json)
            .map_err(|error| CheckpointError::ConfigSyntax { reason: error.to_string() })?;
        let text = |value: Option<&serde_json::Value>| value.and_then(|value| value.as_str()).map(str::to_owned);
        let class = text(map.get("architectures").and_then(|list| list.get(0)));
        let model_type = text(map.get("model_type"));
        match (model_type.as_deref(), class.as_deref()) {
            (Some(deepseek_v41::MODEL_TYPE), _) | (None, Some(deepseek_v41::ARCHITECTURE)) => {
                let config = deepseek_v41::Config::from_map(&map).map_err(CheckpointError::Config)?;
                Ok(Self::DeepseekV41(Box::new(config)))
            }
            _ => {
                let found = model_type.or(class).unwrap_or_else(|| "(none)".to_owned());
                let model_type = found.chars().take(80).collect();
                Err(CheckpointError::Architecture { model_type, known: deepseek_v41::MODEL_TYPE })
            }
        }
    }

    /// `model_type` of the config.
    pub fn model_type(&self) -> &'static str {
        match self {
            Self::DeepseekV41(_) => deepseek_v41::MODEL_TYPE,
        }
    }

    /// The V4.1 config, if this is a V4.1 model.
    pub fn deepseek_v41(&self) -> Option<&deepseek_v41::Config> {
        match self {
            Self::DeepseekV41(config) => Some(config),
        }
    }
}

/// One tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: Box<str>,
    /// Its stored type.
    pub dtype: Dtype,
    /// Its stored shape.
    pub shape: Shape,
    /// Its length in bytes.
    pub bytes: u64,
    shard: u32,
    start: u64,
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
    file: Option<Box<dyn Storage>>,
}

impl Shard {
    /// Length of the file, if it is there and its header has arrived.
    pub fn length(&self) -> Option<u64> {
        self.file.as_ref().map(|file| file.length())
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
        let architecture = Architecture::from_config(&files.read_all(CONFIG_FILE, config::MAX_CONFIG_BYTES)?)?;
        let index = Index::from_json(&files.read_all(INDEX_FILE, MAX_INDEX_BYTES)?)?;
        let total_size = index.total_size;
        let mut problems = Problems::default();
        let opened = Opened::read(files, index, partial, &mut problems);
        let mut checkpoint = Self {
            label: files.label(),
            architecture,
            abilities: Abilities::default(),
            shards: opened.shards,
            tensors: opened.tensors,
            absent: opened.absent,
            total_size,
        };
        checkpoint.abilities = checkpoint.declared_and_held();
        // With a shard unread, every tensor of it would be reported as missing: one report is enough.
        if problems.is_empty() {
            checkpoint.compare_inventory(&mut problems);
        }
        if problems.is_empty() { Ok(checkpoint) } else { Err(CheckpointError::Invalid(problems)) }
    }

    /// An optional part is there if the config declares it and any tensor of it is held; the comparison then asks for
    /// all of them.
    fn declared_and_held(&self) -> Abilities {
        let held = |prefixes: &[&str]| {
            let starts = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
            self.tensors.iter().any(|tensor| starts(&tensor.name)) || self.absent.iter().any(|(name, _)| starts(name))
        };
        match &self.architecture {
            Architecture::DeepseekV41(config) => Abilities {
                vision: config.vision.is_some() && held(&["vision.", "aligner.", "image_"]),
                draft: config.dspark.is_some() && held(&["mtp."]),
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
        inventory::compare(&names, model_type, &deepseek_v41::tensors::SET_ASIDE, |visit| self.visit(visit), problems);
    }

    fn visit(&self, visit: &mut Visit<'_>) -> ControlFlow<()> {
        match &self.architecture {
            Architecture::DeepseekV41(config) => {
                deepseek_v41::tensors::visit(config, (self.abilities.draft, self.abilities.vision), visit)
            }
        }
    }

    /// Calls `visit` with every tensor that this checkpoint must hold, and with what it holds under that name
    /// (`None` while the shard has not arrived).
    pub fn for_each_expected(&self, mut visit: impl FnMut(Expected<'_>, Option<&TensorInfo>)) {
        let _ = self.visit(&mut |expected| {
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

    /// Number of tensors that the index names.
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
    /// [`CheckpointError::NoTensor`].
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, CheckpointError> {
        self.find(name).ok_or_else(|| CheckpointError::NoTensor { tensor: name.to_owned() })
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

    /// Whether reads of `tensor` may wait for a device.
    pub fn waits(&self, tensor: &TensorInfo) -> bool {
        self.shard_of(tensor).file.as_ref().is_some_and(|file| file.waits())
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
            place_tensors(&index, number as u32, header, data_start, &mut placed, problems);
            shards.push(Shard { name: name.clone(), arrival, file: Some(file) });
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
