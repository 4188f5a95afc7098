//! What `/openapi.json` says, against real requests and responses.

use cachalot_text::Family;
use serde_json::{Value, json};

use crate::client::{get, post};
use crate::playback::{playing, written};

/// Checks `value` against a schema of the document, given by its place in it.
fn check(document: &Value, schema: &Value, value: &Value) {
    let mut root = schema.clone();
    root["components"] = document["components"].clone();
    let validator = jsonschema::options().offline().build(&root).expect("a schema");
    let errors: Vec<String> =
        validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:?}\n{value}\n{schema}");
}

#[test]
fn the_document_describes_what_is_sent_and_answered() {
    let (server, playback) = playing(Family::V41, Default::default());
    playback.plays(&written(Family::V41, "I think.</think>Yes."));
    let document = get(server.address, "/openapi.json").json();
    let answered = |path: &str, method: &str, status: &str| {
        document["paths"][path][method]["responses"][status]["content"]["application/json"]["schema"].clone()
    };
    let messages = json!([{"role": "user", "content": "hi"}]);
    let chat = json!({"messages": messages, "temperature": 0.5, "seed": null, "logprobs": true, "top_logprobs": 1,
        "stop": ["x"], "reasoning_effort": 50, "tool_choice": "auto", "response_format": {"type": "text"}});
    let response = json!({"input": "hi", "top_k": 5, "include": [], "tools": [{"type": "function", "name": "f"}]});
    for (path, body) in [
        ("/v1/chat/completions", chat),
        ("/v1/completions", json!({"prompt": "x", "logprobs": 1, "echo": true})),
        ("/v1/completions", json!({"prompt": [[5, 6]], "stop": "x", "max_tokens": null})),
        ("/v1/responses", response),
        (
            "/v1/messages",
            json!({"messages": messages, "system": "s", "max_tokens": 5, "thinking": {"type": "enabled"}}),
        ),
        ("/v1/messages/count_tokens", json!({"messages": messages})),
    ] {
        let request = &document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"];
        check(&document, request, &body);
        let reply = post(server.address, path, &body);
        assert_eq!(reply.status, 200, "{reply:?}");
        check(&document, &answered(path, "post", "200"), &reply.json());
        let mut streamed = body.clone();
        streamed["stream"] = true.into();
        let events = &document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["schema"];
        if !events.is_null() {
            for (_, event) in
                post(server.address, path, &streamed).events().iter().filter(|(_, event)| !event.is_null())
            {
                check(&document, events, event);
            }
        }
        let mut wrong = body;
        wrong["logit_bias"] = json!({"5": 1});
        let reply = post(server.address, path, &wrong);
        assert_eq!(reply.status, 400);
        check(&document, &answered(path, "post", "4XX"), &reply.json());
    }
    let stored = post(server.address, "/v1/responses", &json!({"input": "hi"})).json();
    let id = stored["id"].as_str().expect("an id");
    for (described, path) in [
        ("/v1/models", "/v1/models"),
        ("/v1/models/{id}", "/v1/models/alias"),
        ("/status", "/status"),
        ("/health", "/health"),
        ("/v1/responses/{id}", &format!("/v1/responses/{id}")),
        ("/v1/responses/{id}/input_items", &format!("/v1/responses/{id}/input_items")),
    ] {
        check(&document, &answered(described, "get", "200"), &get(server.address, path).json());
    }
    assert!(document["paths"]["/metrics"]["get"].is_object());
    assert_eq!(document["components"]["securitySchemes"]["key"]["scheme"], "bearer");
    let headers = &document["paths"]["/v1/messages"]["post"]["responses"]["200"]["headers"];
    assert!(headers["x-cachalot-ignored"].is_object());
    // A body that no request may have.
    let request = &document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"];
    let root = json!({"components": document["components"], "$ref": request["$ref"]});
    assert!(!jsonschema::is_valid(&root, &json!({"prompt": {"a": 1}})));
}
