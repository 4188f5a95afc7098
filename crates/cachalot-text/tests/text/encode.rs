//! Sections 2 and 5: prompts, through the conversation that the program uses.

use cachalot_text::conversation::{Content, Effort, Rules, Task, ToolCall};
use cachalot_text::prompt::{Fragment, encode, render};
use cachalot_text::request::{Api, convert};
use cachalot_text::{Conversation, Family, Message};
use serde_json::Value;

use crate::fixtures::{self, family, released};

/// The conversation of a line: converted from an HTTP body, or read from the checkpoint encoder's own fields.
fn conversation(line: &Value) -> Result<Conversation, String> {
    let body = line["request"].to_string();
    let api = match line["api"].as_str() {
        Some("chat") => Api::Chat,
        Some("messages") => Api::Messages,
        Some("responses") => Api::Responses,
        _ => return Ok(checkpoint_conversation(family(line), &line["request"])),
    };
    convert(api, family(line), &body).map(|request| request.conversation).map_err(|error| error.to_string())
}

fn checkpoint_conversation(family: Family, request: &Value) -> Conversation {
    let list = |name: &str| request[name].as_array().cloned().unwrap_or_default();
    let (context, messages) = (list("context"), list("messages"));
    Conversation {
        cached_messages: context.len(),
        messages: context.iter().chain(&messages).map(checkpoint_message).collect(),
        thinking: request["thinking"]["type"] == "enabled",
        effort: match (&request["reasoning_effort"], family) {
            (Value::Number(level), _) => Effort::Level(level.as_u64().expect("a level") as u8),
            (Value::String(name), _) if name == "low" => Effort::Low,
            (Value::Null, Family::V4) => Effort::Low,
            (Value::Null, Family::V41) => Effort::High,
            (other, _) => panic!("unknown effort {other}"),
        },
        rules: Rules::Checkpoint { drop_thinking: request["drop_thinking"] != false },
        bos: request["add_default_bos_token"] != false,
        ..Conversation::default()
    }
}

fn checkpoint_message(message: &Value) -> Message {
    let text = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
    let task = message["task"].as_str().map(|task| match task {
        "action" => Task::Action,
        "query" => Task::Query,
        "authority" => Task::Authority,
        "domain" => Task::Domain,
        "title" => Task::Title,
        "read_url" => Task::ReadUrl,
        other => panic!("unknown task {other}"),
    });
    match message["role"].as_str() {
        Some("system") => Message::system(text("content")),
        Some("developer") => Message::Developer { content: Content::text(text("content")) },
        Some("user") => Message::User { content: Content::text(text("content")), task },
        Some("latest_reminder") => Message::LatestReminder { content: text("content") },
        Some("tool") => Message::tool(text("tool_call_id"), text("content")),
        Some("assistant") => Message::Assistant {
            content: text("content"),
            reasoning: message["reasoning_content"].as_str().map(str::to_owned),
            tool_calls: message["tool_calls"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|call| ToolCall {
                    id: call["id"].as_str().expect("an id").to_owned(),
                    name: call["function"]["name"].as_str().expect("a name").to_owned(),
                    arguments: call["function"]["arguments"].as_str().expect("arguments").to_owned(),
                })
                .collect(),
            prefix: message["wo_eos"] == true,
            task,
        },
        other => panic!("unknown role {other:?}"),
    }
}

/// The text of fragments and the byte ranges of control tokens in it.
fn flat(fragments: &[Fragment]) -> (String, Vec<[usize; 2]>) {
    let (mut text, mut special) = (String::new(), Vec::new());
    for fragment in fragments {
        let start = text.len();
        match fragment {
            Fragment::Plain(plain) => text.push_str(plain),
            Fragment::Control(spelling) => text.push_str(spelling),
            Fragment::Image => text.push_str("<｜deepseek_image｜>"),
            Fragment::Sampled(_) => panic!("nothing was sampled"),
        }
        if !matches!(fragment, Fragment::Plain(_)) {
            special.push([start, text.len()]);
        }
    }
    (text, special)
}

#[test]
fn every_line_of_encode_jsonl() {
    let lines = fixtures::lines("encode.jsonl");
    let mut failures = Vec::new();
    for (_, line) in &lines {
        let tokenizer = released(family(line));
        let name = &line["name"];
        let conversation = match conversation(line) {
            Ok(conversation) => conversation,
            Err(error) => {
                failures.push(format!("{name}: {error}"));
                continue;
            }
        };
        let (prompt, (fragments, _)) = match (encode(tokenizer, &conversation), render(tokenizer, &conversation)) {
            (Ok(prompt), Ok(rendered)) => (prompt, rendered),
            (Err(error), _) | (_, Err(error)) => {
                failures.push(format!("{name}: {error}"));
                continue;
            }
        };
        let (text, special) = flat(&fragments);
        if text != line["prompt"].as_str().expect("a prompt") {
            failures.push(format!("{name}: text\n  {text:?}\n  {}", line["prompt"]));
        } else if !line["special"].is_null() && serde_json::json!(special) != line["special"] {
            failures.push(format!("{name}: special {special:?}, expected {}", line["special"]));
        } else if prompt.ids != fixtures::ids(&line["ids"]) {
            failures.push(format!("{name}: ids {:?}, expected {}", prompt.ids, line["ids"]));
        } else if line["images"] != prompt.images.len() {
            failures.push(format!("{name}: {} images", prompt.images.len()));
        }
    }
    assert_eq!(lines.len(), 265);
    fixtures::report(failures, lines.len());
}

/// Cases in which the checkpoint's encoder prints something else than our [`Rules::Checkpoint`], by the section that
/// says so; each stands for both families where both have it.
const OTHERWISE: [(&str, &[&str]); 8] = [
    ("2.4 header of a billing system", &["system_billing_header_stripped", "system_empty_dropped"]),
    ("2.4 tools", &["tools_minimal_definition", "tools_numbers_in_schema", "tools_strict_normalised"]),
    ("2.4 formats", &["json_object_chat", "json_object_with_system"]),
    ("2.4 choice", &["tool_choice_required_chat", "tool_choice_named_chat"]),
    ("2.6 merging and sorting", &["users_merge_with_empty", "tool_calls_parallel_result_order"]),
    (
        "2.7 empty arguments, numbers, V4",
        &[
            "tool_result_special_text",
            "tool_result_empty",
            "tool_result_parts",
            "tool_args_every_type",
            "tool_args_empty_object",
        ],
    ),
    (
        "2.8, 2.9 reminders and prefixes",
        &["latest_reminder_after_user", "latest_reminder_twice", "prefix_reasoning_only", "prefix_empty_thinking"],
    ),
    (
        "2.10 images, V4",
        &["image_between_text", "image_only", "image_with_literal_text", "image_in_tool_result", "image_in_system"],
    ),
];

#[test]
fn the_checkpoint_rules_give_the_checkpoint_encoders_prompts() {
    let (mut failures, mut checked) = (Vec::new(), 0);
    for (_, line) in fixtures::lines("encode.jsonl").iter().filter(|(_, line)| line["api"] == "chat") {
        let checkpoint = match line["checkpoint_encoder"].as_str() {
            Some("same") => &line["prompt"],
            Some("differs") => &line["checkpoint_prompt"],
            _ => continue,
        };
        let mut conversation = conversation(line).expect("the request converts");
        conversation.rules = Rules::Checkpoint { drop_thinking: true };
        let (fragments, _) = render(released(family(line)), &conversation).expect("the conversation renders");
        let case = line["name"].as_str().and_then(|name| name.split_once('_')).expect("a name").1;
        let otherwise =
            line["checkpoint_encoder"] == "differs" && OTHERWISE.iter().any(|(_, cases)| cases.contains(&case));
        checked += 1;
        if (flat(&fragments).0 == *checkpoint) == otherwise {
            failures.push(format!("{}\n  {:?}\n  {checkpoint}", line["name"], flat(&fragments).0));
        }
    }
    assert_eq!(checked, 189);
    fixtures::report(failures, checked);
}
