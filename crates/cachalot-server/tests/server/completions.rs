//! Raw completions (protocol.md 5.4), log-probabilities, and counting.

use cachalot_text::Family;
use serde_json::{Value, json};

use crate::client::post;
use crate::playback::{Play, playing, released, written};

#[test]
fn raw_text_comes_out_as_it_was_made() {
    let (server, playback) = playing(Family::V41, Default::default());
    let text = "</think> 2+2=4\n\n<｜DSML｜ calls>";
    playback.plays(&written(Family::V41, text));
    let reply = post(
        server.address,
        "/v1/completions",
        &json!({"prompt": "<｜User｜>Hello", "max_tokens": 50, "stop": "never"}),
    );
    let body = reply.json();
    assert_eq!((reply.status, &body["choices"][0]["text"]), (200, &json!(text)), "{reply:?}");
    assert_eq!((&body["object"], &body["choices"][0]["finish_reason"]), (&json!("text_completion"), &json!("stop")));
    assert_eq!(body["usage"]["prompt_tokens"], 10);
    let (prompt, request) = playback.last_asked();
    // Begin of sentence, the control token that was spelled, then text.
    assert_eq!(prompt[..2], [0, 128_803]);
    assert_eq!(request.max_tokens, 50);

    let body = json!({"prompt": "a b", "echo": true, "max_tokens": 9, "stop": [" 2+2"]});
    let body = post(server.address, "/v1/completions", &body).json();
    assert_eq!(body["choices"][0]["text"], "a b</think>");
    assert_eq!(playback.last_asked().1.max_tokens, 9);
}

#[test]
fn several_prompts_are_answered_each_with_its_index() {
    let (server, playback) = playing(Family::V41, Default::default());
    playback.plays(&written(Family::V41, "one two three"));
    for prompt in [json!(["a", "b"]), json!([[5, 6], [7]])] {
        let body = post(server.address, "/v1/completions", &json!({"prompt": prompt, "max_tokens": 9})).json();
        let indices: Vec<_> =
            body["choices"].as_array().unwrap().iter().map(|choice| choice["index"].clone()).collect();
        assert_eq!(indices, [0, 1]);
        assert_eq!(body["usage"]["completion_tokens"], 6);
    }
    let body = json!({"prompt": ["a", "b"], "echo": true, "stream": true, "stream_options": {"include_usage": true}});
    let mut events = post(server.address, "/v1/completions", &body).events();
    assert_eq!(events.pop(), Some((None, Value::Null)));
    let (_, last) = events.pop().unwrap();
    assert_eq!((last["choices"].as_array().map(Vec::len), &last["usage"]["total_tokens"]), (Some(0), &json!(26)));
    let mut texts = [String::new(), String::new()];
    for (_, data) in &events {
        let choice = &data["choices"][0];
        texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    assert_eq!(texts, ["aone two three", "bone two three"]);
}

#[test]
fn a_hole_is_filled_where_the_model_has_the_tokens() {
    let (server, playback) = playing(Family::V41, Default::default());
    playback.plays(&[633]);
    let reply = post(server.address, "/beta/completions", &json!({"prompt": "def f(", "suffix": "return x"}));
    assert_eq!(reply.status, 200, "{reply:?}");
    let (prompt, _) = playback.last_asked();
    assert_eq!((prompt[..2].to_vec(), prompt.last()), (vec![0, 128_801], Some(&128_802)));
    assert!(prompt.contains(&128_800));
}

#[test]
fn completions_refuse_what_they_do_not_carry_out() {
    let (server, _playback) = playing(Family::V41, Default::default());
    for (field, value) in [
        ("n", json!(2)),
        ("best_of", json!(3)),
        ("logit_bias", json!({"1": 1})),
        ("logprobs", json!(21)),
        ("temperature", json!(3)),
        ("prompt", json!([])),
        ("prompt", json!([[200_000]])),
        ("max_tokens", json!(400_000)),
        ("stop", json!([""])),
        ("guided_regex", json!("a")),
    ] {
        let mut body = json!({"prompt": "x"});
        body[field] = value;
        let reply = post(server.address, "/v1/completions", &body);
        assert_eq!(reply.status, 400, "{field}: {reply:?}");
        assert!(reply.message().contains(field) || field == "prompt", "{field}: {reply:?}");
    }
}

#[test]
fn log_probabilities_name_tokens_by_text_and_bytes() {
    let (server, playback) = playing(Family::V41, Default::default());
    let tokenizer = released(Family::V41);
    // Reasoning, the end of it, an answer with a character in several tokens.
    let ids = written(Family::V41, "I add.</think>é🐋");
    playback.plays(&ids);
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "logprobs": true, "top_logprobs": 2});
    let logprobs = post(server.address, "/v1/chat/completions", &body).json()["choices"][0]["logprobs"].clone();
    let bytes = |part: &Value| -> Vec<u8> {
        let tokens = part.as_array().unwrap().iter();
        tokens.flat_map(|token| token["bytes"].as_array().unwrap()).map(|byte| byte.as_u64().unwrap() as u8).collect()
    };
    assert_eq!(bytes(&logprobs["reasoning_content"]), b"I add.");
    assert_eq!(bytes(&logprobs["content"]), "é🐋".as_bytes());
    let first = &logprobs["content"][0];
    assert_eq!((&first["logprob"], first["top_logprobs"].as_array().map(Vec::len)), (&json!(-0.5), Some(2)));
    // Streamed, every text has its own tokens.
    let mut streamed = body;
    streamed["stream"] = true.into();
    let mut text = Vec::new();
    for (_, data) in post(server.address, "/v1/chat/completions", &streamed).events() {
        if let Some(part) = data.pointer("/choices/0/logprobs/content") {
            text.extend(bytes(part));
            assert_eq!(String::from_utf8(bytes(part)).unwrap(), data["choices"][0]["delta"]["content"]);
        }
    }
    assert_eq!(text, "é🐋".as_bytes());

    let body = json!({"prompt": "x", "logprobs": 1, "max_tokens": 100});
    let choice = post(server.address, "/v1/completions", &body).json()["choices"][0].clone();
    let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), ids.len());
    assert_eq!(tokens[0], tokenizer.decode(&ids[..1]).unwrap());
    assert_eq!(choice["logprobs"]["text_offset"][1], 1);
    assert_eq!(choice["logprobs"]["top_logprobs"][0].as_object().unwrap().len(), 1);
}

#[test]
fn a_prompt_is_counted_without_an_answer() {
    let (server, playback) = playing(Family::V41, Default::default());
    playback.plays(&[633]);
    let body = json!({"model": "claude-x", "messages": [{"role": "user", "content": "How long is this?"}]});
    let counted = post(server.address, "/v1/messages/count_tokens", &body).json()["input_tokens"].clone();
    assert_eq!(playback.asked(), 0);
    assert_eq!(post(server.address, "/v1/messages", &body).status, 200);
    assert_eq!(counted, playback.last_asked().0.len());
}

#[test]
fn a_client_that_wants_one_call_gets_one() {
    let (server, playback) = playing(Family::V41, Default::default());
    let call = |city: &str| {
        format!(
            "<｜DSML｜ invoke name=\"w\">\n<｜DSML｜ parameter name=\"city\" string=\"true\">{city}</｜DSML｜ parameter>\n</｜DSML｜ invoke>\n"
        )
    };
    let ids =
        written(Family::V41, &format!("\n\n<｜DSML｜ calls>\n{}{}</｜DSML｜ calls>", call("Paris"), call("Rome")));
    playback.set(Play { ids: ids.clone(), prompt_tokens: 10, ..Play::default() });
    let tools = json!([{"type": "function", "function": {"name": "w", "parameters": {"type": "object"}}}]);
    let mut body =
        json!({"messages": [{"role": "user", "content": "hi"}], "tools": tools, "thinking": {"type": "disabled"}});
    let calls = |body: &Value| {
        let message = post(server.address, "/v1/chat/completions", body).json()["choices"][0]["message"].clone();
        message["tool_calls"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(calls(&body), 2);
    playback.end();
    body["parallel_tool_calls"] = false.into();
    assert_eq!(calls(&body), 1);
    assert!(playback.end().1 < ids.len(), "generation ends with the first call");
}
