//! What can be wrong with a tokenizer, or with what it is asked.

use crate::Family;

/// A tokenizer that cannot be used, or a request to one that cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file is not JSON of the expected shape.
    #[error("tokenizer.json: {0}")]
    Json(String),
    /// A part of the file is larger than any released tokenizer's by an order of magnitude.
    #[error("tokenizer.json: {found} {what}, at most {limit} are accepted")]
    TooLarge {
        /// What was counted.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many are accepted.
        limit: usize,
    },
    /// A switch or component that would change ids and that this reader does not implement.
    #[error("tokenizer.json: {field}: {found} is not supported; byte-level BPE as DeepSeek publishes it is needed")]
    Unsupported {
        /// The field, with dots for nesting.
        field: String,
        /// What it holds.
        found: String,
    },
    /// A merge whose parts or whose result are not tokens.
    #[error("tokenizer.json: model.merges[{rank}] needs the token {token:?}, which is not in the vocabulary")]
    BadMerge {
        /// Position in the list of merges.
        rank: usize,
        /// The missing token.
        token: String,
    },
    /// A byte that no token spells.
    #[error("tokenizer.json: no token for the byte 0x{byte:02x}")]
    MissingByte {
        /// The byte.
        byte: u8,
    },
    /// Ids that are not 0..n without gaps.
    #[error("tokenizer.json: ids must be 0..{tokens} without gaps; id {id} breaks this")]
    IdGap {
        /// An id without a token, or beyond the number of tokens.
        id: u32,
        /// Number of tokens.
        tokens: usize,
    },
    /// One id with two spellings.
    #[error("tokenizer.json: id {id} is both {first:?} and {second:?}")]
    IdTwice {
        /// The id.
        id: u32,
        /// One spelling.
        first: String,
        /// The other.
        second: String,
    },
    /// One added token with two ids.
    #[error("tokenizer.json: the added token {spelling:?} has the ids {first} and {second}")]
    AddedTwice {
        /// The spelling.
        spelling: String,
        /// One id.
        first: u32,
        /// The other.
        second: u32,
    },
    /// A marker of the text protocol is not a single added token.
    #[error("tokenizer.json: {spelling:?} is not a single added token, but {family} prompts need it")]
    MissingMarker {
        /// The marker.
        spelling: &'static str,
        /// The family whose prompts need it.
        family: Family,
    },
    /// The number of ids differs from the model's.
    #[error("tokenizer.json has {found} ids, but vocab_size of config.json is {expected}")]
    VocabSize {
        /// Ids in the tokenizer.
        found: usize,
        /// Ids of the model.
        expected: usize,
    },
    /// An id of config.json that is not an added token of this tokenizer.
    #[error("config.json: {field} is {id}, which is not an added token of tokenizer.json ({tokens} ids)")]
    ConfigId {
        /// The field of config.json.
        field: &'static str,
        /// Its value.
        id: u32,
        /// Ids in the tokenizer.
        tokens: usize,
    },
    /// A token id from outside the vocabulary.
    #[error("token id {id} at position {position} is outside the vocabulary of {tokens} ids")]
    IdOutOfRange {
        /// The id.
        id: u32,
        /// Its position in the list that was given.
        position: usize,
        /// Ids in the tokenizer.
        tokens: usize,
    },
    /// A text longer than any context can hold.
    #[error("text of {bytes} bytes; at most {limit} are encoded at a time")]
    TextTooLong {
        /// Length of the text.
        bytes: usize,
        /// Longest text.
        limit: usize,
    },
    /// The Engram token map has another number of classes than the model was trained with.
    #[error(
        "tokenizer.json gives {found} Engram token classes, but engram_compressed_vocab_size of config.json is {expected}: it is not the tokenizer of this checkpoint"
    )]
    EngramClasses {
        /// Classes of this tokenizer.
        found: usize,
        /// Classes the model was trained with.
        expected: usize,
    },
    /// A pattern of the file is not a regular expression.
    #[error("tokenizer.json: pre_tokenizer: {pattern:?}: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What the regular-expression engine says.
        reason: String,
    },
    /// A text on which a pattern gives up.
    #[error("a text of {bytes} bytes cannot be cut into tokens ({reason}): it repeats one character too often")]
    Split {
        /// Length of the text.
        bytes: usize,
        /// What the regular-expression engine says.
        reason: String,
    },
    /// The `tokenizers` library refused.
    #[error("tokenizer: {0}")]
    Library(String),
}
