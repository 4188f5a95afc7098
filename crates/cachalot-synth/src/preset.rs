//! The models that can be imitated, and what is left of one when it is shrunk.
//!
//! Owns the configs. Three presets are releases (V4-Flash-0731, V4-Pro-0813, V4.1-Flash); two are shapes that were once
//! promised and never released, chosen here so that total and active parameters are those of their names.

use crate::SynthError;
use cachalot_checkpoint::deepseek_v41::EngramTables;
use serde_json::{Map, Value, json};

const V41_FLASH: &str = include_str!("../../../fixtures/configs/v41-flash.json");
/// What all V4 configs have in common.
const V4: &str = include_str!("../../../fixtures/configs/v4-common.json");

/// A model that can be imitated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// DeepSeek-V4-Flash-0731.
    V4Flash,
    /// DeepSeek-V4-Pro-0813.
    V4Pro,
    /// DeepSeek-V4.1-Flash.
    V41Flash,
    /// V4's architecture with a trillion parameters, 37 billion of them active.
    OneTrillion,
    /// V4's architecture with 200 billion parameters, 12 billion of them active.
    Lite,
}

/// What to take away from a preset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shrink {
    /// Layers to keep. With fewer than the preset has, draft module and image path are left out.
    pub layers: Option<u64>,
    /// Routed experts of a layer.
    pub experts: Option<u64>,
    /// Rows of each Engram table; the hash needs sums of primes, so that there may be a few more.
    pub engram_rows: Option<u64>,
}

/// The dimensions in which V4 models differ.
struct V4Shape {
    layers: usize,
    hidden: usize,
    heads: usize,
    q_lora_rank: usize,
    index_topk: usize,
    experts: usize,
    inner: usize,
    scaling: f64,
    /// Ratio of the first two layers.
    first: usize,
    /// Rank of DSpark's correction, where there is a DSpark.
    markov_rank: Option<usize>,
}

impl Preset {
    /// All presets.
    pub const ALL: [Self; 5] = [Self::V4Flash, Self::V4Pro, Self::V41Flash, Self::OneTrillion, Self::Lite];

    /// What the command line calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4Flash => "v4-flash",
            Self::V4Pro => "v4-pro",
            Self::V41Flash => "v4.1-flash",
            Self::OneTrillion => "1t-a37b",
            Self::Lite => "lite-200b",
        }
    }

    /// The preset called `name`.
    ///
    /// # Errors
    /// [`SynthError::Preset`] names those that there are.
    pub fn from_name(name: &str) -> Result<Self, SynthError> {
        let unknown = || SynthError::Preset {
            name: name.to_owned(),
            known: Self::ALL.iter().map(|preset| preset.name()).collect(),
        };
        Self::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(unknown)
    }

    fn v4_shape(self) -> Option<V4Shape> {
        let flash = V4Shape {
            layers: 43,
            hidden: 4096,
            heads: 64,
            q_lora_rank: 1024,
            index_topk: 512,
            experts: 256,
            inner: 2048,
            scaling: 1.5,
            first: 0,
            markov_rank: Some(256),
        };
        let pro = V4Shape {
            layers: 61,
            hidden: 7168,
            heads: 128,
            q_lora_rank: 1536,
            index_topk: 1024,
            experts: 384,
            inner: 3072,
            scaling: 2.5,
            first: 128,
            markov_rank: Some(512),
        };
        match self {
            Self::V4Flash => Some(flash),
            Self::V4Pro => Some(pro),
            Self::V41Flash => None,
            Self::OneTrillion => Some(V4Shape {
                layers: 60,
                hidden: 6656,
                heads: 96,
                experts: 320,
                inner: 2560,
                markov_rank: None,
                ..pro
            }),
            Self::Lite => Some(V4Shape { layers: 40, experts: 192, markov_rank: None, ..flash }),
        }
    }

    /// Its `config.json`, shrunk.
    ///
    /// # Errors
    /// [`SynthError::Shrink`] if there is nothing to shrink or nothing would be left.
    pub fn config(self, shrink: &Shrink) -> Result<Value, SynthError> {
        let config = match self.v4_shape() {
            Some(shape) => v4(&shape, shrink)?,
            None => v41(shrink)?,
        };
        Ok(Value::Object(config))
    }
}

fn parsed(json: &str) -> Result<Map<String, Value>, SynthError> {
    serde_json::from_str(json).map_err(|error| SynthError::Config(error.to_string()))
}

/// An option that must lie between `least` and what the preset has.
fn between(field: &'static str, value: Option<u64>, least: usize, has: usize) -> Result<usize, SynthError> {
    match value {
        None => Ok(has),
        Some(value) => match usize::try_from(value).ok().filter(|value| (least..=has).contains(value)) {
            Some(value) => Ok(value),
            None => Err(SynthError::Shrink { field, value, reason: format!("{least} to {has} are possible") }),
        },
    }
}

/// Experts that a token is routed to, in all presets.
const CHOSEN: usize = 6;

fn v4(shape: &V4Shape, shrink: &Shrink) -> Result<Map<String, Value>, SynthError> {
    let layers = between("layers", shrink.layers, 1, shape.layers)?;
    let experts = between("experts", shrink.experts, CHOSEN, shape.experts)?;
    if let Some(value) = shrink.engram_rows {
        return Err(SynthError::Shrink { field: "engram-rows", value, reason: "V4 has no Engram".to_owned() });
    }
    let whole = layers == shape.layers;
    let ratio = |layer: usize| match layer {
        0 | 1 if whole => shape.first,
        // Of a few layers, one of each kind comes first: 0, 4, 128, 4, ...
        0 => 0,
        _ if layer.is_multiple_of(2) == whole => 4,
        _ => 128,
    };
    let mut ratios: Vec<usize> = (0..layers).map(ratio).collect();
    let mut config = parsed(V4)?;
    let draft = shape.markov_rank.filter(|_| whole);
    ratios.extend(vec![0; if draft.is_some() { 3 } else { 0 }]);
    let fields = [
        ("hidden_size", json!(shape.hidden)),
        ("num_hidden_layers", json!(layers)),
        ("num_attention_heads", json!(shape.heads)),
        ("q_lora_rank", json!(shape.q_lora_rank)),
        // Every group of 8 heads is 4096 wide.
        ("o_groups", json!(shape.heads / 8)),
        ("index_topk", json!(shape.index_topk)),
        ("n_routed_experts", json!(experts)),
        ("moe_intermediate_size", json!(shape.inner)),
        ("routed_scaling_factor", json!(shape.scaling)),
        // Both ways of routing are kept.
        ("num_hash_layers", json!(if whole { 3 } else { 3.min(layers / 2) })),
        ("compress_ratios", json!(ratios)),
        ("expert_dtype", json!("fp4")),
        ("num_nextn_predict_layers", json!(u8::from(draft.is_some()))),
    ];
    let dspark = draft.map(|rank| {
        [
            ("dspark_block_size", json!(5)),
            ("dspark_noise_token_id", json!(128_799)),
            ("dspark_target_layer_ids", json!([layers - 3, layers - 2, layers - 1])),
            ("dspark_markov_rank", json!(rank)),
        ]
    });
    config.extend(fields.into_iter().chain(dspark.into_iter().flatten()).map(|(key, value)| (key.to_owned(), value)));
    Ok(config)
}

/// The schedule of a V4.1 model.
#[derive(Debug, PartialEq, Eq)]
struct Schedule {
    ratios: Vec<usize>,
    kv_sources: Vec<usize>,
    index_sources: Vec<usize>,
    candidate_source: Option<usize>,
    engram: Vec<usize>,
}

/// What is left of V4.1-Flash's schedule in `layers` layers: as many of its roles as fit, in the order of the release,
/// and from six layers on all of them. 40 layers are the release.
fn schedule(layers: usize) -> Schedule {
    // Window-only layers, ratio-2 layers; the others have ratio 1.
    let (windows, pairs) = match layers {
        0..=4 => (1, usize::from(layers > 1)),
        5 => (2, 1),
        // 18 of the release's 38.
        _ => (2, ((layers - 2) * 18 + 19) / 38),
    };
    let ones = windows + pairs;
    let mut ratios = vec![0; windows.min(layers)];
    ratios.resize(ones.min(layers), 2);
    ratios.resize(layers, 1);
    let owners: Vec<usize> = (windows..ones).step_by(6).collect();
    let candidate_source = (layers > ones).then_some(ones);
    // A new selection every four layers; where there are only few, right after the source.
    let step = if layers > ones + 4 { 4 } else { 1 };
    let reindex = (ones + step..layers).step_by(4);
    let kv_sources: Vec<usize> = owners.iter().copied().chain(candidate_source).collect();
    let index_sources = kv_sources.iter().copied().chain(reindex).collect();
    // Before the second layer, and before the last owner of pairs.
    let mut engram: Vec<usize> = if layers > 1 { vec![1] } else { Vec::new() };
    engram.extend(owners.last().copied().filter(|owner| *owner > 1));
    Schedule { ratios, kv_sources, index_sources, candidate_source, engram }
}

fn v41(shrink: &Shrink) -> Result<Map<String, Value>, SynthError> {
    let mut config = parsed(V41_FLASH)?;
    let Some(Value::Object(text)) = config.get_mut("text_config") else {
        return Err(SynthError::Config("text_config is missing".to_owned()));
    };
    let number = |text: &Map<String, Value>, key: &str| text.get(key).and_then(Value::as_u64).unwrap_or(0);
    let has = number(text, "num_hidden_layers") as usize;
    let layers = between("layers", shrink.layers, 1, has)?;
    let experts = between("experts", shrink.experts, CHOSEN, number(text, "n_routed_experts") as usize)?;
    let Schedule { mut ratios, kv_sources, index_sources, candidate_source, engram } = schedule(layers);
    if layers < has {
        text.retain(|key, _| !key.starts_with("dspark_"));
        text.insert("num_nextn_predict_layers".to_owned(), json!(0));
    } else {
        ratios.extend(vec![0; number(text, "num_nextn_predict_layers") as usize]);
    }
    let columns = (number(text, "engram_max_ngram_size") - 1) * number(text, "engram_n_heads");
    let mut start = number(text, "engram_vocab_size");
    if let Some(value) = shrink.engram_rows {
        // Each column has a prime number of rows.
        let range = 2 * columns..=start * columns;
        if !range.contains(&value) || engram.is_empty() {
            let reason = format!("{} to {} are possible, with two layers or more", range.start(), range.end());
            return Err(SynthError::Shrink { field: "engram-rows", value, reason });
        }
        start = value / columns;
    }
    let rows = EngramTables::rows(start, columns as usize, engram.len());
    let fields = [
        ("num_hidden_layers", json!(layers)),
        ("n_routed_experts", json!(experts)),
        ("compress_ratios", json!(ratios)),
        ("kv_source_layer_ids", json!(kv_sources)),
        ("index_source_layer_ids", json!(index_sources)),
        ("candidate_source_layer_id", json!(candidate_source)),
        ("engram_layer_ids", json!(engram)),
        ("engram_vocab_size", json!(start)),
        ("engram_num_embeddings", json!(rows)),
    ];
    text.extend(fields.into_iter().map(|(key, value)| (key.to_owned(), value)));
    if layers < has {
        config.remove("vision_config");
        config.remove("image_token_id");
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_kept_in_order() {
        let ratios = |layers| schedule(layers).ratios;
        assert_eq!(ratios(1), [0]);
        assert_eq!(ratios(2), [0, 2]);
        assert_eq!(ratios(3), [0, 2, 1]);
        let four = schedule(4);
        assert_eq!((four.ratios, four.engram), (vec![0, 2, 1, 1], vec![1]));
        assert_eq!((four.kv_sources, four.index_sources, four.candidate_source), (vec![1, 2], vec![1, 2, 3], Some(2)));
        let six = schedule(6);
        assert_eq!((six.ratios, six.engram), (vec![0, 0, 2, 2, 1, 1], vec![1, 2]));
        assert_eq!((six.kv_sources, six.index_sources, six.candidate_source), (vec![2, 4], vec![2, 4, 5], Some(4)));
        let all = schedule(40);
        let release: Value = serde_json::from_str(V41_FLASH).expect("JSON");
        let text = &release["text_config"];
        assert_eq!(json!(all.ratios), json!(text["compress_ratios"].as_array().expect("a list")[..40]));
        assert_eq!(json!(all.kv_sources), text["kv_source_layer_ids"]);
        assert_eq!(json!(all.index_sources), text["index_source_layer_ids"]);
        assert_eq!(json!(all.candidate_source), text["candidate_source_layer_id"]);
        assert_eq!(json!(all.engram), text["engram_layer_ids"]);
    }

    #[test]
    fn a_whole_preset_is_the_release() {
        let release: Value = serde_json::from_str(V41_FLASH).expect("JSON");
        assert_eq!(Preset::V41Flash.config(&Shrink::default()).expect("a config"), release);
        let pro = Preset::V4Pro.config(&Shrink::default()).expect("a config");
        assert_eq!(pro["compress_ratios"].as_array().map(Vec::len), Some(64));
        assert_eq!(pro["dspark_target_layer_ids"], json!([58, 59, 60]));
        let four = Shrink { layers: Some(4), experts: Some(8), ..Shrink::default() };
        let flash = Preset::V4Flash.config(&four).expect("a config");
        assert_eq!((&flash["compress_ratios"], &flash["num_hash_layers"]), (&json!([0, 4, 128, 4]), &json!(2)));
        assert!(flash.get("dspark_block_size").is_none());
    }

    #[test]
    fn what_cannot_be_shrunk_is_named() {
        let error = |preset: Preset, shrink: Shrink| preset.config(&shrink).expect_err("refused").to_string();
        let layers = |layers| Shrink { layers: Some(layers), ..Shrink::default() };
        assert_eq!(error(Preset::V4Flash, layers(0)), "--layers 0: 1 to 43 are possible");
        assert_eq!(error(Preset::V41Flash, layers(41)), "--layers 41: 1 to 40 are possible");
        let experts = Shrink { experts: Some(5), ..Shrink::default() };
        assert_eq!(error(Preset::Lite, experts), "--experts 5: 6 to 192 are possible");
        let rows = |rows| Shrink { engram_rows: Some(rows), ..Shrink::default() };
        assert_eq!(error(Preset::V4Pro, rows(1000)), "--engram-rows 1000: V4 has no Engram");
        assert!(error(Preset::V41Flash, rows(10)).starts_with("--engram-rows 10: 48 to 384000000 are possible"));
        let unknown = Preset::from_name("v5").expect_err("unknown").to_string();
        assert_eq!(unknown, "there is no preset \"v5\"; there are v4-flash, v4-pro, v4.1-flash, 1t-a37b, lite-200b");
    }
}
