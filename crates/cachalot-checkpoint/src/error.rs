//! Why a checkpoint cannot be used, in words that name the file, the field or the tensor.

use crate::fields::FieldError;
use crate::index::IndexError;
use crate::inventory::Problem;
use crate::problems::Problems;
use crate::{Dtype, Shape};
use cachalot_storage::StorageError;

/// Why a checkpoint cannot be opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file is missing or unreadable.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// `config.json` is not a JSON object.
    #[error("config.json cannot be read: {reason}")]
    ConfigSyntax {
        /// What the reader stumbled over.
        reason: String,
    },
    /// A model that this program does not know.
    #[error("config.json: model_type {model_type:?} is unknown; known are {}", known.join(", "))]
    Architecture {
        /// `model_type`, or the first of `architectures`.
        model_type: String,
        /// What is known.
        known: [&'static str; 2],
    },
    /// Fields of the config that are missing or wrong.
    #[error("config.json:\n  {0}")]
    Config(Problems<FieldError>),
    /// The index file is refused.
    #[error("model.safetensors.index.json: {0}")]
    Index(#[from] IndexError),
    /// Shards or tensors are not as config and index say.
    #[error("the checkpoint is not complete and sound:\n  {0}")]
    Invalid(Problems<Problem>),
    /// A tensor that this checkpoint does not hold.
    #[error("the checkpoint holds no tensor {tensor}")]
    NoTensor {
        /// The name that was asked for.
        tensor: String,
    },
    /// A tensor of a shard that has not arrived.
    #[error("{shard} is not there: it holds {tensor}")]
    NotArrived {
        /// The name that was asked for.
        tensor: String,
        /// The shard that the index names for it.
        shard: String,
    },
    /// A tensor is asked for in a form that it does not have.
    #[error("{tensor} ({dtype} {shape}) cannot be read as {form}")]
    Form {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Shape,
        /// What it was asked as.
        form: &'static str,
    },
    /// A range or row that lies outside the tensor.
    #[error("{tensor}: {what} lies outside the tensor")]
    Range {
        /// The tensor.
        tensor: String,
        /// The range or row.
        what: String,
    },
    /// A stored code that is not a number.
    #[error("{shard}: {tensor}: {code} at index {index}: the file is damaged, download it again")]
    BadCode {
        /// The shard.
        shard: String,
        /// The tensor.
        tensor: String,
        /// Index of the element, counted over the tensor's elements.
        index: u64,
        /// The code, in words.
        code: BadCode,
    },
    /// A table names an expert that there is not, or one twice in a row.
    #[error(
        "{shard}: {tensor}: row {row} names expert {value}: it must be one of {experts}, and another one than before it \
         in the row: the file is damaged, download it again"
    )]
    BadExpert {
        /// The shard.
        shard: String,
        /// The tensor.
        tensor: String,
        /// The row, a token id.
        row: u64,
        /// What it names.
        value: i64,
        /// How many experts there are.
        experts: usize,
    },
    /// A tensor is larger than this machine can address or allocate.
    #[error("{tensor}: {bytes} bytes cannot be allocated")]
    Memory {
        /// The tensor.
        tensor: String,
        /// How many bytes.
        bytes: u64,
    },
}

/// A code that stands for no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadCode {
    /// E8M0 255.
    Scale,
    /// E4M3 0x7f or 0xff.
    Fp8,
    /// A BF16 or F32 NaN.
    NotANumber,
}

impl std::fmt::Display for BadCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Scale => "scale byte 255",
            Self::Fp8 => "an FP8 code that is not a number",
            Self::NotANumber => "a value that is not a number",
        })
    }
}
