//! `model.safetensors.index.json`: which shard holds which tensor (spec section 2.1). Pure, from bytes.

use crate::safetensors::MAX_NAME_BYTES;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use std::collections::HashMap;
use std::fmt;

/// Longest index file that is read; the release's has 9 MB.
pub const MAX_INDEX_BYTES: u64 = 100_000_000;
/// Most shards of one checkpoint.
pub const MAX_SHARDS: usize = 4096;

/// Why an index file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the index cannot be read: {reason}")]
pub struct IndexError {
    /// What is wrong with it.
    pub reason: String,
}

/// Which tensor is in which shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// File names, ascending.
    pub shards: Vec<String>,
    /// Tensor name and place in `shards`, ascending by name; names are unique.
    pub tensors: Vec<(Box<str>, u32)>,
    /// `metadata.total_size`: bytes of all tensors, as the file's writer counted them.
    pub total_size: Option<u64>,
}

impl Index {
    /// Reads the index file's bytes.
    ///
    /// # Errors
    /// If it is not JSON with a `weight_map` of names to file names, names a tensor twice, or names no tensor.
    pub fn from_json(json: &[u8]) -> Result<Self, IndexError> {
        let fail = |reason: String| IndexError { reason };
        let raw: RawIndex = serde_json::from_slice(json).map_err(|error| fail(error.to_string()))?;
        let total_size = match raw.metadata.and_then(|metadata| metadata.total_size) {
            None => None,
            Some(number) => Some(number.as_u64().ok_or_else(|| fail(format!("metadata.total_size is {number}")))?),
        };
        Self::new(raw.weight_map, total_size)
    }

    /// The index of a checkpoint whose only shard is `file`, with these tensors.
    ///
    /// # Errors
    /// If there is no tensor, or one twice.
    pub fn of_single_file(file: &str, names: impl Iterator<Item = Box<str>>) -> Result<Self, IndexError> {
        let tensors = names.map(|name| (name, 0)).collect();
        Self::new(WeightMap { shards: vec![file.to_owned()], tensors }, None)
    }

    fn new(map: WeightMap, total_size: Option<u64>) -> Result<Self, IndexError> {
        let fail = |reason: String| IndexError { reason };
        let WeightMap { shards: found, mut tensors } = map;
        let mut shards = found.clone();
        shards.sort_unstable();
        for (_, shard) in &mut tensors {
            *shard = shards.binary_search(&found[*shard as usize]).unwrap_or_default() as u32;
        }
        tensors.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        if let Some(pair) = tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(fail(format!("{} is listed twice", pair[0].0)));
        }
        if tensors.is_empty() {
            return Err(fail("weight_map names no tensor".to_owned()));
        }
        Ok(Self { shards, tensors, total_size })
    }

    /// Place in `shards` of the file that should hold `tensor`.
    pub fn shard_of(&self, tensor: &str) -> Option<u32> {
        self.position(tensor).map(|place| self.tensors[place].1)
    }

    pub(crate) fn position(&self, tensor: &str) -> Option<usize> {
        self.tensors.binary_search_by(|(name, _)| (**name).cmp(tensor)).ok()
    }
}

#[derive(Deserialize)]
struct RawIndex {
    metadata: Option<RawMetadata>,
    weight_map: WeightMap,
}

#[derive(Deserialize)]
struct RawMetadata {
    total_size: Option<serde_json::Number>,
}

/// The map, its shards in order of first appearance.
struct WeightMap {
    shards: Vec<String>,
    tensors: Vec<(Box<str>, u32)>,
}

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensor names and file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut numbers: HashMap<String, u32> = HashMap::new();
                let (mut shards, mut tensors) = (Vec::new(), Vec::new());
                while let Some((name, shard)) = map.next_entry::<String, String>()? {
                    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
                        let shown: String = name.chars().take(40).collect();
                        return Err(de::Error::custom(format!("{shown:?} is no tensor name")));
                    }
                    let number = match numbers.get(&shard) {
                        Some(number) => *number,
                        None if shards.len() == MAX_SHARDS => {
                            return Err(de::Error::custom(format!("more than {MAX_SHARDS} shards")));
                        }
                        None => {
                            let number = shards.len() as u32;
                            shards.push(shard.clone());
                            numbers.insert(shard, number);
                            number
                        }
                    };
                    tensors.push((name.into_boxed_str(), number));
                }
                Ok(WeightMap { shards, tensors })
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> String {
        Index::from_json(json.as_bytes()).expect_err(json).reason
    }

    #[test]
    fn a_good_index() {
        let json = r#"{"metadata":{"total_size":12,"other":[1]},"weight_map":{"b":"two","a":"one","c":"two"},"x":0}"#;
        let index = Index::from_json(json.as_bytes()).expect("good");
        assert_eq!(index.shards, ["one", "two"]);
        assert_eq!(index.total_size, Some(12));
        let shard = |name| index.shard_of(name).map(|number| index.shards[number as usize].as_str());
        assert_eq!([shard("a"), shard("b"), shard("c"), shard("d")], [Some("one"), Some("two"), Some("two"), None]);
        assert_eq!(Index::from_json(br#"{"weight_map":{"a":"one"}}"#).expect("good").total_size, None);
    }

    #[test]
    fn every_refusal_names_its_reason() {
        let many: Vec<String> = (0..=MAX_SHARDS).map(|number| format!("\"t{number}\":\"s{number}\"")).collect();
        let rows = [
            ("", "EOF"),
            ("{}", "missing field `weight_map`"),
            (r#"{"weight_map":{}}"#, "names no tensor"),
            (r#"{"weight_map":{"a":1}}"#, "invalid type: integer `1`"),
            (r#"{"weight_map":{"a":"s","a":"s"}}"#, "a is listed twice"),
            (r#"{"weight_map":{"a":"s"},"weight_map":{"a":"t"}}"#, "duplicate field `weight_map`"),
            (r#"{"weight_map":{"":"s"}}"#, "\"\" is no tensor name"),
            (r#"{"weight_map":{"a\u0000":"s"}}"#, "is no tensor name"),
            (r#"{"metadata":{"total_size":-1},"weight_map":{"a":"s"}}"#, "metadata.total_size is -1"),
            (r#"{"metadata":{"total_size":"x"},"weight_map":{"a":"s"}}"#, "invalid type: string"),
            (&format!("{{\"weight_map\":{{{}}}}}", many.join(",")), "more than 4096 shards"),
        ];
        let wrong: Vec<_> = rows.iter().filter(|(json, part)| !error(json).contains(part)).collect();
        assert!(wrong.is_empty(), "{:#?}", wrong.iter().map(|(json, _)| error(json)).collect::<Vec<_>>());
    }
}
