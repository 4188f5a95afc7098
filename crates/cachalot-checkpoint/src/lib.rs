//! Released checkpoints: config, shards, tensor inventory, validation.
