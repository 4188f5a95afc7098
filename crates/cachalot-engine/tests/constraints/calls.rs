//! Calls: whichever choice a request makes, and whatever their strings hold.

use cachalot_engine::Constraint;
use cachalot_engine::session::Prefill;
use cachalot_text::conversation::{Conversation, Message, ResponseFormat, ToolCall, ToolChoice, ToolDefinition};
use cachalot_text::parser::{FinishReason, StartState};
use cachalot_text::prompt;
use cachalot_text::request::Constraint as Wish;
use cachalot_text::{Json, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{ANSWER, Answerer, Output, REASONING, check, tool};

fn read() -> Value {
    json!({"type": "object", "properties": {"path": {"type": "string", "maxLength": 6},
        "lines": {"type": "array", "maxItems": 2, "items": {"type": "integer", "minimum": 0, "maximum": 9}},
        "mode": {"enum": ["r", "w", null]}}, "required": ["path", "mode"]})
}

fn write() -> Value {
    json!({"type": "object", "properties": {"text": {"type": ["string", "null"], "maxLength": 5},
        "at": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"],
        "additionalProperties": false}}, "required": ["at"]})
}

fn with_tools(choice: ToolChoice) -> Conversation {
    let tools = vec![tool("read", &read()), tool("write", &write())];
    Conversation { tools, tool_choice: choice, ..Conversation::default() }
}

/// Every call is of a declared tool and fits it.
fn check_calls(output: &Output) {
    for (index, (name, arguments)) in output.calls.iter().enumerate() {
        let schema = match name.as_str() {
            "read" => read(),
            "write" => write(),
            other => panic!("{other} was not declared: {output:?}"),
        };
        // The last one may be cut.
        if !output.cut || index + 1 < output.calls.len() {
            check(&schema, arguments).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        }
    }
}

#[test]
fn a_forced_call_is_made_and_fits_its_tool() {
    for model in ["fixtures/v41-tiny", "fixtures/v4-tiny"] {
        let mut answerer = Answerer::new(model, 300);
        let mut several = 0;
        for (choice, start, wish) in [
            (ToolChoice::Required, StartState::Calls, None),
            (ToolChoice::Required, StartState::Calls, Some(Wish::ToolCalls { required: true, parallel: false })),
            (ToolChoice::Auto, ANSWER, Some(Wish::ToolCalls { required: true, parallel: true })),
            (ToolChoice::Auto, ANSWER, Some(Wish::ToolCalls { required: true, parallel: false })),
        ] {
            let conversation = with_tools(choice);
            let constraint = answerer.constraint(&conversation, start, wish.as_ref()).expect("a constraint");
            for seed in 0..4 {
                let output = answerer.output(&conversation, start, constraint.clone(), seed);
                check_calls(&output);
                let one = matches!(wish, Some(Wish::ToolCalls { parallel: false, .. }));
                several += usize::from(output.calls.len() > 1);
                assert!(!one || output.calls.len() <= 1, "{output:?}");
                assert!(output.cut || output.finish == FinishReason::ToolCalls, "{output:?}");
                assert_eq!((output.answer.as_str(), output.reasoning.as_str()), ("", ""));
            }
        }
        // Random weights may take a while to think of it.
        let conversation = with_tools(ToolChoice::Required);
        let constraint = answerer.constraint(&conversation, StartState::Calls, None).expect("a constraint");
        let mut more = (4..64).map(|seed| answerer.output(&conversation, StartState::Calls, constraint.clone(), seed));
        assert!(several > 0 || more.any(|output| output.calls.len() > 1), "several calls are possible");
    }
}

#[test]
fn a_forced_call_waits_for_the_reasoning_which_is_free() {
    let mut answerer = Answerer::new("fixtures/v41-tiny", 2500);
    let conversation = with_tools(ToolChoice::Auto);
    let wish = Wish::ToolCalls { required: true, parallel: false };
    let constraint = answerer.constraint(&conversation, REASONING, Some(&wish)).expect("a constraint");
    let outputs: Vec<Output> =
        (0..4).map(|seed| answerer.output(&conversation, REASONING, constraint.clone(), seed)).collect();
    outputs.iter().for_each(check_calls);
    assert!(outputs.iter().all(|output| output.cut || output.calls.len() == 1), "{outputs:?}");
    assert!(outputs.iter().any(|output| !output.cut && !output.reasoning.is_empty()), "{outputs:?}");
}

#[test]
fn an_answer_of_a_format_or_a_call() {
    let format = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
        "additionalProperties": false});
    let mut answerer = Answerer::new("fixtures/v41-tiny", 300);
    let response_format = ResponseFormat::JsonSchema(Json::from(&format));
    let conversation = Conversation { response_format, ..with_tools(ToolChoice::Auto) };
    let constraint = answerer.constraint(&conversation, ANSWER, None).expect("a constraint");
    let (mut answers, mut calls) = (0, 0);
    for seed in 0..24 {
        let output = answerer.output(&conversation, ANSWER, constraint.clone(), seed);
        check_calls(&output);
        match output.calls.is_empty() {
            true if output.cut => {}
            true => {
                check(&format, &output.answer).unwrap_or_else(|error| panic!("{error}: {output:?}"));
                answers += 1;
            }
            false => {
                assert_eq!(output.answer, "", "{output:?}");
                calls += 1;
            }
        }
    }
    assert!(answers > 0 && calls > 0, "{answers} answers, {calls} calls");
}

#[test]
fn any_sampling_stays_inside() {
    let mut answerer = Answerer::new("fixtures/v4-tiny", 200);
    let conversation = with_tools(ToolChoice::Required);
    let constraint = answerer.constraint(&conversation, StartState::Calls, None).expect("a constraint");
    let sampling = answerer.sampling.clone();
    let changes: [fn(&mut cachalot_engine::SamplingParams); 6] = [
        |params| params.temperature = 0.0,
        |params| params.top_k = 3,
        |params| params.top_p = 0.2,
        |params| params.min_p = 0.9,
        |params| (params.presence_penalty, params.frequency_penalty) = (2.0, 2.0),
        |params| params.repetition_penalty = 10.0,
    ];
    for change in changes {
        answerer.sampling = sampling.clone();
        change(&mut answerer.sampling);
        for seed in 0..2 {
            check_calls(&answerer.output(&conversation, StartState::Calls, constraint.clone(), seed));
        }
    }
}

/// The ids of an answer that makes `calls`, as the prompt of the next turn has them, behind `<think></think>`.
pub(crate) fn written(
    tokenizer: &Tokenizer,
    tools: &[ToolDefinition],
    text: &str,
    calls: &[(&str, Value)],
) -> Vec<u32> {
    let tool_calls = calls.iter().enumerate().map(|(index, (name, arguments))| ToolCall {
        id: format!("call_{index}"),
        name: (*name).to_owned(),
        arguments: arguments.to_string(),
    });
    let turn = Message::Assistant {
        content: text.to_owned(),
        reasoning: None,
        tool_calls: tool_calls.collect(),
        prefix: false,
        task: None,
    };
    let messages = vec![Message::user("x"), turn];
    let conversation = Conversation { messages, tools: tools.to_vec(), thinking: false, ..Conversation::default() };
    let ids = prompt::encode(tokenizer, &conversation).expect("a prompt").ids;
    let markers = tokenizer.markers();
    let begin = ids.iter().position(|id| *id == markers.assistant).expect("a header") + 2;
    let end = ids[begin..].iter().position(|id| *id == markers.eos).expect("an end") + begin;
    ids[begin..=end].to_vec()
}

pub(crate) fn any_call(answerer: &Answerer, tools: &[ToolDefinition], required: bool) -> Constraint {
    let conversation = Conversation { tools: tools.to_vec(), ..Conversation::default() };
    let wish = Wish::ToolCalls { required, parallel: true };
    answerer.constraint(&conversation, ANSWER, Some(&wish)).expect("a constraint").expect("tools")
}

/// Text with everything that could be taken for markup.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[ -~]{0,6}",
        "\\PC{0,4}",
        Just("</".to_owned()),
        Just("<｜DSML｜".to_owned()),
        Just("</｜DSML｜ parameter>".to_owned()),
        Just("</｜DSML｜tool_calls>".to_owned()),
        Just("</think>\n\n".to_owned()),
        Just("\"\\\n\t\r\u{1}".to_owned()),
        Just("<".to_owned()),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

#[test]
fn what_the_prompt_writes_of_a_call_is_what_a_call_may_be() {
    let anything = json!({"type": "object", "properties": {"text": {"type": "string"}, "any": {}, "n": {"type": "number"},
        "list": {"type": "array", "items": {"type": "string"}}}});
    for model in ["fixtures/v41-tiny", "fixtures/v4-tiny"] {
        let answerer = Answerer::new(model, 1);
        let engine = std::sync::Arc::clone(answerer.session.engine());
        let tokenizer = engine.tokenizer();
        let tools = vec![tool("f", &anything), tool("g", &json!({"type": "object", "properties": {}}))];
        let (free, forced) = (any_call(&answerer, &tools, false), any_call(&answerer, &tools, true));
        let accepts = |constraint: &Constraint, ids: &[u32]| {
            constraint.accepted(tokenizer, ids).expect("it can be followed") == ids.len()
        };
        proptest!(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() }, |(
            text in any_text(), other in any_text(), before in any_text(), order in any::<bool>(),
        )| {
            let arguments = match order {
                true => json!({"text": text, "any": other, "n": 1.5}),
                false => json!({"n": -2, "any": {"k": [other, null]}, "text": text, "list": ["a\"b"]}),
            };
            let calls = [("f", arguments), ("g", json!({}))];
            let ids = written(tokenizer, &tools, "", &calls);
            prop_assert!(accepts(&forced, &ids), "{:?}", tokenizer.decode(&ids));
            let ids = written(tokenizer, &tools, &before, &calls);
            prop_assert!(accepts(&free, &ids), "{:?}", tokenizer.decode(&ids));
        });
        let refused = [
            ("a name that is not declared", [("h", json!({}))]),
            ("a parameter that is not declared", [("g", json!({"x": 1}))]),
            ("another type", [("f", json!({"text": 1}))]),
            ("a string for a number", [("f", json!({"n": "1"}))]),
        ];
        for (what, calls) in refused {
            assert!(!accepts(&free, &written(tokenizer, &tools, "", &calls)), "{what}");
        }
    }
}

#[test]
fn blocks_open_in_one_way_and_end_the_answer() {
    let answerer = Answerer::new("fixtures/v41-tiny", 1);
    let engine = std::sync::Arc::clone(answerer.session.engine());
    let tokenizer = engine.tokenizer();
    let markers = tokenizer.markers();
    let tools = vec![tool("g", &json!({"type": "object", "properties": {}}))];
    let free = any_call(&answerer, &tools, false);
    let plain = |text: &str| tokenizer.encode_plain(text).expect("ids");
    let accepted =
        |constraint: &Constraint, ids: &[u32]| constraint.accepted(tokenizer, ids).expect("it can be followed");
    for (before, opens) in [("<", true), ("a\n\n<", true), ("", false), ("a", false), ("</", false), ("< ", false)] {
        let ids = [plain(before), vec![markers.dsml]].concat();
        assert_eq!(accepted(&free, &ids) == ids.len(), opens, "{before:?}");
    }
    let block = written(tokenizer, &tools, "", &[("g", json!({}))]);
    for (after, fits) in
        [(markers.eos, true), (plain("a")[0], false), (markers.dsml, false), (markers.think_close, false)]
    {
        let ids = [&block[..block.len() - 1], &[after]].concat();
        assert_eq!(accepted(&free, &ids) == ids.len(), fits, "{after}");
    }
    // Inside the reasoning a call may begin, too; and who must call does not stop before.
    let conversation = Conversation { tools, ..Conversation::default() };
    let wish = Wish::ToolCalls { required: true, parallel: true };
    let forced = answerer.constraint(&conversation, REASONING, Some(&wish)).expect("a constraint").expect("tools");
    let thought = plain("Hm, <think");
    for (ids, count) in [
        ([thought.clone(), block.clone()].concat(), thought.len() + block.len()),
        ([thought.clone(), vec![markers.think_close], block.clone()].concat(), thought.len() + 1 + block.len()),
        ([thought.clone(), vec![markers.eos]].concat(), thought.len()),
        ([thought.clone(), vec![markers.user]].concat(), thought.len()),
        ([thought.clone(), vec![markers.think_close], plain("a")].concat(), thought.len() + 1),
    ] {
        assert_eq!(accepted(&forced, &ids), count);
    }
}

#[test]
fn strict_tools_have_their_parameters_in_order_and_others_in_any() {
    let answerer = Answerer::new("fixtures/v4-tiny", 1);
    let engine = std::sync::Arc::clone(answerer.session.engine());
    let tokenizer = engine.tokenizer();
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"},
        "c": {"type": "boolean"}}, "required": ["a", "c"], "additionalProperties": false});
    let loose = tool("f", &schema);
    let strict = ToolDefinition { strict: Some(true), ..loose.clone() };
    for (arguments, in_any, in_order) in [
        (json!({"a": 1, "b": "x", "c": true}), true, true),
        (json!({"a": 1, "c": true}), true, true),
        (json!({"c": true, "a": 1}), true, false),
        (json!({"b": "x", "c": true, "a": 1}), true, false),
        (json!({"a": 1, "b": "x"}), false, false),
        (json!({}), false, false),
        (json!({"a": 1, "c": true, "d": 1}), false, false),
    ] {
        for (tool, fits) in [(&loose, in_any), (&strict, in_order)] {
            let tools = std::slice::from_ref(tool);
            let ids = written(tokenizer, tools, "", &[("f", arguments.clone())]);
            let accepted = any_call(&answerer, tools, true).accepted(tokenizer, &ids).expect("it can be followed");
            assert_eq!(accepted == ids.len(), fits, "{arguments} {:?}", tool.strict);
        }
    }
}

#[test]
fn schemas_of_loose_tools_are_kept_as_far_as_possible_and_the_rest_is_noted() {
    let answerer = Answerer::new("fixtures/v41-tiny", 1);
    let schema = json!({"type": "object", "properties": {
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": true},
        "either": {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 5}]},
        "not": {"not": {"type": "null"}}}});
    let loose = Conversation { tools: vec![tool("f", &schema)], ..Conversation::default() };
    let constraint = answerer.constraint(&loose, ANSWER, None).expect("a constraint").expect("tools");
    let notes = constraint.notes().join("\n");
    for part in ["uniqueItems", "tools[0].parameters (f)/properties/tags", "\"not\""] {
        assert!(notes.contains(part), "{part}: {notes}");
    }
    let strict = ToolDefinition { strict: Some(true), ..tool("f", &schema) };
    let error = answerer.constraint(&Conversation { tools: vec![strict], ..Conversation::default() }, ANSWER, None);
    assert!(error.expect_err("it is refused").to_string().contains("uniqueItems"));
    assert_eq!(Prefill::default(), Prefill::Exact);
}
