//! A V4 checkpoint under the commands of everyday, and what only it has: the choice of cache.

use safetensors::{Dtype, SafeTensors};

use crate::support::{cachalot, file, fixture, piped};

/// The report of 140 ids: across the window, groups of 4 and of 128, and the index's limit.
fn forward(more: &[&str]) -> Vec<u8> {
    let ids: Vec<usize> = (0..140).map(|index| (index * 37 + 11) % 600).collect();
    let (folder, path) = file(&serde_json::to_string(&ids).expect("a list"));
    let out = folder.path().join("out").display().to_string();
    let model = fixture("v4-tiny");
    let run = cachalot(&[&["forward", "--model", &model, "--ids", &path, "--out", &out], more].concat());
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (Some(0), "", ""), "{run:?}");
    std::fs::read(&out).expect("the report")
}

#[test]
fn forward_keeps_float32_unless_told_otherwise_and_every_mode_gives_the_same_bytes() {
    let float32 = forward(&["--streams"]);
    let report = SafeTensors::deserialize(&float32).expect("safetensors");
    let mut names = report.names();
    names.sort_unstable();
    assert_eq!(names, ["expert_weights", "experts", "index_selection", "logits", "streams"]);
    for (name, dtype, shape) in [
        ("logits", Dtype::F32, &[140, 768][..]),
        ("experts", Dtype::I32, &[8, 140, 2]),
        ("expert_weights", Dtype::F32, &[8, 140, 2]),
        ("index_selection", Dtype::I32, &[3, 140, 8]),
        ("streams", Dtype::F32, &[9, 140, 4, 256]),
    ] {
        let tensor = report.tensor(name).expect(name);
        assert_eq!((tensor.dtype(), tensor.shape()), (dtype, shape), "{name}");
    }
    assert!(float32 == forward(&["--streams", "--cache", "float32", "--mode", "chunk=33"]));
    let vendor = forward(&["--cache", "vendor", "--arithmetic", "fast"]);
    assert!(vendor != forward(&["--arithmetic", "fast"]), "the vendor's cache rounds");
    for mode in ["decode", "chunk=9", "chunk=127"] {
        assert!(vendor == forward(&["--cache", "vendor", "--arithmetic", "fast", "--mode", mode]), "{mode}");
    }
    assert!(vendor != forward(&["--cache", "vendor", "--arithmetic", "vendor"]), "inputs are rounded");
}

#[test]
fn it_answers_and_converses() {
    let model = fixture("v4-tiny");
    let base = ["--model", &model, "--temperature", "0", "--max-tokens", "6", "--no-think"];
    let run = cachalot(&[&["run", "--json"], &base[..], &["Hello"]].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_eq!(run.json()["usage"]["generated_tokens"], 6);
    let chat = piped(&[&["chat"], &base[..]].concat(), b"Hello\nHello\n");
    assert_eq!(chat.code, Some(0), "{chat:?}");
    assert!(chat.err.contains(" kept)"), "the second prompt goes on from the first: {chat:?}");
}

#[test]
fn what_only_the_other_generation_has_is_refused() {
    let (v4, v41) = (fixture("v4-tiny"), fixture("v41-tiny"));
    cachalot(&["run", "--model", &v41, "--cache", "float32", "Hello"])
        .refused(1, &["float32 cache is there for V4 only", "deepseek_v41"]);
    cachalot(&["run", "--model", &v4, "--prefill", "replay", "Hello"]).refused(1, &["exact prefill only"]);
}
