//! The V4 config reader: both dialects, every field that is wrong is named, and absurd numbers cost nothing.

use cachalot_checkpoint::Architecture;
use cachalot_checkpoint::deepseek_v4::{Config, Draft, Role, Routing};
use cachalot_checkpoint::family::Weights;
use serde_json::{Value, json};

fn tiny() -> Value {
    serde_json::from_slice(include_bytes!("../../../../fixtures/v4-tiny/config.json")).expect("JSON")
}

/// The tiny config as Transformers 5.23 saves it.
fn transformers() -> Value {
    let mut config = tiny();
    let object = config.as_object_mut().expect("an object");
    for key in ["compress_ratios", "num_hash_layers", "qk_rope_head_dim", "rope_scaling", "quantization_config"] {
        object.remove(key);
    }
    object.insert("partial_rotary_factor".to_owned(), json!(0.5));
    let (sliding, csa, hca) = ("sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention");
    object.insert("layer_types".to_owned(), json!([sliding, sliding, csa, hca, csa, hca, csa, hca]));
    let mlp = ["hash_moe", "hash_moe", "hash_moe", "moe", "moe", "moe", "moe", "moe"];
    object.insert("mlp_layer_types".to_owned(), json!(mlp));
    object.insert("compress_rates".to_owned(), json!({ csa: 4, hca: 128 }));
    let yarn = json!({
        "rope_type": "yarn", "type": "yarn", "factor": 16, "beta_fast": 32, "beta_slow": 1,
        "original_max_position_embeddings": 256, "rope_theta": 160000, "attention_factor": 1.0,
        "partial_rotary_factor": 0.5
    });
    let main = json!({"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.5});
    object.insert("rope_parameters".to_owned(), json!({"main": main, "compress": yarn}));
    config
}

/// The problems after `value` has been put at `path`; null takes it away.
fn with(mut config: Value, path: &str, value: Value) -> Vec<String> {
    *path.split('.').fold(&mut config, |value, key| &mut value[key]) = value;
    problems(&config)
}

fn problems(config: &Value) -> Vec<String> {
    match Config::from_json(&serde_json::to_vec(config).expect("JSON")) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.list().iter().map(ToString::to_string).collect(),
    }
}

fn read(config: &Value) -> Config {
    Config::from_json(&serde_json::to_vec(config).expect("JSON")).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn the_fixture_is_read_field_by_field() {
    let config = read(&tiny());
    assert_eq!((config.hidden_size, config.num_hidden_layers, config.head_dim), (256, 8, 64));
    assert_eq!((config.qk_rope_head_dim, config.q_lora_rank, config.index_topk), (32, 160, 8));
    assert_eq!((config.rope_theta, config.compress_rope_theta), (10_000.0, 160_000.0));
    assert_eq!(config.rope_scaling.as_ref().expect("scaled").original_max_position_embeddings, 256);
    let roles: Vec<_> = config.layers.iter().map(|plan| plan.role).collect();
    let (csa, hca) = (Role::Csa, Role::Hca);
    assert_eq!(roles, [Role::Sliding, Role::Sliding, csa, hca, csa, hca, csa, hca]);
    assert_eq!(config.layers.iter().map(|plan| plan.ratio).collect::<Vec<_>>(), [0, 0, 4, 128, 4, 128, 4, 128]);
    let hashed: Vec<_> = config.layers.iter().map(|plan| plan.routing == Routing::Hashed).collect();
    assert_eq!(hashed, [true, true, true, false, false, false, false, false]);
    assert!(config.dspark.is_none() && config.vision.is_none());
    assert_eq!(config.build.draft, Some(Draft::Mtp { copies: false }));
    assert_eq!((config.build.dense, config.build.experts), (Weights::Fp8 { block: [128, 128] }, Weights::Fp4));
}

#[test]
fn the_dialect_of_transformers_means_the_same() {
    let (released, saved) = (read(&tiny()), read(&transformers()));
    assert_eq!((&saved.trunk, &saved.layers), (&released.trunk, &released.layers));
    assert_eq!((saved.build.dense, saved.build.experts), (Weights::Plain, Weights::Plain));
    // Both spellings at once are fine while they agree.
    let mut both = transformers();
    for key in ["compress_ratios", "num_hash_layers", "qk_rope_head_dim", "rope_scaling"] {
        both[key] = tiny()[key].clone();
    }
    assert_eq!(read(&both).trunk, released.trunk);
    let rows = [
        ("compress_ratios", json!([0, 0, 4, 128, 4, 128, 4, 0, 0]), "layer_types: contradicts compress_ratios"),
        ("num_hash_layers", json!(2), "mlp_layer_types: contradicts num_hash_layers"),
        ("qk_rope_head_dim", json!(16), "qk_rope_head_dim: contradicts partial_rotary_factor"),
        ("rope_theta", json!(20_000), "rope_theta: contradicts rope_parameters.main"),
        ("compress_rope_theta", json!(20_000), "compress_rope_theta: contradicts rope_parameters.compress"),
    ];
    for (key, value, reason) in rows {
        assert_eq!(with(both.clone(), key, value), [reason]);
    }
    let rows = [
        ("layer_types", json!(["sliding_attention"]), "layer_types: has 1 entries for 8 layers"),
        ("mlp_layer_types", json!(["moe"]), "mlp_layer_types: has 1 entries for 8 layers"),
        (
            "layer_types",
            json!(["full_attention"]),
            "layer_types: has \"full_attention\"; sliding_attention, compressed_sparse_attention, \
             heavily_compressed_attention are known",
        ),
        ("layer_types", json!(3), "layer_types: is 3; a list of at most 1024 words is possible"),
        (
            "compress_rates.compressed_sparse_attention",
            json!(8),
            "compress_rates.compressed_sparse_attention: is 8; only 4 is known",
        ),
        ("compress_rate_hca", json!(64), "compress_rate_hca: is 64; only 128 is known"),
        ("partial_rotary_factor", json!(0.3), "partial_rotary_factor: gives 19.2 rotated dimensions"),
        (
            "rope_parameters.compress.attention_factor",
            json!(1.277),
            "rope_parameters.compress.attention_factor: is 1.277; only 1.0 is known",
        ),
        (
            "rope_parameters.compress.rope_type",
            json!("linear"),
            "rope_parameters.compress.rope_type: is \"linear\"; only \"yarn\" is known",
        ),
        ("rope_parameters", json!({"main": {"rope_theta": 10_000}}), "rope_parameters.compress: is missing"),
    ];
    for (key, value, reason) in rows {
        assert_eq!(with(transformers(), key, value)[0], reason, "{key}");
    }
    let unscaled = json!({"rope_type": "default", "rope_theta": 160_000});
    let mut config = transformers();
    config["rope_parameters"]["compress"] = unscaled;
    assert!(read(&config).rope_scaling.is_none());
}

#[test]
fn each_wrong_field_is_named() {
    let integers = [
        "vocab_size",
        "hidden_size",
        "moe_intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "head_dim",
        "qk_rope_head_dim",
        "q_lora_rank",
        "o_lora_rank",
        "o_groups",
        "max_position_embeddings",
        "n_routed_experts",
        "num_experts_per_tok",
        "sliding_window",
        "index_n_heads",
        "index_head_dim",
        "index_topk",
        "hc_mult",
        "hc_sinkhorn_iters",
    ];
    let numbers =
        ["swiglu_limit", "rms_norm_eps", "rope_theta", "compress_rope_theta", "routed_scaling_factor", "hc_eps"];
    let absurd = [json!(1e300), json!(-1), json!("8"), json!([1, 2, 3])];
    for field in integers.into_iter().chain(numbers) {
        for value in &absurd {
            let problems = with(tiny(), field, value.clone());
            assert!(problems.iter().any(|line| line.starts_with(&format!("{field}: "))), "{field}: {problems:?}");
        }
        let mut config = tiny();
        config.as_object_mut().expect("an object").remove(field);
        assert!(problems(&config).contains(&format!("{field}: is missing")), "{field}: {:?}", problems(&config));
    }
}

#[test]
fn what_the_family_never_had_is_refused() {
    let ratios = |list: &[usize]| with(tiny(), "compress_ratios", json!(list));
    assert_eq!(
        ratios(&[0, 0, 4, 8, 4, 128, 2, 128, 0]),
        [
            "compress_ratios: has ratio 8 at layer 3; 0, 4 and 128 are known",
            "compress_ratios: has ratio 2 at layer 6; 0, 4 and 128 are known"
        ]
    );
    assert_eq!(ratios(&[0, 0, 4, 128, 4, 128, 4, 128, 4]), ["compress_ratios: has ratio 4 at draft stage 0"]);
    let length = "8, 9 with an MTP block or 11 with DSpark are possible";
    for list in [&[0, 0, 4][..], &[0; 10], &[0; 12], &[]] {
        let expected = format!("compress_ratios: has {} entries for 8 layers; {length}", list.len());
        assert_eq!(ratios(list), [expected]);
    }
    for length in [8, 9, 11] {
        assert!(ratios(&vec![0; length]).is_empty());
    }
    let rows = [
        ("num_hash_layers", json!(9), "num_hash_layers: is 9; an integer from 0 to 8 is possible"),
        ("hidden_act", json!("gelu"), "hidden_act: is \"gelu\"; only \"silu\" is known"),
        ("scoring_func", json!("softmax"), "scoring_func: is \"softmax\"; only \"sqrtsoftplus\" is known"),
        ("num_key_value_heads", json!(4), "num_key_value_heads: is 4; only 1 is known"),
        ("tie_word_embeddings", json!(true), "tie_word_embeddings: is true; only false is known"),
        (
            "quantization_config.weight_block_size",
            json!([32, 32]),
            "quantization_config.weight_block_size: is [32, 32]; only [128, 128] is known",
        ),
        (
            "index_head_dim",
            json!(96),
            "index_head_dim: is 96, no power of two: index vectors pass a Hadamard transform",
        ),
        (
            "qk_rope_head_dim",
            json!(64),
            "qk_rope_head_dim: leaves 0 dimensions of head_dim; up to 64 or a multiple are possible",
        ),
        (
            "head_dim",
            json!(128),
            "qk_rope_head_dim: leaves 96 dimensions of head_dim; up to 64 or a multiple are possible",
        ),
        ("n_routed_experts", json!(20_000), "n_routed_experts: times layers is more than 131072"),
    ];
    for (key, value, reason) in rows {
        assert_eq!(with(tiny(), key, value), [reason]);
    }
}

#[test]
fn keys_of_v41_are_refused_by_name() {
    let foreign = "belongs into a deepseek_v41 config, not here";
    for key in ["text_config", "vision_config", "engram_layer_ids", "kv_source_layer_ids", "candidate_source_layer_id"]
    {
        assert_eq!(with(tiny(), key, json!({})), [format!("{key}: {foreign}")]);
    }
}

#[test]
fn the_config_of_the_specification_is_accepted() {
    let config = read(&serde_json::from_slice(include_bytes!("../data/v4-spec-tiny-config.json")).expect("JSON"));
    let dspark = config.dspark.as_ref().expect("DSpark");
    assert_eq!((dspark.stages, dspark.block_size, dspark.markov_rank, dspark.noise_token_id), (3, 5, 16, 511));
    assert_eq!((dspark.n_routed_experts, dspark.num_experts_per_tok), (8, 2));
    let vision = config.vision.as_ref().expect("vision");
    assert_eq!((vision.hidden_size, vision.max_image_tokens, vision.max_wh_ratio), (64, 64, Some(8.0)));
    assert_eq!(config.build.draft, Some(Draft::Dspark));
    let architecture = Architecture::from_config(include_bytes!("../data/v4-spec-tiny-config.json")).expect("known");
    assert_eq!(architecture.model_type(), "deepseek_v4");
    assert_eq!(architecture.deepseek_v4(), Some(&config));
}

mod numbers {
    use super::*;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<u64>().prop_map(Value::from),
            (0u64..300).prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            prop::collection::vec(prop::sample::select(vec![0u32, 4, 128, 2]), 0..12).prop_map(Value::from),
            Just(Value::Null),
            Just(Value::from("x")),
            Just(json!({"main": {}, "compress": 1})),
        ]
    }

    proptest! {
        /// Whatever the numbers, the reader neither panics nor takes a plan that does not fit.
        #[test]
        fn any_numbers(edits in prop::collection::vec((any::<prop::sample::Index>(), value()), 1..4), saved in any::<bool>()) {
            let mut config = if saved { transformers() } else { tiny() };
            let keys: Vec<String> = config.as_object().expect("an object").keys().cloned().collect();
            for (place, value) in edits {
                config[place.get(&keys)] = value;
            }
            if let Ok(config) = Config::from_json(&serde_json::to_vec(&config).expect("JSON")) {
                prop_assert_eq!(config.layers.len(), config.num_hidden_layers);
                prop_assert!(config.layers.iter().all(|plan| [0, 4, 128].contains(&plan.ratio)));
                prop_assert!(config.qk_rope_head_dim < config.head_dim);
            }
        }
    }
}
