//! What tells one checkpoint from another.

use cachalot_checkpoint::{Checkpoint, CheckpointError};
use xxhash_rust::xxh3::Xxh3;

/// Tensors that are looked into.
const SAMPLES: usize = 256;
/// Bytes of each.
const SAMPLE_BYTES: u64 = 4096;

/// A number that another layout of files will not have: of all shards' names and lengths, and all tensors' names and
/// places.
pub(crate) fn of_layout(checkpoint: &Checkpoint) -> u64 {
    layout(checkpoint).digest()
}

/// A number that other weights will not have either: a few bytes from all over the files count, too.
///
/// # Errors
/// If they cannot be read.
pub(crate) fn of_weights(checkpoint: &Checkpoint) -> Result<u128, CheckpointError> {
    let mut hash = layout(checkpoint);
    let tensors = checkpoint.tensors();
    let mut buffer = Vec::new();
    for tensor in tensors.iter().step_by(tensors.len().div_ceil(SAMPLES).max(1)) {
        let bytes = tensor.bytes.min(SAMPLE_BYTES);
        buffer.resize(bytes as usize, 0);
        // The middle of it: beginnings may be alike.
        checkpoint.read(tensor, (tensor.bytes - bytes) / 2, &mut buffer)?;
        hash.update(&buffer);
    }
    Ok(hash.digest128())
}

fn layout(checkpoint: &Checkpoint) -> Xxh3 {
    let mut hash = Xxh3::new();
    for shard in checkpoint.shards() {
        hash.update(shard.name.as_bytes());
        hash.update(&shard.length().unwrap_or(0).to_le_bytes());
    }
    for tensor in checkpoint.tensors() {
        hash.update(tensor.name.as_bytes());
        hash.update(&checkpoint.file_offset(tensor).to_le_bytes());
    }
    hash
}
