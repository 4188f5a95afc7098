//! The tokenizer: text to ids and ids to bytes (protocol.md section 1).
//!
//! Owns one byte-level BPE vocabulary, its added tokens and the ids of the protocol's markers. Plain text is encoded
//! *without* the added vocabulary, so text of a user can never become a control token (1.5); only
//! [`Tokenizer::encode_with_added`] recognises added tokens, for callers that ask for it. Refuses files that it does
//! not fully understand, tokenizers without the protocol's markers, and ids outside the vocabulary.

mod bytes;
mod error;
mod file;
mod markers;
mod split;

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::Model;
use tokenizers::models::bpe::BPE;

use crate::Family;
pub use error::TokenizerError;
pub use markers::Markers;

/// Largest `tokenizer.json` that is read, in bytes (the released file has 6.4 million).
pub const MAX_FILE_BYTES: usize = 64 << 20;
/// Largest number of ids, added tokens included.
pub const MAX_VOCAB: usize = 1 << 20;
/// Largest number of merges.
pub const MAX_MERGES: usize = 1 << 21;
/// Longest token spelling, in bytes.
pub const MAX_TOKEN_BYTES: usize = 4096;
/// Longest text encoded at a time, in bytes: several times a full context of the longest tokens.
pub const MAX_TEXT_BYTES: usize = 64 << 20;
const MAX_SPLITS: usize = 16;
const MAX_PATTERN_BYTES: usize = 4096;

/// What config.json knows about the tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenizerProfile {
    /// The family whose prompts will be written.
    pub family: Family,
    /// `vocab_size`: number of ids.
    pub vocab_size: usize,
    /// `image_token_id`, where the model has vision.
    pub image_token_id: Option<u32>,
    /// `dspark_noise_token_id`, where the model has a draft.
    pub noise_token_id: Option<u32>,
}

/// A checkpoint's tokenizer. Immutable; share it between threads behind an `Arc`.
pub struct Tokenizer {
    family: Family,
    model: BPE,
    patterns: Vec<split::Pattern>,
    /// The character of each byte in vocabulary strings.
    characters: [char; 256],
    bytes: bytes::TokenBytes,
    spellings: Vec<String>,
    added: HashMap<String, u32>,
    is_added: Vec<bool>,
    /// Matchers of the added tokens: first those matched on raw text, then those matched on "normalised" text.
    added_passes: Vec<(AhoCorasick, Vec<u32>)>,
    markers: Markers,
    image: Option<u32>,
    noise: Option<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("family", &self.family)
            .field("ids", &self.vocab_size())
            .field("added", &self.added.len())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Read a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError`] names the field or token that is wrong: a file that is too large or not fully understood, ids
    /// that are not exactly `0..profile.vocab_size`, a marker of the family that is not a single added token (1.3), an
    /// image or noise id that is not an added token.
    pub fn from_json(bytes: &[u8], profile: &TokenizerProfile) -> Result<Self, TokenizerError> {
        let file::Parsed { model, patterns, added, spellings } = file::parse(bytes)?;
        let mut is_added = vec![false; spellings.len()];
        for token in &added {
            is_added[token.id as usize] = true;
        }
        if spellings.len() != profile.vocab_size {
            return Err(TokenizerError::VocabSize { found: spellings.len(), expected: profile.vocab_size });
        }
        for (field, id) in
            [("image_token_id", profile.image_token_id), ("dspark_noise_token_id", profile.noise_token_id)]
        {
            if let Some(id) = id.filter(|id| is_added.get(*id as usize) != Some(&true)) {
                return Err(TokenizerError::ConfigId { field, id, tokens: spellings.len() });
            }
        }
        let added_passes = [false, true]
            .into_iter()
            .filter_map(|normalized| added_pass(&added, normalized).transpose())
            .collect::<Result<_, _>>()?;
        let added: HashMap<String, u32> = added.into_iter().map(|token| (token.content, token.id)).collect();
        let markers = Markers::find(&added, profile.family)?;
        let tokens = spellings.iter().zip(&is_added).map(|(spelling, added)| (spelling.as_str(), *added));
        Ok(Self {
            family: profile.family,
            characters: std::array::from_fn(|byte| bytes::character_of(byte as u8)),
            bytes: bytes::TokenBytes::new(tokens),
            model,
            patterns,
            spellings,
            added,
            is_added,
            added_passes,
            markers,
            image: profile.image_token_id,
            noise: profile.noise_token_id,
        })
    }

    /// The family whose prompts this tokenizer is used for.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// The ids of the protocol's markers.
    pub fn markers(&self) -> &Markers {
        &self.markers
    }

    /// The id that stands for one image in a prompt (`image_token_id` of config.json).
    pub fn image_token_id(&self) -> Option<u32> {
        self.image
    }

    /// The draft's noise id (`dspark_noise_token_id` of config.json).
    pub fn noise_token_id(&self) -> Option<u32> {
        self.noise
    }

    /// The id of an added token, by its spelling.
    pub fn added_id(&self, spelling: &str) -> Option<u32> {
        self.added.get(spelling).copied()
    }

    /// Whether `id` is an added token (false outside the vocabulary).
    pub fn is_added(&self, id: u32) -> bool {
        self.is_added.get(id as usize).copied().unwrap_or(false)
    }

    /// Whether generation ends when `id` is sampled: the end of sentence, and the tokens that only a prompt may hold
    /// (1.4).
    pub fn is_stop(&self, id: u32) -> bool {
        let markers = &self.markers;
        id == markers.eos
            || id == markers.bos
            || id == markers.user
            || id == markers.assistant
            || markers.system == Some(id)
    }

    /// The bytes that `id` stands for; an added token stands for its spelling. `None` outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes.get(id)
    }

    /// The raw vocabulary string of `id`: byte-level form for model tokens. `None` outside the vocabulary.
    pub fn token_spelling(&self, id: u32) -> Option<&str> {
        self.spellings.get(id as usize).map(String::as_str)
    }

    /// Check that every id is in the vocabulary.
    ///
    /// # Errors
    /// [`TokenizerError::IdOutOfRange`] names the first id that is not.
    pub fn check_ids(&self, ids: &[u32]) -> Result<(), TokenizerError> {
        match ids.iter().position(|&id| id as usize >= self.vocab_size()) {
            None => Ok(()),
            Some(position) => {
                Err(TokenizerError::IdOutOfRange { id: ids[position], position, tokens: self.vocab_size() })
            }
        }
    }

    /// Concatenate the bytes of `ids`.
    ///
    /// # Errors
    /// [`TokenizerError::IdOutOfRange`].
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>, TokenizerError> {
        self.check_ids(ids)?;
        Ok(ids.iter().filter_map(|&id| self.token_bytes(id)).flatten().copied().collect())
    }

    /// Decode `ids`; what is not UTF-8 becomes U+FFFD (1.4).
    ///
    /// # Errors
    /// [`TokenizerError::IdOutOfRange`].
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let bytes = self.decode_bytes(ids)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// Encode text without the added vocabulary: spellings of control tokens become ordinary tokens (1.5).
    ///
    /// # Errors
    /// [`TokenizerError::TextTooLong`]; [`TokenizerError::Split`] when a pattern gives up on a text (more than five
    /// million blanks in a row).
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        self.encode_plain_into(text, &mut ids)?;
        Ok(ids)
    }

    /// As [`encode_plain`](Self::encode_plain), appending to `ids`.
    ///
    /// # Errors
    /// As [`encode_plain`](Self::encode_plain).
    pub fn encode_plain_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        if text.is_empty() {
            return Ok(());
        }
        if text.len() > MAX_TEXT_BYTES {
            return Err(TokenizerError::TextTooLong { bytes: text.len(), limit: MAX_TEXT_BYTES });
        }
        let mut alphabetic = String::new();
        for piece in split::split(&self.patterns, text)? {
            alphabetic.clear();
            alphabetic.extend(piece.bytes().map(|byte| self.characters[usize::from(byte)]));
            let tokens =
                self.model.tokenize(&alphabetic).map_err(|error| TokenizerError::Library(error.to_string()))?;
            ids.extend(tokens.iter().map(|token| token.id));
        }
        Ok(())
    }

    /// Encode text with added tokens recognised anywhere: the ordinary encoding of the `tokenizers` library, for raw
    /// completions. Never use it for a conversation.
    ///
    /// # Errors
    /// As [`encode_plain`](Self::encode_plain).
    pub fn encode_with_added(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        self.encode_pass(text, &self.added_passes, &mut ids)?;
        Ok(ids)
    }

    fn encode_pass(
        &self,
        text: &str,
        passes: &[(AhoCorasick, Vec<u32>)],
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        let Some(((matcher, token_ids), rest)) = passes.split_first() else {
            return self.encode_plain_into(text, ids);
        };
        let mut start = 0;
        for found in matcher.find_iter(text) {
            self.encode_pass(&text[start..found.start()], rest, ids)?;
            ids.push(token_ids[found.pattern().as_usize()]);
            start = found.end();
        }
        self.encode_pass(&text[start..], rest, ids)
    }
}

/// The matcher of one pass over the added tokens, or none where the pass has no tokens.
fn added_pass(added: &[file::AddedToken], normalized: bool) -> Result<Option<(AhoCorasick, Vec<u32>)>, TokenizerError> {
    let tokens: Vec<&file::AddedToken> = added.iter().filter(|token| token.normalized == normalized).collect();
    if tokens.is_empty() {
        return Ok(None);
    }
    let matcher = AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(tokens.iter().map(|token| token.content.as_str()))
        .map_err(|error| TokenizerError::Library(error.to_string()))?;
    Ok(Some((matcher, tokens.iter().map(|token| token.id).collect())))
}
