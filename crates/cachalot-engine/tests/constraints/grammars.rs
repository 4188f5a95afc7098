//! Grammars that a request brings: in Lark and in EBNF, of answers and of the free text of custom tools.

use cachalot_text::conversation::{Conversation, InputFormat, ResponseFormat, ToolDefinition};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::calls::{any_call, written};
use crate::{ANSWER, Answerer, tool};

/// As other local servers document it.
const JSON: &str = r##"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= # an object
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt/] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [0-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"##;

/// Whether an answer may be `text`.
fn accepts(answerer: &Answerer, grammar: &str) -> impl Fn(&str) -> bool {
    let response_format = ResponseFormat::Grammar(grammar.to_owned());
    let conversation = Conversation { response_format, ..Conversation::default() };
    let constraint = answerer.constraint(&conversation, ANSWER, None);
    let constraint = constraint.unwrap_or_else(|error| panic!("{grammar}: {error}")).expect("a format");
    let engine = std::sync::Arc::clone(answerer.session.engine());
    move |text| {
        let tokenizer = engine.tokenizer();
        let ids = [tokenizer.encode_plain(text).expect("ids"), vec![tokenizer.markers().eos]].concat();
        constraint.accepted(tokenizer, &ids).expect("it can be followed") == ids.len()
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        (-1e6..1e6).prop_map(Value::from),
        "\\PC{0,6}".prop_map(Value::from),
        "[\"\\\\\n\t\u{1}]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("\\PC{0,4}", inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    })
}

#[test]
fn an_answer_in_ebnf_is_what_the_grammar_says() {
    let answerer = Answerer::new("fixtures/v41-tiny", 1);
    for (grammar, yes, no) in [
        ("root ::= \"a\"", vec!["a"], vec!["", "b", "aa"]),
        ("answer::=('yes'|\"no\")\".\"?", vec!["yes", "no."], vec!["yes..", "maybe"]),
        ("root ::= [a-c]{2,3} [^\\n]", vec!["abx", "abc-"], vec!["ab\n", "a", "abcdd"]),
        ("root ::= (\"\\x41\" | \"\\u00e9\" | \"\\U0001F40B\") . ", vec!["Ax", "é\n", "🐋é"], vec!["A", "B1"]),
        ("root ::= a-b+ # twice\na-b ::= \"x\" |\n  \"y\"", vec!["x", "yxy"], vec!["", "z"]),
        // It leads back to itself.
        ("root ::= \"(\" root* \")\"", vec!["()", "(()(()))"], vec!["(", "())", ")("]),
        (
            "root ::= term ([-+] term)*\nterm ::= [0-9]+ | \"(\" root \")\"",
            vec!["1", "12+(3-(4))"],
            vec!["1+", "()", "1+(2"],
        ),
    ] {
        let accepts = accepts(&answerer, grammar);
        for (texts, fits) in [(yes, true), (no, false)] {
            for text in texts {
                assert_eq!(accepts(text), fits, "{grammar}: {text:?}");
            }
        }
    }
    let refused = ResponseFormat::Grammar("root ::= \"a\"\nb ::= [".to_owned());
    let conversation = Conversation { response_format: refused, ..Conversation::default() };
    let error = answerer.constraint(&conversation, ANSWER, None).expect_err("no grammar").to_string();
    assert!(error.starts_with("response_format: the grammar: line 2"), "{error}");
}

#[test]
fn all_of_json_fits_the_grammar_of_json() {
    let answerer = Answerer::new("fixtures/v41-tiny", 1);
    let accepts = accepts(&answerer, JSON);
    proptest!(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() }, |(
        value in any_json(), cut in any::<prop::sample::Index>(),
    )| {
        let text = json!({"a": value}).to_string();
        prop_assert!(accepts(&text), "{text}");
        let short: String = text.chars().take(cut.index(text.chars().count())).collect();
        prop_assert!(!accepts(&short), "{short}");
    });
}

#[test]
fn the_text_of_a_custom_tool_is_what_its_grammar_says() {
    let parameters = json!({"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]});
    let with = |input: InputFormat| ToolDefinition { input: Some(input), ..tool("f", &parameters) };
    let patch = r##"start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF

%import common.LF
"##;
    for model in ["fixtures/v41-tiny", "fixtures/v4-tiny"] {
        let answerer = Answerer::new(model, 1);
        let engine = std::sync::Arc::clone(answerer.session.engine());
        let tokenizer = engine.tokenizer();
        for (input, yes, no) in [
            (InputFormat::Regex("[0-9]{2,3}|a/b".to_owned()), vec!["12", "a/b"], vec!["1", "", "a/bc", "12</"]),
            (
                InputFormat::Grammar("start: \"SELECT \" /[a-z]+/ (\",\" /[a-z]+/)*".to_owned()),
                vec!["SELECT a,b"],
                vec!["SELECT ", "a"],
            ),
            (InputFormat::Grammar("root ::= \"<\" [^>]* \">\" root?".to_owned()), vec!["<a></>"], vec!["<a"]),
            (
                InputFormat::Grammar(patch.to_owned()),
                vec![
                    "*** Begin Patch\n*** Add File: a\n+x\n+</b>\n*** End Patch",
                    "*** Begin Patch\n*** Delete File: a\n*** End Patch\n",
                ],
                vec!["*** Begin Patch\n*** End Patch", "*** Begin Patch\n*** Add File: a\nx\n*** End Patch"],
            ),
        ] {
            let tools = [with(input)];
            let forced = any_call(&answerer, &tools, true);
            for (texts, fits) in [(yes, true), (no, false)] {
                for text in texts {
                    let ids = written(tokenizer, &tools, "", &[("f", json!({"input": text}))]);
                    let accepted = forced.accepted(tokenizer, &ids).expect("it can be followed");
                    assert_eq!(accepted == ids.len(), fits, "{tools:?}: {text:?}");
                }
            }
        }
        for (input, problem) in [
            (InputFormat::Grammar("start: <[5]>".to_owned()), "control tokens"),
            (InputFormat::Grammar("start: a".to_owned()), "a"),
            (InputFormat::Regex("[".to_owned()), "the regex"),
        ] {
            let conversation = Conversation { tools: vec![with(input)], ..Conversation::default() };
            let error = answerer.constraint(&conversation, ANSWER, None).expect_err("no grammar").to_string();
            assert!(error.starts_with("tools[0].format: ") && error.contains(problem), "{error}");
        }
    }
}
