//! Tokenizer, prompt encoding and output parsing.
