//! Bytes of tokens to text, as they come (protocol.md 1.4).
//!
//! Owns the bytes of an unfinished character, at most three. Never emits half a character; what cannot become one is
//! U+FFFD, exactly as when the whole output is decoded at once.

/// Decodes a stream of bytes. It works on bytes, so a genuine U+FFFD passes like any other character.
#[derive(Debug, Clone, Default)]
pub struct StreamDecoder {
    held: Vec<u8>,
}

impl StreamDecoder {
    /// A decoder at the start of a text.
    pub fn new() -> Self {
        Self::default()
    }

    /// Decode more bytes, appending every finished character to `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        self.held.extend_from_slice(bytes);
        let mut rest = self.held.as_slice();
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (valid, after) = rest.split_at(error.valid_up_to());
            out.push_str(std::str::from_utf8(valid).unwrap_or_default());
            match error.error_len() {
                Some(invalid) => {
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[invalid..];
                }
                None => {
                    rest = after;
                    break;
                }
            }
        }
        let done = self.held.len() - rest.len();
        self.held.drain(..done);
    }

    /// An added token follows, so an unfinished character will never be finished.
    pub fn interrupt(&mut self, out: &mut String) {
        if !self.held.is_empty() {
            self.held.clear();
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }

    /// How many bytes wait for the rest of their character, 0 to 3. At the end of generation they are dropped.
    pub fn held_bytes(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn characters_are_never_split() {
        let mut decoder = StreamDecoder::new();
        let mut out = String::new();
        for (byte, expected) in "é😀".bytes().zip(["", "é", "é", "é", "é", "é😀"]) {
            decoder.push(&[byte], &mut out);
            assert_eq!(out, expected);
        }
        assert_eq!(decoder.held_bytes(), 0);
    }

    #[test]
    fn an_interruption_forces_held_bytes_out() {
        let mut decoder = StreamDecoder::new();
        let mut out = String::new();
        decoder.push(&[b'a', 0xF0, 0x9F], &mut out);
        assert_eq!((out.as_str(), decoder.held_bytes()), ("a", 2));
        decoder.interrupt(&mut out);
        decoder.interrupt(&mut out);
        assert_eq!(out, "a\u{FFFD}");
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_text_of_the_whole(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), 0x80u8..0xC0, Just(0xF0u8), Just(0xE2u8)], 0..60),
            cut in 1usize..7,
        ) {
            let mut decoder = StreamDecoder::new();
            let mut out = String::new();
            for chunk in bytes.chunks(cut) {
                decoder.push(chunk, &mut out);
                prop_assert!(decoder.held_bytes() <= 3);
            }
            decoder.interrupt(&mut out);
            prop_assert_eq!(out, String::from_utf8_lossy(&bytes));
        }
    }
}
