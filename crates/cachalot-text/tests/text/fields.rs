//! Section 5: which fields of a body are carried out, which are refused by name, and what is dropped and named.

use cachalot_text::Family;
use cachalot_text::conversation::{Effort, InputFormat};
use cachalot_text::request::{Api, Request, RequestError, check_completion, convert};
use serde_json::{Value, json};

const APIS: [Api; 3] = [Api::Chat, Api::Messages, Api::Responses];

fn with(api: Api, more: &Value) -> Result<Request, RequestError> {
    let mut body = match api {
        Api::Responses => json!({"input": "x"}),
        Api::Chat | Api::Messages => json!({"messages": [{"role": "user", "content": "x"}]}),
    };
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    convert(api, Family::V41, &body.to_string())
}

/// What is dropped from raw completions.
fn raw(more: &Value) -> Result<Vec<String>, RequestError> {
    check_completion(&mut more.as_object().expect("an object").clone())
}

/// The field that a refusal names.
fn named<T: std::fmt::Debug>(refused: Result<T, RequestError>) -> String {
    match refused {
        Err(RequestError::Field { field, message }) if message.contains(&field) => field,
        Err(RequestError::Unsupported { field, .. }) => field,
        other => panic!("no field is named: {other:?}"),
    }
}

#[test]
fn every_api_refuses_what_none_carries_out_unless_it_asks_for_nothing() {
    for (name, asks, idle) in [
        ("bad_words", json!(["a"]), json!([])),
        ("best_of", json!(2), json!(1)),
        ("dry_multiplier", json!(0.8), json!(0)),
        ("guided_choice", json!(["a"]), json!(null)),
        ("guided_grammar", json!("a"), json!("")),
        ("include_stop_str_in_output", json!(true), json!(false)),
        ("json_schema", json!({"type": "null"}), json!({})),
        ("length_penalty", json!(2), json!(1)),
        ("logit_bias", json!({"5": 1}), json!({"5": 0})),
        ("logits_processors", json!(["a"]), json!(null)),
        ("mirostat", json!(2), json!(0)),
        ("prompt_logprobs", json!(1), json!(null)),
        ("skip_special_tokens", json!(false), json!(true)),
        ("tfs_z", json!(0.5), json!(1)),
        ("top_a", json!(0.1), json!(0.0)),
        ("truncate_prompt_tokens", json!(5), json!(null)),
        ("typical_p", json!(0.9), json!(1.0)),
        ("use_beam_search", json!(true), json!(false)),
        ("xtc_probability", json!(0.5), json!(0)),
    ] {
        let (asks, idle) = (json!({name: asks}), json!({name: idle}));
        for api in APIS {
            assert_eq!(named(with(api, &asks)), name);
            assert_eq!(with(api, &idle).expect("it asks for nothing").ignored, Vec::<String>::new(), "{idle}");
        }
        assert_eq!(named(raw(&asks)), name);
        assert_eq!(raw(&idle), Ok(Vec::new()), "{idle}");
    }
}

#[test]
fn what_only_other_apis_carry_out_is_refused_by_name() {
    for (api, name, asks, idle) in [
        (Api::Chat, "add_generation_prompt", json!(false), json!(true)),
        (Api::Chat, "echo", json!(true), json!(false)),
        (Api::Chat, "system", json!("Be kind."), json!("")),
        (Api::Responses, "n", json!(2), json!(1)),
        (Api::Responses, "stop", json!("a"), json!([])),
        (Api::Responses, "response_format", json!({"type": "json_object"}), json!({"type": "text"})),
        (Api::Responses, "enable_thinking", json!(false), json!(null)),
        (Api::Messages, "response_format", json!({"type": "json_object"}), json!({"type": "text"})),
        (Api::Messages, "reasoning_effort", json!("none"), json!(null)),
    ] {
        assert_eq!(named(with(api, &json!({name: asks}))), name);
        assert_eq!(with(api, &json!({name: idle})).expect("it asks for nothing").ignored, Vec::<String>::new());
    }
    for (name, asks) in [("response_format", json!({"type": "json_object"})), ("tools", json!([{"type": "function"}]))]
    {
        assert_eq!(named(raw(&json!({name: asks}))), name);
    }
    assert_eq!(raw(&json!({"prompt": "a", "user": "me", "nobody_knows": 1})), Ok(vec!["nobody_knows".to_owned()]));
}

#[test]
fn values_out_of_range_are_refused_everywhere() {
    for (name, value) in [
        ("seed", json!("x")),
        ("seed", json!(-1)),
        ("seed", json!(1.5)),
        ("seed", json!(1u64 << 63)),
        ("top_k", json!(-5)),
        ("top_k", json!(1_000_000_000_000u64)),
        ("min_p", json!(1.5)),
        ("repeat_penalty", json!(0)),
    ] {
        let body = json!({name: value});
        let name = name.replace("repeat", "repetition");
        for api in APIS {
            assert_eq!(named(with(api, &body)), name);
        }
        assert_eq!(named(raw(&body)), name);
    }
    for api in [Api::Messages, Api::Responses] {
        assert_eq!(named(with(api, &json!({"frequency_penalty": 3}))), "frequency_penalty");
        let sampling =
            with(api, &json!({"presence_penalty": -1, "repeat_penalty": 1.5, "seed": 5})).expect("good").sampling;
        assert_eq!(
            (sampling.presence_penalty, sampling.repetition_penalty, sampling.seed),
            (Some(-1.0), Some(1.5), Some(5))
        );
    }
}

#[test]
fn what_is_of_another_type_is_named() {
    for (api, body, field) in [
        (Api::Chat, json!({"max_tokens": -1}), "max_tokens"),
        (Api::Chat, json!({"max_tokens": "5"}), "max_tokens"),
        (Api::Chat, json!({"reasoning_effort": "xyz"}), "reasoning_effort"),
        (Api::Chat, json!({"thinking": {"type": "xyz"}}), "thinking.type"),
        (Api::Chat, json!({"thinking": "x"}), "thinking"),
        (Api::Chat, json!({"stop": 5}), "stop"),
        (Api::Chat, json!({"stream": "x"}), "stream"),
        (Api::Chat, json!({"response_format": {"type": "xyz"}}), "response_format.type"),
        (Api::Chat, json!({"messages": [{"role": "user", "content": 5}]}), "messages[0]"),
        (Api::Chat, json!({"chat_template_kwargs": "x"}), "chat_template_kwargs"),
        (Api::Chat, json!({"chat_template_kwargs": {"thinking": "x"}}), "chat_template_kwargs.thinking"),
        (Api::Chat, json!({"enable_thinking": 1}), "enable_thinking"),
        (Api::Chat, json!({"parallel_tool_calls": "x"}), "parallel_tool_calls"),
        (Api::Chat, json!({"continue_final_message": true}), "continue_final_message"),
        (Api::Messages, json!({"max_tokens": "5"}), "max_tokens"),
        (Api::Messages, json!({"stop_sequences": [""]}), "stop_sequences"),
        (Api::Messages, json!({"stop_sequences": vec!["x"; 17]}), "stop_sequences"),
        (Api::Messages, json!({"output_config": 5}), "output_config"),
        (Api::Responses, json!({"max_output_tokens": 0}), "max_output_tokens"),
        (Api::Responses, json!({"parallel_tool_calls": "x"}), "parallel_tool_calls"),
        (Api::Responses, json!({"text": {"format": {"type": "xyz"}}}), "text.format"),
        (Api::Responses, json!({"text": {"format": {"type": "regex"}}}), "text.format"),
    ] {
        let found = named(with(api, &body));
        assert!(found.starts_with(field.split('.').next().expect("a part")), "{body}: {found}, expected {field}");
    }
}

#[test]
fn a_number_that_is_too_large_is_told_as_it_was_written() {
    let body = r#"{"messages": [], "max_tokens": 123456789012345678901234567890}"#;
    let refused = convert(Api::Chat, Family::V41, body);
    let Err(RequestError::Field { field, message }) = refused else { panic!("{refused:?}") };
    assert_eq!(field, "max_tokens");
    assert!(message.contains("123456789012345678901234567890"), "{message}");
}

#[test]
fn parts_of_objects_that_nobody_knows_are_named() {
    for (api, body, dropped) in [
        (Api::Chat, json!({"chat_template_kwargs": {"thinking": true, "date": "x"}}), "chat_template_kwargs.date"),
        (Api::Chat, json!({"reasoning": {"effort": "low", "exclude": true}}), "reasoning.exclude"),
        (Api::Messages, json!({"output_config": {"effort": "low", "style": "x"}}), "output_config.style"),
        (Api::Responses, json!({"text": {"verbosity": "low"}}), "text.verbosity"),
    ] {
        assert_eq!(with(api, &body).expect("it converts").ignored, [dropped]);
    }
}

#[test]
fn thinking_is_switched_in_the_words_of_other_servers() {
    for (body, thinking, effort) in [
        (json!({"enable_thinking": false}), false, Effort::High),
        (json!({"reasoning": {"enabled": false}}), false, Effort::High),
        (json!({"reasoning": {"effort": "none"}}), false, Effort::High),
        (json!({"reasoning": {"effort": "low"}}), true, Effort::Low),
        (json!({"reasoning": {"effort": 40}}), true, Effort::Level(40)),
        // The vendor's own come first.
        (json!({"enable_thinking": false, "reasoning_effort": "max"}), true, Effort::Max),
        (json!({"enable_thinking": false, "thinking": {"type": "enabled"}}), true, Effort::High),
    ] {
        let conversation = with(Api::Chat, &body).expect("it converts").conversation;
        assert_eq!((conversation.thinking, conversation.effort), (thinking, effort), "{body}");
    }
}

#[test]
fn what_is_lost_of_a_history_is_named() {
    let messages = json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": [
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        {"type": "text", "text": "found"}]}, {"role": "user", "content": "y"}]});
    let request = with(Api::Messages, &messages).expect("it converts");
    let dropped = ["messages[1].content[0]:server_tool_use", "messages[1].content[1]:web_search_tool_result"];
    assert_eq!(request.ignored, dropped);
    let input =
        json!({"input": [{"role": "user", "content": "x"}, {"type": "web_search_call", "id": "w"}, {"type": "new"}]});
    assert_eq!(
        with(Api::Responses, &input).expect("it converts").ignored,
        ["input[1]:web_search_call", "input[2]:new"]
    );
    let refused = with(Api::Responses, &json!({"input": [{"type": "item_reference", "id": "msg_1"}]}));
    assert!(
        matches!(&refused, Err(RequestError::Field { message, .. }) if message.contains("\"msg_1\"")),
        "{refused:?}"
    );
    assert_eq!(named(refused), "input[0]");
}

#[test]
fn a_choice_that_nothing_can_fulfil_is_refused_or_named() {
    let function = json!({"type": "function", "function": {"name": "f"}});
    for (api, choice) in [
        (Api::Chat, json!("required")),
        (Api::Chat, function.clone()),
        (Api::Messages, json!({"type": "any"})),
        (Api::Responses, json!("required")),
        (Api::Responses, json!({"type": "function", "name": "f"})),
    ] {
        assert_eq!(named(with(api, &json!({"tool_choice": choice}))), "tool_choice");
        // Tools that are a host's are dropped, and the choice with them.
        let request = with(api, &json!({"tool_choice": choice, "tools": [{"type": "web_search", "name": "w"}]}));
        assert_eq!(request.expect("it converts").ignored, ["tools[0]:web_search", "tool_choice"]);
    }
    for (api, tool) in [(Api::Chat, function), (Api::Responses, json!({"type": "function", "name": "f"}))] {
        let choice = json!({"type": "allowed_tools", "mode": "auto", "tools": [tool]});
        assert_eq!(named(with(api, &json!({"tools": [tool], "tool_choice": choice}))), "tool_choice");
    }
}

#[test]
fn what_the_input_of_a_custom_tool_must_be_is_kept() {
    let tool = |name: &str, format: Value| json!({"type": "custom", "name": name, "format": format});
    let grammar = |syntax: &str| json!({"type": "grammar", "syntax": syntax, "definition": "a"});
    let body = json!({"tools": [tool("a", grammar("lark")), tool("b", grammar("regex")), tool("c", json!({"type": "text"})),
        tool("apply_patch", grammar("lark"))]});
    let tools = with(Api::Responses, &body).expect("it converts").conversation.tools;
    let inputs: Vec<_> = tools.into_iter().map(|tool| tool.input).collect();
    let (lark, regex) = (InputFormat::Grammar("a".to_owned()), InputFormat::Regex("a".to_owned()));
    assert_eq!(inputs, [Some(lark.clone()), Some(regex), None, Some(lark)]);
    for format in [grammar("peg"), json!({"type": "grammar"}), json!("x")] {
        assert_eq!(named(with(Api::Responses, &json!({"tools": [tool("d", format)]}))), "tools[0].format");
    }
}

#[test]
fn numbers_that_mean_none_or_all_are_understood() {
    let sampling = |body: Value| with(Api::Responses, &body).expect("it converts").sampling;
    // The vendor's library gives log-probabilities for any number.
    assert!(!sampling(json!({"top_logprobs": 0})).logprobs && sampling(json!({"top_logprobs": 1})).logprobs);
    let longest =
        |tokens: u32| with(Api::Messages, &json!({"max_tokens": tokens})).expect("it converts").sampling.longest;
    assert!(longest(1_000_000_000) && !longest(393_216));
}
