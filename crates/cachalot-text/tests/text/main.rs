//! The crate against the fixtures of protocol.md. One binary, so that the big tokenizers are read once.

mod encode;
mod engram;
mod fields;
mod fixtures;
mod malformed;
mod offline;
mod parse;
mod prompts;
mod replay;
mod requests;
mod tokenize;
