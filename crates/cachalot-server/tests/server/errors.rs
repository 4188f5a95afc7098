//! The vendor's own error messages (protocol.md 5.8), and the form that each API gives them.

use cachalot_server::{Limits, ServerOptions};
use cachalot_text::Family;
use serde_json::json;

use crate::client::{Asked, post};
use crate::playback::{family, lines, playing};

/// By design otherwise: model names are ours, tools that the vendor refuses are offered or dropped, and a call that must
/// be made is forced after the reasoning.
const OTHERWISE: [(&str, u16); 4] = [
    ("unknown_model", 404),
    ("responses_custom_tool", 200),
    ("messages_server_tool", 200),
    ("tool_choice_required_thinking", 200),
];

#[test]
fn messages_are_the_vendors_word_for_word() {
    let lines = lines("errors.jsonl");
    assert_eq!(lines.len(), 48);
    let (server, playback) = playing(Family::V41, Default::default());
    playback.plays(&[633]);
    for line in &lines {
        assert_eq!(family(line), Family::V41);
        let name = line["name"].as_str().unwrap();
        let path = match line["api"].as_str().unwrap() {
            "chat" => "/v1/chat/completions",
            "messages" => "/v1/messages",
            _ => "/v1/responses",
        };
        let reply = post(server.address, path, &line["request"]);
        if let Some((_, status)) = OTHERWISE.iter().find(|(known, _)| *known == name) {
            assert_eq!(reply.status, *status, "{name}: {reply:?}");
            continue;
        }
        assert_eq!(u64::from(reply.status), line["status"].as_u64().unwrap(), "{name}: {reply:?}");
        assert_eq!(reply.message(), line["body"]["error"]["message"].as_str().unwrap(), "{name}");
        if path == "/v1/messages" {
            let body = reply.json();
            assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!("invalid_request_error")));
        } else {
            assert_eq!(reply.json(), line["body"], "{name}");
        }
    }
}

#[test]
fn what_changes_the_answer_is_carried_out_or_refused_by_name() {
    let (server, playback) = playing(Family::V41, Default::default());
    playback.plays(&[633]);
    let base = json!({"messages": [{"role": "user", "content": "hi json"}]});
    for (field, value) in [
        ("logit_bias", json!({"5": 1})),
        ("functions", json!([{"name": "f"}])),
        ("stop_token_ids", json!([5])),
        ("guided_json", json!({"type": "object"})),
        ("modalities", json!(["text", "audio"])),
        ("response_format", json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}}})),
        ("response_format", json!({"type": "regex", "regex": "(?=a)"})),
        ("structured_outputs", json!({"structural_tag": "x"})),
        ("top_k", json!(1.5)),
        ("min_p", json!(2)),
        ("repetition_penalty", json!(0)),
    ] {
        let mut body = base.clone();
        body[field] = value;
        let reply = post(server.address, "/v1/chat/completions", &body);
        assert_eq!(reply.status, 400, "{field}: {reply:?}");
        assert!(reply.message().contains(field), "{field}: {reply:?}");
    }
    let mut body = base;
    for (field, value) in [
        ("logit_bias", json!({})),
        ("n", json!(1)),
        ("user", json!("me")),
        ("store", json!(true)),
        ("service_tier", json!("auto")),
        ("top_k", json!(40)),
        ("min_p", json!(0.05)),
        ("repetition_penalty", json!(1.1)),
        ("seed", json!(7)),
        ("temperature", json!(0.7)),
        ("nobody_knows", json!(1)),
    ] {
        body[field] = value;
    }
    body["tools"] = json!([{"type": "web_search"}]);
    let reply = post(server.address, "/v1/chat/completions", &body);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.header("x-cachalot-ignored"), Some("nobody_knows, tools[0]:web_search"));
    let (_, request) = playback.last_asked();
    let sampling = request.sampling;
    assert_eq!((sampling.top_k, sampling.min_p, sampling.seed), (40, 0.05, 7));
    assert_eq!((sampling.repetition_penalty, sampling.temperature), (1.1, 0.7));
}

#[test]
fn images_are_refused_by_where_they_stand() {
    let (server, _playback) = playing(Family::V41, Default::default());
    let image = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}});
    let body = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, image]}]});
    let reply = post(server.address, "/v1/chat/completions", &body);
    assert_eq!(reply.status, 400);
    assert!(reply.message().starts_with("messages[0]"), "{reply:?}");
    assert!(reply.message().contains("cannot look at images"), "{reply:?}");
}

#[test]
fn images_have_limits() {
    let limits = Limits { images: 2, image_bytes: 300, ..Limits::default() };
    let (server, _playback) = playing(Family::V41, ServerOptions { limits, ..ServerOptions::default() });
    let image = |bytes: usize| {
        let url = format!("data:image/png;base64,{}", "A".repeat(bytes / 3 * 4));
        json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]})
    };
    for (messages, code, place) in [
        (vec![image(30), image(30), image(30)], "too_many_images", "messages[2]"),
        (vec![image(30), image(330)], "image_too_large", "messages[1]"),
        (vec![image(30), image(300)], "image_not_supported", "messages[0]"),
    ] {
        let error =
            post(server.address, "/v1/chat/completions", &json!({"messages": messages})).json()["error"].clone();
        assert_eq!((&error["code"], &error["param"]), (&json!(code), &json!(place)), "{error}");
    }
}

#[test]
fn schemas_have_limits_and_their_tool_is_named() {
    let (server, _playback) = playing(Family::V41, Default::default());
    let nested = |levels: usize| {
        let mut schema = json!({"type": "string"});
        for _ in 0..levels {
            schema = json!({"type": "object", "properties": {"p": schema}});
        }
        schema
    };
    let ask = |name: &str, schema: serde_json::Value| {
        let tool = json!({"type": "function", "function": {"name": name, "parameters": schema}});
        post(
            server.address,
            "/v1/chat/completions",
            &json!({"messages": [{"role": "user", "content": "x"}], "tools": [tool]}),
        )
    };
    let long = json!({"type": "object", "description": "x".repeat(1 << 20)});
    for (name, schema, part) in
        [("long", long, "too long, in bytes; at most 1048576"), ("deep", nested(52), "nested too deeply; at most 48")]
    {
        let reply = ask(name, schema);
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("tools[0].parameters")), "{reply:?}");
        assert!(reply.message().contains(part) && reply.message().contains(name), "{reply:?}");
    }
    // More than the reader of JSON takes.
    let reply = ask("deeper", nested(70));
    assert_eq!(&reply.json()["error"]["param"], "tools[0].function.parameters.properties.p");
    assert!(reply.message().contains("127 levels"), "{reply:?}");
}

#[test]
fn errors_name_the_field_in_every_api() {
    let (server, playback) = playing(Family::V41, Default::default());
    for (path, base, field, value) in [
        ("/v1/chat/completions", json!({"messages": []}), "seed", json!(-1)),
        ("/v1/chat/completions", json!({"messages": []}), "stop", json!(5)),
        ("/v1/chat/completions", json!({"messages": []}), "model", json!(5)),
        ("/v1/completions", json!({"prompt": "x"}), "prompt", json!({"a": 1})),
        ("/v1/completions", json!({"prompt": "x"}), "stop", json!(5)),
        ("/v1/completions", json!({"prompt": "x"}), "max_tokens", json!(-1)),
        ("/v1/completions", json!({"prompt": "x"}), "seed", json!(1u64 << 63)),
        ("/v1/completions", json!({"prompt": "x"}), "top_k", json!(-5)),
        ("/v1/completions", json!({"prompt": "x"}), "tfs_z", json!(0.5)),
        ("/v1/completions", json!({"prompt": "x"}), "frequency_penalty", json!(3)),
        ("/v1/completions", json!({"prompt": "x"}), "prompt_logprobs", json!(1)),
        ("/v1/responses", json!({"input": "x"}), "store", json!("x")),
        ("/v1/responses", json!({"input": "x"}), "max_output_tokens", json!(0)),
        ("/v1/responses", json!({"input": "x"}), "seed", json!("x")),
        ("/v1/responses", json!({"input": "x"}), "n", json!(2)),
        ("/v1/messages", json!({"messages": []}), "seed", json!("x")),
    ] {
        let mut body = base;
        body[field] = value;
        let reply = post(server.address, path, &body);
        assert_eq!(reply.status, 400, "{path} {field}: {reply:?}");
        assert!(reply.message().contains(field), "{path} {field}: {reply:?}");
        // Messages has no place for it.
        if path != "/v1/messages" {
            assert_eq!(reply.json()["error"]["param"], field, "{path} {field}: {reply:?}");
        }
    }
    assert_eq!(playback.asked(), 0);
}

#[test]
fn errors_take_the_form_of_their_api() {
    let (server, _playback) = playing(Family::V41, Default::default());
    let reply = post(server.address, "/anthropic/v1/messages", &json!({"model": "nope", "messages": []}));
    let message = "there is no model \"nope\" here; this server runs \"deepseek-local\"";
    assert_eq!(reply.status, 404);
    assert_eq!(reply.json(), json!({"type": "error", "error": {"type": "not_found_error", "message": message}}));

    let reply = post(server.address, "/v1/responses", &json!({"model": "nope", "input": "x"}));
    let error = json!({"message": message, "type": "not_found_error", "param": null, "code": "model_not_found"});
    assert_eq!((reply.status, reply.json()), (404, json!({"error": error})));

    let reply = Asked::new(server.address, "GET", "/v1/nothing", &[], "").reply();
    assert_eq!((reply.status, &reply.json()["error"]["type"]), (404, &json!("not_found_error")));
    let reply = Asked::new(server.address, "GET", "/v1/chat/completions", &[], "").reply();
    assert_eq!(reply.status, 405);
    let reply = Asked::new(server.address, "POST", "/v1/chat/completions", &[], "{").reply();
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("invalid_request_error")));
}

#[test]
fn a_prompt_that_does_not_fit_has_the_code_that_programs_look_for() {
    let (server, _playback) = playing(Family::V41, Default::default());
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 131_072});
    let reply = post(server.address, "/v1/chat/completions", &body);
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("context_length_exceeded")));
    assert!(reply.message().starts_with("This model's maximum context length is 131072 tokens."), "{reply:?}");
}

#[test]
fn messages_that_want_more_tokens_than_there_are_get_as_many_as_fit() {
    let (server, playback) = playing(Family::V41, Default::default());
    playback.plays(&[633]);
    let ask = |tokens: u64| {
        let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": tokens});
        post(server.address, "/v1/messages", &body)
    };
    let reply = ask(1_000_000_000);
    assert_eq!(reply.status, 200, "{reply:?}");
    let (prompt, request) = playback.last_asked();
    assert_eq!(prompt.len() + request.max_tokens, 131_072);
    // What could have been meant is refused if it does not fit.
    assert!(ask(131_072).message().starts_with("This model's maximum context length"));
}
