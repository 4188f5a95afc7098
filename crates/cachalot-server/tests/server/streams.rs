//! The vendor's own streams and responses (protocol.md 5.3, 5.5, 5.6), event by event.
//!
//! Normalised: ids, times, the fingerprint, and how the text of one event after another is cut: the vendor's come from
//! chunks of three tokens, ours from single tokens, so neighbours of a kind are joined on both sides.
//!
//! By design otherwise: responses are stored unless a request says no (`store`), and generation ends with the token that
//! completes a stop string, so the token behind it is never made and not counted.

use serde_json::{Value, json};

use crate::client::post;
use crate::playback::{Play, family, lines, playing};

const PATHS: [(&str, &str); 3] =
    [("chat", "/v1/chat/completions"), ("messages", "/v1/messages"), ("responses", "/v1/responses")];

type Event = (Option<String>, Value);

#[test]
fn streams_and_responses_are_the_vendors() {
    let lines = lines("stream.jsonl");
    assert_eq!(lines.len(), 28);
    for line in &lines {
        let name = line["name"].as_str().unwrap();
        let (server, playback) = playing(family(line), Default::default());
        playback.set(Play {
            ids: line["token_chunks"].as_array().unwrap().iter().flat_map(ids).collect(),
            length: line["backend_finish"] == "length",
            prompt_tokens: line["prompt_tokens"].as_u64().unwrap() as usize,
            cached_tokens: line["cached_tokens"].as_u64().unwrap() as usize,
            ..Play::default()
        });
        let path = PATHS.iter().find(|(api, _)| line["api"] == *api).unwrap().1;
        let mut request = line["request"].clone();
        request["model"] = "deepseek-local".into();

        let reply = post(server.address, path, &request);
        assert_eq!(reply.status, 200, "{name}: {reply:?}");
        let mut events = reply.events();
        if line["done"] == "[DONE]" {
            assert_eq!(events.pop(), Some((None, Value::Null)), "{name}");
        }
        numbered(name, &events);
        let found = joined(events.into_iter().map(|(event, data)| (event, normal(data))));
        let expected = line["events"].as_array().unwrap().iter().map(|event| {
            let data = without_uncounted(name, normal(event["data"].clone()));
            (event["event"].as_str().map(str::to_owned), data)
        });
        compare(name, &found, &joined(expected));

        request["stream"] = false.into();
        if let Some(fields) = request.as_object_mut() {
            fields.remove("stream_options");
        }
        let reply = post(server.address, path, &request);
        assert_eq!(reply.status, 200, "{name}: {reply:?}");
        let expected = without_uncounted(name, normal(line["response"].clone()));
        assert_eq!(normal(reply.json()), expected, "{name}: not streamed");
    }
}

fn ids(chunk: &Value) -> Vec<u32> {
    chunk.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn compare(name: &str, found: &[Event], expected: &[Event]) {
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found, expected, "{name}: event {index}");
    }
    assert_eq!(found.len(), expected.len(), "{name}: {found:#?}");
}

/// Sequence numbers count from 0.
fn numbered(name: &str, events: &[Event]) {
    for (index, (_, data)) in events.iter().enumerate() {
        if let Some(number) = data.get("sequence_number") {
            assert_eq!(*number, index, "{name}");
        }
    }
}

/// Values without what is random or of the moment.
fn normal(mut value: Value) -> Value {
    normalise(&mut value);
    value
}

fn normalise(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("sequence_number");
            for (name, value) in fields {
                match name.as_str() {
                    "created" | "created_at" => *value = 0.into(),
                    "completed_at" if !value.is_null() => *value = 0.into(),
                    "system_fingerprint" => *value = "fp".into(),
                    "store" => *value = false.into(),
                    "id" | "item_id" | "call_id" | "encrypted_content" | "signature" => {
                        if let Value::String(id) = value {
                            *id = normal_id(id);
                        }
                    }
                    _ => normalise(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(normalise),
        _ => {}
    }
}

/// Ids without their random part.
fn normal_id(id: &str) -> String {
    if let Some(rest) = id.strip_prefix("call_") {
        return format!("call_{}_X", &rest[..2]);
    }
    let mut normal = id.to_owned();
    for prefix in ["chatcmpl-", "msg_", "resp_"] {
        if let Some(at) = id.find(prefix).filter(|at| id.len() >= at + prefix.len() + 24) {
            normal = format!("{}resp_1{}", &id[..at], &id[at + prefix.len() + 24..]);
            // `msg_` is the beginning of an item's id, too: the last one is the response's.
            if prefix == "resp_" {
                break;
            }
        }
    }
    normal
}

/// The token behind a stop string is not generated.
fn without_uncounted(name: &str, mut data: Value) -> Value {
    if name.ends_with("stop_sequence") {
        for field in ["completion_tokens", "total_tokens", "output_tokens"] {
            let usage = data.get_mut("usage").and_then(|usage| usage.get_mut(field));
            if let Some(count) = usage.filter(|count| **count != 0) {
                *count = json!(count.as_u64().unwrap() - 1);
            }
        }
    }
    data
}

/// Neighbouring events of one kind as one.
fn joined(events: impl IntoIterator<Item = Event>) -> Vec<Event> {
    let mut joined: Vec<Event> = Vec::new();
    for (name, mut data) in events {
        if let Some((last_name, last)) = joined.last_mut()
            && *last_name == name
            && let (Some(text), Some(more)) = (text(last).cloned(), text(&mut data).cloned())
        {
            let (Value::String(text), Value::String(more)) = (text, more) else { unreachable!() };
            let mut same = last.clone();
            *self::text(&mut same).unwrap() = more.clone().into();
            if same == data {
                *self::text(last).unwrap() = (text + &more).into();
                continue;
            }
        }
        joined.push((name, data));
    }
    joined
}

/// The text that an event adds.
fn text(data: &mut Value) -> Option<&mut Value> {
    const PLACES: [&str; 7] = [
        "/choices/0/delta/content",
        "/choices/0/delta/reasoning_content",
        "/choices/0/delta/tool_calls/0/function/arguments",
        "/delta/text",
        "/delta/thinking",
        "/delta/partial_json",
        "/delta",
    ];
    let first = data.pointer("/choices/0/delta/role").is_some();
    let last = data.pointer("/choices/0/finish_reason").is_some_and(|reason| !reason.is_null());
    let named = data.pointer("/choices/0/delta/tool_calls/0/id").is_some();
    if first || last || named {
        return None;
    }
    let place = PLACES.iter().find(|place| data.pointer(place).is_some_and(Value::is_string))?;
    data.pointer_mut(place)
}
