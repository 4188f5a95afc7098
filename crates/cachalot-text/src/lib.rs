//! Tokenizer, prompt encoding and output parsing of the DeepSeek V4 family (protocol.md).
//!
//! Owns everything between a conversation and token ids, in both directions. It knows nothing of the model: callers
//! bring `tokenizer.json` and the few numbers of config.json that concern text.
#![forbid(unsafe_code)]

pub mod engram;
mod family;
pub mod spelling;
pub mod tokenizer;

pub use family::Family;
pub use tokenizer::{Markers, Tokenizer, TokenizerError, TokenizerProfile};
