//! The Engram token map: token id to class (deepseek-v41.md 3.10 (a)).
//!
//! Owns the folding of a token's text (case, accents, width, white space) and the numbering of classes in order of
//! first appearance. The Unicode steps are those of the `tokenizers` library, whose tables are the ones the model was
//! trained with; a newer Unicode library would fold a few rare characters differently. Refuses a tokenizer whose class
//! count differs from the checkpoint's.

use std::collections::HashMap;

use tokenizers::NormalizedString;
use tokenizers::normalizers::StripAccents;
use tokenizers::tokenizer::Normalizer;

use crate::tokenizer::{Tokenizer, TokenizerError};

/// The class of every token id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenClasses {
    /// Class of each id; length is the vocabulary size.
    pub classes: Vec<u32>,
    /// Number of classes: every class is below it and each occurs.
    pub count: usize,
}

/// Number the classes of all ids, added tokens included.
pub fn token_classes(tokenizer: &Tokenizer) -> TokenClasses {
    let mut seen: HashMap<String, u32> = HashMap::with_capacity(tokenizer.vocab_size());
    let mut classes = Vec::with_capacity(tokenizer.vocab_size());
    for id in 0..tokenizer.vocab_size() as u32 {
        let next = seen.len() as u32;
        classes.push(*seen.entry(class_key(tokenizer, id)).or_insert(next));
    }
    TokenClasses { classes, count: seen.len() }
}

/// As [`token_classes`], refusing a tokenizer that is not the checkpoint's.
///
/// # Errors
/// [`TokenizerError::EngramClasses`] when the count is not `expected` (`engram_compressed_vocab_size` of config.json).
pub fn checked_token_classes(tokenizer: &Tokenizer, expected: usize) -> Result<TokenClasses, TokenizerError> {
    let map = token_classes(tokenizer);
    if map.count == expected { Ok(map) } else { Err(TokenizerError::EngramClasses { found: map.count, expected }) }
}

/// The key whose first appearance defines a class.
fn class_key(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    let raw = || tokenizer.token_spelling(id).unwrap_or_default().to_owned();
    match std::str::from_utf8(bytes) {
        // A genuine U+FFFD counts as undecodable too: the definition looks at the decoded text.
        Ok(text) if !text.contains(char::REPLACEMENT_CHARACTER) => {
            let folded = fold(text);
            if folded.is_empty() { text.to_owned() } else { folded }
        }
        _ => raw(),
    }
}

/// Steps 1 to 8 of 3.10 (a).
fn fold(text: &str) -> String {
    // ASCII has no compositions and no marks: steps 1 to 3 leave it alone, and most tokens are ASCII.
    let folded = if text.is_ascii() { text.to_ascii_lowercase() } else { fold_unicode(text) };
    let collapsed = collapse_blanks(&folded);
    // Steps 6 to 8: a text that is one space survives the stripping.
    if collapsed == " " { collapsed } else { collapsed.trim().replace('\u{E000}', " ") }
}

/// Steps 1 to 4: NFKC, NFD, no combining marks, each code point lowercased by itself.
fn fold_unicode(text: &str) -> String {
    let mut normalized = NormalizedString::from(text);
    normalized.nfkc();
    normalized.nfd();
    // Removing characters cannot fail; the library's signature is shared by all normalisers.
    if StripAccents.normalize(&mut normalized).is_err() {
        return text.to_owned();
    }
    normalized.lowercase();
    normalized.get().to_owned()
}

/// Step 5: each run of space, tab, CR and LF becomes one space.
fn collapse_blanks(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_run = false;
    for character in text.chars() {
        let blank = matches!(character, ' ' | '\t' | '\r' | '\n');
        if !blank {
            out.push(character);
        } else if !in_run {
            out.push(' ');
        }
        in_run = blank;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_the_specification() {
        for (text, expected) in [
            ("\n", " "),
            ("\u{3000}", " "),
            ("\u{B}", ""),
            (" The", "the"),
            ("\u{2167}", "viii"),
            ("\u{304C}", "\u{304B}"),
            ("\u{AC00}", "\u{1100}\u{1161}"),
            ("\u{391}\u{3A3}", "\u{3B1}\u{3C3}"),
            (" \t\r\n ", " "),
            ("a \n b", "a b"),
            ("\u{200B}x", "\u{200B}x"),
            ("\u{1C}x", "\u{1C}x"),
            ("x\u{2028}", "x"),
            ("\u{E000}", " "),
        ] {
            assert_eq!(fold(text), expected, "{text:?}");
        }
    }

    #[test]
    fn all_marks_go_not_only_nonspacing_ones() {
        for mark in ['\u{301}', '\u{903}', '\u{BBE}', '\u{20DD}', '\u{FE0F}'] {
            assert_eq!(fold(&format!("x{mark}")), "x", "{mark:?}");
        }
        for kept in ['\u{200D}', '\u{AFA}', '\u{D00}'] {
            assert_eq!(fold(&format!("x{kept}")), format!("x{kept}"), "{kept:?}");
        }
    }

    #[test]
    fn the_short_way_for_ascii_equals_the_long_way() {
        for byte in 0..128u8 {
            let text = format!("A{}b", char::from(byte));
            assert_eq!(fold_unicode(&text), text.to_ascii_lowercase(), "{byte}");
        }
    }
}
