//! Where the fixtures are, and the tokenizers they belong to.

use std::io::Read;
use std::path::PathBuf;
use std::sync::LazyLock;

use cachalot_text::{Family, Tokenizer, TokenizerProfile};

pub fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../..", name].iter().collect()
}

pub fn read(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The lines of a fixture file as JSON, with the text of each line.
pub fn lines(name: &str) -> Vec<(String, serde_json::Value)> {
    let text = String::from_utf8(read(&format!("fixtures/protocol/{name}"))).expect("fixtures are UTF-8");
    text.lines().map(|line| (line.to_owned(), serde_json::from_str(line).expect("fixtures are JSON"))).collect()
}

pub fn unpack(name: &str) -> Vec<u8> {
    let mut json = Vec::new();
    flate2::read::GzDecoder::new(read(name).as_slice()).read_to_end(&mut json).expect("fixtures unpack");
    json
}

pub fn released(family: Family) -> &'static Tokenizer {
    static V4: LazyLock<Tokenizer> = LazyLock::new(|| load(Family::V4, "v4", None));
    static V41: LazyLock<Tokenizer> = LazyLock::new(|| load(Family::V41, "v41", Some(129_264)));
    match family {
        Family::V4 => &V4,
        Family::V41 => &V41,
    }
}

fn load(family: Family, name: &str, image_token_id: Option<u32>) -> Tokenizer {
    let json = unpack(&format!("fixtures/protocol/tokenizer-{name}.json.gz"));
    let profile = TokenizerProfile { family, vocab_size: 129_280, image_token_id, noise_token_id: Some(128_799) };
    Tokenizer::from_json(&json, &profile).expect("the released tokenizer loads")
}

pub fn tiny() -> Tokenizer {
    let profile =
        TokenizerProfile { family: Family::V41, vocab_size: 768, image_token_id: Some(762), noise_token_id: Some(763) };
    Tokenizer::from_json(&read("fixtures/v41-tiny/tokenizer.json"), &profile).expect("the tiny tokenizer loads")
}

pub fn nano() -> Tokenizer {
    let profile =
        TokenizerProfile { family: Family::V41, vocab_size: 4096, image_token_id: Some(4094), noise_token_id: None };
    Tokenizer::from_json(&read("models/nano/tokenizer.json"), &profile).expect("the nano tokenizer loads")
}

pub fn family(line: &serde_json::Value) -> Family {
    match line["model"].as_str() {
        Some("v4") => Family::V4,
        Some("v41") => Family::V41,
        other => panic!("unknown model {other:?}"),
    }
}

pub fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().expect("a list of ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// Fails with every failing row, not just the first.
pub fn report(failures: Vec<String>, checked: usize) {
    assert!(failures.is_empty(), "{} of {checked} fail:\n{}", failures.len(), failures.join("\n"));
}
