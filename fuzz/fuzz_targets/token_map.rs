//! Any bytes as `tokenizer.json`: reading them, encoding with them and building the Engram token map must not panic,
//! hang or allocate beyond the input's size.
#![no_main]

use cachalot_text::{Family, Tokenizer, TokenizerProfile, engram};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // The first byte chooses the family and whether the ids of config.json are given, the second the vocabulary size.
    let [choice, size, json @ ..] = bytes else { return };
    let profile = TokenizerProfile {
        family: if choice & 1 == 0 { Family::V4 } else { Family::V41 },
        vocab_size: if choice & 2 == 0 { 768 } else { 256 + usize::from(*size) },
        image_token_id: (choice & 4 != 0).then_some(762),
        noise_token_id: (choice & 8 != 0).then_some(763),
    };
    let Ok(tokenizer) = Tokenizer::from_json(json, &profile) else { return };
    let map = engram::token_classes(&tokenizer);
    assert_eq!(map.classes.len(), tokenizer.vocab_size());
    assert!(map.classes.iter().all(|&class| (class as usize) < map.count));
    let text = "Tokens of 2026, <｜User｜> naïve 世界\r\n\t";
    if let Ok(ids) = tokenizer.encode_plain(text) {
        assert!(tokenizer.check_ids(&ids).is_ok());
        let _ = tokenizer.decode(&ids);
    }
});
