//! Section 3.6 beyond the fixtures: malformed calls, stop strings, streaming, and anything at all.

use cachalot_text::Family;
use cachalot_text::parser::{EngineFinish, Event, FinishReason, OfferedTool, OutputParser, ParserOptions, StartState};
use proptest::prelude::*;
use serde_json::Value;

use crate::fixtures::released;
use crate::parse::{Outcome, parse};

fn offered() -> Vec<OfferedTool> {
    let tool = |name: &str, properties: &[&str]| OfferedTool {
        name: name.to_owned(),
        properties: properties.iter().map(|name| (*name).to_owned()).collect(),
    };
    vec![tool("get", &["city", "unit"]), tool("f", &[])]
}

fn thinking() -> ParserOptions {
    let start = StartState::Reasoning { drop_newlines: true };
    ParserOptions { start, tools: offered(), stop: Vec::new(), json_output: false }
}

fn answering() -> ParserOptions {
    ParserOptions { start: StartState::Answer { drop_newlines: true }, ..thinking() }
}

/// The outcome of an output whose control tokens are spelled out; `D` stands for the marker of calls.
fn outcome(options: &ParserOptions, output: &str, finish: EngineFinish) -> Outcome {
    let output = output.replace("<D", "<｜DSML｜").replace("</D", "</｜DSML｜");
    let ids = released(Family::V41).encode_with_added(&output).expect("text encodes");
    let outcome = parse(Family::V41, options, &ids, 1, finish);
    assert_eq!(outcome, parse(Family::V41, options, &ids, 3, finish), "chunks of 3");
    outcome
}

fn call(name: &str, arguments: &str) -> (String, String) {
    (name.to_owned(), arguments.to_owned())
}

#[test]
fn calls_with_missing_tags_keep_their_siblings() {
    let get = r#"<D invoke name="get"><D parameter name="city" string="true">Rome</D parameter>"#;
    let open = r#"<D invoke name="get"><D parameter name="city" string="true">Rome"#;
    let f = r#"<D invoke name="f"></D invoke>"#;
    let rome = r#"{"city": "Rome"}"#;
    for (output, calls) in [
        // Self-closing, then another call (M5).
        (format!(r#"<D calls><D invoke name="f"/>{get}</D invoke></D calls>"#), vec![("f", "{}"), ("get", rome)]),
        // No closing tag of the call (M6).
        (format!("<D calls>{get}{f}</D calls>"), vec![("get", rome), ("f", "{}")]),
        (format!("<D calls>{get}</D calls>{f}"), vec![("get", rome)]),
        // No closing tag of the parameter.
        (format!("<D calls>{open}</D invoke></D calls>"), vec![("get", rome)]),
        (format!("<D calls>{open}</D calls>{f}"), vec![("get", rome)]),
        // An opening tag that is never closed.
        (get.replace("get\">", "get\" "), vec![("get", rome)]),
        // No block, and nothing after the last value.
        (open.to_owned(), vec![("get", rome)]),
        (r#"<D invoke name="get"><D parameter name="city" "#.to_owned(), vec![("get", r#"{"city": ""}"#)]),
        (r#"<D invoke name="get">"#.to_owned(), vec![("get", "{}")]),
    ] {
        let outcome = outcome(&answering(), &output, EngineFinish::Stop);
        let expected: Vec<_> = calls.into_iter().map(|(name, arguments)| call(name, arguments)).collect();
        assert_eq!(outcome.calls, expected, "{output}");
        assert_eq!((outcome.ended, outcome.reason), (expected.len(), Some(FinishReason::ToolCalls)), "{output}");
        assert_eq!(outcome.content, "", "{output}");
    }
}

#[test]
fn arguments_are_json_unless_they_are_cut_short() {
    let one = |key: &str, attribute: &str, value: &str| {
        format!(
            r#"<D calls><D invoke name="get"><D parameter name="{key}"{attribute}>{value}</D parameter></D invoke>"#
        )
    };
    let (text, json) = (r#" string="true""#, r#" string="false""#);
    let long = "[".repeat(200);
    let more = r#"<D parameter name="b" string="true">2</D parameter></D invoke>"#;
    for (output, arguments) in [
        (one("city", json, "12345678901234567890123"), r#"{"city": 12345678901234567890123}"#),
        (one("city", json, "1e999"), r#"{"city": 1e999}"#),
        (one("city", json, &long), &format!(r#"{{"city": "{long}"}}"#)),
        (one("city", json, ""), r#"{"city": ""}"#),
        (one("city", "", "[1]"), r#"{"city": [1]}"#),
        (one("city", "", "a \"b\"\n"), r#"{"city": "a \"b\"\n"}"#),
        // M4: a wrapper is opened only if everything in it is declared.
        (one("arguments", text, r#"{"city": "Rome"}"#), r#"{"city": "Rome"}"#),
        (one("input", json, r#""{\"unit\": 1}""#), r#"{"unit": 1}"#),
        (one("input", json, r#"{"town": 1}"#), r#"{"input": {"town": 1}}"#),
        (one("input", json, r#"{"city": 1, "town": 2}"#), r#"{"input": {"city": 1, "town": 2}}"#),
        (one("input", json, "{}"), "{}"),
        (one("input", text, "Rome"), r#"{"input": "Rome"}"#),
        (one("other", json, r#"{"city": 1}"#), r#"{"other": {"city": 1}}"#),
        (one("input", json, "1").replace("</D invoke>", more), r#"{"input": 1, "b": "2"}"#),
        // M3: a body that is an object, and one that is not.
        (r#"<D calls><D invoke name="get"> {"big": 1e999}</D invoke>"#.to_owned(), r#"{"big": 1e999}"#),
        (r#"<D calls><D invoke name="get">[1]</D invoke>"#.to_owned(), "{}"),
    ] {
        let outcome = outcome(&answering(), &output, EngineFinish::Stop);
        assert_eq!(outcome.calls, [call("get", arguments)], "{output}");
        assert!(serde_json::from_str::<serde::de::IgnoredAny>(arguments).is_ok(), "{arguments}");
    }
}

#[test]
fn a_call_cut_by_the_token_limit_is_reported_as_far_as_it_goes() {
    for (output, arguments) in [
        (r#"<D invoke name="get"><D parameter name="city" string="false">[1, "#, r#"{"city": [1, "#),
        (r#"<D invoke name="get"><D parameter name="input" string="true">Ro"#, r#"{"input": "Ro"#),
        (r#"<D invoke name="get"><D parameter name="input" string="false">{"ci"#, r#"{"input": {"ci"#),
        (r#"<D invoke name="get">{"city": "#, r#"{"city": "#),
        (r#"<D invoke name="get"><D parameter name="ci"#, ""),
    ] {
        for finish in [EngineFinish::Length, EngineFinish::Cancelled] {
            let outcome = outcome(&answering(), output, finish);
            assert_eq!(outcome.calls, [call("get", arguments)], "{output}");
            assert_eq!(outcome.ended, 0, "{output}");
        }
    }
    assert_eq!(outcome(&answering(), r#"<D invoke name="ge"#, EngineFinish::Length).calls, []);
}

#[test]
fn stop_strings_are_held_back_and_found_only_in_the_answer() {
    let options = ParserOptions { stop: vec!["\n\nEND".into(), String::new(), "é!".into()], ..thinking() };
    let first = outcome(&options, "r\n\nENDr</think>a\n\nE\n\nEND b", EngineFinish::Stop);
    assert_eq!((first.reasoning.as_str(), first.content.as_str()), ("r\n\nENDr", "a\n\nE"));
    assert_eq!(first.reason, Some(FinishReason::StopSequence("\n\nEND".into())));
    let second = outcome(&options, "</think>café?é! more", EngineFinish::Length);
    assert_eq!((second.content.as_str(), second.reason), ("café?", Some(FinishReason::StopSequence("é!".into()))));
    let none = outcome(&options, "</think>a\n\nEN", EngineFinish::Stop);
    assert_eq!((none.content.as_str(), none.reason), ("a\n\nEN", Some(FinishReason::Stop)));
    let inside = r#"</think><D calls><D invoke name="get"><D parameter name="city" string="true">é!</D parameter>"#;
    let inside = outcome(&options, inside, EngineFinish::Stop);
    assert_eq!(inside.calls, [call("get", r#"{"city": "é!"}"#)]);
}

#[test]
fn text_is_released_as_soon_as_it_cannot_be_a_marker() {
    let tokenizer = released(Family::V41);
    let mut parser = OutputParser::new(tokenizer, answering());
    let mut push = |text: &str| {
        let ids = tokenizer.encode_with_added(text).expect("text encodes");
        let mut outcome = Vec::new();
        for id in ids {
            outcome.extend(parser.push(id).expect("an id"));
        }
        outcome
    };
    let answer = |text: &str| vec![Event::Answer(text.to_owned())];
    assert_eq!(push("word"), answer("word"));
    assert_eq!(push("\n\n"), []);
    assert_eq!(push("<"), []);
    assert_eq!(push("b"), answer("\n\n<b"));
    // A call is reported when its name is complete, and string values as they come.
    assert_eq!(push("\n\n<｜DSML｜ calls>\n<｜DSML｜ invoke name=\"get"), []);
    assert_eq!(push("\">"), [Event::CallStart { index: 0, name: "get".into() }]);
    let arguments = |text: &str| vec![Event::CallArguments { index: 0, text: text.to_owned() }];
    assert_eq!(push("\n<｜DSML｜ parameter name=\"city\""), arguments("{\"city\": "));
    assert_eq!(push(" string=\"true\">"), arguments("\""));
    assert_eq!(push("Rome"), arguments("Rome"));
    assert_eq!(push("</｜DSML｜"), arguments("\""));
    assert_eq!(push(" parameter>\n"), []);
    let end = vec![Event::CallArguments { index: 0, text: "}".into() }, Event::CallEnd { index: 0 }];
    assert_eq!(push("</｜DSML｜ invoke>\n"), end);
    assert_eq!(push("</｜DSML｜ calls>"), []);
    assert!(parser.is_finished());
    let finish = parser.finish(EngineFinish::Stop);
    assert_eq!((finish.events, finish.reason, finish.empty_block), (vec![], FinishReason::ToolCalls, false));
}

#[test]
fn characters_are_not_split_between_tokens() {
    let tokenizer = released(Family::V41);
    let text = "\u{1F9EC}\u{13080}";
    let ids = tokenizer.encode_plain(text).expect("text encodes");
    assert!(ids.len() > 4, "characters of several tokens each: {ids:?}");
    let mut parser = OutputParser::new(tokenizer, answering());
    let mut outcome = Outcome::default();
    for id in ids.iter().chain(&ids[..1]) {
        for event in parser.push(*id).expect("an id") {
            assert!(matches!(&event, Event::Answer(text) if !text.contains('\u{FFFD}')), "{event:?}");
            outcome.add(vec![event]);
        }
    }
    // The first token of an unfinished character at the end is dropped.
    outcome.add(parser.finish(EngineFinish::Length).events);
    assert_eq!(outcome.content, text);
    // A control token ends a character for good.
    let outcome = parse(Family::V41, &answering(), &[ids[0], 128_803, ids[0]], 1, EngineFinish::Stop);
    assert_eq!(outcome.content, "\u{FFFD}<｜User｜>");
}

#[test]
fn markup_in_odd_places() {
    let plain = ParserOptions { tools: Vec::new(), ..answering() };
    assert_eq!(outcome(&plain, "</D x>a", EngineFinish::Stop).content, "</｜DSML｜ x>a");
    let raw = ParserOptions { start: StartState::Raw, ..answering() };
    assert_eq!(outcome(&raw, "\n<think></think><D", EngineFinish::Stop).content, "\n<think></think><｜DSML｜");
    let twice = outcome(&thinking(), "\n<think>\nr<think></think>a", EngineFinish::Stop);
    assert_eq!((twice.reasoning.as_str(), twice.content.as_str()), ("r<think>", "a"));
    assert_eq!(outcome(&answering(), "a</D inv\nb", EngineFinish::Stop).content, "a\nb");
    assert_eq!(outcome(&answering(), "a</D inv", EngineFinish::Stop).content, "a");
    let json = ParserOptions { json_output: true, ..answering() };
    let called = outcome(&json, "```json\n[1]\n```\n\n<D calls><D invoke name=\"f\"/></D calls>", EngineFinish::Stop);
    assert_eq!((called.content.trim_end(), called.calls.len()), ("[1]", 1));
}

#[test]
fn what_is_wrong_with_an_output_is_said() {
    let tokenizer = released(Family::V41);
    let mut parser = OutputParser::new(tokenizer, answering());
    let ids = tokenizer.encode_with_added("<｜DSML｜toolcall>Read").expect("text encodes");
    assert_eq!(parser.push_all(&ids), Ok(vec![]));
    assert!(parser.push(200_000).is_err());
    let finish = parser.finish(EngineFinish::Stop);
    assert!(finish.empty_block && finish.reason == FinishReason::Stop);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_output_gives_the_same_in_every_chunking(
        pieces in prop::collection::vec(prop_oneof![
            prop::sample::select(vec![
                "<", "</", "｜DSML｜", "<｜DSML｜ calls>", " calls>", " invoke name=\"get\">", "invoke name=\"f\"/>",
                "<｜DSML｜ parameter name=\"city\" string=\"true\">", " parameter name=\"input\" string=\"false\">",
                "</｜DSML｜ parameter>", "</｜DSML｜ invoke>", "</｜DSML｜ calls>", "</think>", "<think>", "\n", "\n\n",
                "\"", "{\"city\": 1}", "STOP", "ST", "<｜User｜>", "é", "\u{1F9EC}", ">",
            ]).prop_map(str::to_owned),
            "[a-z ]{0,6}",
        ], 0..24),
        start in 0usize..5, offer in any::<bool>(), finish in 0usize..3, chunk in 2usize..9,
    ) {
        let starts = [
            StartState::Reasoning { drop_newlines: true },
            StartState::Reasoning { drop_newlines: false },
            StartState::Answer { drop_newlines: true },
            StartState::Calls,
            StartState::Raw,
        ];
        let options = ParserOptions {
            start: starts[start],
            tools: if offer { offered() } else { Vec::new() },
            stop: vec!["STOP".to_owned()],
            json_output: false,
        };
        let finish = [EngineFinish::Stop, EngineFinish::Length, EngineFinish::Cancelled][finish];
        let output = pieces.concat();
        let ids = released(Family::V41).encode_with_added(&output).expect("text encodes");
        let whole = parse(Family::V41, &options, &ids, 1, finish);
        prop_assert_eq!(&whole, &parse(Family::V41, &options, &ids, chunk, finish));
        if finish == EngineFinish::Stop {
            prop_assert_eq!(whole.ended, whole.calls.len());
            for (_, arguments) in &whole.calls {
                let value: Value = serde_json::from_str(arguments).expect("arguments are JSON");
                prop_assert!(value.is_object());
            }
        }
        if starts[start] == StartState::Raw {
            let expected = output.split("STOP").next().expect("a first part");
            prop_assert_eq!(whole.content, expected);
        }
    }
}
