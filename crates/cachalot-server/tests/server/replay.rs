//! Turns with calls come back as they were sampled (protocol.md 5.9).

use cachalot_text::Family;
use serde_json::{Value, json};

use crate::client::post;
use crate::playback::{playing, written};

/// A call that no template would write this way: another order of spaces, a number with a trailing zero, no closing of the
/// block by the canonical tag.
const SAMPLED: &str = "I need it.\n</think>\n\n<｜DSML｜ calls>\n<｜DSML｜ invoke name=\"w\">\n\n<｜DSML｜ parameter name=\"x\" string=\"false\">1.50</｜DSML｜ parameter>\n<｜DSML｜ parameter name=\"city\" string=\"true\">Paris</｜DSML｜ parameter>\n</｜DSML｜ invoke>\n</｜DSML｜ calls>";

fn tools(api: &str) -> Value {
    let schema = json!({"type": "object", "properties": {"x": {"type": "number"}, "city": {"type": "string"}}});
    match api {
        "chat" => json!([{"type": "function", "function": {"name": "w", "parameters": schema}}]),
        _ => json!([{"name": "w", "input_schema": schema}]),
    }
}

fn holds(ids: &[u32], part: &[u32]) -> bool {
    ids.windows(part.len()).any(|window| window == part)
}

#[test]
fn chat_turns_are_replayed_token_for_token() {
    let (server, playback) = playing(Family::V41, Default::default());
    let sampled = written(Family::V41, SAMPLED);
    playback.plays(&sampled);
    let question = json!({"role": "user", "content": "Weather?"});
    let ask = |messages: Value| {
        post(server.address, "/v1/chat/completions", &json!({"messages": messages, "tools": tools("chat")}))
    };
    let reply = ask(json!([question])).json();
    let (first, _) = playback.last_asked();
    let message = reply["choices"][0]["message"].clone();
    let id = message["tool_calls"][0]["id"].clone();
    let result = json!({"role": "tool", "tool_call_id": id, "content": "21"});

    // As it came, with the arguments spelled otherwise, and without the reasoning: always the sampled tokens.
    let mut spelled = message.clone();
    spelled["tool_calls"][0]["function"]["arguments"] = r#"{"city":"Paris","x":1.5}"#.into();
    let mut silent = message.clone();
    silent.as_object_mut().unwrap().remove("reasoning_content");
    for message in [message.clone(), spelled, silent] {
        assert_eq!(ask(json!([question, message, result])).status, 200);
        let (next, _) = playback.last_asked();
        let whole: Vec<u32> = first.iter().chain(&sampled).copied().collect();
        assert!(next.starts_with(&whole), "the prompt begins with what the model has seen");
        assert_eq!(next[whole.len()], 1, "and the turn is closed");
    }

    // What a client changed is not replayed.
    let mut changed = message.clone();
    changed["tool_calls"][0]["function"]["arguments"] = r#"{"city": "Rome", "x": 1.5}"#.into();
    let mut rewritten = message;
    rewritten["content"] = "Let me see.".into();
    for message in [changed, rewritten] {
        assert_eq!(ask(json!([question, message, result])).status, 200);
        assert!(!holds(&playback.last_asked().0, &sampled));
    }
}

#[test]
fn messages_turns_are_replayed_too() {
    let (server, playback) = playing(Family::V41, Default::default());
    let sampled = written(Family::V41, SAMPLED);
    playback.plays(&sampled);
    let question = json!({"role": "user", "content": "Weather?"});
    let ask = |messages: Value| {
        let body = json!({"messages": messages, "tools": tools("messages"), "max_tokens": 500});
        post(server.address, "/v1/messages", &body)
    };
    let content = ask(json!([question])).json()["content"].clone();
    let (first, _) = playback.last_asked();
    let id = content[1]["id"].clone();
    let result = json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": "21"}]});
    assert_eq!(ask(json!([question, {"role": "assistant", "content": content}, result])).status, 200);
    let whole: Vec<u32> = first.iter().chain(&sampled).copied().collect();
    assert!(playback.last_asked().0.starts_with(&whole));
}
