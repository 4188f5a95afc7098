//! Whole checkpoints: the ones in the repository open, and damaged copies of them say what is wrong.

use cachalot_checkpoint::{
    Arrival, CONFIG_FILE, Checkpoint, CheckpointError, Dtype, Group, INDEX_FILE, Inspection, Problem,
};
use cachalot_storage::{Directory, Embedded, Fault, FaultyFiles, Files, Plan};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn fixture() -> Arc<dyn Files> {
    Arc::new(Directory::new(root().join("fixtures/v41-tiny")))
}

const SHARDS: [&str; 3] =
    ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"];

/// A copy of the fixture in memory.
fn copy() -> Embedded {
    let files = fixture();
    let names = [CONFIG_FILE, INDEX_FILE].into_iter().chain(SHARDS);
    names.fold(Embedded::new("copy"), |copy, name| copy.with(name, files.read_all(name, 1 << 24).expect(name)))
}

/// A shard's header as JSON, and its data.
fn split(shard: &[u8]) -> (serde_json::Map<String, serde_json::Value>, Vec<u8>) {
    let (length, rest) = shard.split_first_chunk().expect("a header");
    let (json, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    (serde_json::from_slice(json).expect("JSON"), data.to_vec())
}

fn join(header: &serde_json::Map<String, serde_json::Value>, data: &[u8]) -> Vec<u8> {
    let json = serde_json::to_vec(header).expect("JSON");
    [&(json.len() as u64).to_le_bytes()[..], &json, data].concat()
}

/// The fixture with the header and data of shard `name` edited.
fn with_shard(
    name: &str,
    edit: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>, &mut Vec<u8>),
) -> Embedded {
    let files = copy();
    let (mut header, mut data) = split(&files.read_all(name, 1 << 24).expect("there"));
    edit(&mut header, &mut data);
    files.with(name, join(&header, &data))
}

/// The fixture with the JSON of file `name` edited.
fn with_json(name: &str, edit: impl FnOnce(&mut serde_json::Value)) -> Embedded {
    let files = copy();
    let mut value = serde_json::from_slice(&files.read_all(name, 1 << 24).expect("there")).expect("JSON");
    edit(&mut value);
    files.with(name, serde_json::to_vec(&value).expect("JSON"))
}

/// What is wrong with `files`, one line each.
fn problems(files: impl Files + 'static) -> Vec<String> {
    match Checkpoint::open(Arc::new(files)).expect_err("refused") {
        CheckpointError::Invalid(problems) => problems.list().iter().map(Problem::to_string).collect(),
        other => panic!("another error: {other}"),
    }
}

fn error(files: impl Files + 'static) -> String {
    Checkpoint::open(Arc::new(files)).expect_err("refused").to_string()
}

#[test]
fn the_fixture_and_the_small_model_open() {
    let tiny = Checkpoint::open(fixture()).expect("the fixture");
    assert_eq!((tiny.tensor_count(), tiny.shards().len()), (1874, 3));
    assert!(tiny.abilities().vision && tiny.abilities().draft);
    assert_eq!(tiny.tensors().iter().map(|tensor| tensor.bytes).sum::<u64>(), 8_051_680);
    assert_eq!(tiny.declared_bytes(), Some(8_051_680));
    let nano = Checkpoint::open(Arc::new(Directory::new(root().join("models/nano")))).expect("the small model");
    assert_eq!((nano.tensor_count(), nano.shards().len()), (1335, 1));
    assert!(nano.abilities().vision && !nano.abilities().draft);
    assert_eq!(nano.tensor("head.weight").expect("there").dtype, Dtype::BF16);
}

#[test]
fn a_missing_file_is_named() {
    for name in [CONFIG_FILE, INDEX_FILE] {
        let files = SHARDS.into_iter().fold(Embedded::new("e"), |files, name| files.with(name, &b""[..]));
        let rest = [CONFIG_FILE, INDEX_FILE].into_iter().filter(|other| *other != name);
        let files = rest.fold(files, |files, other| files.with(other, copy().read_all(other, 1 << 24).expect("there")));
        assert_eq!(error(files), format!("{name} is not there"));
    }
    let files = with_json(INDEX_FILE, |index| {
        index["weight_map"]["norm.weight"] = "model-00004-of-00003.safetensors".into();
    });
    let problems = problems(files);
    assert!(problems.contains(&"model-00004-of-00003.safetensors is not there".to_owned()), "{problems:#?}");
}

#[test]
fn an_index_does_not_lead_out_of_the_directory() {
    for path in ["../secret", "/etc/passwd", "a/b"] {
        let files = with_json(INDEX_FILE, |index| index["weight_map"]["norm.weight"] = path.into());
        let problems = problems(files);
        assert!(problems.iter().any(|line| line.contains("is refused")), "{problems:#?}");
    }
}

#[test]
fn truncated_and_too_long_shards_are_named() {
    let length = copy().read_all(SHARDS[1], 1 << 24).expect("there").len() as u64;
    for cut in [1, 1000, length - 70_000] {
        let files = FaultyFiles::new(fixture(), Plan::new()).only(SHARDS[1]).truncated(length - cut);
        let expected =
            format!("{} is truncated: its header describes {length} bytes, the file has {}", SHARDS[1], length - cut);
        assert_eq!(problems(files), [expected]);
    }
    let files = FaultyFiles::new(fixture(), Plan::new()).only(SHARDS[1]).truncated(5000);
    let problems_of_header = problems(files);
    assert!(problems_of_header[0].contains("the header claims 61152 bytes; at most 4992"), "{problems_of_header:?}");
    let longer = with_shard(SHARDS[1], |_, data| data.extend([0; 3]));
    assert_eq!(problems(longer), [format!("{} has 3 bytes behind its last tensor", SHARDS[1])]);
}

#[test]
fn index_and_shards_must_agree() {
    let (two, three) = (SHARDS[1], SHARDS[2]);
    let elsewhere = with_json(INDEX_FILE, |index| index["weight_map"]["norm.weight"] = two.into());
    assert_eq!(
        problems(elsewhere),
        [
            format!("norm.weight is in {three}, but the index puts it into {two}"),
            format!("norm.weight is missing from {two}, where the index puts it")
        ]
    );
    let surplus = with_json(INDEX_FILE, |index| {
        index["weight_map"].as_object_mut().expect("an object").remove("norm.weight");
    });
    assert_eq!(problems(surplus), [format!("norm.weight is in {three}, but not in the index")]);
    let missing = with_json(INDEX_FILE, |index| index["weight_map"]["more"] = three.into());
    assert_eq!(problems(missing), [format!("more is missing from {three}, where the index puts it")]);
}

/// Takes the tensors whose names `gone` accepts out of shards and index.
fn without(gone: impl Fn(&str) -> bool) -> Embedded {
    let mut files = with_json(INDEX_FILE, |index| {
        index["weight_map"].as_object_mut().expect("an object").retain(|name, _| !gone(name));
    });
    for shard in SHARDS {
        let edited = with_shard(shard, |header, data| {
            let mut kept = Vec::new();
            header.retain(|name, _| !gone(name));
            let mut entries: Vec<_> = header.iter_mut().filter(|(name, _)| *name != "__metadata__").collect();
            entries.sort_by_key(|(_, entry)| entry["data_offsets"][0].as_u64());
            for (_, entry) in entries {
                let [start, end] = [0, 1].map(|end| entry["data_offsets"][end].as_u64().expect("an offset") as usize);
                entry["data_offsets"] = vec![kept.len(), kept.len() + end - start].into();
                kept.extend_from_slice(&data[start..end]);
            }
            *data = kept;
        });
        files = files.with(shard, edited.read_all(shard, 1 << 24).expect("there"));
    }
    files
}

#[test]
fn missing_tensors_are_named_with_type_and_shape() {
    let rows = [
        ("norm.weight", "BF16 [128]"),
        ("layers.5.ffn.experts.13.w2.scale", "F8_E8M0 [128, 2]"),
        ("layers.5.engram.embed.scale", "F8_E8M0 [4944, 1]"),
        ("mtp.2.markov_head.embed.weight", "BF16 [768, 32]"),
        ("aligner.w2.bias", "BF16 [128]"),
        ("image_end", "BF16 [128]"),
    ];
    for (name, what) in rows {
        assert_eq!(problems(without(|other| other == name)), [format!("{name} is missing ({what})")]);
    }
}

#[test]
fn unknown_tensors_are_named() {
    let renamed = |from: &str, to: &'static str| {
        let index = copy().read_all(INDEX_FILE, 1 << 24).expect("there");
        let index: serde_json::Value = serde_json::from_slice(&index).expect("JSON");
        let shard = index["weight_map"][from].as_str().expect("a shard").to_owned();
        let edited = with_shard(&shard, |header, _| {
            let entry = header.remove(from).expect("the tensor");
            header.insert(to.to_owned(), entry);
        });
        let edited = edited.read_all(&shard, 1 << 24).expect("there");
        let files = with_json(INDEX_FILE, |index| {
            let map = index["weight_map"].as_object_mut().expect("an object");
            let shard = map.remove(from).expect("the tensor");
            map.insert(to.to_owned(), shard);
        });
        problems(files.with(&shard, edited))
    };
    let problems = renamed("layers.3.attn.kv_norm.weight", "layers.3.attn.k_norm.weight");
    assert_eq!(problems[0], "layers.3.attn.kv_norm.weight is missing (BF16 [64])");
    assert!(
        problems[1].starts_with("layers.3.attn.k_norm.weight in model-0000")
            && problems[1].ends_with("is unknown: a deepseek_v41 of this config has no such tensor"),
        "{problems:?}"
    );
    // A known prefix does not excuse a missing tensor, but is no unknown one.
    assert_eq!(renamed("image_end", "image_stop"), ["image_end is missing (BF16 [128])"]);
}

#[test]
fn types_and_shapes_are_checked() {
    let edited = |name: &'static str, dtype: &'static str, shape: serde_json::Value| {
        let files = copy();
        let index: serde_json::Value =
            serde_json::from_slice(&files.read_all(INDEX_FILE, 1 << 24).expect("there")).expect("JSON");
        let shard = index["weight_map"][name].as_str().expect("a shard").to_owned();
        problems(with_shard(&shard, |header, _| {
            header[name]["dtype"] = dtype.into();
            header[name]["shape"] = shape;
        }))
    };
    let rows = [
        ("norm.weight", "BF16", [64, 2].into(), "has shape [64, 2], the config requires [128]"),
        ("norm.weight", "I8", [256].into(), "is I8, it must be BF16"),
        ("norm.weight", "F32", [64].into(), "has shape [64], the config requires [128]"),
        ("layers.0.attn.attn_sink", "BF16", [8].into(), "is BF16, it must be F32"),
        ("layers.0.attn.wkv.weight", "I8", [64, 128].into(), "is I8, it must be F8_E4M3"),
        ("layers.0.attn.wkv.scale", "F8_E8M0", [4, 2].into(), "has shape [4, 2], the config requires [2, 4]"),
        ("layers.0.ffn.experts.0.w1.weight", "F8_E4M3", [64, 64].into(), "is F8_E4M3, it must be I8"),
    ];
    for (name, dtype, shape, end) in rows {
        let problems = edited(name, dtype, shape);
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert!(problems[0].starts_with(name) && problems[0].ends_with(end), "{problems:#?}");
    }
}

#[test]
fn many_problems_are_reported_at_once_and_counted() {
    let files = with_json(CONFIG_FILE, |config| config["text_config"]["n_routed_experts"] = 15.into());
    let text = error(files);
    // Per layer: two scales and two matrices of three, and a router of another shape.
    assert_eq!(text.lines().count(), 22, "{text}");
    assert!(text.contains("layers.0.ffn.experts.14.w1.weight is missing (I8 [64, 64])"), "{text}");
    assert!(text.contains("has shape [14, 128], the config requires [15, 128]"), "{text}");
    assert!(text.ends_with("and 106 more"), "{text}");
}

#[test]
fn undeclared_parts_are_set_aside_and_declared_ones_may_lack_as_a_whole() {
    let files = with_json(CONFIG_FILE, |config| {
        config.as_object_mut().expect("an object").remove("vision_config");
        config["text_config"]["num_nextn_predict_layers"] = 0.into();
    });
    let checkpoint = Checkpoint::open(Arc::new(files)).expect("opens");
    assert!(!checkpoint.abilities().vision && !checkpoint.abilities().draft);
    assert!(checkpoint.find("vision.norm.weight").is_some());
    let set_aside = Inspection::of(&checkpoint).group(Group::SetAside);
    assert!(set_aside.tensors > 100 && set_aside.bytes > 0, "{set_aside:?}");
    let draft = |name: &str| name.starts_with("mtp.");
    let vision = |name: &str| ["vision.", "aligner.", "image_"].iter().any(|prefix| name.starts_with(prefix));
    let able = |files: Embedded| {
        let abilities = Checkpoint::open(Arc::new(files)).expect("opens").abilities();
        (abilities.vision, abilities.draft)
    };
    assert_eq!(able(without(draft)), (true, false));
    assert_eq!(able(without(vision)), (false, true));
    assert_eq!(able(without(|name| draft(name) || vision(name))), (false, false));
}

#[test]
fn ranges_that_overlap_or_leave_holes_are_named() {
    let moved = |by: i64| {
        problems(with_shard(SHARDS[0], |header, _| {
            let entry = &mut header["layers.0.ffn.gate.bias"]["data_offsets"];
            *entry = [16 + by, 72 + by].to_vec().into();
        }))
    };
    let shard = SHARDS[0];
    assert_eq!(moved(-4), [format!("{shard}: layers.0.ffn.gate.bias overlaps layers.0.attn.attn_sink")]);
    assert_eq!(moved(4), [format!("{shard}: 4 bytes before layers.0.ffn.gate.bias belong to no tensor")]);
    let reshaped =
        with_shard(shard, |header, _| header["layers.0.ffn.gate.bias"]["shape"] = [1u64 << 62].to_vec().into());
    let expected = "layers.0.ffn.gate.bias: F32 [4611686018427387904] does not fit the range 16..72";
    assert_eq!(problems(reshaped), [format!("{shard}: {expected}")]);
}

#[test]
fn a_config_that_asks_for_millions_of_tensors_is_answered_at_once() {
    let start = std::time::Instant::now();
    let text = error(with_json(CONFIG_FILE, |config| {
        let text = &mut config["text_config"];
        text["num_hidden_layers"] = 512.into();
        text["n_routed_experts"] = 256.into();
        text["compress_ratios"] = vec![0; 515].into();
        text["kv_source_layer_ids"] = Vec::<u32>::new().into();
        text["index_source_layer_ids"] = Vec::<u32>::new().into();
        text["candidate_source_layer_id"] = serde_json::Value::Null;
    }));
    assert!(text.lines().count() == 22 && text.contains("more"), "{text}");
    assert!(start.elapsed() < std::time::Duration::from_secs(5));
}

#[test]
fn broken_disks_are_named() {
    let plan = Plan::new();
    plan.on_bytes(100..101, Fault::Eio);
    let problems = problems(FaultyFiles::new(fixture(), Arc::clone(&plan)).only(SHARDS[2]));
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with(&format!("{}: reading 65792 bytes at offset 8 failed", SHARDS[2])), "{problems:?}");
    assert!(error(FaultyFiles::new(fixture(), plan).only(CONFIG_FILE)).starts_with("config.json: reading"));
    let interrupted = Plan::new();
    interrupted.on_calls(0..2, Fault::Interrupted);
    interrupted.on_calls(2..9, Fault::Short(100));
    Checkpoint::open(Arc::new(FaultyFiles::new(fixture(), interrupted))).expect("short reads are carried on");
}

#[test]
fn headers_alone_can_be_opened() {
    let files = FaultyFiles::new(fixture(), Plan::new()).truncated(200_000);
    let checkpoint = Checkpoint::open_headers(Arc::new(files)).expect("opens");
    assert!(checkpoint.shards().iter().all(|shard| matches!(shard.arrival, Arrival::Partial { found: 200_000, .. })));
    let norm = checkpoint.tensor("norm.weight").expect("known");
    let late = checkpoint.read(norm, 0, &mut [0; 256]).expect_err("not there yet").to_string();
    assert!(late.contains("the file ends after 0 of them"), "{late}");
    // Without shard 2, and with half of shard 3's header.
    let files = FaultyFiles::new(fixture(), Plan::new()).only(SHARDS[2]).truncated(30_000);
    let partial = copy().with("config.json", fixture().read_all(CONFIG_FILE, 1 << 20).expect("there"));
    let names = [CONFIG_FILE, INDEX_FILE, SHARDS[0]];
    let few = names
        .into_iter()
        .fold(Embedded::new("few"), |few, name| few.with(name, partial.read_all(name, 1 << 24).expect(name)));
    let checkpoint = Checkpoint::open_headers(Arc::new(few)).expect("opens");
    assert_eq!(checkpoint.shards()[1].arrival, Arrival::Absent);
    assert_eq!(checkpoint.tensor_count(), 1874);
    let checkpoint = Checkpoint::open_headers(Arc::new(files)).expect("opens");
    assert_eq!(checkpoint.shards().iter().filter(|shard| shard.arrival == Arrival::Absent).count(), 1);
    assert!(checkpoint.abilities().vision);
}

#[test]
fn ranges_outside_a_tensor_are_refused() {
    let checkpoint = Checkpoint::open(fixture()).expect("the fixture");
    let norm = checkpoint.tensor("norm.weight").expect("there");
    checkpoint.read(norm, 254, &mut [0; 2]).expect("the last element");
    for (from, length) in [(255, 2), (u64::MAX, 2), (257, 0)] {
        let error = checkpoint.read(norm, from, &mut vec![0; length]).expect_err("outside").to_string();
        assert_eq!(error, format!("norm.weight: the range of {length} bytes from {from} lies outside the tensor"));
    }
    assert_eq!(checkpoint.tensor("x").expect_err("none").to_string(), "the checkpoint holds no tensor x");
}

mod flips {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// A flipped bit in a header is refused, or it only renames the format's own note, or it moves nothing.
        #[test]
        fn bits_of_a_header(offset in 0u64..57_488, bit in 0u8..8) {
            let plan = Plan::new();
            plan.on_bytes(offset..offset + 1, Fault::Flip { offset, bit });
            let whole = Checkpoint::open(fixture()).expect("the fixture");
            let files = FaultyFiles::new(fixture(), plan).only(SHARDS[0]);
            if let Ok(checkpoint) = Checkpoint::open(Arc::new(files)) {
                let shapes = |checkpoint: &Checkpoint| -> Vec<_> {
                    let tensors = checkpoint.tensors().iter();
                    tensors.map(|tensor| (tensor.name.clone(), tensor.dtype, tensor.shape, tensor.bytes)).collect()
                };
                prop_assert!(shapes(&checkpoint) == shapes(&whole));
            }
        }

        #[test]
        fn bits_of_the_config(offset in 0u64..2765, bit in 0u8..8) {
            let plan = Plan::new();
            plan.on_bytes(offset..offset + 1, Fault::Flip { offset, bit });
            let _ = Checkpoint::open(Arc::new(FaultyFiles::new(fixture(), plan).only(CONFIG_FILE)));
        }

        #[test]
        fn bits_of_the_index(offset in 0u64..134_976, bit in 0u8..8) {
            let plan = Plan::new();
            plan.on_bytes(offset..offset + 1, Fault::Flip { offset, bit });
            let _ = Checkpoint::open(Arc::new(FaultyFiles::new(fixture(), plan).only(INDEX_FILE)));
        }
    }
}
