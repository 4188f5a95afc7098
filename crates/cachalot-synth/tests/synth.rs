//! What is written opens, runs, and is what it should be; what fails leaves nothing behind.

use cachalot_checkpoint::{Arrival, Checkpoint, Dtype, INDEX_FILE, Inspection, TensorInfo};
use cachalot_engine::forward::{ForwardMode, ForwardReport};
use cachalot_engine::{Engine, EngineOptions};
use cachalot_storage::{Directory, Files};
use cachalot_synth::{Options, Preset, Shrink, SynthError, synth};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// The config of a fixture, without what is left out of shrunk presets.
fn tiny(fixture: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(fixture).join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(path).expect("there")).expect("JSON");
    let nested = config.get("text_config").is_some();
    let text = if nested { &mut config["text_config"] } else { &mut config };
    text["num_nextn_predict_layers"] = json!(0);
    if nested {
        let root = config.as_object_mut().expect("an object");
        root.remove("vision_config");
        root.remove("image_token_id");
    }
    config
}

/// A checkpoint of a config in a directory of its own.
fn written(config: Value, options: &Options) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("model");
    synth(config, &path, options, &|_, _| true).unwrap_or_else(|error| panic!("{error}"));
    (folder, path)
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(Arc::new(Directory::new(path))).unwrap_or_else(|error| panic!("{error}"))
}

/// Opens true headers over holes, which nothing can run.
fn headers(path: &Path) -> Checkpoint {
    let files = || Arc::new(Directory::new(path));
    let refused = Checkpoint::open(files()).expect_err("there is nothing to run").to_string();
    assert!(refused.contains("holds its header only"), "{refused}");
    let checkpoint = Checkpoint::open_headers(files()).unwrap_or_else(|error| panic!("{error}"));
    assert!(checkpoint.shards().iter().all(|shard| shard.arrival == Arrival::Complete));
    checkpoint
}

fn bytes_of(checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    let tensor = checkpoint.tensor(name).expect(name);
    let mut bytes = vec![0; tensor.bytes as usize];
    checkpoint.read(tensor, 0, &mut bytes).expect("reads");
    bytes
}

#[test]
fn shards_are_ordered_as_published() {
    for fixture in ["v4-tiny", "v41-tiny"] {
        let (_folder, path) = written(tiny(fixture), &Options::default());
        let checkpoint = open(&path);
        let mut shards: BTreeMap<&str, Vec<&TensorInfo>> = BTreeMap::new();
        for tensor in checkpoint.tensors() {
            shards.entry(&checkpoint.shard_of(tensor).name).or_default().push(tensor);
        }
        assert_eq!(shards.len(), checkpoint.shards().len());
        let order = [Dtype::I64, Dtype::F32, Dtype::BF16, Dtype::F8_E8M0, Dtype::F8_E4M3, Dtype::I8];
        let rank = |tensor: &TensorInfo| order.iter().position(|dtype| *dtype == tensor.dtype);
        for tensors in shards.values_mut() {
            tensors.sort_by_key(|tensor| checkpoint.file_offset(tensor));
            assert!(tensors.is_sorted_by_key(|tensor| (rank(tensor), &tensor.name)));
        }
        // An expert's three weights are one range, its three scales another.
        for part in ["weight", "scale"] {
            let name = |matrix: &str| format!("layers.3.ffn.experts.5.{matrix}.{part}");
            let parts = ["w1", "w2", "w3"].map(|matrix| checkpoint.tensor(&name(matrix)).expect("there"));
            let [first, second, third] = parts.map(|tensor| (checkpoint.file_offset(tensor), tensor.bytes));
            assert_eq!((first.0 + first.1, second.0 + second.1), (second.0, third.0));
        }
    }
}

#[test]
fn the_seed_decides_every_byte_and_threads_none() {
    let options = |seed, threads| Options { seed, threads, ..Options::default() };
    let (_one, one) = written(tiny("v4-tiny"), &options(1, 1));
    let (_two, two) = written(tiny("v4-tiny"), &options(1, 4));
    let (_other, other) = written(tiny("v4-tiny"), &options(2, 2));
    // Fewer layers leave the others as they are.
    let mut fewer = tiny("v4-tiny");
    fewer["num_hidden_layers"] = json!(4);
    fewer["compress_ratios"] = json!([0, 0, 4, 128]);
    let (_fewer, fewer) = written(fewer, &options(1, 2));
    let mut names: Vec<_> =
        std::fs::read_dir(&one).expect("a directory").map(|entry| entry.expect("an entry").file_name()).collect();
    names.sort();
    for name in &names {
        assert!(
            std::fs::read(one.join(name)).expect("there") == std::fs::read(two.join(name)).expect("there"),
            "{name:?}"
        );
    }
    let (one, other, fewer) = (open(&one), open(&other), open(&fewer));
    for name in
        ["layers.3.ffn.experts.5.w1.weight", "layers.0.attn.wq_b.weight", "layers.1.ffn.gate.tid2eid", "embed.weight"]
    {
        assert!(bytes_of(&one, name) != bytes_of(&other, name), "{name}");
        assert!(bytes_of(&one, name) == bytes_of(&fewer, name), "{name}");
    }
}

/// Chosen experts by layer, rows of tokens one after the other, from a forward pass over `count` tokens.
fn forward(path: &Path, count: u32) -> (Vec<f32>, Vec<Vec<i32>>) {
    let files: Arc<dyn Files> = Arc::new(Directory::new(path));
    let options = EngineOptions { threads: Some(1), ..EngineOptions::default() };
    let engine = Engine::open(files, &options, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
    let ids: Vec<u32> = (0..count).map(|place| place * 7919 % 700 + 3).collect();
    let report = ForwardReport::run(engine.model(), &ids, ForwardMode::Prefill, false, &mut |_| {}).expect("runs");
    (report.logits().to_vec(), report.trace().experts.clone())
}

#[test]
fn activations_stay_sane_and_routing_is_as_skewed_as_asked() {
    for fixture in ["v4-tiny", "v41-tiny"] {
        let share = |skew: f64| {
            let (_folder, path) = written(tiny(fixture), &Options { skew, ..Options::default() });
            let (logits, experts) = forward(&path, 300);
            let size = logits.iter().map(|logit| logit * logit).sum::<f32>() / logits.len() as f32;
            assert!((0.3..3.0).contains(&size.sqrt()), "{fixture}: logits of {}", size.sqrt());
            // The share of the two most popular experts of the last layer, where experts are scored.
            let mut counts = BTreeMap::<i32, usize>::new();
            let chosen = experts.last().expect("a layer");
            chosen.iter().for_each(|expert| *counts.entry(*expert).or_default() += 1);
            let mut counts: Vec<usize> = counts.into_values().collect();
            counts.sort_unstable_by(|a, b| b.cmp(a));
            counts.iter().take(2).sum::<usize>() as f64 / chosen.len() as f64
        };
        let (even, skewed) = (share(0.0), share(1.0));
        // Two of 8 or 14 experts: 1/4 or 1/7 if all are equal; by Zipf's law more than twice as much.
        assert!(skewed > even + 0.12, "{fixture}: {even} {skewed}");
    }
}

#[test]
fn presets_have_the_published_sizes() {
    let rows = [
        (Preset::V4Flash, 48, 72_317, 166_878_536_440),
        (Preset::V4Pro, 66, 149_782, 892_727_580_904),
        (Preset::V41Flash, 48, 96_085, 510_286_023_000),
    ];
    let options = Options { headers_only: true, ..Options::default() };
    for (preset, shards, tensors, bytes) in rows {
        let (_folder, path) = written(preset.config(&Shrink::default()).expect("a config"), &options);
        let checkpoint = headers(&path);
        let inspection = Inspection::of(&checkpoint);
        assert_eq!(
            (checkpoint.shards().len(), inspection.total.tensors, inspection.total.bytes),
            (shards, tensors, bytes)
        );
        assert_eq!(inspection.declared_bytes, Some(bytes));
    }
    for (preset, total, active) in [(Preset::OneTrillion, 1.0e12, 37e9), (Preset::Lite, 200e9, 12.3e9)] {
        let (_folder, path) = written(preset.config(&Shrink::default()).expect("a config"), &options);
        let inspection = Inspection::of(&headers(&path));
        let near = |found: u64, expected: f64| (found as f64 / expected - 1.0).abs() < 0.01;
        assert!(near(inspection.total.parameters, total), "{}", inspection.total.parameters);
        assert!(near(inspection.token.active_parameters, active), "{}", inspection.token.active_parameters);
    }
}

/// The headers of a shrunk preset, and the tokenizer that the engine wants.
#[test]
fn shrunk_presets_keep_shapes_and_tokenizer() {
    let shrink = Shrink { layers: Some(6), experts: Some(32), engram_rows: Some(2_400_000) };
    let config = Preset::V41Flash.config(&shrink).expect("a config");
    assert_eq!(config["text_config"]["engram_layer_ids"], json!([1, 2]));
    let (_folder, path) = written(config, &Options { headers_only: true, ..Options::default() });
    let checkpoint = headers(&path);
    let config = checkpoint.architecture().deepseek_v41().expect("a V4.1 model");
    let engram = config.engram.as_ref().expect("an Engram");
    assert_eq!(engram.compressed_vocab_size, 99_092);
    assert!(
        engram.num_embeddings.iter().all(|rows| (2_400_000..2_412_000).contains(rows)),
        "{:?}",
        engram.num_embeddings
    );
    assert_eq!((config.hidden_size, config.n_routed_experts, config.num_hidden_layers), (5120, 32, 6));
    assert!(!checkpoint.abilities().draft && !checkpoint.abilities().vision);
    let tokenizer = std::fs::read(path.join("tokenizer.json")).expect("there");
    let profile = cachalot_text::TokenizerProfile {
        family: cachalot_text::Family::V41,
        vocab_size: 129_280,
        image_token_id: None,
        noise_token_id: None,
    };
    let tokenizer = cachalot_text::Tokenizer::from_json(&tokenizer, &profile).expect("a tokenizer");
    assert_eq!(cachalot_text::engram::token_classes(&tokenizer).count, 99_092);
    let markers = tokenizer.markers();
    assert_eq!((markers.user, markers.think_close, markers.system), (128_803, 128_822, Some(128_799)));
    let ids = tokenizer.encode_plain("The sea is deep, and 42 is a number.\n").expect("text");
    assert_eq!(tokenizer.decode_bytes(&ids).expect("ids"), b"The sea is deep, and 42 is a number.\n");
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("model");
    // While shards are written, a directory takes the place of the config.
    let obstacle = path.join("config.json");
    let error = synth(tiny("v4-tiny"), &path, &Options::default(), &|_, _| {
        let _ = std::fs::create_dir(&obstacle);
        true
    });
    let error = error.expect_err("refused");
    assert!(matches!(error, SynthError::Write { .. }) && error.to_string().contains("config.json"), "{error}");
    let left: Vec<_> =
        std::fs::read_dir(&path).expect("there").map(|entry| entry.expect("an entry").file_name()).collect();
    assert_eq!(left, ["config.json"]);
    let error = synth(tiny("v4-tiny"), &path, &Options::default(), &|_, _| true).expect_err("refused").to_string();
    assert!(error.ends_with("is not empty: choose another directory, or empty it"), "{error}");
    // Where nothing stands in the way, the directory itself goes.
    let stopped = folder.path().join("stopped");
    let error = synth(tiny("v4-tiny"), &stopped, &Options::default(), &|_, _| false).expect_err("stopped");
    assert!(matches!(error, SynthError::Stopped) && !stopped.exists(), "{error}");
    let absurd = json!({"model_type": "deepseek_v4", "vocab_size": 300});
    let other = folder.path().join("other");
    assert!(synth(absurd, &other, &Options::default(), &|_, _| true).is_err() && !other.exists());
    assert!(!path.join(INDEX_FILE).exists());
}
