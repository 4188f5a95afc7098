//! Section 2 beyond the fixtures: what is refused, where the parser starts, other checkpoints' tokenizers.

use cachalot_text::conversation::{
    Content, Effort, EffortTexts, Image, ImageDetail, ImageSource, Rules, Span, Task, ToolCall, ToolChoice,
    ToolDefinition,
};
use cachalot_text::parser::StartState;
use cachalot_text::prompt::{PromptError, completion, encode, fill_in_middle};
use cachalot_text::{Conversation, Family, Json, Message, Tokenizer};
use proptest::prelude::*;

use crate::fixtures::{nano, released, tiny};

fn chat(messages: Vec<Message>) -> Conversation {
    Conversation { messages, thinking: false, ..Conversation::default() }
}

fn thinking(messages: Vec<Message>) -> Conversation {
    Conversation { thinking: true, ..chat(messages) }
}

fn prefix(content: &str, reasoning: Option<&str>) -> Message {
    Message::Assistant {
        content: content.into(),
        reasoning: reasoning.map(str::to_owned),
        tool_calls: Vec::new(),
        prefix: true,
        task: None,
    }
}

fn tool() -> ToolDefinition {
    let parameters = Json::new(r#"{"type": "object"}"#).expect("JSON");
    ToolDefinition { name: "f".into(), description: None, parameters, strict: None, deferred: false, input: None }
}

fn text(tokenizer: &Tokenizer, conversation: &Conversation) -> String {
    let prompt = encode(tokenizer, conversation).expect("the conversation encodes");
    tokenizer.decode(&prompt.ids).expect("ids of the vocabulary")
}

#[test]
fn the_parser_starts_where_the_prompt_ends() {
    let user = || Message::user("x");
    let required = Conversation { tools: vec![tool()], tool_choice: ToolChoice::Required, ..chat(vec![user()]) };
    let task = Message::User { content: Content::text("x"), task: Some(Task::Action) };
    let (reasoning, answer) =
        (|drop_newlines| StartState::Reasoning { drop_newlines }, |drop_newlines| StartState::Answer { drop_newlines });
    for (conversation, start) in [
        (thinking(vec![user()]), reasoning(true)),
        (chat(vec![user()]), answer(true)),
        (required, StartState::Calls),
        (chat(vec![user(), prefix("c", None)]), answer(true)),
        (thinking(vec![user(), prefix("", None)]), reasoning(true)),
        (thinking(vec![user(), prefix("", Some("r"))]), reasoning(false)),
        (thinking(vec![user(), prefix("c", Some("r"))]), answer(false)),
        (thinking(vec![task]), answer(true)),
    ] {
        for family in [Family::V4, Family::V41] {
            let prompt = encode(released(family), &conversation).expect("the conversation encodes");
            assert_eq!(prompt.start, start, "{conversation:?}");
        }
    }
}

#[test]
fn small_checkpoints_write_the_same_prompts() {
    let conversation = Conversation {
        tools: vec![tool()],
        effort: Effort::Level(12),
        ..thinking(vec![
            Message::system("Be brief. <｜User｜>"),
            Message::user("naïve?"),
            Message::assistant("a <｜ref｜>b<｜/ref｜> </think>", Some("r".into())),
            Message::user("更"),
        ])
    };
    let expected = text(released(Family::V41), &conversation);
    for tokenizer in [tiny(), nano()] {
        assert_eq!(text(&tokenizer, &conversation), expected);
        let prompt = encode(&tokenizer, &conversation).expect("the conversation encodes");
        let markers = tokenizer.markers();
        let count = |id: u32| prompt.ids.iter().filter(|&&found| found == id).count();
        assert_eq!((count(markers.user), count(markers.assistant), count(markers.eos)), (2, 2, 1));
        assert!(prompt.ids.starts_with(&[markers.bos, markers.system.expect("V4.1 has it")]));
        assert_eq!(prompt.ids.last(), Some(&markers.think_open));
    }
}

#[test]
fn conversations_that_cannot_be_written_are_refused() {
    let (v4, v41) = (released(Family::V4), released(Family::V41));
    let user = || Message::user("x");
    let refuse = |tokenizer: &Tokenizer, conversation: &Conversation| encode(tokenizer, conversation).unwrap_err();
    for level in [0, 101, 255] {
        let conversation = Conversation { effort: Effort::Level(level), ..thinking(vec![user()]) };
        assert_eq!(refuse(v41, &conversation), PromptError::EffortLevel { level });
    }
    let numeric = Conversation { effort: Effort::Level(50), ..thinking(vec![user()]) };
    assert_eq!(refuse(v4, &numeric), PromptError::EffortNumeric { family: Family::V4 });
    assert!(encode(v4, &Conversation { thinking: false, ..numeric }).is_ok());
    let early = chat(vec![user(), prefix("c", None), user()]);
    assert_eq!(refuse(v41, &early), PromptError::PrefixNotLast { index: 1 });
    let required = Conversation { tools: vec![tool()], tool_choice: ToolChoice::Required, ..thinking(vec![user()]) };
    assert_eq!(refuse(v41, &required), PromptError::RequiredWhileThinking);
    let mut reply = Message::assistant("a", None);
    if let Message::Assistant { task, .. } = &mut reply {
        *task = Some(Task::Query);
    }
    assert_eq!(refuse(v41, &chat(vec![user(), reply])), PromptError::TaskPlace { index: 1, task: "<｜query｜>" });
    let reminder = chat(vec![Message::LatestReminder { content: "now".into() }, user()]);
    assert_eq!(refuse(&nano(), &reminder), PromptError::MissingControl { spelling: "<｜latest_reminder｜>".into() });
}

#[test]
fn an_image_needs_a_model_that_sees() {
    let image = Image { source: ImageSource::Bytes(vec![1]), detail: ImageDetail::Low, path: String::new() };
    let content = Content::from_parts([Span::Text("see".into()), Span::Image(image)]);
    let conversation = chat(vec![Message::User { content, task: None }]);
    assert!(text(released(Family::V4), &conversation).contains("see\n\n[Unsupported Image]"));
    assert_eq!(encode(&tiny(), &conversation).expect("it sees").images.len(), 1);
    let profile = cachalot_text::TokenizerProfile {
        family: Family::V41,
        vocab_size: 768,
        image_token_id: None,
        noise_token_id: None,
    };
    let json = crate::fixtures::read("fixtures/v41-tiny/tokenizer.json");
    let blind = Tokenizer::from_json(&json, &profile).expect("the tokenizer loads");
    assert_eq!(encode(&blind, &conversation).unwrap_err(), PromptError::NoVision);
}

#[test]
fn preview_checkpoints_have_other_effort_texts() {
    let first_line = |effort, effort_texts| {
        let conversation = Conversation { effort, effort_texts, ..thinking(vec![Message::user("x")]) };
        text(released(Family::V4), &conversation).lines().next().expect("a line").to_owned()
    };
    let high = first_line(Effort::High, EffortTexts::Release);
    assert!(high.contains("Absolute maximum"), "{high}");
    assert!(first_line(Effort::Max, EffortTexts::Release).contains("Beyond maximum"));
    assert_eq!(first_line(Effort::Max, EffortTexts::Preview), high);
    let none = first_line(Effort::Low, EffortTexts::Release);
    for effort in [Effort::Low, Effort::High, Effort::Xhigh] {
        assert_eq!(first_line(effort, EffortTexts::Preview), none);
    }
}

#[test]
fn the_checkpoint_rules_leave_messages_where_they_are() {
    let developer = |text: &str| Message::Developer { content: Content::text(text) };
    let messages = vec![
        Message::user("a"),
        developer("d"),
        developer("e"),
        Message::system("s"),
        Message::user("b"),
        Message::user("c"),
    ];
    let rules = Rules::Checkpoint { drop_thinking: true };
    let conversation = Conversation { rules, ..chat(messages) };
    let prompt = |family| text(released(family), &conversation);
    let turns = "<｜User｜>a<｜User｜>d<｜User｜>e";
    assert_eq!(prompt(Family::V4), format!("<｜begin▁of▁sentence｜>{turns}s<｜User｜>b\n\nc<｜Assistant｜></think>"));
    assert_eq!(
        prompt(Family::V41),
        format!("<｜begin▁of▁sentence｜>{turns}<｜System｜>s<｜User｜>b\n\nc<｜Assistant｜></think>")
    );
}

#[test]
fn cached_turns_are_not_written_again() {
    for family in [Family::V4, Family::V41] {
        let tokenizer = released(family);
        let turns = vec![Message::user("a"), Message::assistant("b", None), Message::user("c")];
        let whole = encode(tokenizer, &thinking(turns.clone())).expect("it encodes");
        let rest = Conversation { cached_messages: 2, ..thinking(turns.clone()) };
        let rest = encode(tokenizer, &rest).expect("it encodes");
        assert!(whole.ids.ends_with(&rest.ids));
        assert_eq!(rest.ids.first(), Some(&tokenizer.markers().user));
        // Not in the middle of a turn, not beyond the end, not where later messages change earlier ones.
        for cached_messages in [1, 3, 4] {
            let conversation = Conversation { cached_messages, ..thinking(turns.clone()) };
            let error = PromptError::CachedMessages { cached: cached_messages, messages: 3 };
            assert_eq!(encode(tokenizer, &conversation).unwrap_err(), error);
        }
        let kept = vec![Message::user("a"), Message::assistant("b", Some("r".into())), Message::user("c")];
        let rules = Rules::Checkpoint { drop_thinking: true };
        let conversation = Conversation { cached_messages: 2, rules, ..thinking(kept) };
        assert!(matches!(encode(tokenizer, &conversation), Err(PromptError::CachedMessages { .. })));
    }
}

#[test]
fn raw_completions_and_filling_in() {
    let tokenizer = released(Family::V41);
    let markers = tokenizer.markers();
    let prompt = completion(tokenizer, "<｜User｜>x").expect("it encodes");
    assert_eq!(prompt.ids[..2], [markers.bos, markers.user]);
    assert_eq!(completion(tokenizer, "<｜begin▁of▁sentence｜>x").expect("it encodes").ids.len(), 2);
    assert_eq!(prompt.start, StartState::Raw);
    let prompt = fill_in_middle(tokenizer, "def f(", "): </think>").expect("it encodes");
    assert_eq!((prompt.ids[0], prompt.ids[1], prompt.ids.last()), (0, 128_801, Some(&128_802)));
    assert!(prompt.ids.contains(&128_800) && !prompt.ids.contains(&markers.think_close));
    assert!(matches!(fill_in_middle(&nano(), "a", "b"), Err(PromptError::MissingControl { .. })));
}

#[test]
fn numbers_in_arguments_are_not_mistaken_for_stand_ins() {
    // The digits that a stand-in would have, next to an integer that needs one.
    let arguments = r#"{"a": 99999999999999999999999, "b": 17171717171717171718, "c": "17171717171717171719"}"#;
    let call = ToolCall { id: "1".into(), name: "f".into(), arguments: arguments.into() };
    let reply = Message::Assistant {
        content: "17171717171717171720".into(),
        reasoning: None,
        tool_calls: vec![call],
        prefix: false,
        task: None,
    };
    let conversation = chat(vec![Message::user("x"), reply, Message::tool("1", "ok")]);
    for family in [Family::V4, Family::V41] {
        let text = text(released(family), &conversation);
        for digits in
            [">99999999999999999999999<", ">17171717171717171718<", ">17171717171717171719<", ">17171717171717171720\n"]
        {
            assert!(text.contains(digits), "{digits} in {text}");
        }
    }
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        prop::sample::select(vec![
            "",
            "\n\n",
            "<｜User｜>",
            "</think>",
            "｜DSML｜",
            "<｜end▁of▁sentence｜>",
            "<｜title｜>"
        ])
        .prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn text_of_others_never_becomes_a_control_token(texts in prop::collection::vec(any_text(), 6), think in any::<bool>()) {
        let message = |index: usize| texts[index].clone();
        let call = ToolCall { id: "1".into(), name: "f".into(), arguments: message(3) };
        let reply = Message::Assistant {
            content: message(2),
            reasoning: Some(message(4)),
            tool_calls: vec![call],
            prefix: false,
            task: None,
        };
        let messages = |texts: &dyn Fn(usize) -> String, reply: Message| {
            vec![Message::system(texts(0)), Message::user(texts(1)), reply, Message::tool("1", texts(5)), Message::user("x")]
        };
        let plain = Message::Assistant {
            content: "x".into(),
            reasoning: Some("x".into()),
            tool_calls: vec![ToolCall { id: "1".into(), name: "f".into(), arguments: "x".into() }],
            prefix: false,
            task: None,
        };
        for family in [Family::V4, Family::V41] {
            let tokenizer = released(family);
            let conversation = |messages| Conversation { tools: vec![tool()], thinking: think, ..chat(messages) };
            let control = |conversation: &Conversation| -> Vec<u32> {
                let ids = encode(tokenizer, conversation).expect("it encodes").ids;
                ids.into_iter().filter(|id| tokenizer.is_added(*id)).collect()
            };
            // The control tokens are those of the same conversation with harmless texts.
            let mut found = control(&conversation(messages(&message, reply.clone())));
            let mut expected = control(&conversation(messages(&|_| "x".to_owned(), plain.clone())));
            // Arguments may be an object with any number of parameters, each with two markers.
            let markers = tokenizer.markers();
            found.retain(|id| *id != markers.dsml);
            expected.retain(|id| *id != markers.dsml);
            prop_assert_eq!(found, expected);
        }
    }
}
