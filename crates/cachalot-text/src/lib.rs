//! Tokenizer, prompt encoding and output parsing of the DeepSeek V4 family (protocol.md).
//!
//! Owns everything between a conversation and token ids, in both directions. It knows nothing of the model: callers
//! bring `tokenizer.json` and the few numbers of config.json that concern text.
#![forbid(unsafe_code)]

pub mod conversation;
pub mod engram;
mod family;
mod json;
pub mod parser;
pub mod prompt;
pub mod request;
pub mod sampling;
pub mod spelling;
pub mod stream;
pub mod tokenizer;

pub use conversation::{Conversation, Message};
pub use family::Family;
pub use json::Json;
pub use tokenizer::{Markers, Tokenizer, TokenizerError, TokenizerProfile};
