//! Checkpoints without their data, made in memory from a config and the list of its tensors.

use cachalot_checkpoint::{CONFIG_FILE, Expected, INDEX_FILE};
use cachalot_storage::{Embedded, Files, Memory, Storage, StorageError};
use std::collections::HashMap;
use std::fmt::Write;

const SHARDS: usize = 48;

/// A shard that consists of a header and of zeros that nobody stores.
struct Sparse {
    header: Memory,
    length: u64,
}

impl Storage for Sparse {
    fn name(&self) -> &str {
        self.header.name()
    }

    fn length(&self) -> u64 {
        self.length
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        let end = self.header.length();
        assert!(offset + buffer.len() as u64 <= end || offset >= end, "reads are either header or data");
        if offset < end {
            return self.header.read_at(offset, buffer);
        }
        buffer.fill(0);
        Ok(())
    }
}

/// The release without its data; `complete` says whether the files are as long as their headers say.
pub struct Release {
    small: Embedded,
    headers: HashMap<String, (Vec<u8>, u64)>,
    complete: bool,
}

impl Release {
    /// `complete` says whether the files are as long as their headers say; `list` visits all tensors.
    pub fn new(config: &[u8], complete: bool, list: impl FnOnce(&mut dyn FnMut(Expected<'_>))) -> Self {
        let names: Vec<String> = (1..=SHARDS).map(|n| format!("model-{n:05}-of-00048.safetensors")).collect();
        let mut jsons = vec![String::new(); SHARDS];
        let mut ends = [0; SHARDS];
        let (mut map, mut total, mut count) = (String::new(), 0, 0);
        list(&mut |tensor| {
            // Neighbours lie in different shards: a tensor and its scale share none.
            let aligned = |shard: &usize| u64::is_multiple_of(ends[*shard], tensor.dtype.bytes());
            let shard = (count..).map(|turn| turn % SHARDS).find(aligned).expect("an aligned end");
            let bytes = tensor.shape.elements().expect("fits") * tensor.dtype.bytes();
            let start: u64 = ends[shard];
            let (name, dtype, shape) = (tensor.name, tensor.dtype, tensor.shape);
            let json = &mut jsons[shard];
            let comma = if json.is_empty() { "{" } else { "," };
            write!(
                json,
                r#"{comma}"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{}]}}"#,
                start + bytes
            )
            .expect("a string");
            write!(map, "{}\"{name}\":\"{}\"", if count == 0 { "" } else { "," }, names[shard]).expect("a string");
            ends[shard] += bytes;
            total += bytes;
            count += 1;
        });
        let index = format!(r#"{{"metadata":{{"total_size":{total}}},"weight_map":{{{map}}}}}"#);
        let small = Embedded::new("release").with(CONFIG_FILE, config.to_vec()).with(INDEX_FILE, index.into_bytes());
        let headers = names.into_iter().zip(jsons).zip(ends);
        let headers = headers.map(|((name, json), end)| {
            let json = json + "}";
            let header = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat();
            let length = header.len() as u64 + end;
            (name, (header, length))
        });
        Self { small, headers: headers.collect(), complete }
    }
}

impl Files for Release {
    fn open(&self, name: &str) -> Result<Box<dyn Storage>, StorageError> {
        let Some((header, length)) = self.headers.get(name) else { return self.small.open(name) };
        let length = if self.complete { *length } else { header.len() as u64 + 10 };
        Ok(Box::new(Sparse { header: Memory::new(name, header.clone()), length }))
    }

    fn label(&self) -> String {
        "release".to_owned()
    }
}
