//! JSON text whose integers keep their digits (protocol.md 2.4).
//!
//! Owns [`Json`], a checked JSON text, and the detour that lets the vendor's renderer, which reads integers outside 64
//! bits as floats, print them unchanged: each such integer is exchanged for an unused 64-bit one before rendering and
//! exchanged back afterwards.

use aho_corasick::AhoCorasick;

/// One JSON value as text. Integers may have any size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Json(String);

impl Json {
    /// Check `text`.
    ///
    /// # Errors
    /// What is wrong with it, with line and column. Values nested deeper than 128 levels are refused.
    pub fn new(text: impl Into<String>) -> Result<Self, String> {
        let text = text.into();
        match serde_json::from_str::<serde::de::IgnoredAny>(&text) {
            Ok(_) => Ok(Self(text)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Text that was printed from a value.
    pub(crate) fn from_rendered(text: String) -> Self {
        Self(text)
    }

    /// The text, as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&serde_json::Value> for Json {
    fn from(value: &serde_json::Value) -> Self {
        Self(value.to_string())
    }
}

/// Integers that were exchanged, and how to undo it.
#[derive(Debug, Default)]
pub(crate) struct BigIntegers {
    /// Digits of the stand-ins, all twenty digits long, and the integers they stand for.
    pairs: Vec<(String, String)>,
}

/// First stand-in: twenty digits, and larger than anything a signed 64-bit counter produces.
const FIRST_STAND_IN: u64 = 17_171_717_171_717_171_717;

impl BigIntegers {
    /// `text` with every integer outside 64 bits exchanged. `surroundings` is whatever the stand-ins will be printed
    /// among: none of them occurs in it.
    pub(crate) fn hide(&mut self, text: &str, surroundings: &impl Fn(&str) -> bool) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((start, end)) = next_big_integer(rest) {
            out.push_str(&rest[..start]);
            out.push_str(&self.stand_in(&rest[start..end], surroundings));
            rest = &rest[end..];
        }
        out.push_str(rest);
        out
    }

    fn stand_in(&mut self, digits: &str, occurs: &impl Fn(&str) -> bool) -> String {
        if let Some((stand_in, _)) = self.pairs.iter().find(|(_, original)| original == digits) {
            return stand_in.clone();
        }
        let mut candidate = self.pairs.last().and_then(|(last, _)| last.parse().ok()).unwrap_or(FIRST_STAND_IN);
        let stand_in = loop {
            // A text holds finitely many numbers of twenty digits, so this ends; no text can hold them all.
            candidate += 1;
            let digits = candidate.to_string();
            if !occurs(&digits) {
                break digits;
            }
        };
        self.pairs.push((stand_in.clone(), digits.to_owned()));
        stand_in
    }

    /// `text` with the stand-ins exchanged back.
    pub(crate) fn restore(&self, text: String) -> String {
        if self.pairs.is_empty() {
            return text;
        }
        let (stand_ins, originals): (Vec<&str>, Vec<&str>) =
            self.pairs.iter().map(|(stand_in, original)| (stand_in.as_str(), original.as_str())).unzip();
        match AhoCorasick::new(stand_ins) {
            Ok(matcher) => matcher.replace_all(&text, &originals),
            Err(_) => text, // only for gigabytes of patterns
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

/// Whether `text` holds an integer that 64 bits cannot.
pub(crate) fn has_big_integer(text: &str) -> bool {
    next_big_integer(text).is_some()
}

/// The byte range of the first integer outside 64 bits that is not inside a string.
fn next_big_integer(text: &str) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = string_end(bytes, at),
            b'-' | b'0'..=b'9' => {
                let start = at;
                at += 1;
                while at < bytes.len() && matches!(bytes[at], b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-') {
                    at += 1;
                }
                let number = &text[start..at];
                let is_integer = number.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit());
                if is_integer && number.len() > 18 && number.parse::<i64>().is_err() && number.parse::<u64>().is_err() {
                    return Some((start, at));
                }
            }
            _ => at += 1,
        }
    }
    None
}

/// Where the string that begins at `start` ends.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"a": 12345678901234567890123, "b": [-98765432109876543210, 18446744073709551615, 1e30,
        -9223372036854775808, -9223372036854775809], "12345678901234567890123": "\"12345678901234567890123", "c":1}"#;

    #[test]
    fn only_integers_outside_64_bits_are_hidden_and_all_come_back() {
        let mut integers = BigIntegers::default();
        let hidden = integers.hide(TEXT, &|digits| TEXT.contains(digits));
        assert_eq!(integers.pairs.len(), 3);
        let value: serde_json::Value = serde_json::from_str(&hidden).expect("still JSON");
        assert!(value["a"].is_u64() && value["b"][0].is_u64() && value["b"][4].is_u64());
        assert_eq!(value["b"][3], i64::MIN);
        assert_eq!(integers.restore(hidden), TEXT);
    }

    #[test]
    fn stand_ins_avoid_what_the_text_already_says() {
        let text = format!("[{}0000, {}]", u64::MAX, FIRST_STAND_IN + 1);
        let mut integers = BigIntegers::default();
        let hidden = integers.hide(&text, &|digits| text.contains(digits));
        assert!(hidden.starts_with(&format!("[{}", FIRST_STAND_IN + 2)), "{hidden}");
        assert_eq!(integers.restore(hidden), text);
    }

    #[test]
    fn broken_json_is_left_alone() {
        for text in ["", "\"12345678901234567890123", "\\", "{\"a", "--", "1-2"] {
            assert!(!has_big_integer(text), "{text}");
        }
        assert!(Json::new("{\"a\": 1e999, \"b\": 11111111111111111111111111}").is_ok());
        assert!(Json::new("{").is_err());
        assert!(Json::new("[".repeat(100_000)).is_err());
    }
}
