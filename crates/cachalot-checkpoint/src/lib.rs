//! Released checkpoints: config, index, shard headers, inventory, and reads of tensors.
//!
//! Owns the way from files that nobody vouches for to tensors whose name, type, shape and range are checked. Refuses
//! to be trusting: nothing is allocated for a number that a file merely claims, every problem names its field, tensor
//! or shard. One module per architecture; spec sections 1, 2 and 3.10.
#![forbid(unsafe_code)]

mod architecture;
mod checkpoint;
pub mod deepseek_v4;
pub mod deepseek_v41;
mod dtype;
mod error;
pub mod family;
mod fields;
pub mod index;
mod inspect;
mod inventory;
mod matrix;
mod problems;
mod read;
pub mod safetensors;

pub use architecture::Architecture;
pub use checkpoint::{Abilities, Arrival, CONFIG_FILE, Checkpoint, INDEX_FILE, SINGLE_FILE, Shard, TensorInfo};
pub use dtype::{Dtype, Shape};
pub use error::{BadCode, CheckpointError};
pub use fields::FieldError;
pub use inspect::{Amount, Cache, DtypeAmount, GroupAmount, Inspection, Memory, ShardState, Token};
pub use inventory::{Expected, Group, Problem};
pub use matrix::StoredMatrix;
pub use problems::{MAX_PROBLEMS, Problems};
