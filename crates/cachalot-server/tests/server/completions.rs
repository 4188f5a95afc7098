//! Raw completions (protocol.md 5.4), log-probabilities, and counting.

use cachalot_server::{Limits, ServerOptions};
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
fn a_prompt_is_scored_token_by_token() {
    let (server, playback) = playing(Family::V41, Default::default());
    let tokenizer = released(Family::V41);
    playback.plays(&written(Family::V41, " done now"));
    let ask = |body: &Value| post(server.address, "/v1/completions", body);
    let strings = |part: &Value| -> Vec<String> {
        part.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };

    // A text, before which a begin of sentence is put that nobody sees; a character of several tokens is in it.
    let text = "é🐋 x y";
    let body = json!({"prompt": text, "echo": true, "logprobs": 1, "max_tokens": 0});
    let reply = ask(&body).json();
    let choice = &reply["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text), &json!("length")));
    let (ids, request) = playback.last_asked();
    assert_eq!((request.max_tokens, request.prompt_logprobs, ids[0]), (0, Some(1), 0));
    let shown = &ids[1..];
    let logprobs = &choice["logprobs"];
    // The first token has none; the second one's is that of the third one of the prompt.
    let expected: Vec<Value> =
        (0..shown.len()).map(|at| if at == 0 { Value::Null } else { json!(-(at as f64) - 1.0) }).collect();
    assert_eq!(logprobs["token_logprobs"], Value::from(expected));
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    // The most likely one and the token itself.
    let top = logprobs["top_logprobs"][1].as_object().unwrap();
    assert_eq!((top.len(), &top[logprobs["tokens"][1].as_str().unwrap()]), (2, &json!(-2.0)));
    let bytes = |id: &u32| tokenizer.token_bytes(*id).unwrap().to_vec();
    let mut offset = 0;
    for (id, told) in shown.iter().zip(logprobs["text_offset"].as_array().unwrap()) {
        assert_eq!(*told, offset);
        offset += bytes(id).iter().filter(|byte| (**byte & 0xC0) != 0x80).count();
    }
    assert_eq!(offset, text.chars().count());
    assert_eq!(strings(&logprobs["tokens"]).len(), shown.len());

    // Ids are told as they were given, the begin of sentence included; the answer follows.
    for ids in [vec![0, 5, 6], vec![5, 6, 7]] {
        let body = json!({"prompt": [ids], "echo": true, "logprobs": 0, "max_tokens": 1, "temperature": 0});
        let choice = ask(&body).json()["choices"][0].clone();
        let logprobs = &choice["logprobs"];
        assert_eq!(logprobs["token_logprobs"], json!([null, -1.0, -2.0, -0.5]));
        assert_eq!(strings(&logprobs["tokens"]).concat(), choice["text"].as_str().unwrap());
        assert_eq!(choice["text"], tokenizer.decode(&ids).unwrap() + " done");
        let last = logprobs["text_offset"][3].as_u64().unwrap() as usize;
        assert_eq!(choice["text"].as_str().unwrap().chars().skip(last).collect::<String>(), " done");
        assert_eq!(logprobs["top_logprobs"][3], json!({" done": -0.5}));
    }

    // As events: what is said of all of them is what is said at once.
    let mut body = json!({"prompt": ["a b c", "é🐋"], "echo": true, "logprobs": 2, "max_tokens": 3});
    let whole = ask(&body).json();
    body["stream"] = true.into();
    let mut told = vec![json!({"text": "", "logprobs": {}}); 2];
    for (_, data) in ask(&body).events() {
        let Some(choice) = data["choices"].get(0) else { continue };
        let into = &mut told[choice["index"].as_u64().unwrap() as usize];
        into["text"] = (into["text"].as_str().unwrap().to_owned() + choice["text"].as_str().unwrap()).into();
        for (field, values) in choice["logprobs"].as_object().into_iter().flatten() {
            let all = into["logprobs"].as_object_mut().unwrap().entry(field.as_str()).or_insert_with(|| json!([]));
            all.as_array_mut().unwrap().extend(values.as_array().unwrap().clone());
        }
    }
    for (index, told) in told.iter().enumerate() {
        let choice = &whole["choices"][index];
        assert_eq!((&told["text"], &told["logprobs"]), (&choice["text"], &choice["logprobs"]));
    }
}

#[test]
fn scores_are_refused_where_they_are_too_many_or_mean_nothing() {
    let limits = Limits { prompt_logprobs: 40, ..Limits::default() };
    let (server, playback) = playing(Family::V41, ServerOptions { limits, ..ServerOptions::default() });
    playback.plays(&[633]);
    let ids: Vec<u32> = (10..20).collect();
    let ask = |more: Value| {
        let mut body = json!({"prompt": ids, "echo": true, "max_tokens": 0});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post(server.address, "/v1/completions", &body)
    };
    assert_eq!(ask(json!({"logprobs": 3})).status, 200);
    let refused = ask(json!({"logprobs": 4}));
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("logprobs")));
    assert!(refused.message().contains("50 log-probabilities") && refused.message().contains("at most 40"));
    let refused = ask(json!({"prompt": "a", "logprobs": 0, "suffix": "b"}));
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("echo")));
    // Without log-probabilities only the text before the hole is repeated.
    assert_eq!(ask(json!({"prompt": "a", "suffix": "b", "max_tokens": 1})).json()["choices"][0]["text"], "aok");
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
    // The token that ended the answer is no part of its text.
    assert_eq!((tokens.len(), &tokens[ids.len()]), (ids.len() + 1, &json!("<｜end▁of▁sentence｜>")));
    let offset = choice["text"].as_str().unwrap().chars().count();
    assert_eq!(
        (&choice["logprobs"]["text_offset"][ids.len()], &choice["logprobs"]["token_logprobs"][ids.len()]),
        (&json!(offset), &json!(-0.75))
    );
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
