//! Any bytes as the beginning of a shard: no panic, and what is accepted covers the data part exactly once.
#![no_main]

use cachalot_checkpoint::safetensors::Header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = Header::from_file_start(bytes) else { return };
    let mut end = 0;
    for entry in &header.entries {
        assert_eq!(entry.start, end, "{}", entry.name);
        let size = entry.shape.elements().and_then(|elements| elements.checked_mul(entry.dtype.bytes()));
        assert_eq!(size, Some(entry.bytes), "{}", entry.name);
        end += entry.bytes;
    }
    assert_eq!(end, header.data_bytes);
});
