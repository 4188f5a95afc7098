//! Pre-tokenisation: cutting text into the pieces inside which byte-pair merging runs (protocol.md 1.2).
//!
//! Owns the application of the file's patterns, in order, each isolating its matches. We search with the Oniguruma
//! binding directly instead of the `tokenizers` library's split because the library panics when the engine gives up on
//! a text (ten million blanks in a row are enough), and because it keeps 16 bytes of alignment per byte of text.

use onig::{MatchParam, Regex, Region, SearchOptions};

use super::TokenizerError;

/// One pattern of the pre-tokeniser.
pub(super) struct Pattern(Regex);

impl Pattern {
    pub(super) fn new(pattern: &str) -> Result<Self, TokenizerError> {
        Regex::new(pattern)
            .map(Self)
            .map_err(|error| TokenizerError::Pattern { pattern: pattern.to_owned(), reason: error.to_string() })
    }

    /// Cut `text` before and after each match, appending the pieces, none of them empty.
    fn isolate<'t>(&self, text: &'t str, pieces: &mut Vec<&'t str>) -> Result<(), TokenizerError> {
        let mut region = Region::new();
        let (mut done, mut from) = (0, 0);
        let mut push = |start: usize, end: usize| {
            if start < end {
                pieces.push(&text[start..end]);
            }
        };
        while from <= text.len() {
            let options = SearchOptions::SEARCH_OPTION_NONE;
            let found = self
                .0
                .search_with_param(text, from, text.len(), options, Some(&mut region), MatchParam::default())
                .map_err(|error| TokenizerError::Split { bytes: text.len(), reason: error.to_string() })?;
            let Some((start, end)) = found.and_then(|_| region.pos(0)) else { break };
            push(done, start);
            push(start, end);
            done = end;
            // After an empty match the search goes on one character later, or it would never end.
            from = if start < end { end } else { end + text[end..].chars().next().map_or(1, char::len_utf8) };
        }
        push(done, text.len());
        Ok(())
    }
}

/// Cut `text` by all `patterns` in order; every later pattern sees the pieces of the earlier ones.
pub(super) fn split<'t>(patterns: &[Pattern], text: &'t str) -> Result<Vec<&'t str>, TokenizerError> {
    let mut pieces = vec![text];
    for pattern in patterns {
        let mut next = Vec::with_capacity(pieces.len());
        for piece in pieces {
            pattern.isolate(piece, &mut next)?;
        }
        pieces = next;
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces<'t>(pattern: &str, text: &'t str) -> Vec<&'t str> {
        split(&[Pattern::new(pattern).expect("a pattern")], text).expect("pieces")
    }

    #[test]
    fn matches_are_isolated_and_the_rest_is_kept() {
        assert_eq!(pieces(r"\p{N}{1,3}", "a12345b"), ["a", "123", "45", "b"]);
        assert_eq!(pieces(r"\p{N}", "ab"), ["ab"]);
        assert_eq!(pieces("x*", "axé"), ["a", "x", "é"]);
        assert_eq!(pieces("", "né"), ["n", "é"]);
        assert!(pieces("a", "").is_empty());
    }

    #[test]
    fn a_search_that_gives_up_is_an_error() {
        let patterns = [Pattern::new(r"\s+(?!\S)x|\s*[\r\n]+y|\s").expect("a pattern")];
        let result = split(&patterns, &" ".repeat(12_000_000)).map(|pieces| pieces.len());
        let error = result.expect_err("too much backtracking");
        assert!(matches!(error, TokenizerError::Split { bytes: 12_000_000, .. }), "{error}");
        assert!(matches!(Pattern::new("(["), Err(TokenizerError::Pattern { .. })));
    }

    #[test]
    fn absurd_patterns_neither_overflow_the_stack_nor_hang() {
        let nested = format!("{}a{}", "(".repeat(2000), ")".repeat(2000));
        for pattern in [nested.as_str(), &"(?:a".repeat(1000), &"a{1,9}".repeat(600), r"(a*)*(a*)*b", r"(?<x>a\g<x>?)"]
        {
            if let Ok(pattern) = Pattern::new(pattern) {
                let pieces = split(&[pattern], "aaaaaaaaaaaa").map(|pieces| pieces.concat());
                assert!(pieces.is_err() || pieces == Ok("aaaaaaaaaaaa".to_owned()));
            }
        }
    }
}
