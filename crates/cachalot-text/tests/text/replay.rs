//! 5.9: turns that are written again as they were sampled.

use cachalot_text::conversation::{ToolCall, ToolDefinition};
use cachalot_text::prompt::{SampledTurn, SampledTurns, encode, encode_replaying};
use cachalot_text::{Conversation, Family, Json, Message};

use crate::fixtures::released;

fn asking(thinking: bool) -> Conversation {
    let tool = ToolDefinition {
        name: "f".to_owned(),
        description: None,
        parameters: Json::new("{}").unwrap(),
        strict: None,
        deferred: false,
        input: None,
    };
    Conversation { messages: vec![Message::user("a")], tools: vec![tool], thinking, ..Conversation::default() }
}

fn answered(mut conversation: Conversation) -> Conversation {
    for id in ["call_0", "call_1"] {
        let call = ToolCall { id: id.to_owned(), name: "f".to_owned(), arguments: r#"{"x": 1.5}"#.to_owned() };
        let reasoning = Some("r".to_owned());
        let (content, tool_calls) = ("c".to_owned(), vec![call]);
        conversation.messages.extend([
            Message::Assistant { content, reasoning, tool_calls, prefix: false, task: None },
            Message::tool(id, "result"),
        ]);
    }
    conversation
}

#[test]
fn a_sampled_turn_stands_in_its_place_and_nothing_else_changes() {
    for family in [Family::V4, Family::V41] {
        let tokenizer = released(family);
        for thinking in [false, true] {
            let prompt = encode(tokenizer, &asking(thinking)).unwrap().ids;
            let generated = tokenizer.encode_with_added("r</think>oddly <｜DSML｜written").unwrap();
            let turn = SampledTurn::new(tokenizer, &prompt, &generated).expect("the prompt ends in a turn");
            let conversation = answered(asking(thinking));
            let rendered = encode(tokenizer, &conversation).unwrap().ids;
            let turns = SampledTurns::from([(1, turn.clone())]);
            let replayed = encode_replaying(tokenizer, &conversation, &turns).unwrap().ids;
            let whole = [prompt, generated, vec![tokenizer.markers().eos]].concat();
            assert!(replayed.starts_with(&whole), "{family} {thinking}");
            let end = |ids: &[u32]| ids.iter().position(|id| *id == tokenizer.markers().eos).unwrap();
            assert_eq!(replayed[end(&replayed)..], rendered[end(&rendered)..], "{family} {thinking}");

            // Behind another header the ids would mean something else.
            let other = answered(asking(!thinking));
            assert_eq!(encode_replaying(tokenizer, &other, &turns), encode(tokenizer, &other), "{family} {thinking}");
            // A message that is no turn of the model is left alone.
            let misplaced = SampledTurns::from([(2, turn)]);
            assert_eq!(encode_replaying(tokenizer, &conversation, &misplaced).unwrap().ids, rendered);
        }
    }
}

#[test]
fn a_prompt_that_ends_in_no_turn_has_none_to_replay() {
    let tokenizer = released(Family::V41);
    assert_eq!(SampledTurn::new(tokenizer, &[], &[5]), None);
    assert_eq!(SampledTurn::new(tokenizer, &[tokenizer.markers().assistant], &[5]), None);
    assert_eq!(SampledTurn::new(tokenizer, &[tokenizer.markers().assistant, 5], &[5]), None);
}
