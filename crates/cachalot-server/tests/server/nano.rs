//! The whole program's path: HTTP, scheduler, the model that ships.

use std::sync::Arc;
use std::time::Duration;

use cachalot_engine::{Engine, EngineOptions, Scheduler, SchedulerOptions};
use cachalot_server::{Backend, ModelCard, ServerOptions};
use cachalot_storage::Spread;
use serde_json::{Value, json};

use crate::client::{Asked, get, post};
use crate::playback::{Running, path};

fn nano() -> (Running, Arc<Scheduler>) {
    let options = EngineOptions { threads: Some(2), ..EngineOptions::default() };
    let folder = path("models/nano");
    let files = Arc::new(Spread::new([folder.as_path()]));
    let engine = Arc::new(Engine::open(files, &options, &mut |_| ()).expect("opens"));
    let card = ModelCard::new(&engine, "cachalot-nano".to_owned(), false);
    let scheduler = Arc::new(Scheduler::start(engine, SchedulerOptions::default()).expect("starts"));
    let backend = Arc::clone(&scheduler) as Arc<dyn Backend>;
    (Running::start(card, backend, ServerOptions::default()), scheduler)
}

fn question(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "What is the capital of Japan?"}], "temperature": 0, "max_tokens": 12});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn the_model_answers_through_every_api() {
    let (server, _scheduler) = nano();
    let whole = post(server.address, "/v1/chat/completions", &question(json!({})));
    assert_eq!(whole.status, 200, "{whole:?}");
    let whole = whole.json();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(!text.is_empty() && whole["choices"][0]["message"].get("reasoning_content").is_none(), "{whole}");

    let streamed = post(server.address, "/v1/chat/completions", &question(json!({"stream": true})));
    let said: String =
        streamed.events().iter().filter_map(|(_, data)| data["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, text);

    let message = post(server.address, "/v1/messages", &question(json!({}))).json();
    assert_eq!(message["content"][0]["text"], text);

    let mut next = question(json!({}));
    let turns = [json!({"role": "assistant", "content": text}), json!({"role": "user", "content": "And of France?"})];
    next["messages"].as_array_mut().unwrap().extend(turns);
    let next = post(server.address, "/v1/messages", &next).json();
    assert!(next["usage"]["cache_read_input_tokens"].as_u64().unwrap() > 0, "{next}");

    let body = json!({"input": "What is the capital of Japan?", "temperature": 0, "max_output_tokens": 12});
    let response = post(server.address, "/v1/responses", &body).json();
    assert_eq!(response["output"][0]["content"][0]["text"], text);

    let body = json!({"prompt": "The capital of Japan is", "temperature": 0, "max_tokens": 5, "logprobs": 2});
    let completion = post(server.address, "/v1/completions", &body).json();
    // An entry for every token, and for the one that ends an answer.
    let ended = completion["choices"][0]["finish_reason"] == "stop";
    let entries = completion["usage"]["completion_tokens"].as_u64().unwrap() + u64::from(ended);
    let tokens = completion["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
    assert!(entries > 1 && tokens.len() as u64 == entries, "{completion}");

    let body = json!({"prompt": "The capital of Japan is", "max_tokens": 0, "echo": true, "logprobs": 1});
    let scored = post(server.address, "/v1/completions", &body).json()["choices"][0].clone();
    assert_eq!(scored["text"], "The capital of Japan is");
    let scores = scored["logprobs"]["token_logprobs"].as_array().unwrap();
    assert!(scores.len() > 2 && scores[0].is_null() && scores[1..].iter().all(|score| score.as_f64().unwrap() < 0.0));
}

#[test]
fn many_clients_get_what_one_would() {
    let (server, _scheduler) = nano();
    let body = question(json!({"seed": 3, "temperature": 1, "max_tokens": 24}));
    let alone = post(server.address, "/v1/chat/completions", &body).json()["choices"][0]["message"]["content"].clone();
    let address = server.address;
    let together: Vec<Value> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|index| {
                let mut body = body.clone();
                if index % 2 == 1 {
                    body["messages"][0]["content"] = format!("Something else, number {index}").into();
                }
                scope.spawn(move || post(address, "/v1/chat/completions", &body).json())
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    for reply in together.iter().step_by(2) {
        assert_eq!(reply["choices"][0]["message"]["content"], alone);
    }
}

#[test]
fn a_client_that_goes_away_frees_the_model() {
    let (server, scheduler) = nano();
    let body = question(json!({"stream": true, "max_tokens": 4000, "temperature": 2, "seed": 1}));
    let mut asked = Asked::new(server.address, "POST", "/v1/chat/completions", &[], &body.to_string());
    asked.read_until("\"content\":\"");
    drop(asked);
    let start = std::time::Instant::now();
    while scheduler.status().running > 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", scheduler.status());
        std::thread::sleep(Duration::from_millis(10));
    }
    let status = get(server.address, "/status").json();
    assert_eq!(status["model"], "cachalot-nano");
    assert!(status["generated_tokens"].as_u64().unwrap() < 4000, "{status}");
    assert_eq!(post(server.address, "/v1/chat/completions", &question(json!({}))).status, 200);
}

#[test]
fn answers_have_the_form_that_was_asked_for() {
    let (server, _scheduler) = nano();
    let schema = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 8},
        "big": {"type": "boolean"}}, "required": ["city", "big"], "additionalProperties": false});
    let check = |text: &str| {
        let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(value["city"].is_string() && value["big"].is_boolean(), "{value}");
    };
    let chat = |more: Value| {
        let mut body = question(json!({"temperature": 2, "max_tokens": 200, "seed": 1}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post(server.address, "/v1/chat/completions", &body).json()
    };
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    let reply = chat(json!({"response_format": format, "logprobs": true}));
    check(reply["choices"][0]["message"]["content"].as_str().unwrap());
    assert!(reply["choices"][0]["logprobs"]["content"].as_array().is_some_and(|tokens| !tokens.is_empty()), "{reply}");
    let reply = chat(json!({"structured_outputs": {"choice": ["yes", "no"]}}));
    assert!(["yes", "no"].contains(&reply["choices"][0]["message"]["content"].as_str().unwrap()), "{reply}");
    let reply = chat(json!({"response_format": {"type": "grammar", "grammar": "start: \"a\" \"b\"~3"}}));
    assert_eq!(reply["choices"][0]["message"]["content"], "abbb");

    let message = question(json!({"temperature": 2, "max_tokens": 200,
        "output_config": {"format": {"type": "json_schema", "schema": schema}}}));
    let reply = post(server.address, "/v1/messages", &message).json();
    check(reply["content"][0]["text"].as_str().unwrap());

    let tools = json!([{"type": "function", "function": {"name": "look_up", "parameters": schema}},
        {"type": "function", "function": {"name": "other"}}]);
    for (thinking, choice) in [
        (json!("disabled"), json!("required")),
        (json!("disabled"), json!({"type": "function", "function": {"name": "look_up"}})),
    ] {
        let reply = chat(json!({"tools": tools, "tool_choice": choice, "thinking": {"type": thinking},
            "parallel_tool_calls": false}));
        let calls = reply["choices"][0]["message"]["tool_calls"].as_array().unwrap();
        assert_eq!((calls.len(), &reply["choices"][0]["finish_reason"]), (1, &json!("tool_calls")), "{reply}");
        let call = &calls[0]["function"];
        if call["name"] == "look_up" {
            check(call["arguments"].as_str().unwrap());
        } else {
            assert!(choice == "required" && call["name"] == "other" && call["arguments"] == "{}", "{call}");
        }
    }
}
