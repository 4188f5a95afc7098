//! A tokenizer of any vocabulary size, in the released form: the small model's merges, and tokens that no text makes.
//!
//! Where the vocabulary is that of the releases, so are the ids of the control tokens and the number of Engram classes.

use crate::SynthError;
use cachalot_text::{Family, Tokenizer, TokenizerProfile};
use serde_json::{Map, Value, json};

/// The tokenizer of the small model that ships.
const SMALL: &str = include_str!("../../../models/nano/tokenizer.json");
/// Ids from here on are added tokens in the releases.
const RELEASED_ADDED: usize = 128_000;
/// Ids of the releases.
const RELEASED_VOCAB: usize = 129_280;
/// Engram classes of the releases.
const RELEASED_CLASSES: usize = 99_092;
/// Control tokens and their ids in the releases (protocol.md 1.3).
const CONTROL: [(usize, &str); 9] = [
    (0, "<｜begin▁of▁sentence｜>"),
    (1, "<｜end▁of▁sentence｜>"),
    (2, "<｜▁pad▁｜>"),
    (128_803, "<｜User｜>"),
    (128_804, "<｜Assistant｜>"),
    (128_821, "<think>"),
    (128_822, "</think>"),
    (128_825, "｜DSML｜"),
    (128_828, "<｜latest_reminder｜>"),
];
/// The system token of V4.1.
const SYSTEM: (usize, &str) = (128_799, "<｜System｜>");

/// The `tokenizer.json` for `config`, whose number of Engram classes is set to the tokenizer's.
pub fn synthesize(config: &mut Value) -> Result<Vec<u8>, SynthError> {
    let nested = config.get("text_config").is_some();
    let text = if nested { &config["text_config"] } else { &*config };
    let vocab_size = text["vocab_size"].as_u64().and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
    let id = |key: &str| {
        let found = config.get(key).or_else(|| text.get(key)).and_then(Value::as_u64);
        found.and_then(|id| u32::try_from(id).ok())
    };
    let profile = TokenizerProfile {
        family: if nested { Family::V41 } else { Family::V4 },
        vocab_size,
        image_token_id: id("image_token_id").filter(|_| nested),
        noise_token_id: id("dspark_noise_token_id"),
    };
    let engram = text.get("engram_layer_ids").and_then(Value::as_array).is_some_and(|layers| !layers.is_empty());
    let mut json = tokenizer(&profile, 0)?;
    let mut classes = 0;
    if engram {
        let count = |json: &[u8]| -> Result<usize, SynthError> {
            let tokenizer = Tokenizer::from_json(json, &profile)?;
            Ok(cachalot_text::engram::token_classes(&tokenizer).count)
        };
        classes = count(&json)?;
        if vocab_size == RELEASED_VOCAB {
            json = tokenizer(&profile, classes.saturating_sub(RELEASED_CLASSES))?;
            classes = count(&json)?;
        }
    } else {
        Tokenizer::from_json(&json, &profile)?;
    }
    if engram {
        config["text_config"]["engram_compressed_vocab_size"] = json!(classes);
    }
    Ok(json)
}

/// The control tokens of a vocabulary, by id: where the releases have them, or at the end of a smaller vocabulary.
fn control(profile: &TokenizerProfile) -> Vec<(usize, String)> {
    let system = (profile.family == Family::V41).then_some(SYSTEM);
    let mut tokens: Vec<(usize, String)> =
        CONTROL.into_iter().chain(system).map(|(id, text)| (id, text.to_owned())).collect();
    if profile.vocab_size != RELEASED_VOCAB {
        let taken = [profile.image_token_id, profile.noise_token_id].map(|id| id.map(|id| id as usize));
        let mut free = (0..profile.vocab_size).rev().filter(|id| !taken.contains(&Some(*id)));
        let high = tokens.iter_mut().filter(|(id, _)| *id >= RELEASED_ADDED);
        high.zip(&mut free).for_each(|(token, id)| token.0 = id);
    }
    let named = [(profile.image_token_id, "<｜deepseek_image｜>"), (profile.noise_token_id, "<｜dspark▁noise｜>")];
    for (id, text) in named.into_iter().filter_map(|(id, text)| Some((id? as usize, text))) {
        if !tokens.iter().any(|(other, _)| *other == id) {
            tokens.push((id, text.to_owned()));
        }
    }
    tokens
}

/// A tokenizer in which `twins` tokens differ from another one in case only.
fn tokenizer(profile: &TokenizerProfile, twins: usize) -> Result<Vec<u8>, SynthError> {
    let wrong = |what: &str| SynthError::Config(format!("vocab_size {}: {what}", profile.vocab_size));
    let mut file: Value = serde_json::from_str(SMALL).map_err(|error| SynthError::Config(error.to_string()))?;
    let mut control = control(profile);
    if profile.vocab_size == RELEASED_VOCAB {
        let holder = |id: usize| (id, format!("<｜place▁holder▁no▁{}｜>", id - RELEASED_ADDED));
        let free: Vec<_> =
            (RELEASED_ADDED..RELEASED_VOCAB).filter(|id| !control.iter().any(|(at, _)| at == id)).collect();
        control.extend(free.into_iter().map(holder));
    }
    control.sort_unstable();
    let mut places = (0..profile.vocab_size).filter(|id| control.binary_search_by_key(id, |token| token.0).is_err());
    let added: Vec<&str> =
        file["added_tokens"].as_array().into_iter().flatten().filter_map(|token| token["content"].as_str()).collect();
    let mut words: Vec<(u64, &String)> = match &file["model"]["vocab"] {
        Value::Object(vocab) => vocab.iter().filter_map(|(word, id)| Some((id.as_u64()?, word))).collect(),
        _ => Vec::new(),
    };
    words.retain(|(_, word)| !added.contains(&word.as_str()));
    words.sort_unstable();
    // Bytes come first, then merges in their order: a smaller vocabulary keeps the first of them.
    words.sort_by_key(|(_, word)| word.chars().count() > 1);
    let mut vocab = Map::new();
    for (_, word) in words {
        let Some(id) = places.next() else { break };
        vocab.insert(word.clone(), json!(id));
    }
    if vocab.len() < 256 {
        return Err(wrong("a tokenizer needs 256 bytes and the control tokens"));
    }
    for (number, id) in places.enumerate() {
        let word =
            if number < 2 * twins && number % 2 == 1 { format!("QX{}", number - 1) } else { format!("qx{number}") };
        vocab.insert(word, json!(id));
    }
    let whole = |merge: &Value| {
        let parts = merge.as_array().map(|pair| pair.iter().filter_map(Value::as_str).collect::<Vec<_>>());
        let parts = parts.or_else(|| Some(merge.as_str()?.split(' ').collect()));
        parts.is_some_and(|parts| {
            vocab.contains_key(&parts.concat()) && parts.iter().all(|part| vocab.contains_key(*part))
        })
    };
    if let Value::Array(merges) = &mut file["model"]["merges"] {
        merges.retain(whole);
    }
    file["model"]["vocab"] = Value::Object(vocab);
    let token = |(id, content): (usize, String)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    file["added_tokens"] = control.into_iter().map(token).collect();
    serde_json::to_vec(&file).map_err(|error| SynthError::Config(error.to_string()))
}
