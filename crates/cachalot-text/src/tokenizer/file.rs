//! Reading and checking `tokenizer.json` (protocol.md 1.1 to 1.3).
//!
//! Owns the JSON shape and every check that can be made before the tokenizer is built: sizes, contiguous ids, merges
//! that name known tokens, a byte alphabet without gaps. Refuses whatever the released format does not use (dropout,
//! byte fallback, normalisers, another model type), because a silently ignored switch would give wrong ids.

use std::collections::HashMap;

use serde::Deserialize;
use tokenizers::models::bpe::{BPE, Merges, Vocab};

use super::split::Pattern;
use super::{MAX_FILE_BYTES, MAX_MERGES, MAX_PATTERN_BYTES, MAX_SPLITS, MAX_TOKEN_BYTES, MAX_VOCAB, TokenizerError};

type Result<T> = std::result::Result<T, TokenizerError>;

/// One entry of `added_tokens`, as far as this crate uses it.
#[derive(Debug, Deserialize)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    /// Matched in a second pass, after the others (the `tokenizers` library's order).
    #[serde(default)]
    pub(super) normalized: bool,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    truncation: Option<serde_json::Value>,
    #[serde(default)]
    padding: Option<serde_json::Value>,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Option<Component>,
    pre_tokenizer: Option<Component>,
    decoder: Option<Component>,
    model: Model,
}

/// Any `{"type": ...}` object of the file; fields that its type does not have are absent.
#[derive(Deserialize)]
struct Component {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    normalizers: Vec<serde_json::Value>,
    #[serde(default)]
    pretokenizers: Vec<Component>,
    pattern: Option<PatternText>,
    behavior: Option<String>,
    #[serde(default)]
    invert: bool,
    #[serde(default)]
    add_prefix_space: bool,
    use_regex: Option<bool>,
}

/// The pattern of a split.
#[derive(Deserialize)]
enum PatternText {
    Regex(String),
    String(String),
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f64>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// A merge in either of the two spellings that files use.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Line(String),
    Pair(String, String),
}

/// What the file says, checked.
pub(super) struct Parsed {
    /// Byte-pair model over the byte alphabet.
    pub(super) model: BPE,
    /// Patterns that cut the text before the model runs.
    pub(super) patterns: Vec<Pattern>,
    /// Added tokens in file order.
    pub(super) added: Vec<AddedToken>,
    /// Spelling of every id, in id order: byte-level form for model tokens, plain text for added tokens.
    pub(super) spellings: Vec<String>,
}

/// Parse and check a whole `tokenizer.json`.
pub(super) fn parse(bytes: &[u8]) -> Result<Parsed> {
    if bytes.len() > MAX_FILE_BYTES {
        return Err(TokenizerError::TooLarge { what: "file bytes", found: bytes.len(), limit: MAX_FILE_BYTES });
    }
    let file: File = serde_json::from_slice(bytes).map_err(|error| TokenizerError::Json(error.to_string()))?;
    check_switches(&file)?;
    let patterns = split_patterns(file.pre_tokenizer)?;
    let merges = merge_pairs(file.model.merges)?;
    let spellings = spellings(&file.model.vocab, &file.added_tokens)?;
    check_merges(&file.model.vocab, &merges)?;
    check_byte_alphabet(&file.model.vocab)?;
    let vocab: Vocab = file.model.vocab.into_iter().collect();
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(file.model.ignore_merges)
        .build()
        .map_err(|error| TokenizerError::Library(error.to_string()))?;
    Ok(Parsed { model, patterns, added: file.added_tokens, spellings })
}

fn unsupported(field: &str, found: impl Into<String>) -> TokenizerError {
    TokenizerError::Unsupported { field: field.to_owned(), found: found.into() }
}

fn check_switches(file: &File) -> Result<()> {
    let model = &file.model;
    // Files of the library's first years leave the model's type out; the fields decide then.
    if let Some(kind) = model.kind.as_deref().filter(|kind| *kind != "BPE") {
        return Err(unsupported("model.type", kind));
    }
    if let Some(dropout) = model.dropout.filter(|dropout| *dropout != 0.0) {
        return Err(unsupported("model.dropout", dropout.to_string()));
    }
    for (field, value) in [
        ("model.unk_token", &model.unk_token),
        ("model.continuing_subword_prefix", &model.continuing_subword_prefix),
        ("model.end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            return Err(unsupported(field, value));
        }
    }
    if model.byte_fallback {
        return Err(unsupported("model.byte_fallback", "true"));
    }
    for (field, value) in [("truncation", &file.truncation), ("padding", &file.padding)] {
        if value.is_some() {
            return Err(unsupported(field, "a value other than null"));
        }
    }
    if let Some(normalizer) = &file.normalizer
        && !(normalizer.kind == "Sequence" && normalizer.normalizers.is_empty())
    {
        return Err(unsupported("normalizer", normalizer.kind.as_str()));
    }
    match &file.decoder {
        Some(decoder) if decoder.kind == "ByteLevel" => {}
        Some(decoder) => return Err(unsupported("decoder", decoder.kind.as_str())),
        None => return Err(unsupported("decoder", "null")),
    }
    for token in &file.added_tokens {
        if token.single_word || token.lstrip || token.rstrip {
            return Err(unsupported("added_tokens", format!("{:?} with single_word, lstrip or rstrip", token.content)));
        }
        if token.content.is_empty() {
            return Err(unsupported("added_tokens", format!("an empty spelling for id {}", token.id)));
        }
    }
    Ok(())
}

/// The patterns of the pre-tokeniser: splits that isolate their matches, then ByteLevel without a pattern of its own.
fn split_patterns(pre_tokenizer: Option<Component>) -> Result<Vec<Pattern>> {
    let component = pre_tokenizer.ok_or_else(|| unsupported("pre_tokenizer", "null"))?;
    let mut components = if component.kind == "Sequence" { component.pretokenizers } else { vec![component] };
    if components.len() > MAX_SPLITS {
        return Err(TokenizerError::TooLarge { what: "pre-tokenisers", found: components.len(), limit: MAX_SPLITS });
    }
    match components.pop() {
        Some(last) if last.kind == "ByteLevel" => {
            for (field, value) in
                [("add_prefix_space", last.add_prefix_space), ("use_regex", last.use_regex.unwrap_or(true))]
            {
                if value {
                    return Err(unsupported(&format!("pre_tokenizer: ByteLevel.{field}"), "true"));
                }
            }
        }
        last => return Err(unsupported("pre_tokenizer", last.map_or("an empty list".to_owned(), |last| last.kind))),
    }
    components.into_iter().map(split_pattern).collect()
}

fn split_pattern(component: Component) -> Result<Pattern> {
    if component.kind != "Split" {
        return Err(unsupported("pre_tokenizer", component.kind));
    }
    let behavior = component.behavior.unwrap_or_default();
    if behavior != "Isolated" || component.invert {
        return Err(unsupported("pre_tokenizer.behavior", format!("{behavior:?}, invert {}", component.invert)));
    }
    match component.pattern {
        Some(PatternText::Regex(text)) if text.len() <= MAX_PATTERN_BYTES => Pattern::new(&text),
        Some(PatternText::Regex(text)) => {
            Err(TokenizerError::TooLarge { what: "pattern bytes", found: text.len(), limit: MAX_PATTERN_BYTES })
        }
        Some(PatternText::String(text)) => Err(unsupported("pre_tokenizer.pattern.String", text)),
        None => Err(unsupported("pre_tokenizer.pattern", "null")),
    }
}

fn merge_pairs(merges: Vec<Merge>) -> Result<Merges> {
    if merges.len() > MAX_MERGES {
        return Err(TokenizerError::TooLarge { what: "merges", found: merges.len(), limit: MAX_MERGES });
    }
    let mut pairs = Merges::with_capacity(merges.len());
    for (rank, merge) in merges.into_iter().enumerate() {
        pairs.push(match merge {
            Merge::Pair(left, right) => (left, right),
            Merge::Line(line) => match line.split_once(' ') {
                Some((left, right)) if !right.contains(' ') => (left.to_owned(), right.to_owned()),
                _ => return Err(TokenizerError::BadMerge { rank, token: line }),
            },
        });
    }
    Ok(pairs)
}

/// Every part and every result of a merge is a token. The library relies on it: it would index out of bounds.
fn check_merges(vocab: &HashMap<String, u32>, merges: &Merges) -> Result<()> {
    let mut joined = String::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        for token in [left, right, &joined] {
            if !vocab.contains_key(token.as_str()) {
                return Err(TokenizerError::BadMerge { rank, token: token.clone() });
            }
        }
    }
    Ok(())
}

/// Every byte has a token: otherwise the model would drop characters in silence.
fn check_byte_alphabet(vocab: &HashMap<String, u32>) -> Result<()> {
    for byte in 0..=u8::MAX {
        let character = super::bytes::character_of(byte);
        if !vocab.contains_key(character.encode_utf8(&mut [0; 4])) {
            return Err(TokenizerError::MissingByte { byte });
        }
    }
    Ok(())
}

/// The spelling of each id. Ids must be exactly 0..n; an added token may repeat a model token (ids 0, 1, 2 do).
fn spellings(vocab: &HashMap<String, u32>, added: &[AddedToken]) -> Result<Vec<String>> {
    let entries = vocab.len() + added.len();
    if entries > MAX_VOCAB {
        return Err(TokenizerError::TooLarge { what: "tokens", found: entries, limit: MAX_VOCAB });
    }
    let mut spellings: Vec<Option<String>> = vec![None; entries];
    let mut put = |id: u32, spelling: &str| -> Result<()> {
        if spelling.len() > MAX_TOKEN_BYTES {
            return Err(TokenizerError::TooLarge {
                what: "token bytes",
                found: spelling.len(),
                limit: MAX_TOKEN_BYTES,
            });
        }
        let slot = spellings.get_mut(id as usize).ok_or(TokenizerError::IdGap { id, tokens: entries })?;
        match slot {
            Some(other) if other != spelling => Err(TokenizerError::IdTwice {
                id,
                first: other.clone().min(spelling.to_owned()),
                second: other.clone().max(spelling.to_owned()),
            }),
            _ => {
                *slot = Some(spelling.to_owned());
                Ok(())
            }
        }
    };
    for (spelling, &id) in vocab {
        put(id, spelling)?;
    }
    let mut by_spelling = HashMap::with_capacity(added.len());
    for token in added {
        if let Some(other) = by_spelling.insert(token.content.as_str(), token.id) {
            return Err(TokenizerError::AddedTwice { spelling: token.content.clone(), first: other, second: token.id });
        }
        put(token.id, &token.content)?;
    }
    let used = spellings.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    spellings.truncate(used);
    spellings
        .into_iter()
        .enumerate()
        .map(|(id, spelling)| spelling.ok_or(TokenizerError::IdGap { id: id as u32, tokens: used }))
        .collect()
}
