//! The schema campaign: many schemas and tools, each answered by random weights at temperature 2.
//!
//! An output is valid, or the token limit cut it, and then every token of it was taken by the grammar (the engine fails
//! otherwise). The ordinary tests take a sample; the whole is a command of its own (README, Structured output).

use std::collections::HashSet;
use std::time::{Duration, Instant};

use cachalot_text::Json;
use cachalot_text::conversation::{Conversation, ResponseFormat, ToolChoice};
use cachalot_text::request::Constraint as Wish;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{ANSWER, Answerer, check, fixture, lines, tool};

/// What came of a campaign.
#[derive(Default)]
struct Tally {
    schemas: usize,
    whole: usize,
    cut: usize,
    tokens: usize,
    slowest: Duration,
    failures: Vec<String>,
}

impl Tally {
    fn report(self, name: &str) {
        let Self { schemas, whole, cut, tokens, slowest, failures } = self;
        println!(
            "{name}: {schemas} schemas, {whole} outputs valid, {cut} cut, {tokens} tokens, compiled in {slowest:?} at most"
        );
        assert!(failures.is_empty(), "{} fail:\n{}", failures.len(), failures.join("\n"));
        assert!(whole > 0, "nothing was ever finished");
    }
}

/// Answers of a schema; every `step`th schema of the fixture from `first` on.
fn formats(answerer: &mut Answerer, first: usize, step: usize, outputs: u64) -> Tally {
    let mut tally = Tally::default();
    for line in lines("schemas.jsonl").iter().skip(first).step_by(step) {
        let (name, schema) = (&line["name"], &line["schema"]);
        let response_format = ResponseFormat::JsonSchema(Json::from(schema));
        let conversation = Conversation { response_format, ..Conversation::default() };
        let begin = Instant::now();
        let constraint = match answerer.constraint(&conversation, ANSWER, None) {
            Ok(constraint) => constraint.expect("a format is a constraint"),
            Err(error) => {
                tally.failures.push(format!("{name}: {error}"));
                continue;
            }
        };
        tally.schemas += 1;
        tally.slowest = tally.slowest.max(begin.elapsed());
        for seed in 0..outputs {
            let output = answerer.output(&conversation, ANSWER, Some(constraint.clone()), seed);
            tally.tokens += output.tokens;
            if output.cut {
                tally.cut += 1;
                continue;
            }
            match check(schema, &output.answer) {
                Ok(()) => tally.whole += 1,
                Err(error) => tally.failures.push(format!("{name} ({seed}): {error}: {:?}", output.text)),
            }
        }
    }
    tally
}

/// Calls of a tool, each alone.
fn calls(answerer: &mut Answerer, first: usize, step: usize, outputs: u64) -> Tally {
    let mut tally = Tally::default();
    for line in lines("tools.jsonl").iter().skip(first).step_by(step) {
        let (name, schema) = (line["name"].as_str().expect("a name"), &line["parameters"]);
        let tools = vec![tool(name, schema)];
        let conversation = Conversation { tools, tool_choice: ToolChoice::Auto, ..Conversation::default() };
        let wish = Wish::ToolCalls { required: true, parallel: false };
        let begin = Instant::now();
        let constraint = match answerer.constraint(&conversation, ANSWER, Some(&wish)) {
            Ok(constraint) => constraint.expect("tools are a constraint"),
            Err(error) => {
                tally.failures.push(format!("{name}: {error}"));
                continue;
            }
        };
        if !constraint.notes().is_empty() {
            tally.failures.push(format!("{name}: {:?}", constraint.notes()));
        }
        tally.schemas += 1;
        tally.slowest = tally.slowest.max(begin.elapsed());
        for seed in 0..outputs {
            let output = answerer.output(&conversation, ANSWER, Some(constraint.clone()), seed);
            tally.tokens += output.tokens;
            if output.cut {
                tally.cut += 1;
                continue;
            }
            let checked = match output.calls.as_slice() {
                [(called, arguments)] if called == name => check(schema, arguments),
                other => Err(format!("other calls than asked for: {other:?}")),
            };
            match checked {
                Ok(()) => tally.whole += 1,
                Err(error) => tally.failures.push(format!("{name} ({seed}): {error}: {:?}", output.text)),
            }
        }
    }
    tally
}

/// The same schemas as the type of a parameter, where references to the root do not forbid it.
fn parameters(answerer: &mut Answerer, first: usize, step: usize, outputs: u64) -> Tally {
    let mut tally = Tally::default();
    for line in lines("schemas.jsonl").iter().skip(first).step_by(step) {
        let (name, schema) = (&line["name"], &line["schema"]);
        if schema.to_string().contains("$ref") || schema.get("$schema").is_some() {
            continue;
        }
        let object = json!({"type": "object", "properties": {"v": schema}, "required": ["v"]});
        let tools = vec![tool("f", &object)];
        let conversation = Conversation { tools, tool_choice: ToolChoice::Required, ..Conversation::default() };
        let start = cachalot_text::parser::StartState::Calls;
        let constraint = match answerer.constraint(&conversation, start, None) {
            Ok(constraint) => constraint.expect("tools are a constraint"),
            Err(error) => {
                tally.failures.push(format!("{name}: {error}"));
                continue;
            }
        };
        tally.schemas += 1;
        for seed in 0..outputs {
            let output = answerer.output(&conversation, start, Some(constraint.clone()), seed);
            tally.tokens += output.tokens;
            if output.cut {
                tally.cut += 1;
                continue;
            }
            let checked = output.calls.iter().try_for_each(|(_, arguments)| check(&object, arguments));
            match checked {
                Ok(()) if !output.calls.is_empty() => tally.whole += 1,
                other => tally.failures.push(format!("{name} ({seed}): {other:?}: {:?}", output.text)),
            }
        }
    }
    tally
}

#[test]
fn a_sample_of_the_campaign() {
    let mut answerer = Answerer::new("fixtures/v41-tiny", 500);
    formats(&mut answerer, 0, 3, 1).report("formats");
    calls(&mut answerer, 0, 3, 1).report("calls");
    let mut answerer = Answerer::new("fixtures/v4-tiny", 500);
    parameters(&mut answerer, 1, 5, 1).report("parameters");
    calls(&mut answerer, 1, 5, 1).report("calls");
}

#[test]
#[ignore = "minutes; the command is in the README"]
fn the_whole_campaign() {
    let count =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (outputs, tokens) = (count("OUTPUTS", 4), count("TOKENS", 400));
    for model in ["fixtures/v41-tiny", "fixtures/v4-tiny", "models/nano"] {
        let mut answerer = Answerer::new(model, tokens as usize);
        formats(&mut answerer, 0, 1, outputs).report(&format!("{model}, formats"));
        calls(&mut answerer, 0, 1, outputs).report(&format!("{model}, calls"));
        parameters(&mut answerer, 0, 1, outputs).report(&format!("{model}, parameters"));
    }
}

#[test]
fn the_campaign_is_large_enough() {
    let names = |file: &str| -> HashSet<String> { lines(file).iter().map(|line| line["name"].to_string()).collect() };
    let (schemas, tools) = (names("schemas.jsonl"), names("tools.jsonl"));
    assert!(schemas.len() >= 200 && tools.len() >= 40, "{} schemas, {} tools", schemas.len(), tools.len());
}

#[test]
fn what_cannot_be_enforced_is_refused_by_name() {
    let answerer = Answerer::new("fixtures/v41-tiny", 1);
    let mut failures = Vec::new();
    for line in lines("refused.jsonl") {
        let schema = &line["schema"];
        let conversation =
            Conversation { response_format: ResponseFormat::JsonSchema(Json::from(schema)), ..Conversation::default() };
        let says = line["says"].as_str().expect("a word");
        match answerer.constraint(&conversation, ANSWER, None) {
            Err(error) if error.to_string().contains(says) && error.to_string().contains("response_format") => {
                println!("{error}");
            }
            other => failures.push(format!("{}: {other:?}", line["name"])),
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn json_is_spaced_as_printers_space_it_and_no_wider() {
    let answerer = Answerer::new("fixtures/v41-tiny", 1);
    let conversation = Conversation { response_format: ResponseFormat::JsonObject, ..Conversation::default() };
    let constraint = answerer.constraint(&conversation, ANSWER, None).expect("it compiles").expect("a constraint");
    let tokenizer = answerer.session.engine().tokenizer();
    let whole = |text: &str| {
        let ids = tokenizer.encode_plain(text).expect("it encodes");
        constraint.accepted(tokenizer, &ids).expect("it can be followed") == ids.len()
    };
    let mut value = json!([1, {"deepest": true}]);
    for level in 0..6 {
        value = json!({format!("level {level}"): value, "empty": {}, "list": [], "text": "a  b\n\n"});
    }
    for indent in ["", "  ", "    ", "\t"] {
        let mut text = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter)).expect("JSON");
        let text = String::from_utf8(text).expect("UTF-8");
        // The deepest is eight levels deep.
        assert!(text.contains(&format!("\n{}\"deepest\"", indent.repeat(8))), "{text}");
        assert!(whole(&text), "{text}");
        assert!(whole(&text.replace('\n', "\r\n")), "{text}");
    }
    assert!(whole(&value.to_string()) && whole(r#"{"a": 1, "b": [true, null]}"#) && whole(r#"{ "a" : 1 }"#));
    let wide = [" ".repeat(2), "\n".repeat(2), "\n \n".to_owned(), format!("\n{}", " ".repeat(33)), "\t".to_owned()];
    for space in wide {
        for text in [format!("{{{space}\"a\": 1}}"), format!("{{\"a\":{space}1}}"), format!("{{\"a\": 1{space}}}")] {
            assert!(!whole(&text), "{text:?}");
        }
    }
}

/// Schemas made to cost much: each is taken or refused, in bounded time.
#[test]
fn hostile_schemas_cost_little() {
    let answerer = Answerer::new("fixtures/v41-tiny", 1);
    let doubling = |keyword: &str| {
        let definitions: serde_json::Map<String, Value> = (0..40)
            .map(|level| {
                let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
                (format!("d{level}"), json!({keyword: [next.clone(), next]}))
            })
            .chain([("d40".to_owned(), json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/d0"}}}))])
            .collect();
        json!({"$ref": "#/$defs/d0", "$defs": definitions})
    };
    let nested = (0..45).fold(json!({"type": "null"}), |inner, _| {
        json!({"type": "object", "properties": {"a": inner.clone(), "b": {"type": "null"}}, "required": ["a"]})
    });
    let wide: serde_json::Map<String, Value> = (0..3000)
        .map(|index| (format!("p{index}"), json!({"type": "string", "pattern": format!("^{index}[a-z]+$")})))
        .collect();
    let products = json!({"type": "object", "allOf": (0..14).map(|index| json!({"anyOf": [
        {"properties": {format!("a{index}"): {"type": "integer"}}}, {"properties": {format!("b{index}"): {"const": 1}}}]})).collect::<Vec<_>>()});
    for (name, schema) in [
        ("doubling anyOf", doubling("anyOf")),
        ("doubling allOf", doubling("allOf")),
        ("doubling oneOf", doubling("oneOf")),
        ("endless reference", json!({"$ref": "#"})),
        ("endless allOf", json!({"allOf": [{"$ref": "#"}]})),
        ("nested", nested),
        ("wide", json!({"type": "object", "properties": wide})),
        ("products", products),
        ("long strings", json!({"type": "string", "minLength": 99_000, "maxLength": 100_000})),
        ("long pattern", json!({"type": "string", "pattern": "^(a?){60}a{60}$"})),
        ("counted pattern", json!({"type": "string", "pattern": "^(([a-z]{1,30}){1,30}){1,3}$"})),
        ("many items", json!({"type": "array", "minItems": 99_999, "items": {"type": "string", "maxLength": 50_000}})),
        (
            "many values",
            json!({"enum": (0..4000).map(|index| "x".repeat(index % 500) + &index.to_string()).collect::<Vec<_>>()}),
        ),
        ("multiples", json!({"type": "integer", "multipleOf": 99_999_989, "minimum": 1})),
    ] {
        let begin = Instant::now();
        let text = Json::from(&schema);
        let format = Conversation { response_format: ResponseFormat::JsonSchema(text), ..Conversation::default() };
        let strict =
            |value: &Value| cachalot_text::conversation::ToolDefinition { strict: Some(true), ..tool("f", value) };
        let mut object = json!({"type": "object", "properties": {"v": schema}});
        if let Some(definitions) = schema.get("$defs") {
            object = json!({"type": "object", "properties": {"v": {"$ref": "#/$defs/d0"}}, "$defs": definitions});
        }
        let call = Conversation { tools: vec![strict(&object)], ..Conversation::default() };
        let mut told = Vec::new();
        for conversation in [&format, &call] {
            let found = answerer.constraint(conversation, ANSWER, None);
            told.push(found.map_or_else(|error| error.to_string().chars().take(120).collect(), |_| "taken".to_owned()));
        }
        println!("{name}: {:?}: {told:?}", begin.elapsed());
        // Not a matter of speed: what is not bounded takes for ever.
        assert!(begin.elapsed() < Duration::from_secs(60), "{name}");
    }
    assert!(fixture("schemas.jsonl").exists());
}
