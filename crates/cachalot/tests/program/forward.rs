//! `cachalot forward`: the tensors it promises, and the same bits in every mode

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use crate::support::{cachalot, file, fixture};

/// Ids across windows, groups and blocks of the small fixture.
fn ids(count: usize) -> String {
    serde_json::to_string(&(0..count).map(|index| (index * 37 + 11) % 600).collect::<Vec<_>>()).expect("a list")
}

fn forward(model: &str, ids: &str, out: &Path, more: &[&str]) -> Vec<u8> {
    let (_folder, ids) = file(ids);
    let out = out.display().to_string();
    let base = ["forward", "--model", &fixture(model), "--ids", &ids, "--out", &out].map(str::to_owned);
    let arguments: Vec<&str> = base.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let run = cachalot(&arguments);
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (Some(0), "", ""), "{run:?}");
    std::fs::read(&out).expect("the report")
}

#[test]
fn the_report_holds_what_is_promised() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = forward("v41-tiny", &ids(45), &folder.path().join("o"), &["--streams"]);
    let report = SafeTensors::deserialize(&bytes).expect("safetensors");
    let (tokens, layers, sources) = (45, 14, 6);
    let mut names = report.names();
    names.sort_unstable();
    assert_eq!(names, ["engram_rows", "expert_weights", "experts", "index_selection", "logits", "streams"]);
    for (name, dtype, shape) in [
        ("logits", Dtype::F32, &[tokens, 768][..]),
        ("experts", Dtype::I32, &[layers, tokens, 3]),
        ("expert_weights", Dtype::F32, &[layers, tokens, 3]),
        ("engram_rows", Dtype::I64, &[2, tokens, 12]),
        ("index_selection", Dtype::I32, &[sources, tokens, 12]),
        ("streams", Dtype::F32, &[layers + 1, tokens, 4, 128]),
    ] {
        let tensor = report.tensor(name).expect(name);
        assert_eq!((tensor.dtype(), tensor.shape()), (dtype, shape), "{name}");
    }
    let f32s = |name: &str| -> Vec<f32> {
        let tensor = report.tensor(name).expect(name);
        tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let i32s = |name: &str| -> Vec<i32> {
        let tensor = report.tensor(name).expect(name);
        tensor.data().as_chunks().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect()
    };
    assert!(f32s("logits").iter().chain(&f32s("streams")).all(|value| value.is_finite()));
    for weights in f32s("expert_weights").chunks(3) {
        assert!(weights.is_sorted_by(|a, b| a >= b), "descending: {weights:?}");
        let sum: f32 = weights.iter().sum();
        assert!((sum - 1.5).abs() < 1e-4, "normalised, times routed_scaling_factor: {sum}");
    }
    assert!(i32s("experts").iter().all(|expert| (0..14).contains(expert)));
    for (place, selection) in i32s("index_selection").chunks(12).enumerate() {
        let chosen = selection.iter().take_while(|id| **id >= 0).count();
        assert!(selection[..chosen].is_sorted_by(|a, b| a < b), "ascending: {selection:?}");
        assert!(selection[chosen..].iter().all(|id| *id == -1), "then -1: {selection:?}");
        assert!(selection[..chosen].iter().all(|id| (*id as usize) <= place % tokens), "nothing of the future");
    }
}

#[test]
fn every_mode_gives_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    for model in ["v41-tiny", "v41-pairs"] {
        for arithmetic in ["exact", "fast"] {
            let out = folder.path().join("o");
            let base = ["--streams", "--arithmetic", arithmetic];
            let of = |more: &[&str]| forward(model, &ids(50), &out, &[&base[..], more].concat());
            let prefill = of(&[]);
            for mode in ["decode", "chunk=7", "chunk=1000"] {
                assert!(of(&["--mode", mode]) == prefill, "{model} {arithmetic} {mode}");
            }
            assert!(of(&["--threads", "1"]) == prefill, "{model} {arithmetic}, one thread");
        }
    }
}

#[test]
fn arithmetics_differ_and_exact_is_the_default() {
    let folder = tempfile::tempdir().expect("a folder");
    let of = |more: &[&str]| forward("v41-tiny", &ids(20), &folder.path().join("o"), more);
    let exact = of(&[]);
    assert!(exact == of(&["--arithmetic", "exact"]));
    assert!(exact != of(&["--arithmetic", "vendor"]));
}

#[test]
fn bad_ids_are_refused() {
    let model = fixture("v41-tiny");
    for (text, parts) in [
        ("", &["not a JSON list of token ids"][..]),
        ("[1, 2", &["not a JSON list of token ids"]),
        ("{\"ids\": [1]}", &["not a JSON list of token ids"]),
        ("[1, -2]", &["not a JSON list of token ids"]),
        ("[1, 2.5]", &["not a JSON list of token ids"]),
        ("[4294967296]", &["not a JSON list of token ids"]),
        ("[]", &["holds no token ids"]),
        ("[1, 768]", &["id 768", "position 1", "768 ids"]),
        ("[1, 4294967295]", &["id 4294967295"]),
        ("[762]", &["stands for an image"]),
    ] {
        let (folder, path) = file(text);
        let out = folder.path().join("out").display().to_string();
        cachalot(&["forward", "--model", &model, "--ids", &path, "--out", &out]).refused(1, parts);
        assert!(!Path::new(&out).exists(), "{text}");
    }
    let (folder, path) = file(&ids(30));
    let out = folder.path().join("out").display().to_string();
    let arguments = ["forward", "--model", &model, "--ids", &path, "--out", &out];
    cachalot(&[&arguments[..], &["--context", "29"]].concat()).refused(1, &["30 ids", "context holds 29"]);
    cachalot(&[&arguments[..], &["--mode", "chunk=0"]].concat()).refused(2, &["prefill, decode or chunk=N"]);
    cachalot(&["forward", "--model", &model, "--ids", "/no/such/file", "--out", &out]).refused(1, &["/no/such/file"]);
    let nowhere = "/no/such/folder/out";
    cachalot(&["forward", "--model", &model, "--ids", &path, "--out", nowhere]).refused(1, &[nowhere]);
}
