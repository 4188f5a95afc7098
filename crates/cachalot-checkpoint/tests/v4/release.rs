//! The headers of every V4 build, made in memory: counts, sizes and figures are those of the specification.

use super::support::Release;
use cachalot_checkpoint::deepseek_v4::{Config, Draft, Role, Routing};
use cachalot_checkpoint::family::Weights;
use cachalot_checkpoint::{Checkpoint, Dtype, Group, Inspection};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// The released `config.json` of a build (spec section 1.3).
fn config(pro: bool, build: &str) -> Value {
    let period = |first: usize, layers: usize| -> Vec<usize> {
        let later = (2..layers).map(|layer| if layer % 2 == 0 { 4 } else { 128 });
        [first, first].into_iter().chain(later).collect()
    };
    let mut ratios = if pro { period(128, 61) } else { period(0, 43) };
    let dspark = !["preview", "base"].contains(&build);
    ratios.extend(vec![0; if dspark { 3 } else { 1 }]);
    let common = include_bytes!("../../../../fixtures/configs/v4-common.json");
    let mut config: Value = serde_json::from_slice(common).expect("JSON");
    config["compress_ratios"] = json!(ratios);
    let own = if pro {
        json!({"hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "q_lora_rank": 1536,
            "o_groups": 16, "index_topk": 1024, "n_routed_experts": 384, "moe_intermediate_size": 3072,
            "routed_scaling_factor": 2.5})
    } else {
        json!({"hidden_size": 4096, "num_hidden_layers": 43, "num_attention_heads": 64, "q_lora_rank": 1024,
            "o_groups": 8, "index_topk": 512, "n_routed_experts": if build == "pruned" { 160 } else { 256 },
            "moe_intermediate_size": 2048, "routed_scaling_factor": 1.5})
    };
    extend(&mut config, own);
    if dspark {
        let last = if pro { 61 } else { 43 };
        let (rank, targets) = (if pro { 512 } else { 256 }, [last - 3, last - 2, last - 1]);
        extend(
            &mut config,
            json!({"dspark_block_size": 5, "dspark_noise_token_id": 128_799, "dspark_target_layer_ids": targets,
                "dspark_markov_rank": rank, "expert_dtype": "fp4"}),
        );
    }
    if build == "vision" {
        extend(
            &mut config,
            json!({"vision_n_layers": 32, "vision_dim": 1024, "vision_n_heads": 16, "vision_inter_dim": 2816,
                "vision_patch_size": 14, "vision_rope_theta": 10000, "vision_downsample_ratio": 3,
                "vision_max_n_token": 384, "vision_min_pixels": 147_456, "vision_max_wh_ratio": 8,
                "num_nextn_predict_layers": 3}),
        );
    }
    config
}

fn extend(config: &mut Value, more: Value) {
    let (Value::Object(config), Value::Object(more)) = (config, more) else { panic!("objects") };
    config.extend(more);
}

/// A checkpoint whose headers are those of the build, and which says nothing of it but what the release says.
fn release(pro: bool, build: &str, complete: bool) -> Release {
    let json = serde_json::to_vec(&config(pro, build)).expect("JSON");
    let mut config = Config::from_json(&json).unwrap_or_else(|problems| panic!("{problems}"));
    if build == "base" {
        config.build.experts = Weights::Fp8 { block: [128, 128] };
        config.build.draft = Some(Draft::Mtp { copies: !pro });
    }
    Release::new(&json, complete, |visit| config.for_each_tensor(visit))
}

/// Whether it is a Pro, and its build.
const BUILDS: [(bool, &str); 8] = [
    (false, "preview"),
    (false, "base"),
    (true, "preview"),
    (true, "base"),
    (false, "dspark"),
    (true, "dspark"),
    (false, "vision"),
    (false, "pruned"),
];

/// The figures of one of [`BUILDS`], made once for all tests.
fn inspect(pro: bool, build: &str) -> &'static Inspection {
    static INSPECTIONS: LazyLock<Vec<Inspection>> = LazyLock::new(|| {
        let inspection = |(pro, build): (bool, &str)| {
            let checkpoint = Checkpoint::open(Arc::new(release(pro, build, true)));
            Inspection::of(&checkpoint.unwrap_or_else(|error| panic!("{build}: {error}")))
        };
        BUILDS.into_iter().map(inspection).collect()
    });
    let place = BUILDS.iter().position(|known| *known == (pro, build)).expect("a build");
    &INSPECTIONS[place]
}

/// Spec section 1.1, and the 160-expert prune of its preamble.
#[test]
fn tensors_bytes_and_parameters_of_all_builds() {
    let rows = [
        (false, "preview", 69_187, 159_609_485_896, 290_944_616_402),
        // The copies of embedding and head are no parameters.
        (false, "base", 69_189, 294_620_461_640, 290_944_616_402),
        (true, "preview", 145_116, 864_704_792_696, 1_598_839_674_782),
        (true, "base", 145_116, 1_602_033_600_632, 1_598_839_674_782),
        (false, "dspark", 72_317, 166_878_536_440, 304_180_418_494),
        (true, "dspark", 149_782, 892_727_580_904, 1_650_497_936_906),
        (false, "vision", 72_633, 167_811_372_792, 304_646_824_126),
        (false, "pruned", 45_821, 107_803_320_952, 193_030_047_646),
    ];
    for (pro, build, tensors, bytes, parameters) in rows {
        let inspection = inspect(pro, build);
        let total = inspection.total;
        let aside = inspection.group(Group::SetAside);
        assert_eq!((total.tensors, total.bytes), (tensors, bytes), "{build}");
        assert_eq!(total.parameters - aside.parameters, parameters, "{build}");
        assert_eq!(aside.tensors, if build == "base" && !pro { 2 } else { 0 });
        assert_eq!(inspection.declared_bytes, Some(bytes));
        assert!(inspection.draft && inspection.vision == (build == "vision"));
    }
}

#[test]
fn headers_alone_say_as_much() {
    let opened = Checkpoint::open_headers(Arc::new(release(false, "vision", false)));
    let inspection = Inspection::of(&opened.expect("the release"));
    assert_eq!((inspection.total.tensors, inspection.total.bytes), (72_633, 167_811_372_792));
    assert!(inspection.shards.iter().all(|shard| !shard.complete) && inspection.vision);
    let text = inspect(true, "dspark").to_string();
    for part in ["1.7 trillion parameters in 149,782 tensors, 892.7 GB", "23,424 of 35.1 MB", "hash routing tables"] {
        assert!(text.contains(part), "{text}");
    }
}

/// The tensors decide: stages without their keys are set aside, keys without stages declare nothing, and the number of
/// stages is theirs.
#[test]
fn tensors_decide_about_the_draft() {
    let json = |config: &Value| serde_json::to_vec(config).expect("JSON");
    let read = |json: &[u8]| Config::from_json(json).unwrap_or_else(|problems| panic!("{problems}"));
    let small = |edit: &dyn Fn(&mut Value)| {
        let mut small = config(false, "dspark");
        extend(&mut small, json!({"n_routed_experts": 8}));
        edit(&mut small);
        small
    };
    let whole = read(&json(&small(&|_| {})));
    let open = |config: &Value, tensors: &Config| {
        let release = Release::new(&json(config), true, |visit| tensors.for_each_tensor(visit));
        Checkpoint::open(Arc::new(release))
    };
    let undeclared = small(&|config| {
        config.as_object_mut().expect("an object").retain(|key, _| !key.starts_with("dspark_"));
    });
    let checkpoint = open(&undeclared, &whole).expect("opens");
    assert!(!checkpoint.abilities().draft);
    assert!(Inspection::of(&checkpoint).group(Group::SetAside).tensors > 3 * 48);
    let mut none = whole.clone();
    none.build.draft = None;
    assert!(!open(&small(&|_| {}), &none).expect("opens").abilities().draft);
    let mut two = whole.clone();
    two.dspark.as_mut().expect("DSpark").stages = 2;
    let checkpoint = open(&small(&|_| {}), &two).expect("opens");
    let settled = checkpoint.architecture().deepseek_v4().expect("V4").dspark.as_ref().expect("DSpark");
    assert_eq!((settled.stages, checkpoint.abilities().draft), (2, true));
    // The 1 of a config that comes with three stages changes nothing; neither does an MTP block's 3.
    let preview = small(&|config| config["num_nextn_predict_layers"] = json!(3));
    assert_eq!(open(&preview, &whole).expect("opens").architecture().deepseek_v4().expect("V4").build, whole.build);
}

fn near(found: u64, expected: f64) -> bool {
    (found as f64 / expected - 1.0).abs() < 0.01
}

/// Spec sections 2.4 and 8.1.
#[test]
fn what_one_token_reads() {
    use Group::{Attention, Head, Indexers, Mixers, Routers, SharedExperts};
    let rows: [(Group, [f64; 4]); 6] = [
        (Attention, [4.599, 4.600, 18.294, 18.295]),
        // Compressors and indexers.
        (Indexers, [0.488, 0.801, 1.171, 1.970]),
        (Mixers, [0.034, 0.136, 0.084, 0.336]),
        (Routers, [0.045, 0.090, 0.168, 0.336]),
        (SharedExperts, [1.082, 1.082, 4.030, 4.030]),
        (Head, [0.530, 1.059, 0.927, 1.853]),
    ];
    for (pro, build) in [(false, "preview"), (false, "dspark"), (true, "preview"), (true, "dspark")] {
        let inspection = inspect(pro, build);
        for (group, figures) in rows {
            let amount = inspection.group(group);
            let [parameters, bytes] = if pro { [figures[2], figures[3]] } else { [figures[0], figures[1]] };
            // The table has three decimals.
            let close = |found: u64, expected: f64| {
                near(found, expected * 1e9) || found.abs_diff((expected * 1e9) as u64) < 600_000
            };
            assert!(close(amount.parameters, parameters) && close(amount.bytes, bytes), "{group:?}: {amount:?}");
        }
        let token = inspection.token;
        let [parameters, bytes, experts, expert] =
            if pro { [48.85e9, 39.67e9, 12.845e9, 35_094_528.0] } else { [13.27e9, 11.22e9, 3.449e9, 13_369_344.0] };
        assert!(near(token.active_parameters, parameters) && near(token.bytes(), bytes), "{token:?}");
        assert!(near(token.experts_bytes, experts));
        assert_eq!(inspection.memory.expert_bytes, expert as u64);
        // An embedding row, and a row of six ids in each of three hash layers.
        assert_eq!(token.rows_bytes, if pro { 2 * 7168 } else { 2 * 4096 } + 3 * 6 * 8);
    }
}

/// Spec sections 4.3 and 8.3.
#[test]
fn what_a_sequence_keeps_and_reads() {
    let caches = |pro| {
        let cache = &inspect(pro, "dspark").cache;
        assert_eq!(cache.iter().map(|at| at.tokens).collect::<Vec<_>>(), [4_096, 131_072, 1_048_576]);
        cache
    };
    // Windows, unfinished windows, bytes of entries and index keys per 128 tokens.
    let rows = [
        (false, 43 * 128 * 584, 12_206_080, 404_128 + 45_696, [9.9e6 + 1.5e6, 21.5e6 + 46.8e6, 105e6 + 374e6]),
        (true, 61 * 128 * 584, 18_710_528, 578_744 + 65_280, [23.1e6 + 2.1e6, 41.0e6 + 66.8e6, 171e6 + 535e6]),
    ];
    for (pro, window, rolling, per_128, read) in rows {
        for (at, read) in caches(pro).iter().zip(read) {
            assert_eq!(at.stored_bytes, window + rolling + at.tokens / 128 * per_128);
            assert!(near(at.read_bytes, read), "{at:?}");
        }
    }
    // The totals of 4.3 are without the unfinished windows.
    let total = |pro, rolling| caches(pro)[2].stored_bytes - rolling;
    assert_eq!(total(false, 12_206_080), 3_688_172_544);
    assert!(near(total(true, 18_710_528), 5.280e9));
    assert!(near(caches(false)[1].stored_bytes - 12_206_080, 0.464e9));
}

#[test]
fn names_types_and_shapes_of_section_2() {
    let tensors = |pro: bool, build: &str| {
        let config = Config::from_json(&serde_json::to_vec(&config(pro, build)).expect("JSON")).expect("good");
        let mut tensors = HashMap::new();
        config.for_each_tensor(|tensor| {
            assert!(tensors.insert(tensor.name.to_owned(), (tensor.dtype, tensor.shape.to_vec())).is_none());
        });
        tensors
    };
    let check = |tensors: &HashMap<String, (Dtype, Vec<u64>)>, rows: &[(&str, Dtype, &[u64])]| {
        for (name, dtype, shape) in rows {
            let found = tensors.get(*name).unwrap_or_else(|| panic!("{name} is missing"));
            assert_eq!((found.0, &*found.1), (*dtype, *shape), "{name}");
        }
    };
    let (fp8, scale, bf16, f32) = (Dtype::F8_E4M3, Dtype::F8_E8M0, Dtype::BF16, Dtype::F32);
    let flash = tensors(false, "vision");
    check(
        &flash,
        &[
            ("hc_head_fn", f32, &[4, 16_384]),
            ("layers.0.attn.wq_b.weight", fp8, &[32_768, 1024]),
            ("layers.0.attn.wq_b.scale", scale, &[256, 8]),
            ("layers.0.attn.wo_a.scale", scale, &[64, 32]),
            ("layers.2.attn.compressor.ape", f32, &[4, 1024]),
            ("layers.3.attn.compressor.ape", f32, &[128, 512]),
            ("layers.2.attn.compressor.wgate.weight", bf16, &[1024, 4096]),
            ("layers.3.attn.compressor.wkv.weight", bf16, &[512, 4096]),
            ("layers.2.attn.indexer.wq_b.weight", fp8, &[8192, 1024]),
            ("layers.2.attn.indexer.weights_proj.weight", bf16, &[64, 4096]),
            ("layers.2.attn.indexer.compressor.ape", f32, &[4, 256]),
            ("layers.2.attn.indexer.compressor.norm.weight", bf16, &[128]),
            ("layers.2.ffn.gate.tid2eid", Dtype::I64, &[129_280, 6]),
            ("layers.2.ffn.gate.bias", f32, &[256]),
            ("layers.42.ffn.gate.bias_vl", f32, &[256]),
            ("layers.42.ffn.experts.255.w1.weight", Dtype::I8, &[2048, 2048]),
            ("layers.42.ffn.experts.255.w2.scale", scale, &[4096, 64]),
            ("layers.42.ffn.shared_experts.w2.scale", scale, &[32, 16]),
            ("mtp.0.main_proj.scale", scale, &[32, 96]),
            ("mtp.1.ffn.gate.bias", f32, &[256]),
            ("mtp.2.hc_head_scale", f32, &[1]),
            ("mtp.2.markov_head.markov_w1.weight", bf16, &[129_280, 256]),
            ("mtp.2.confidence_head.proj.weight", bf16, &[1, 4352]),
            ("vision.blocks.31.attn.wqkv.weight", bf16, &[3072, 1024]),
            ("image_pad", bf16, &[4096]),
        ],
    );
    let pro = tensors(true, "preview");
    check(
        &pro,
        &[
            ("layers.0.attn.compressor.ape", f32, &[128, 512]),
            ("layers.60.attn.indexer.wq_b.scale", scale, &[64, 12]),
            ("layers.60.attn.wo_a.weight", fp8, &[16_384, 4096]),
            ("mtp.0.e_proj.scale", scale, &[56, 56]),
            ("mtp.0.hc_head_base", f32, &[4]),
        ],
    );
    for absent in [
        "layers.2.ffn.gate.bias",
        "layers.3.ffn.gate.tid2eid",
        "layers.3.attn.indexer.wq_b.weight",
        "layers.3.ffn.gate.bias_vl",
        "mtp.1.norm.weight",
        "mtp.0.main_proj.weight",
        "mtp.0.ffn.gate.tid2eid",
    ] {
        assert!(!pro.contains_key(absent), "{absent}");
    }
}

/// Spec section 1.2.
#[test]
fn the_schedules_of_the_releases() {
    for (pro, counts) in [(false, [2, 21, 20]), (true, [0, 30, 31])] {
        let config = Config::from_json(&serde_json::to_vec(&config(pro, "dspark")).expect("JSON")).expect("good");
        let count = |role| config.layers.iter().filter(|plan| plan.role == role).count();
        assert_eq!([Role::Sliding, Role::Csa, Role::Hca].map(count), counts);
        let hashed = config.layers.iter().take_while(|plan| plan.routing == Routing::Hashed).count();
        assert_eq!((hashed, config.entry_bytes(), config.index_key_bytes()), (3, 584, 68));
    }
}
