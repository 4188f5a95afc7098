//! Responses that later requests may go on from.
//!
//! Owns a store in memory, bounded in bytes, oldest use dropped first. Nothing survives a restart: a client that needs that
//! sends its history itself.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use serde::Serialize;
use serde_json::Value;

/// Most responses kept, however short.
const MOST: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// A response with everything that led to it.
#[derive(Debug)]
pub struct Stored {
    /// The response, as JSON text.
    pub response: String,
    /// All items of the conversation: what was put in, then what came out.
    pub items: Vec<Value>,
    outputs: usize,
    bytes: usize,
}

impl Stored {
    /// What came of `input`; `response` has an `id` and an `output`. Items that were put in without an id get one.
    pub fn new(input: Vec<Value>, response: &impl Serialize) -> Self {
        let value = serde_json::to_value(response).unwrap_or_default();
        let id = value["id"].as_str().unwrap_or_default();
        let output = value["output"].as_array().cloned().unwrap_or_default();
        let outputs = output.len();
        let mut items = input;
        for (index, item) in items.iter_mut().enumerate() {
            if let Value::Object(item) = item
                && item.get("id").is_none_or(Value::is_null)
            {
                item.insert("id".to_owned(), format!("item_{id}_{index}").into());
            }
        }
        items.extend(output);
        let response = value.to_string();
        // A parsed item takes about twice its text.
        let bytes = response.len() + 2 * items.iter().map(|item| item.to_string().len()).sum::<usize>();
        Self { response, items, outputs, bytes }
    }

    /// What was put in, all turns together.
    pub fn input(&self) -> &[Value] {
        &self.items[..self.items.len() - self.outputs]
    }
}

/// The store.
pub struct Responses {
    kept: LruCache<String, Arc<Stored>>,
    bytes: usize,
    most_bytes: usize,
}

impl Responses {
    /// A store of about `most_bytes`.
    pub fn new(most_bytes: usize) -> Self {
        Self { kept: LruCache::new(MOST), bytes: 0, most_bytes }
    }

    /// Keeps a response.
    pub fn keep(&mut self, id: String, stored: Stored) {
        self.bytes += stored.bytes;
        if let Some((_, displaced)) = self.kept.push(id, Arc::new(stored)) {
            self.bytes -= displaced.bytes;
        }
        while self.bytes > self.most_bytes
            && let Some((_, oldest)) = self.kept.pop_lru()
        {
            self.bytes -= oldest.bytes;
        }
    }

    /// A response, which counts as used.
    pub fn get(&mut self, id: &str) -> Option<Arc<Stored>> {
        self.kept.get(id).cloned()
    }

    /// The item of this id, which holds its response's: `msg_RESPONSE_2`.
    pub fn item(&mut self, id: &str) -> Option<Value> {
        let (_, rest) = id.split_once('_')?;
        let (response, _) = rest.rsplit_once('_')?;
        self.get(response)?.items.iter().find(|item| item["id"] == id).cloned()
    }

    /// Drops a response; whether it was there.
    pub fn remove(&mut self, id: &str) -> bool {
        let removed = self.kept.pop(id);
        self.bytes -= removed.as_ref().map_or(0, |stored| stored.bytes);
        removed.is_some()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_store_is_bounded_and_drops_what_was_not_used() {
        let stored = || Stored::new(vec![json!({"text": "x".repeat(100)})], &json!({"output": [{"a": 1}]}));
        let one = stored().bytes;
        let mut store = Responses::new(2 * one);
        store.keep("a".to_owned(), stored());
        store.keep("b".to_owned(), stored());
        assert!(store.get("a").is_some());
        store.keep("c".to_owned(), stored());
        assert!(store.get("b").is_none() && store.get("a").is_some() && store.get("c").is_some());
        assert!(store.remove("a") && !store.remove("a"));
        assert_eq!(store.bytes, one);
        let kept = store.get("c").unwrap();
        assert_eq!((kept.input().len(), kept.items.len()), (1, 2));
    }

    #[test]
    fn items_are_found_by_their_ids() {
        let mut store = Responses::new(1 << 20);
        let input = vec![json!({"role": "user"}), json!({"id": "mine", "role": "user"})];
        let response = json!({"id": "resp_1", "output": [{"id": "msg_resp_1_0"}]});
        store.keep("resp_1".to_owned(), Stored::new(input, &response));
        assert_eq!(store.item("item_resp_1_0"), Some(json!({"role": "user", "id": "item_resp_1_0"})));
        assert_eq!(store.item("msg_resp_1_0"), Some(json!({"id": "msg_resp_1_0"})));
        for id in ["msg_resp_1_1", "msg_resp_2_0", "mine", "", "_", "a_b"] {
            assert_eq!(store.item(id), None, "{id}");
        }
    }
}
