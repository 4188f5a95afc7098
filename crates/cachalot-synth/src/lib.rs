//! Checkpoints with the true shapes and random weights, for measuring where the real ones cannot be had.
//!
//! Owns the presets, what is left of one when layers are taken away, the distributions of the weights, and the files:
//! config, tokenizer, index and shards as released. Refuses to pretend: what it writes computes as the model would and
//! says nothing sensible. Nothing that it did not finish can be taken for a checkpoint: the index is written last.
//!
//! The bytes of a tensor depend on the seed, its name and its shape only, not on shards, threads or other tensors.
#![forbid(unsafe_code)]

mod error;
mod layout;
mod preset;
mod random;
mod tokenizer;
mod weights;
mod write;

pub use error::SynthError;
pub use preset::{Preset, Shrink};

use cachalot_checkpoint::Architecture;
use serde_json::Value;
use std::path::Path;

/// Default of [`Options::skew`]: the best fifth of 384 experts takes half of all choices.
///
/// Nobody has published how evenly the routers of this family choose. Balanced by their bias over all of training, they
/// are uneven on any one text; this value is a guess between the extremes of an even router, on which a cache of the
/// hot experts gains nothing, and Zipf's law (1), on which a small one gains nearly everything.
pub const DEFAULT_SKEW: f64 = 0.6;

/// What to write.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Chooses the weights.
    pub seed: u64,
    /// Exponent of the experts' popularity: the expert of rank `r` of a layer is chosen in proportion to `r^-skew`.
    /// 0 is even.
    pub skew: f64,
    /// Whether to write the headers only, over files whose data takes no space and reads as zeros.
    pub headers_only: bool,
    /// Threads that write.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { seed: 0, skew: DEFAULT_SKEW, headers_only: false, threads }
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Files of tensors.
    pub shards: usize,
    /// Tensors.
    pub tensors: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
}

/// Writes a checkpoint of `config` (a released `config.json`) into `directory`, which is made if it is not there and
/// must be empty; `progress` hears of bytes written and of all bytes, from several threads.
///
/// `engram_compressed_vocab_size` of the config is set to what the synthetic tokenizer has.
///
/// # Errors
/// [`SynthError`] says what is wrong with the config or which file could not be written. Whatever had been written is
/// removed then.
pub fn synth(
    mut config: Value,
    directory: &Path,
    options: &Options,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Written, SynthError> {
    let tokenizer = tokenizer::synthesize(&mut config)?;
    let json = serde_json::to_vec_pretty(&config).map_err(|error| SynthError::Config(error.to_string()))?;
    let architecture = Architecture::from_config(&json)?;
    let shards = layout::shards(&architecture);
    let fill = weights::Fill::new(&architecture, options.seed, options.skew);
    write::checkpoint(directory, &json, &tokenizer, &shards, &fill, options, progress)
}
