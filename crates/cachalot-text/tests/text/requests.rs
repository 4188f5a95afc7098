//! Section 5: bodies of the HTTP APIs, refused, accepted leniently, and from request to parsed answer.

use cachalot_text::conversation::{Effort, ImageSource, Message, ResponseFormat, Span, ToolChoice};
use cachalot_text::parser::{EngineFinish, FinishReason, OutputParser, ParserOptions};
use cachalot_text::prompt::encode;
use cachalot_text::request::{Api, Constraint, RequestError, convert};
use cachalot_text::{Family, Json, request};
use serde_json::{Value, json};

use crate::fixtures::{self, family, released};
use crate::parse::Outcome;

fn api(line: &Value) -> Api {
    match line["api"].as_str() {
        Some("chat") => Api::Chat,
        Some("messages") => Api::Messages,
        Some("responses") => Api::Responses,
        other => panic!("unknown api {other:?}"),
    }
}

fn chat(body: Value) -> Result<request::Request, RequestError> {
    convert(Api::Chat, Family::V41, &body.to_string())
}

/// What the vendor refuses and we accept.
const ACCEPTED: [&str; 4] =
    ["unknown_model", "messages_server_tool", "responses_custom_tool", "tool_choice_required_thinking"];

#[test]
fn every_rule_of_errors_jsonl_is_refused_with_the_vendors_words() {
    let lines = fixtures::lines("errors.jsonl");
    let mut failures = Vec::new();
    for (_, line) in &lines {
        let wanted = line["body"]["error"]["message"].as_str().expect("a message");
        let result = convert(api(line), family(line), &line["request"].to_string());
        match result {
            // Model names are the server's business: here any name is accepted. Tools that only a host could carry out are
            // dropped, a custom tool becomes a function, and a call that must be made is forced after the reasoning.
            Ok(_) if ACCEPTED.iter().any(|name| line["name"] == *name) => {}
            Err(RequestError::Invalid(message)) if message == wanted => {}
            other => failures.push(format!("{}: {other:?}, expected {wanted}", line["name"])),
        }
    }
    assert_eq!(lines.len(), 48);
    fixtures::report(failures, lines.len());
}

/// Reasoning, content and calls of a non-streaming response.
fn expected(api: Api, response: &Value) -> (String, String, Vec<(String, Value)>) {
    let (mut reasoning, mut content, mut calls) = (String::new(), String::new(), Vec::new());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let parsed = |value: &Value| serde_json::from_str(&text(value)).unwrap_or(json!({}));
    match api {
        Api::Chat => {
            let message = &response["choices"][0]["message"];
            (reasoning, content) = (text(&message["reasoning_content"]), text(&message["content"]));
            for call in message["tool_calls"].as_array().into_iter().flatten() {
                calls.push((text(&call["function"]["name"]), parsed(&call["function"]["arguments"])));
            }
        }
        Api::Messages => {
            for block in response["content"].as_array().expect("blocks") {
                match block["type"].as_str() {
                    Some("thinking") => reasoning.push_str(&text(&block["thinking"])),
                    Some("text") => content.push_str(&text(&block["text"])),
                    _ => calls.push((text(&block["name"]), block["input"].clone())),
                }
            }
        }
        Api::Responses => {
            for item in response["output"].as_array().expect("items") {
                match item["type"].as_str() {
                    Some("reasoning") => reasoning.push_str(&text(&item["content"][0]["text"])),
                    Some("message") => content.push_str(&text(&item["content"][0]["text"])),
                    Some("custom_tool_call") => calls.push((text(&item["name"]), json!({"input": item["input"]}))),
                    _ => {
                        let namespace = item["namespace"].as_str().map(|name| format!("{name}::")).unwrap_or_default();
                        calls.push((format!("{namespace}{}", text(&item["name"])), parsed(&item["arguments"])));
                    }
                }
            }
        }
    }
    (reasoning, content, calls)
}

#[test]
fn every_line_of_stream_jsonl_from_request_to_parsed_answer() {
    let lines = fixtures::lines("stream.jsonl");
    let mut failures = Vec::new();
    for (_, line) in &lines {
        let tokenizer = released(family(line));
        let request = convert(api(line), family(line), &line["request"].to_string()).expect("the request converts");
        let prompt = encode(tokenizer, &request.conversation).expect("the conversation encodes");
        let mut options = ParserOptions::new(&request.conversation, &prompt);
        options.stop = request.stop;
        assert_eq!(options.json_output, request.json_output);
        let mut parser = OutputParser::new(tokenizer, options);
        let mut outcome = Outcome::default();
        for chunk in line["token_chunks"].as_array().expect("chunks") {
            outcome.add(parser.push_all(&fixtures::ids(chunk)).expect("ids"));
        }
        let length = line["backend_finish"] == "length";
        let finish = parser.finish(if length { EngineFinish::Length } else { EngineFinish::Stop });
        outcome.add(finish.events);
        let (reasoning, content, calls) = expected(api(line), &line["response"]);
        let found: Vec<(String, Value)> = outcome
            .calls
            .iter()
            .map(|(name, arguments)| (name.clone(), serde_json::from_str(arguments).unwrap_or(json!({}))))
            .collect();
        let reason_fits = match finish.reason {
            FinishReason::Length => length,
            FinishReason::StopSequence(text) => line["request"].to_string().contains(&text),
            FinishReason::ToolCalls => !calls.is_empty(),
            FinishReason::Stop => calls.is_empty(),
            FinishReason::Cancelled => false,
        };
        if (reasoning, content) != (outcome.reasoning, outcome.content) || calls != found || !reason_fits {
            failures.push(format!("{}: {found:?}, expected {}", line["name"], line["response"]));
        }
    }
    assert_eq!(lines.len(), 28);
    fixtures::report(failures, lines.len());
}

#[test]
fn given_parameters_are_reported_and_nothing_else() {
    let body = json!({"messages": [{"role": "user", "content": "x"}], "temperature": 0.25, "top_p": 0.5,
        "presence_penalty": -1, "frequency_penalty": 2, "seed": 7, "max_completion_tokens": 12, "logprobs": true,
        "top_logprobs": 3, "stop": "END", "stream": true, "stream_options": {"include_usage": true}});
    let request = chat(body).expect("the request converts");
    let sampling = request.sampling;
    // The vendor would force the temperature to 1 while thinking (section 4).
    assert_eq!((sampling.temperature, sampling.top_p), (Some(0.25), Some(0.5)));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (Some(-1.0), Some(2.0)));
    assert_eq!((sampling.seed, sampling.max_tokens), (Some(7), Some(12)));
    assert_eq!((sampling.logprobs, sampling.top_logprobs), (true, Some(3)));
    assert_eq!((request.stop, request.stream, request.include_usage), (vec!["END".to_owned()], true, true));
    let bare = chat(json!({"messages": [{"role": "user", "content": "x"}]})).expect("the request converts");
    assert_eq!(bare.sampling, request::RequestedSampling::default());
    assert!(bare.conversation.thinking && !bare.stream && bare.constraint.is_none());
}

#[test]
fn effort_may_be_a_number() {
    let with =
        |effort: Value| chat(json!({"messages": [{"role": "user", "content": "x"}], "reasoning_effort": effort}));
    for (given, level) in [(json!(1), 1), (json!(100), 100), (json!(0.375), 38), (json!(0.0), 1), (json!(0.99), 99)] {
        let request = with(given.clone()).expect("the request converts");
        assert_eq!(request.conversation.effort, Effort::Level(level), "{given}");
        assert!(request.conversation.thinking);
    }
    for given in [json!(0), json!(101), json!(-1), json!(1.5), json!("much")] {
        assert!(with(given.clone()).is_err(), "{given}");
    }
    let body = r#"{"messages": [{"role": "user", "content": "x"}], "output_config": {"effort": 40}}"#;
    let request = convert(Api::Messages, Family::V41, body).expect("the request converts");
    assert_eq!(request.conversation.effort, Effort::Level(40));
    let body = r#"{"input": "x", "reasoning": {"effort": 41}}"#;
    let request = convert(Api::Responses, Family::V41, body).expect("the request converts");
    assert_eq!(request.conversation.effort, Effort::Level(41));
}

#[test]
fn common_spellings_are_accepted() {
    let request = chat(json!({"chat_template_kwargs": {"enable_thinking": false}, "messages": [
        {"role": "developer", "content": "rules"}, {"role": "user", "content": "x"},
        {"role": "assistant", "content": "a", "reasoning": "r"}, {"role": "user", "content": "y"}]}));
    let conversation = request.expect("the request converts").conversation;
    assert!(!conversation.thinking);
    assert_eq!(conversation.messages[0], Message::system("rules"));
    let request = chat(json!({"chat_template_kwargs": {"thinking": true, "reasoning_effort": "low"}, "messages": [
        {"role": "user", "content": "x"}, {"role": "assistant", "content": "a", "reasoning": "r"}]}));
    let conversation = request.expect("the request converts").conversation;
    assert_eq!((conversation.thinking, conversation.effort), (true, Effort::Low));
    assert_eq!(conversation.messages[1], Message::assistant("a", Some("r".into())));
    let body = json!({"system": "X-Anthropic-Billing-Header: cch=1\nYou are kind.", "thinking": {"type": "enabled"},
        "tools": [{"type": "custom", "name": "f", "input_schema": {"type": "object"}}], "messages": [
        {"role": "user", "content": "x"}, {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "?"},
        {"type": "text", "text": "a"}]}, {"role": "user", "content": "y"}]});
    let conversation =
        convert(Api::Messages, Family::V41, &body.to_string()).expect("the request converts").conversation;
    assert_eq!(conversation.messages[0], Message::system("You are kind."));
    assert_eq!((conversation.tools.len(), conversation.tool_choice), (1, ToolChoice::Auto));
}

#[test]
fn integers_of_any_size_keep_their_digits_everywhere() {
    let big = "123456789012345678901234567890";
    let body = format!(
        r#"{{"thinking": {{"type": "disabled"}}, "tool_choice": "required",
        "tools": [{{"type": "function", "function": {{"name": "f", "parameters": {{"type": "object",
        "properties": {{"n": {{"type": "integer", "maximum": {big}, "default": -{big}, "x": 0.1}}}}}}}}}}],
        "messages": [{{"role": "user", "content": "{big}"}}]}}"#
    );
    let request = convert(Api::Chat, Family::V41, &body).expect("the request converts");
    assert_eq!(request.constraint, Some(Constraint::ToolCalls { required: true, parallel: true }));
    let parameters = request.conversation.tools[0].parameters.as_str();
    let wanted = format!(r#""maximum":{big},"default":-{big},"x":0.1"#);
    assert!(parameters.contains(&wanted), "{parameters}");
    let tokenizer = released(Family::V41);
    let prompt = encode(tokenizer, &request.conversation).expect("the conversation encodes");
    let text = tokenizer.decode(&prompt.ids).expect("ids of the vocabulary");
    assert!(text.contains(&format!(r#""maximum": {big}, "default": -{big}, "x": 0.1"#)), "{text}");
    assert!(text.contains(&format!("<｜User｜>{big}<")), "{text}");
    let body = format!(
        r#"{{"input": [{{"role": "user", "content": "x"}}], "text": {{"format": {{"type": "json_schema",
        "name": "n", "schema": {{"const": {big}}}}}}}}}"#
    );
    let request = convert(Api::Responses, Family::V41, &body).expect("the request converts");
    let Some(Constraint::Json(Some(schema))) = request.constraint else { panic!("{:?}", request.constraint) };
    assert_eq!(schema.as_str(), format!(r#"{{"const":{big}}}"#));
}

#[test]
fn images_keep_their_place_and_source() {
    let request = chat(json!({"thinking": {"type": "disabled"}, "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "https://e.com/1.png", "detail": "low"}},
        {"type": "text", "text": ""},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]}))
    .expect("the request converts");
    let Message::User { content, .. } = &request.conversation.messages[0] else { panic!("a user message") };
    assert!(
        matches!(content.spans.as_slice(), [Span::Image(_), Span::Text(blank), Span::Image(_)] if blank == "\n\n\n\n")
    );
    let tokenizer = released(Family::V41);
    let prompt = encode(tokenizer, &request.conversation).expect("the conversation encodes");
    assert_eq!(prompt.images.iter().map(|image| image.position).collect::<Vec<_>>(), [2, 4]);
    assert_eq!(prompt.images[0].image.source, ImageSource::Url("https://e.com/1.png".into()));
    assert_eq!(prompt.images[1].image.source, ImageSource::DataUrl("data:image/png;base64,AAAA".into()));
    assert!(prompt.images.iter().all(|image| prompt.ids[image.position] == 129_264));
}

#[test]
fn bodies_of_another_shape_are_refused() {
    for body in ["", "{", "[]", "null", "{\"messages\": 1}", "{\"messages\": [{\"role\": \"pirate\"}]}"] {
        for api in [Api::Chat, Api::Messages, Api::Responses] {
            let result = convert(api, Family::V4, body);
            // An empty object is a matter of rules, not of shape, for Responses.
            assert!(result.is_err(), "{api:?} {body}: {result:?}");
        }
    }
    let deep = format!("{{\"messages\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let refused = convert(Api::Chat, Family::V41, &deep);
    assert!(
        matches!(&refused, Err(RequestError::Field { field, .. }) if field.starts_with("messages[0]")),
        "{refused:?}"
    );
}

#[test]
fn forced_calls_are_honoured_while_thinking_too() {
    let tools =
        json!([{"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}}]);
    let calls = |required, parallel| Some(Constraint::ToolCalls { required, parallel });
    for (choice, one, constraint, offered) in [
        (json!("auto"), false, calls(false, true), 2),
        (json!("required"), false, calls(true, true), 2),
        (json!("required"), true, calls(true, false), 2),
        (json!({"type": "function", "function": {"name": "g"}}), false, calls(true, true), 1),
    ] {
        let request = chat(json!({"messages": [{"role": "user", "content": "x"}], "tools": tools,
            "tool_choice": choice, "parallel_tool_calls": !one}))
        .expect("the request converts");
        let conversation = &request.conversation;
        assert!(conversation.thinking && conversation.tool_choice == ToolChoice::Auto);
        assert_eq!((request.constraint.clone(), conversation.tools.len()), (constraint, offered), "{choice}");
        encode(released(Family::V41), conversation).expect("the prompt is as without");
    }
    let unknown = chat(json!({"messages": [{"role": "user", "content": "x"}], "tools": tools,
        "tool_choice": {"type": "function", "function": {"name": "h"}}}));
    assert!(matches!(unknown, Err(RequestError::Invalid(text)) if text.contains("'h'")));
    for (choice, constraint) in [
        (json!({"type": "any"}), calls(true, true)),
        (json!({"type": "any", "disable_parallel_tool_use": true}), calls(true, false)),
        (json!({"type": "tool", "name": "f"}), calls(true, true)),
        (json!({"type": "auto"}), calls(false, true)),
    ] {
        let body = json!({"messages": [{"role": "user", "content": "x"}], "tool_choice": choice,
            "tools": [{"name": "f", "input_schema": {"type": "object"}}]});
        let request = convert(Api::Messages, Family::V4, &body.to_string()).expect("the request converts");
        assert_eq!(request.constraint, constraint, "{choice}");
    }
}

#[test]
fn formats_that_the_vendor_does_not_know_are_taken() {
    let with = |more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        chat(body).map(|request| request.conversation.response_format)
    };
    let schema = || ResponseFormat::JsonSchema(Json::new(r#"{"type":"null"}"#).expect("JSON"));
    for (given, format) in [
        (
            json!({"response_format": {"type": "grammar", "grammar": "start: \"a\""}}),
            ResponseFormat::Grammar("start: \"a\"".to_owned()),
        ),
        (json!({"structured_outputs": {"json": {"type": "null"}}}), schema()),
        (json!({"structured_outputs": {"json": "{\"type\":\"null\"}"}}), schema()),
        (json!({"structured_outputs": {"regex": "a+", "json": null}}), ResponseFormat::Regex("a+".to_owned())),
        (json!({"structured_outputs": {"choice": ["a.b", "c"]}}), ResponseFormat::Regex("a\\.b|c".to_owned())),
        (json!({"structured_outputs": {"grammar": "start: /a/"}}), ResponseFormat::Grammar("start: /a/".to_owned())),
    ] {
        assert_eq!(with(given.clone()), Ok(format), "{given}");
    }
    for given in [
        json!({"response_format": {"type": "grammar"}}),
        json!({"structured_outputs": {}}),
        json!({"structured_outputs": {"regex": "a", "grammar": "b"}}),
        json!({"structured_outputs": {"choice": []}}),
        json!({"structured_outputs": {"structural_tag": "x"}}),
        json!({"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}}),
        json!({"structured_outputs": "x"}),
    ] {
        let field = given.as_object().and_then(|given| given.keys().next()).expect("a field");
        let refused = with(given.clone());
        assert!(matches!(&refused, Err(RequestError::Field { field: at, .. }) if at.starts_with(field)), "{refused:?}");
    }
    let body = json!({"messages": [{"role": "user", "content": "x"}],
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "null"}}}});
    let request = convert(Api::Messages, Family::V41, &body.to_string()).expect("the request converts");
    assert_eq!((request.conversation.response_format, request.conversation.effort), (schema(), Effort::Low));
    // As a beta had it.
    let body = json!({"messages": [{"role": "user", "content": "x"}],
        "output_format": {"type": "json_schema", "schema": {"type": "null"}}});
    let request = convert(Api::Messages, Family::V41, &body.to_string()).expect("the request converts");
    assert_eq!((request.conversation.response_format, request.ignored.len()), (schema(), 0));
    for (given, format) in [
        (json!({"type": "regex", "regex": "a+"}), ResponseFormat::Regex("a+".to_owned())),
        (json!({"type": "grammar", "grammar": "root ::= [a]"}), ResponseFormat::Grammar("root ::= [a]".to_owned())),
    ] {
        let body = json!({"input": "x", "text": {"format": given}});
        let request = convert(Api::Responses, Family::V41, &body.to_string()).expect("the request converts");
        assert_eq!(request.conversation.response_format, format);
    }
}

#[test]
fn schemas_are_used_as_written_unless_they_are_strict_and_then_keep_their_definitions() {
    let parameters = json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}, "b": {"type": "string", "minLength": 2}},
        "$defs": {"a": {"type": "object", "properties": {"x": {"type": "null"}}}}});
    let tool = |strict: bool| {
        let request = chat(json!({"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function",
            "function": {"name": "f", "parameters": parameters, "strict": strict}}]}));
        let tools = request.expect("the request converts").conversation.tools;
        serde_json::from_str::<Value>(tools[0].parameters.as_str()).expect("JSON")
    };
    assert_eq!(tool(false), parameters);
    let strict = tool(true);
    assert_eq!((&strict["required"], &strict["additionalProperties"]), (&json!(["a", "b"]), &json!(false)));
    assert_eq!(strict["$defs"], parameters["$defs"]);
    let request =
        chat(json!({"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema",
        "json_schema": {"name": "n", "strict": true, "schema": parameters}}}));
    let Some(Constraint::Json(Some(schema))) = request.expect("the request converts").constraint else { panic!() };
    let schema: Value = serde_json::from_str(schema.as_str()).expect("JSON");
    assert_eq!((&schema["required"], &schema["$defs"]), (&json!(["a", "b"]), &parameters["$defs"]));
}
