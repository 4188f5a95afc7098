//! The byte alphabet of byte-level BPE (protocol.md 1.1, row "decoder") and the byte spelling of every token.
//!
//! Owns the map between bytes and the 256 characters that stand for them in vocabulary strings.

/// The character that stands for `byte` in vocabulary strings.
pub(super) fn character_of(byte: u8) -> char {
    if is_itself(byte) {
        return char::from(byte);
    }
    // The other bytes take U+0100 and up, in byte order.
    let rank = (0..byte).filter(|&lower| !is_itself(lower)).count() as u32;
    char::from_u32(0x100 + rank).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn is_itself(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// Inverse of [`character_of`] as a table over U+0000..U+0143.
pub(super) struct ByteAlphabet([Option<u8>; 0x144]);

impl ByteAlphabet {
    pub(super) fn new() -> Self {
        let mut table = [None; 0x144];
        for byte in 0..=u8::MAX {
            table[character_of(byte) as usize] = Some(byte);
        }
        Self(table)
    }

    /// Append the bytes that a model token's spelling stands for. A spelling with any other character stands for its
    /// own UTF-8 bytes, as in the `tokenizers` decoder.
    pub(super) fn append_bytes(&self, spelling: &str, out: &mut Vec<u8>) {
        let start = out.len();
        for character in spelling.chars() {
            match self.0.get(character as usize).copied().flatten() {
                Some(byte) => out.push(byte),
                None => {
                    out.truncate(start);
                    out.extend_from_slice(spelling.as_bytes());
                    return;
                }
            }
        }
    }
}

/// The bytes of every token, by id, in one buffer.
pub(super) struct TokenBytes {
    bytes: Vec<u8>,
    /// `ends[id]` is where the token's bytes end; they begin where the previous token's end.
    ends: Vec<u32>,
}

impl TokenBytes {
    pub(super) fn new<'a>(tokens: impl Iterator<Item = (&'a str, bool)>) -> Self {
        let alphabet = ByteAlphabet::new();
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for (spelling, is_added) in tokens {
            if is_added {
                bytes.extend_from_slice(spelling.as_bytes());
            } else {
                alphabet.append_bytes(spelling, &mut bytes);
            }
            ends.push(bytes.len() as u32); // the file limit keeps this far below 4 GiB
        }
        Self { bytes, ends }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn get(&self, id: u32) -> Option<&[u8]> {
        let index = id as usize;
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        Some(&self.bytes[start..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alphabet_is_the_published_one() {
        assert_eq!(character_of(b'a'), 'a');
        assert_eq!(character_of(b' '), '\u{120}');
        assert_eq!(character_of(b'\n'), '\u{10A}');
        assert_eq!(character_of(0), '\u{100}');
        assert_eq!(character_of(0xAD), '\u{143}');
        assert_eq!(character_of(0xFF), '\u{FF}');
    }

    #[test]
    fn every_byte_survives_a_round_trip() {
        let alphabet = ByteAlphabet::new();
        for byte in 0..=u8::MAX {
            let mut out = vec![7];
            alphabet.append_bytes(&character_of(byte).to_string(), &mut out);
            assert_eq!(out, [7, byte]);
        }
    }

    #[test]
    fn foreign_spellings_keep_their_own_bytes() {
        let mut out = Vec::new();
        ByteAlphabet::new().append_bytes("a｜b", &mut out);
        assert_eq!(out, "a｜b".as_bytes());
    }
}
