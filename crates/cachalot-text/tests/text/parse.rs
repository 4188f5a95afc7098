//! Section 3: outputs, through the parser that the program uses.

use cachalot_text::Family;
use cachalot_text::parser::{
    EngineFinish, Event, Finish, FinishReason, OfferedTool, OutputParser, ParserOptions, StartState,
};
use serde_json::Value;

use crate::fixtures::{self, released};

/// Everything an output came to.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Outcome {
    pub reasoning: String,
    pub content: String,
    pub calls: Vec<(String, String)>,
    pub ended: usize,
    pub reason: Option<FinishReason>,
}

impl Outcome {
    pub fn add(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Reasoning(text) => self.reasoning.push_str(&text),
                Event::Answer(text) => self.content.push_str(&text),
                Event::CallStart { index, name } => {
                    assert_eq!(index, self.calls.len());
                    self.calls.push((name, String::new()));
                }
                Event::CallArguments { index, text } => {
                    assert!(index + 1 == self.calls.len() && !text.is_empty());
                    self.calls[index].1.push_str(&text);
                }
                Event::CallEnd { index } => {
                    assert_eq!((index, index + 1), (self.ended, self.calls.len()));
                    self.ended += 1;
                }
            }
        }
    }
}

pub fn parse(family: Family, options: &ParserOptions, ids: &[u32], chunk: usize, finish: EngineFinish) -> Outcome {
    let mut parser = OutputParser::new(released(family), options.clone());
    let mut outcome = Outcome::default();
    for ids in ids.chunks(chunk) {
        outcome.add(parser.push_all(ids).expect("ids of the vocabulary"));
    }
    let Finish { events, reason, .. } = parser.finish(finish);
    outcome.add(events);
    outcome.reason = Some(reason);
    outcome
}

fn options(line: &Value) -> ParserOptions {
    let thinking = line["thinking"] == true;
    let tools = line["tools"].as_array().expect("tools").iter().map(|tool| OfferedTool {
        name: tool["function"]["name"].as_str().expect("a name").to_owned(),
        properties: tool["function"]["parameters"]["properties"]
            .as_object()
            .expect("properties")
            .keys()
            .cloned()
            .collect(),
    });
    ParserOptions {
        start: match line["start"].as_str() {
            None if thinking => StartState::Reasoning { drop_newlines: true },
            None => StartState::Answer { drop_newlines: true },
            Some("reasoning_continuation") => StartState::Reasoning { drop_newlines: false },
            Some("answer_continuation") => StartState::Answer { drop_newlines: false },
            Some("tool_calls") => StartState::Calls,
            Some(other) => panic!("unknown start {other}"),
        },
        tools: tools.collect(),
        stop: line["stop"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|stop| stop.as_str().expect("text").to_owned())
            .collect(),
        json_output: line["response_format"] == "json_object",
    }
}

/// Compare an outcome with a line; arguments as JSON values where they are JSON.
fn differences(line: &Value, outcome: &Outcome, exact_blanks: bool) -> Option<String> {
    let expected = &line["expected"];
    let reason = match outcome.reason.as_ref() {
        Some(FinishReason::Stop | FinishReason::StopSequence(_)) => "stop",
        Some(FinishReason::ToolCalls) => "tool_calls",
        Some(FinishReason::Length) => "length",
        _ => "?",
    };
    let calls = expected["tool_calls"].as_array().expect("calls");
    let same_calls = calls.len() == outcome.calls.len()
        && calls.iter().zip(&outcome.calls).all(|(call, (name, arguments))| {
            let wanted = call["arguments"].as_str().expect("arguments");
            let value = |text: &str| serde_json::from_str::<Value>(text).ok();
            call["name"] == **name
                && (wanted == arguments || value(wanted).is_some() && value(wanted) == value(arguments))
        });
    let content = expected["content"].as_str().expect("content");
    let same_content = content == outcome.content || !exact_blanks && content.trim() == outcome.content.trim();
    let same =
        same_calls && same_content && expected["reasoning"] == *outcome.reasoning && expected["finish"] == reason;
    (!same).then(|| format!("{}: {outcome:?}\n   expected {expected}", line["name"]))
}

fn engine_finish(line: &Value) -> EngineFinish {
    if line["backend_finish"] == "length" { EngineFinish::Length } else { EngineFinish::Stop }
}

#[test]
fn every_line_of_parse_jsonl_in_every_chunking() {
    let lines = fixtures::lines("parse.jsonl");
    let mut failures = Vec::new();
    for (_, line) in &lines {
        let (ids, options) = (fixtures::ids(&line["ids"]), options(line));
        for chunk in [1, 2, 3, 7, 1000] {
            let outcome = parse(fixtures::family(line), &options, &ids, chunk, engine_finish(line));
            // Only JSON mode depends on the chunking, by the number of blanks around the JSON.
            let exact = chunk == 1 || !options.json_output;
            failures.extend(differences(line, &outcome, exact).map(|text| format!("chunk {chunk} {text}")));
        }
    }
    assert_eq!(lines.len(), 139);
    fixtures::report(failures, lines.len());
}
