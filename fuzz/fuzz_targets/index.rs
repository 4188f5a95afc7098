//! Any bytes as an index file: no panic, and every accepted tensor is found in a shard that exists.
#![no_main]

use cachalot_checkpoint::index::Index;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(index) = Index::from_json(bytes) else { return };
    assert!(index.shards.is_sorted_by(|a, b| a < b));
    for (name, shard) in &index.tensors {
        assert_eq!(index.shard_of(name), Some(*shard));
        assert!((*shard as usize) < index.shards.len());
    }
});
