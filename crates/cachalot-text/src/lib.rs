//! Tokenizer, prompt encoding and output parsing of the DeepSeek V4 family (protocol.md).
//!
//! Owns everything between a conversation and token ids, in both directions. It knows nothing of the model: callers
//! bring `tokenizer.json` and the few numbers of config.json that concern text. Nothing here opens a connection.
//!
//! Whose work is whose:
//!
//! | step | done by |
//! |---|---|
//! | reading `tokenizer.json`, cutting text, decoding | this crate, with Oniguruma (`onig`) for the file's patterns |
//! | byte-pair merging, the Unicode steps of the Engram map | `tokenizers` |
//! | HTTP body to conversation | `deepseek-recipe`, after [lenient edits](request) of the body |
//! | conversation to prompt | `deepseek-recipe-encoding`, then [edits](prompt) for what it lacks |
//! | output to reasoning, answer and calls | this crate ([`parser`] says why) |
//! | what an output may be, as grammars | this crate, from schemas as written; `jsonschema-regex` for ECMA patterns |
//!
//! No type of these libraries appears in the public interface, so each can be replaced. To build them a C compiler is
//! needed (Oniguruma, and `ring` of a hub client that is never called) and a C++ compiler (`esaxx-rs`).
#![forbid(unsafe_code)]

pub mod constraint;
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
