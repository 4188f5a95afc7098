//! Why no checkpoint could be written.

use cachalot_checkpoint::CheckpointError;
use cachalot_text::TokenizerError;
use std::io;
use std::path::PathBuf;

/// Why no checkpoint could be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SynthError {
    /// A preset that is not known.
    #[error("there is no preset {name:?}; there are {}", known.join(", "))]
    Preset {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<&'static str>,
    },
    /// Something is to be shrunk to what the preset cannot have.
    #[error("--{field} {value}: {reason}")]
    Shrink {
        /// The option.
        field: &'static str,
        /// Its value.
        value: u64,
        /// Why it is not possible.
        reason: String,
    },
    /// The config is no object of a known form.
    #[error("the config cannot be used: {0}")]
    Config(String),
    /// The config describes no model.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// No tokenizer of this vocabulary can be made.
    #[error("no tokenizer for this config: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// The directory holds something.
    #[error("{} is not empty: choose another directory, or empty it", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The disk has not enough room.
    #[error(
        "{} has {} GB free, and {} GB are needed: choose another disk, or shrink the model (--layers, --experts, \
         --engram-rows)",
        path.display(), gigabytes(*free), gigabytes(*needed)
    )]
    Space {
        /// The directory.
        path: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that are needed.
        needed: u64,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}{}", path.display(), hint(source))]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e9)
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ": what had been written is removed again",
        io::ErrorKind::FileTooLarge => ": this file system does not hold files of this size",
        _ => "",
    }
}
