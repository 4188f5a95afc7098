//! Damaged checkpoints: each is refused before anything runs, by name

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::{Run, cachalot, copy};

fn edit(folder: &Path, file: &str, from: &str, to: &str) {
    let path = folder.join(file);
    let text = std::fs::read_to_string(&path).expect("readable");
    assert!(text.contains(from), "{file} has no {from}");
    std::fs::write(&path, text.replacen(from, to, 1)).expect("written");
}

fn run(folder: &Path) -> Run {
    cachalot(&["run", "--model", &folder.display().to_string(), "--max-tokens", "2", "--no-think", "Hello"])
}

#[test]
fn files_that_are_missing_are_named() {
    for file in ["config.json", "tokenizer.json", "model.safetensors.index.json", "model-00002-of-00003.safetensors"] {
        let folder = copy("fixtures/v41-tiny");
        std::fs::remove_file(folder.path().join(file)).expect("removed");
        run(folder.path()).refused(1, &[file]);
    }
    let empty = tempfile::tempdir().expect("a folder");
    run(empty.path()).refused(1, &["config.json"]);
    let (_folder, file) = crate::support::file("x");
    run(Path::new(&file)).refused(1, &["is a file"]);
}

#[test]
fn fields_that_are_wrong_are_named() {
    for (from, to, parts) in [
        ("{", "[", &["config.json"][..]),
        ("\"num_hidden_layers\": 14", "\"num_hidden_layers\": 4000000000", &["num_hidden_layers"]),
        ("\"hidden_size\": 128", "\"hidden_size\": 1e300", &["hidden_size"]),
        ("\"head_dim\": 64", "\"head_dim\": -1", &["head_dim"]),
        ("\"vocab_size\": 768", "\"vocab_size\": \"768\"", &["vocab_size"]),
        ("\"model_type\": \"deepseek_v41\"", "\"model_type\": \"llama\"", &["llama", "deepseek_v41"]),
        ("\"n_routed_experts\": 14", "\"n_routed_experts\": 13", &["layers.0.ffn.gate.weight"]),
        ("\"engram_compressed_vocab_size\": 617", "\"engram_compressed_vocab_size\": 618", &["617", "618"]),
    ] {
        let folder = copy("fixtures/v41-tiny");
        edit(folder.path(), "config.json", from, to);
        run(folder.path()).refused(1, parts);
    }
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let folder = copy("fixtures/v41-tiny");
    // Two tokens whose folded texts are the same now share a class.
    edit(folder.path(), "tokenizer.json", "place▁holder▁no▁3", "PLACE▁holder▁no▁0");
    run(folder.path()).refused(1, &["616 Engram token classes", "617", "not the tokenizer of this checkpoint"]);
    std::fs::copy(crate::support::repository("models/nano/tokenizer.json"), folder.path().join("tokenizer.json"))
        .expect("copied");
    run(folder.path()).refused(1, &["tokenizer.json has 4096 ids", "768"]);
    std::fs::write(folder.path().join("tokenizer.json"), "{}").expect("written");
    run(folder.path()).refused(1, &["tokenizer.json"]);
}

#[test]
fn damaged_shards_are_refused() {
    let shard = "model-00001-of-00003.safetensors";
    for (offset, bytes) in [(7, &[0x7f][..]), (0, &[0xff; 8]), (8, b"["), (40, b"\0\0\0\0")] {
        let folder = copy("fixtures/v41-tiny");
        let file = OpenOptions::new().write(true).open(folder.path().join(shard)).expect("a shard");
        file.write_all_at(bytes, offset).expect("damaged");
        run(folder.path()).refused(1, &[shard]);
    }
    let folder = copy("fixtures/v41-tiny");
    let file = OpenOptions::new().write(true).open(folder.path().join(shard)).expect("a shard");
    file.set_len(file.metadata().expect("metadata").len() - 1).expect("cut");
    run(folder.path()).refused(1, &[shard]);
}

#[test]
fn a_bad_scale_is_named_when_it_is_read() {
    let folder = copy("fixtures/v41-tiny");
    let (shard, tensor, offset) = find_tensor(folder.path(), "layers.0.attn.wq_a.scale");
    let file = OpenOptions::new().write(true).open(folder.path().join(&shard)).expect("a shard");
    file.write_all_at(&[255], offset).expect("damaged");
    run(folder.path()).refused(1, &[&shard, &tensor, "scale byte 255", "index 0"]);
}

#[test]
fn a_bad_expert_is_named_when_it_is_asked_for() {
    let folder = copy("fixtures/v41-tiny");
    for expert in 0..14 {
        let (shard, _, offset) = find_tensor(folder.path(), &format!("layers.0.ffn.experts.{expert}.w1.scale"));
        let file = OpenOptions::new().write(true).open(folder.path().join(&shard)).expect("a shard");
        file.write_all_at(&[255], offset + 3).expect("damaged");
    }
    run(folder.path()).refused(1, &["layers.0.ffn.experts.", "scale byte 255", "index 3"]);
}

/// The shard of a tensor, its name, and where its bytes begin in the file.
fn find_tensor(folder: &Path, name: &str) -> (String, String, u64) {
    let read = |file: &str| std::fs::read(folder.join(file)).expect("readable");
    let index: serde_json::Value = serde_json::from_slice(&read("model.safetensors.index.json")).expect("JSON");
    let shard = index["weight_map"][name].as_str().unwrap_or_else(|| panic!("no {name}")).to_owned();
    let bytes = read(&shard);
    let length = u64::from_le_bytes(*bytes.first_chunk().expect("a length"));
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length as usize]).expect("JSON");
    let start = header[name]["data_offsets"][0].as_u64().expect("an offset");
    (shard, name.to_owned(), 8 + length + start)
}
