//! The header of one safetensors file: an 8-byte length, then JSON that names each tensor's type, shape and range.
//!
//! Owns the strict reading of that JSON from bytes that nobody vouches for; pure, no input or output. Refuses whatever
//! would make two readers disagree: duplicate names, overlapping ranges, holes, a range that is not as long as type
//! and shape say. Reading stays in proportion to the header's own length, whatever numbers it holds.

use crate::{Dtype, Shape};
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de::IgnoredAny};
use std::fmt;

/// Longest header that is read, as in the reference implementation of the format.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Longest tensor name.
pub const MAX_NAME_BYTES: usize = 256;
/// Bytes before the JSON.
pub const PREFIX_BYTES: u64 = 8;

/// Why a header is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// Not even a header's length.
    #[error("the file has {length} bytes, too few for a safetensors header")]
    Empty {
        /// Length of the file.
        length: u64,
    },
    /// The header claims more bytes than the file has, or than any header needs.
    #[error("the header claims {claimed} bytes; at most {limit} are possible")]
    Length {
        /// Length in the file's first 8 bytes.
        claimed: u64,
        /// The most that this file can have.
        limit: u64,
    },
    /// The header is not the JSON that the format prescribes.
    #[error("the header cannot be read: {reason}")]
    Json {
        /// What the reader stumbled over, naming the tensor where there is one.
        reason: String,
    },
    /// Two entries of the same name.
    #[error("{tensor} is described twice")]
    Duplicate {
        /// The name.
        tensor: String,
    },
    /// A range that is not as long as type and shape require.
    #[error("{tensor}: {dtype} {shape} does not fit the range {start}..{end}")]
    Size {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Shape,
        /// Start of its range in the data part.
        start: u64,
        /// End of its range.
        end: u64,
    },
    /// A range that does not start at a multiple of the element size.
    #[error("{tensor}: its range starts at {start}, which is no multiple of {dtype}'s size")]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Start of its range in the data part.
        start: u64,
    },
    /// Two ranges that share bytes.
    #[error("{tensor} overlaps {other}")]
    Overlap {
        /// The tensor whose range starts later.
        tensor: String,
        /// The one before it.
        other: String,
    },
    /// Bytes that belong to no tensor.
    #[error("{bytes} bytes before {tensor} belong to no tensor")]
    Hole {
        /// The tensor behind the hole.
        tensor: String,
        /// Size of the hole.
        bytes: u64,
    },
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: Box<str>,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Shape,
    /// Where it starts, in bytes from the start of the data part.
    pub start: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A header that has passed every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// All tensors, in the order of their ranges.
    pub entries: Vec<Entry>,
    /// Length of the data part, in bytes.
    pub data_bytes: u64,
}

/// Length of the JSON after the 8 bytes `prefix` that a file of `file_length` bytes starts with.
///
/// # Errors
/// If the file cannot hold that much, or the length is absurd.
pub fn header_length(prefix: [u8; 8], file_length: u64) -> Result<usize, HeaderError> {
    let claimed = u64::from_le_bytes(prefix);
    let available = file_length.checked_sub(PREFIX_BYTES).ok_or(HeaderError::Empty { length: file_length })?;
    let limit = available.min(MAX_HEADER_BYTES);
    usize::try_from(claimed).ok().filter(|_| claimed <= limit).ok_or(HeaderError::Length { claimed, limit })
}

impl Header {
    /// The header of a file of which `bytes` is the beginning (or all).
    ///
    /// # Errors
    /// As [`header_length`] and [`Header::from_json`].
    pub fn from_file_start(bytes: &[u8]) -> Result<Self, HeaderError> {
        let length = bytes.len() as u64;
        let (prefix, rest) = bytes.split_first_chunk().ok_or(HeaderError::Empty { length })?;
        Self::from_json(&rest[..header_length(*prefix, length)?])
    }

    /// The header whose JSON part is `json`, trailing blanks included.
    ///
    /// # Errors
    /// If it is not what the format prescribes, or its ranges do not cover the data part exactly once.
    pub fn from_json(json: &[u8]) -> Result<Self, HeaderError> {
        if json.first() != Some(&b'{') {
            return Err(HeaderError::Json { reason: "it does not start with {".to_owned() });
        }
        let RawHeader(raw) =
            serde_json::from_slice(json).map_err(|error| HeaderError::Json { reason: error.to_string() })?;
        let mut entries = raw.into_iter().map(RawEntry::checked).collect::<Result<Vec<_>, _>>()?;
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(HeaderError::Duplicate { tensor: pair[0].name.to_string() });
        }
        entries.sort_by_key(|entry| (entry.start, entry.bytes));
        let mut end = 0;
        for (place, entry) in entries.iter().enumerate() {
            let tensor = || entry.name.to_string();
            if entry.start < end {
                let other = entries[place.saturating_sub(1)].name.to_string();
                return Err(HeaderError::Overlap { tensor: tensor(), other });
            }
            if entry.start > end {
                return Err(HeaderError::Hole { tensor: tensor(), bytes: entry.start - end });
            }
            end = entry.start + entry.bytes;
        }
        Ok(Self { entries, data_bytes: end })
    }
}

struct RawHeader(Vec<(Box<str>, RawEntry)>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (u64, u64),
}

impl RawEntry {
    fn checked((name, raw): (Box<str>, Self)) -> Result<Entry, HeaderError> {
        let Self { dtype, shape, data_offsets: (start, end) } = raw;
        let bytes = shape.elements().and_then(|elements| elements.checked_mul(dtype.bytes()));
        if bytes.is_none() || end.checked_sub(start) != bytes {
            return Err(HeaderError::Size { tensor: name.into(), dtype, shape, start, end });
        }
        if start % dtype.bytes() != 0 {
            return Err(HeaderError::Misaligned { tensor: name.into(), dtype, start });
        }
        Ok(Entry { name, dtype, shape, start, bytes: end - start })
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one entry per tensor")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
                        let shown: String = name.chars().take(40).collect();
                        return Err(de::Error::custom(format!("{shown:?} is no tensor name")));
                    }
                    let entry = map.next_value().map_err(|error| de::Error::custom(format!("{name}: {error}")))?;
                    entries.push((name.into_boxed_str(), entry));
                }
                Ok(RawHeader(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sizes;
        impl<'de> Visitor<'de> for Sizes {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {} sizes", Shape::MAX_RANK)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Shape, A::Error> {
                let mut sizes = [0; Shape::MAX_RANK];
                let mut rank = 0;
                while let Some(size) = sequence.next_element()? {
                    *sizes.get_mut(rank).ok_or_else(|| de::Error::invalid_length(rank + 1, &self))? = size;
                    rank += 1;
                }
                Shape::new(&sizes[..rank]).ok_or_else(|| de::Error::invalid_length(rank, &self))
            }
        }
        deserializer.deserialize_seq(Sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(json: &str) -> Vec<u8> {
        [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat()
    }

    fn error(json: &str) -> String {
        Header::from_file_start(&file(json)).expect_err(json).to_string()
    }

    const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F8_E4M3","shape":[3,5],"data_offsets":[8,23]},
        "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"empty":{"dtype":"BF16","shape":[0,9],"data_offsets":[8,8]}}  "#;

    #[test]
    fn a_good_header() {
        let header = Header::from_file_start(&file(GOOD)).expect("good");
        assert_eq!(header.data_bytes, 23);
        let names: Vec<&str> = header.entries.iter().map(|entry| &*entry.name).collect();
        assert_eq!(names, ["a", "empty", "b"]);
        let b = Entry { name: "b".into(), dtype: Dtype::F8_E4M3, shape: Shape::matrix(3, 5), start: 8, bytes: 15 };
        assert_eq!(header.entries[2], b);
        assert_eq!(Header::from_json(b"{}").expect("no tensors").data_bytes, 0);
    }

    #[test]
    fn every_refusal_names_its_reason() {
        let entry = |name: &str, dtype: &str, shape: &str, range: &str| {
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{range}}}"#)
        };
        let one = |dtype: &str, shape: &str, range: &str| format!("{{{}}}", entry("w", dtype, shape, range));
        let two = |a: &str, b: &str| format!("{{{},{}}}", entry("a", "I8", "[4]", a), entry("b", "I8", "[4]", b));
        let twice = format!("{{{0},{0}}}", entry("a", "I8", "[4]", "[0,4]"));
        let rows = [
            ("", "does not start with {"),
            (" {}", "does not start with {"),
            ("[]", "does not start with {"),
            ("{", "EOF"),
            ("{} x", "trailing characters"),
            (&one("F16", "[4]", "[0,8]"), "w: unknown variant `F16`"),
            (&one("F32", "[1,1,1,1,1]", "[0,4]"), "w: invalid length 5, expected at most 4 sizes"),
            (&one("F32", "[-1]", "[0,4]"), "w: invalid value: integer `-1`"),
            (&one("F32", "[1.5]", "[0,4]"), "w: invalid type: floating point"),
            (&one("F32", "[2]", "[0,4]"), "w: F32 [2] does not fit the range 0..4"),
            (&one("F32", "[1]", "[4,0]"), "w: F32 [1] does not fit the range 4..0"),
            (&one("F32", "[4294967296,4294967296]", "[0,0]"), "does not fit the range 0..0"),
            (&one("F32", "[4611686018427387904]", "[0,0]"), "does not fit the range 0..0"),
            (&one("F32", "[1]", "[2,6]"), "w: its range starts at 2, which is no multiple of F32's size"),
            (&one("I8", "[1]", "[2,3]"), "2 bytes before w belong to no tensor"),
            (&two("[0,4]", "[3,7]"), "b overlaps a"),
            (&two("[0,4]", "[0,4]"), "b overlaps a"),
            (&two("[0,4]", "[5,9]"), "1 bytes before b belong to no tensor"),
            (&twice, "a is described twice"),
            (r#"{"":{"dtype":"I8","shape":[],"data_offsets":[0,1]}}"#, "\"\" is no tensor name"),
            (r#"{"a":{"dtype":"I8","shape":[0],"data_offsets":[0,0],"x":1}}"#, "a: unknown field `x`"),
            (r#"{"a":{"dtype":"I8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}"#, "a: duplicate field `dtype`"),
            (r#"{"a":{"shape":[0],"data_offsets":[0,0]}}"#, "a: missing field `dtype`"),
            (r#"{"a":{"dtype":"I8","shape":[0],"data_offsets":[0]}}"#, "a: invalid length 1"),
        ];
        let wrong: Vec<_> = rows.iter().filter(|(json, part)| !error(json).contains(part)).collect();
        assert!(wrong.is_empty(), "{:#?}", wrong.iter().map(|(json, _)| error(json)).collect::<Vec<_>>());
    }

    #[test]
    fn absurd_lengths_allocate_nothing() {
        let huge = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
        assert_eq!(Header::from_file_start(&huge), Err(HeaderError::Length { claimed: u64::MAX, limit: 2 }));
        assert_eq!(Header::from_file_start(b"short"), Err(HeaderError::Empty { length: 5 }));
        let limit = header_length((MAX_HEADER_BYTES + 1).to_le_bytes(), u64::MAX);
        assert_eq!(limit, Err(HeaderError::Length { claimed: MAX_HEADER_BYTES + 1, limit: MAX_HEADER_BYTES }));
        let deep = format!("{{\"__metadata__\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(Header::from_json(deep.as_bytes()).expect("the format's own note is skipped").entries.is_empty());
        assert!(error(&deep.replace("__metadata__", "a")).contains(": a: "));
    }

    /// What every accepted header guarantees.
    fn sound(header: &Header) -> bool {
        let mut end = 0;
        header.entries.iter().all(|entry| {
            let tight = entry.start == end;
            end += entry.bytes;
            tight
                && entry.shape.elements().and_then(|count| count.checked_mul(entry.dtype.bytes())) == Some(entry.bytes)
        }) && header.data_bytes == end
    }

    proptest! {
        #[test]
        fn flipped_bits_never_panic_and_never_give_unsound_ranges(flips in prop::collection::vec((0..GOOD.len() + 8, 0..8u8), 1..4)) {
            let mut bytes = file(GOOD);
            for (place, bit) in flips {
                bytes[place] ^= 1 << bit;
            }
            if let Ok(header) = Header::from_file_start(&bytes) {
                prop_assert!(sound(&header));
            }
        }

        #[test]
        fn cut_headers_are_refused(length in 0..GOOD.len() + 8) {
            prop_assert!(Header::from_file_start(&file(GOOD)[..length]).is_err());
        }

        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(header) = Header::from_file_start(&bytes) {
                prop_assert!(sound(&header));
            }
        }
    }
}
