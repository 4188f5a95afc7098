//! The config reader: every field that is wrong is named, and absurd numbers cost nothing.

use cachalot_checkpoint::deepseek_v41::Config;
use cachalot_checkpoint::{Architecture, CheckpointError};
use serde_json::{Value, json};

fn tiny() -> Value {
    serde_json::from_slice(include_bytes!("../../../fixtures/v41-tiny/config.json")).expect("JSON")
}

/// The value at a path such as `text_config.head_dim`, made if it is not there.
fn at<'a>(value: &'a mut Value, path: &str) -> &'a mut Value {
    path.split('.').fold(value, |value, key| &mut value[key])
}

/// The problems after `value` has been put at `path`.
fn with(path: &str, value: Value) -> Vec<String> {
    let mut config = tiny();
    *at(&mut config, path) = value;
    problems(&config)
}

fn problems(config: &Value) -> Vec<String> {
    match Config::from_json(&serde_json::to_vec(config).expect("JSON")) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.list().iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn the_fixture_is_read_field_by_field() {
    let config = Config::from_json(&serde_json::to_vec(&tiny()).expect("JSON")).expect("good");
    assert_eq!((config.hidden_size, config.num_hidden_layers, config.head_dim), (128, 14, 64));
    assert_eq!((config.index_topk, config.candidate_topk_blocks, config.candidate_block_size), (12, 4, 8));
    assert_eq!((config.rms_norm_eps, config.hc_eps, config.swiglu_limit), (1e-20, 1e-6, 2.0));
    let yarn = config.rope_scaling.as_ref().expect("scaled");
    assert_eq!(
        (yarn.factor, yarn.beta_fast, yarn.beta_slow, yarn.original_max_position_embeddings),
        (16.0, 32.0, 1.0, 256)
    );
    let engram = config.engram.as_ref().expect("an Engram");
    assert_eq!((engram.layer_ids.as_slice(), engram.num_embeddings.as_slice()), (&[1, 5][..], &[4064, 4944][..]));
    assert_eq!((engram.columns(), engram.compressed_vocab_size), (12, 617));
    let dspark = config.dspark.as_ref().expect("a draft");
    assert_eq!((dspark.stages, dspark.noise_token_id, dspark.target_layer_ids.as_slice()), (3, 763, &[11, 12, 13][..]));
    assert_eq!(config.vision.as_ref().expect("vision").max_image_tokens, 40);
    // Layer 6 selects anew at ratio 2, where no candidates restrict it; 9 and 12 choose among those of layer 7.
    let restricted: Vec<_> = config.layers.iter().map(|plan| plan.candidates_from).collect();
    let expected: Vec<_> = (0..14).map(|layer| [9, 12].contains(&layer).then_some(7)).collect();
    assert_eq!(restricted, expected);
    assert_eq!((config.layers[6].kv_source, config.layers[6].index_source), (Some(4), Some(6)));
    assert_eq!((config.layers[8].kv_source, config.layers[8].index_source), (Some(7), Some(7)));
}

#[test]
fn each_wrong_field_is_named() {
    let huge = json!(1_000_000_000_000_000_000_u64);
    let text = "text_config.";
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
        "candidate_topk_blocks",
        "candidate_block_size",
        "hc_mult",
        "hc_sinkhorn_iters",
        "engram_max_ngram_size",
        "engram_vocab_size",
        "engram_n_heads",
        "engram_head_dim",
        "engram_pad_token_id",
        "engram_compressed_vocab_size",
        "dspark_block_size",
        "dspark_noise_token_id",
        "dspark_markov_rank",
        "dspark_n_routed_experts",
        "dspark_num_experts_per_tok",
        "rope_scaling.original_max_position_embeddings",
    ];
    let numbers = [
        "swiglu_limit",
        "rms_norm_eps",
        "rope_theta",
        "compress_rope_theta",
        "routed_scaling_factor",
        "hc_eps",
        "rope_scaling.factor",
        "rope_scaling.beta_fast",
        "rope_scaling.beta_slow",
    ];
    for field in integers {
        let path = format!("{text}{field}");
        for value in [huge.clone(), json!(-1), json!(1.5), json!("8"), json!(null), json!([1])] {
            let problems = with(&path, value.clone());
            assert!(
                problems.iter().any(|line| line.starts_with(&format!("{path}: is "))),
                "{path} {value}: {problems:?}"
            );
        }
        // A zero is no size, but a token id.
        let zero = with(&path, json!(0));
        assert!(zero.iter().any(|line| line.starts_with(&path)) || field.ends_with("_id"), "{path}: {zero:?}");
    }
    for field in numbers {
        let path = format!("{text}{field}");
        for value in [json!(1e300), json!(-1), json!("8"), json!(null)] {
            let problems = with(&path, value.clone());
            assert!(
                problems.iter().any(|line| line.starts_with(&format!("{path}: is "))),
                "{path} {value}: {problems:?}"
            );
        }
    }
    for field in integers.into_iter().chain(numbers) {
        let path = format!("{text}{field}");
        let (parent, key) = path.rsplit_once('.').expect("a path");
        let mut config = tiny();
        at(&mut config, parent).as_object_mut().expect("an object").remove(key);
        assert!(problems(&config).contains(&format!("{path}: is missing")), "{path}: {:?}", problems(&config));
    }
}

#[test]
fn what_would_change_the_arithmetic_is_refused() {
    let rows = [
        ("text_config.hidden_act", json!("gelu"), r#"is "gelu"; only "silu" is known"#),
        ("text_config.attention_bias", json!(true), "is true; only false is known"),
        ("text_config.num_key_value_heads", json!(2), "is 2; only 1 is known"),
        ("text_config.n_shared_experts", json!(2), "is 2; only 1 is known"),
        ("text_config.scoring_func", json!("softmax"), r#"is "softmax"; only "sqrtsoftplus" is known"#),
        ("text_config.topk_method", json!("greedy"), r#"is "greedy"; only "noaux_tc" is known"#),
        ("text_config.norm_topk_prob", json!(false), "is false; only true is known"),
        ("text_config.model_type", json!("x"), r#"is "x"; only "deepseek_v41_text" is known"#),
        ("text_config.rope_scaling.rope_type", json!("linear"), r#"is "linear"; only "yarn" is known"#),
        ("text_config.gate_temp", json!(2), "is 2; only 1.0 is known"),
        ("tie_word_embeddings", json!(true), "is true; only false is known"),
        ("dtype", json!("float16"), r#"is "float16"; only "bfloat16" is known"#),
        ("quantization_config.quant_method", json!("awq"), r#"is "awq"; only "fp8" is known"#),
        ("quantization_config.scale_fmt", json!("fp32"), r#"is "fp32"; only "ue8m0" is known"#),
        ("quantization_config.expert_dtype", json!("fp8"), r#"is "fp8"; only "fp4" is known"#),
        ("quantization_config.activation_scheme", json!("static"), r#"is "static"; only "dynamic" is known"#),
        ("quantization_config.weight_block_size", json!([128, 128]), "is [128, 128]; only [32, 32] is known"),
        ("vision_config.model_type", json!("x"), r#"is "x"; only "deepseek_v41_vision" is known"#),
    ];
    for (path, value, reason) in rows {
        assert_eq!(with(path, value), [format!("{path}: {reason}")]);
    }
}

#[test]
fn fields_must_fit_each_other() {
    let text = |field: &str, value: Value, reason: &str| {
        assert_eq!(with(&format!("text_config.{field}"), value), [format!("text_config.{reason}")]);
    };
    text(
        "hidden_size",
        json!(130),
        "hidden_size: is 130, no multiple of 32: weights are scaled in blocks of 32 columns",
    );
    text("head_dim", json!(48), "head_dim: is 48, no multiple of 32: window entries are scaled in groups of 32");
    text("qk_rope_head_dim", json!(33), "qk_rope_head_dim: is 33, no multiple of 2: rotations act on pairs");
    text("qk_rope_head_dim", json!(66), "qk_rope_head_dim: is 66, more than head_dim or index_head_dim");
    text("o_groups", json!(3), "num_attention_heads: is 4, no multiple of 3: it is split into o_groups");
    text("num_experts_per_tok", json!(15), "num_experts_per_tok: is 15, more than n_routed_experts");
    text("n_routed_experts", json!(10_000), "n_routed_experts: times layers is more than 131072");
    text("engram_head_dim", json!(40), "engram_head_dim: is 40, no multiple of 32: rows are scaled in groups of 32");
    text(
        "engram_num_embeddings",
        json!([4064, 4945]),
        "engram_num_embeddings: is 4945 for layer 5, but the primes of its hash sum to 4944",
    );
    text("engram_num_embeddings", json!([4064]), "engram_num_embeddings: has 1 entries for 2 engram_layer_ids");
    text("engram_layer_ids", json!([5, 1]), "engram_layer_ids: is not ascending");
    text(
        "engram_n_heads",
        json!(200),
        "engram_num_embeddings: is 4064 for layer 1, but the primes of its hash sum to 1505016",
    );
    text("compress_ratios", json!([0, 0, 2]), "compress_ratios: has 3 entries for 14 layers and 3 draft stages");
    text(
        "kv_source_layer_ids",
        json!([4, 7]),
        "kv_source_layer_ids: has no source for layer 2: the latest before it must have ratio 2",
    );
    text(
        "index_source_layer_ids",
        json!([2, 4, 6, 9, 12]),
        "index_source_layer_ids: lacks layer 7, which is a KV source",
    );
    text(
        "index_source_layer_ids",
        json!([1, 2, 4, 6, 7, 9, 12]),
        "index_source_layer_ids: has layer 1, whose compress ratio is 0",
    );
    text("candidate_source_layer_id", json!(8), "candidate_source_layer_id: is layer 8, which is no KV source");
    text("kv_source_layer_ids", json!([2, 7, 4]), "kv_source_layer_ids: is not ascending");
    text("dspark_num_experts_per_tok", json!(7), "dspark_num_experts_per_tok: is more than dspark_n_routed_experts");
    text("dspark_target_layer_ids", json!([]), "dspark_target_layer_ids: is empty or not ascending");
    text("rope_scaling.beta_slow", json!(33), "rope_scaling.beta_fast: is smaller than beta_slow");
    let ratios = |list: &[usize]| with("text_config.compress_ratios", json!(list));
    assert_eq!(
        ratios(&[0, 0, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 2, 1, 0, 0, 0]),
        ["text_config.kv_source_layer_ids: has no source for layer 12: the latest before it must have ratio 2"]
    );
    assert_eq!(
        ratios(&[0, 0, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 0, 2, 0]),
        ["text_config.compress_ratios: has ratio 2 at draft stage 1"]
    );
    assert_eq!(with("image_token_id", json!(null)), ["image_token_id: is missing, but there is a vision_config"]);
    assert_eq!(
        with("vision_config.num_attention_heads", json!(32)),
        ["vision_config.num_attention_heads: does not split hidden_size into heads of a multiple of 4"]
    );
    assert!(with("eos_token_id", json!([1, 768]))[0].starts_with("eos_token_id: is 768"));
    assert!(with("eos_token_id", json!([1, 7])).is_empty());
}

#[test]
fn optional_parts_have_defaults() {
    let mut config = tiny();
    let text = config["text_config"].as_object_mut().expect("an object");
    let optional = [
        "num_nextn_predict_layers",
        "rope_scaling",
        "engram_layer_ids",
        "candidate_source_layer_id",
        "hidden_act",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ];
    optional.into_iter().for_each(|key| drop(text.remove(key)));
    text.retain(|key, _| !key.starts_with("engram_") && !key.starts_with("dspark_") && !key.starts_with("candidate_"));
    let root = config.as_object_mut().expect("an object");
    ["vision_config", "image_token_id", "bos_token_id", "eos_token_id", "pad_token_id"]
        .into_iter()
        .for_each(|key| drop(root.remove(key)));
    let config = Config::from_json(&serde_json::to_vec(&config).expect("JSON")).expect("good");
    assert!(config.engram.is_none() && config.dspark.is_none() && config.vision.is_none());
    assert!(config.rope_scaling.is_none() && config.eos_token_ids.is_empty() && config.bos_token_id.is_none());
    assert!(config.layers.iter().all(|plan| plan.candidates_from.is_none() && plan.engram.is_none()));
}

#[test]
fn the_architecture_is_decided_by_the_config() {
    let error =
        |value: Value| Architecture::from_config(&serde_json::to_vec(&value).expect("JSON")).expect_err("refused");
    let unknown = error(json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}));
    assert_eq!(
        unknown.to_string(),
        r#"config.json: model_type "llama" is unknown; known are deepseek_v4, deepseek_v41"#
    );
    assert!(matches!(error(json!({"dim": 5120})), CheckpointError::Architecture { .. }));
    assert!(matches!(error(json!([1])), CheckpointError::ConfigSyntax { .. }));
    let flat = error(json!({"model_type": "deepseek_v41", "dim": 5120})).to_string();
    assert!(flat.contains("text_config: is missing") && flat.contains("quantization_config: is missing"), "{flat}");
    let mut by_class = tiny();
    by_class.as_object_mut().expect("an object").remove("model_type");
    let architecture = Architecture::from_config(&serde_json::to_vec(&by_class).expect("JSON")).expect("known");
    assert_eq!(architecture.model_type(), "deepseek_v41");
    assert!(architecture.deepseek_v41().is_some() && architecture.deepseek_v4().is_none());
}

#[test]
fn keys_of_v4_are_refused_by_name() {
    let foreign = "belongs into a deepseek_v4 config, not here";
    for key in ["num_hash_layers", "compress_rates", "text_config.num_hash_layers", "text_config.mlp_layer_types"] {
        assert_eq!(with(key, json!(3)), [format!("{key}: {foreign}")]);
    }
    assert_eq!(with("compress_ratios", json!([0, 4])), [format!("compress_ratios: {foreign}")]);
    assert_eq!(
        with("text_config.compress_ratios", json!([0, 0, 4, 128]))[0],
        "text_config.compress_ratios: is 4; an integer from 0 to 2 is possible"
    );
}

#[test]
fn many_wrong_fields_are_reported_at_once() {
    let Err(all) = Config::from_json(br#"{"text_config": {}, "quantization_config": {}}"#) else { panic!("refused") };
    assert_eq!(all.list().len(), 20);
    assert!(all.to_string().ends_with(&format!("and {} more", all.more())));
    let Err(syntax) = Config::from_json(b"{") else { panic!("refused") };
    assert!(syntax.to_string().starts_with("config.json: EOF"), "{syntax}");
}

mod numbers {
    use super::*;
    use proptest::prelude::*;

    fn paths() -> Vec<String> {
        let config = tiny();
        let object = |path: &str| {
            let value = path.split('.').fold(&config, |value, key| &value[key]);
            let keys = value.as_object().expect("an object").keys();
            keys.map(|key| format!("{path}.{key}")).collect::<Vec<_>>()
        };
        ["text_config", "vision_config", "quantization_config", "text_config.rope_scaling"]
            .into_iter()
            .flat_map(object)
            .collect()
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<u64>().prop_map(Value::from),
            (0u64..300).prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            prop::collection::vec(any::<u32>(), 0..40).prop_map(Value::from),
            prop::collection::vec(0u32..14, 0..20).prop_map(Value::from),
            Just(Value::Null),
            Just(Value::from("x")),
        ]
    }

    proptest! {
        /// Whatever the numbers, the reader neither panics nor takes a plan that contradicts itself.
        #[test]
        fn any_numbers(edits in prop::collection::vec((0..paths().len(), value()), 1..4)) {
            let mut config = tiny();
            let paths = paths();
            for (place, value) in edits {
                let pointer = format!("/{}", paths[place].replace('.', "/"));
                // An earlier edit may have replaced the object around this field.
                if let Some(field) = config.pointer_mut(&pointer) {
                    *field = value;
                }
            }
            if let Ok(config) = Config::from_json(&serde_json::to_vec(&config).expect("JSON")) {
                prop_assert_eq!(config.layers.len(), config.num_hidden_layers);
                for (layer, plan) in config.layers.iter().enumerate() {
                    let source = plan.kv_source.map(|source| &config.layers[source]);
                    prop_assert!(source.is_none_or(|source| source.ratio == plan.ratio));
                    prop_assert_eq!(plan.kv_source.is_some(), plan.ratio > 0);
                    prop_assert!(plan.index_source.is_none_or(|index| index <= layer));
                }
            }
        }
    }
}
