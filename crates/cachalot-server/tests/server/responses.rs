//! Responses that are kept, gone on from, and dropped (protocol.md 5.5).

use cachalot_text::Family;
use serde_json::{Value, json};

use crate::client::{Asked, get, post};
use crate::playback::{Play, Playback, playing, released, written};

fn prompt(playback: &Playback) -> String {
    released(Family::V41).decode(&playback.last_asked().0).unwrap()
}

#[test]
fn a_conversation_goes_on_from_a_kept_response() {
    let (server, playback) = playing(Family::V41, Default::default());
    playback.plays(&written(Family::V41, "The first answer."));
    let first = json!({"input": "First question", "reasoning": {"effort": "none"}, "instructions": "Be brief."});
    let first = post(server.address, "/v1/responses", &first).json();
    let id = first["id"].as_str().unwrap();
    assert_eq!((&first["store"], &first["status"]), (&json!(true), &json!("completed")));

    let second = json!({"input": [{"role": "user", "content": "Second"}], "previous_response_id": id, "reasoning": {"effort": "none"}});
    let second = post(server.address, "/v1/responses", &second).json();
    assert_eq!(second["previous_response_id"], id);
    let text = prompt(&playback);
    let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("no {part:?} in {text}"));
    assert!(place("First question") < place("The first answer.") && place("The first answer.") < place("Second"));
    assert!(!text.contains("Be brief."), "instructions are of one response only: {text}");

    // The whole chain is in the second one.
    let third = json!({"input": "Third", "previous_response_id": second["id"]});
    assert_eq!(post(server.address, "/v1/responses", &third).status, 200);
    assert!(prompt(&playback).contains("First question"));

    assert_eq!(get(server.address, &format!("/v1/responses/{id}")).json(), first);
    let items = get(server.address, &format!("/v1/responses/{id}/input_items")).json();
    assert_eq!(items["data"].as_array().map(Vec::len), Some(1));
    let delete = || Asked::new(server.address, "DELETE", &format!("/v1/responses/{id}"), &[], "").reply();
    assert_eq!(delete().json(), json!({"id": id, "object": "response", "deleted": true}));
    assert_eq!((delete().status, get(server.address, &format!("/v1/responses/{id}")).status), (404, 404));
    let reply = post(server.address, "/v1/responses", &json!({"input": "x", "previous_response_id": id}));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("previous_response_not_found")));
}

#[test]
fn items_may_be_referred_to_and_have_ids() {
    let (server, playback) = playing(Family::V41, Default::default());
    playback.plays(&written(Family::V41, "The first answer."));
    let first = json!({"input": "First question", "reasoning": {"effort": "none"}, "presence_penalty": 0.5});
    let first = post(server.address, "/v1/responses", &first).json();
    assert_eq!((&first["presence_penalty"], &first["frequency_penalty"]), (&json!(0.5), &json!(0.0)));
    let id = first["id"].as_str().unwrap();
    let items = get(server.address, &format!("/v1/responses/{id}/input_items")).json();
    assert_eq!(items["first_id"], items["data"][0]["id"]);
    let refer = |id: &Value| json!({"type": "item_reference", "id": id});
    let question = json!({"role": "user", "content": "Second"});
    let input = json!([refer(&items["data"][0]["id"]), refer(&first["output"][0]["id"]), question]);
    let reply = post(server.address, "/v1/responses", &json!({"input": input, "reasoning": {"effort": "none"}}));
    assert_eq!(reply.status, 200, "{reply:?}");
    let text = prompt(&playback);
    let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("no {part:?} in {text}"));
    assert!(place("First question") < place("The first answer.") && place("The first answer.") < place("Second"));
    let reply = post(server.address, "/v1/responses", &json!({"input": [refer(&json!("msg_resp_x_0")), question]}));
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("input[0]")));
    assert!(reply.message().contains("msg_resp_x_0"), "{reply:?}");
}

#[test]
fn nothing_is_kept_against_a_clients_will() {
    let (server, playback) = playing(Family::V41, Default::default());
    playback.plays(&[633]);
    let body = post(server.address, "/v1/responses", &json!({"input": "hi", "store": false})).json();
    assert_eq!(body["store"], false);
    let id = body["id"].as_str().unwrap();
    assert_eq!(get(server.address, &format!("/v1/responses/{id}")).status, 404);
    let reply = post(server.address, "/v1/responses", &json!({"input": "hi", "conversation": {"id": "c"}}));
    assert_eq!(reply.status, 400);
    assert!(reply.message().contains("conversation"));
}

#[test]
fn custom_tools_take_free_text() {
    let (server, playback) = playing(Family::V41, Default::default());
    let text = "SELECT \"a\"\nFROM b;";
    let output = format!(
        "\n\n<｜DSML｜ calls>\n<｜DSML｜ invoke name=\"sql\">\n<｜DSML｜ parameter name=\"input\" string=\"true\">{text}</｜DSML｜ parameter>\n</｜DSML｜ invoke>\n</｜DSML｜ calls>"
    );
    playback.plays(&written(Family::V41, &output));
    let tools = json!([{"type": "custom", "name": "sql", "description": "Runs a query"}, {"type": "web_search"}]);
    let body = json!({"input": "hi", "reasoning": {"effort": "none"}, "tools": tools, "stream": true});
    let reply = post(server.address, "/v1/responses", &body);
    assert_eq!(reply.header("x-cachalot-ignored"), Some("tools[1]:web_search"));
    let deltas: String = reply
        .events()
        .iter()
        .filter(|(name, _)| name.as_deref() == Some("response.custom_tool_call_input.delta"))
        .map(|(_, data)| data["delta"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(deltas, text);
    let (_, last) = reply.events().pop().unwrap();
    let call = &last["response"]["output"][0];
    assert_eq!(
        (&call["type"], &call["name"], &call["input"]),
        (&json!("custom_tool_call"), &json!("sql"), &json!(text))
    );

    // The call and its result come back.
    let output = json!({"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "3 rows"});
    let body = json!({"input": [output], "previous_response_id": last["response"]["id"], "tools": tools, "reasoning": {"effort": "none"}});
    assert_eq!(post(server.address, "/v1/responses", &body).status, 200);
    assert!(prompt(&playback).contains("<tool_result>3 rows</tool_result>"));
}

#[test]
fn a_stream_that_fails_says_so_in_the_form_of_its_api() {
    let options = cachalot_server::ServerOptions {
        limits: cachalot_server::Limits { unread_events: 20, ..Default::default() },
        ..Default::default()
    };
    let (server, playback) = playing(Family::V41, options);
    playback.set(Play { ids: vec![633; 1_000_000], prompt_tokens: 10, ..Play::default() });
    let body = |stream: bool| json!({"input": "hi", "max_output_tokens": 131_000, "reasoning": {"effort": "none"}, "stream": stream});
    let mut asked = Asked::new(server.address, "POST", "/v1/responses", &[], &body(true).to_string());
    playback.end();
    let read = asked.read_until("event: response.failed");
    let data = asked.read_until("\n\n");
    let data: Value = serde_json::from_str(data.trim().strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(
        (&data["response"]["status"], data["response"]["error"]["message"].is_string()),
        (&json!("failed"), true)
    );
    assert!(!read.contains("response.completed"));
}
