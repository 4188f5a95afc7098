//! What an output may be: tool calls that fit their schemas, answers of a format (protocol.md 2.1, 3.5, 3.7).
//!
//! Owns the translation of a conversation into grammars of the `llguidance` library's languages, as plain data: this crate
//! does not link the library. Who decodes keeps to them token by token. Reasoning is free; a block of calls is held to its
//! grammar from its marker on, wherever it begins; the answer is free, or one of some grammars. Control tokens are in the
//! grammars by id, so text never stands for one.

mod calls;
mod ebnf;
mod error;
mod finite;
mod object;
mod pattern;
mod schema;
mod text;
mod values;

pub use calls::MAX_TOOLS;
pub use error::ConstraintError;
pub use object::MAX_PARAMETERS;
pub use schema::{MAX_DEFINITIONS, MAX_PATTERNS, MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH, MAX_SUBSCHEMAS};
pub use values::{MAX_COUNT, MAX_ENUM};

use serde_json::{Value, json};

use crate::conversation::{Conversation, Message, ResponseFormat, ToolChoice, ToolDefinition};
use crate::json::Json;
use crate::parser::StartState;
use crate::request::Constraint;
use crate::tokenizer::Tokenizer;
use calls::{Opening, literal, regex};
use schema::{Document, Unsupported};

/// Longest grammar that a caller may bring, in bytes.
pub const MAX_GRAMMAR_BYTES: usize = 256 << 10;

/// What one output must be.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OutputConstraint {
    /// Whether the output begins in reasoning.
    pub reasoning: bool,
    /// What follows the marker of a block of calls; none where no tools are on offer, and the marker means nothing.
    pub block: Option<Grammar>,
    /// The answer is one of these; any text if there are none.
    pub answer: Vec<Grammar>,
    /// What the schemas of tools ask for and decoding does not ensure.
    pub notes: Vec<String>,
}

/// A grammar and the schemas that it refers to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Grammar {
    /// In llguidance's variant of Lark; `@name` is a schema.
    pub lark: String,
    /// The schemas.
    pub schemas: Vec<Schema>,
    /// Further grammars that it refers to in the same way, from whoever asked.
    pub inner: Vec<Inner>,
    /// Whether whoever asked wrote the grammar: then it may not use control tokens.
    pub foreign: bool,
}

/// A grammar in a grammar, which cannot use control tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Inner {
    /// Its name in the grammar.
    pub name: String,
    /// In llguidance's variant of Lark.
    pub lark: String,
    /// Where it was in the request.
    pub at: String,
}

/// A schema of a grammar.
#[derive(Debug, Clone, PartialEq)]
pub struct Schema {
    /// Its name in the grammar.
    pub name: String,
    /// The schema, in llguidance's subset of Draft 2020-12 and with its options.
    pub schema: Value,
    /// Where it was in the request.
    pub at: String,
    /// Places of `oneOf` in it.
    pub one_of: Vec<String>,
    /// Whether values may be any JSON if the library cannot take the schema.
    pub replaceable: bool,
}

impl OutputConstraint {
    /// What the output that follows the prompt of `conversation` must be, beginning at `start`; none if it is free.
    /// `constraint` is what the request adds to the conversation: a schema made strict, whether a call must be made.
    ///
    /// # Errors
    /// [`ConstraintError`] names the place and the keyword.
    pub fn new(
        tokenizer: &Tokenizer,
        conversation: &Conversation,
        start: StartState,
        constraint: Option<&Constraint>,
    ) -> Result<Option<Self>, ConstraintError> {
        let mut found = Self { reasoning: matches!(start, StartState::Reasoning { .. }), ..Self::default() };
        let (required, several) = match constraint {
            Some(Constraint::ToolCalls { required, parallel }) => (*required, *parallel),
            _ => (false, true),
        };
        let (family, marker) = (tokenizer.family(), tokenizer.markers().dsml);
        let tools = on_offer(conversation);
        let calls = |opening, notes: &mut Vec<String>| calls::grammar(family, &tools, marker, opening, several, notes);
        if start == StartState::Calls && tools.is_empty() {
            return Err(ConstraintError::invalid("tools", "a call is required, but no tool is on offer yet"));
        }
        if start == StartState::Calls {
            found.answer.push(calls(Opening::Inside, &mut found.notes)?);
            return Ok(Some(found));
        }
        if !tools.is_empty() {
            found.block = Some(calls(Opening::Block, &mut found.notes)?);
        }
        if let Some(format) = format(conversation, constraint)? {
            if matches!(start, StartState::Answer { drop_newlines: false }) {
                return Err(ConstraintError::ContinuedAnswer);
            }
            found.answer.push(format);
        }
        if !tools.is_empty() && (required || !found.answer.is_empty()) {
            if required {
                found.answer.clear();
            }
            let lark = format!("start: {} <[{marker}]>\n", literal("\n\n<"));
            found.answer.push(Grammar { lark, ..Grammar::default() });
        }
        Ok((found.block.is_some() || !found.answer.is_empty()).then_some(found))
    }
}

/// The tools that may be called, as they were said last.
fn on_offer(conversation: &Conversation) -> Vec<&ToolDefinition> {
    if conversation.tool_choice == ToolChoice::None {
        return Vec::new();
    }
    let mut tools: Vec<&ToolDefinition> = conversation.tools.iter().filter(|tool| !tool.deferred).collect();
    for message in &conversation.messages {
        let Message::System { updated_tools, .. } = message else { continue };
        for tool in updated_tools {
            tools.retain(|known| known.name != tool.name);
            tools.push(tool);
        }
    }
    tools
}

/// The grammar of the answer's format.
fn format(conversation: &Conversation, constraint: Option<&Constraint>) -> Result<Option<Grammar>, ConstraintError> {
    const PLACE: &str = "response_format";
    Ok(Some(match constraint {
        Some(Constraint::Json(None)) => any_object(),
        Some(Constraint::Json(Some(schema))) => of_schema(schema)?,
        Some(Constraint::Regex(regex)) => of_regex(regex, PLACE)?,
        Some(Constraint::Grammar(lark)) => of_grammar(lark, PLACE)?,
        Some(Constraint::ToolCalls { .. }) | None => match &conversation.response_format {
            ResponseFormat::Text => return Ok(None),
            ResponseFormat::JsonObject => any_object(),
            ResponseFormat::JsonSchema(schema) => of_schema(schema)?,
            ResponseFormat::Regex(regex) => of_regex(regex, PLACE)?,
            ResponseFormat::Grammar(lark) => of_grammar(lark, PLACE)?,
        },
    }))
}

fn any_object() -> Grammar {
    of_value(&json!({"type": "object"}), "response_format").unwrap_or_default()
}

fn of_schema(schema: &Json) -> Result<Grammar, ConstraintError> {
    const AT: &str = "response_format.schema";
    if schema.as_str().len() > MAX_SCHEMA_BYTES {
        return Err(schema::too_large(AT, "the schema is too long, in bytes", MAX_SCHEMA_BYTES));
    }
    let value: Value =
        serde_json::from_str(schema.as_str()).map_err(|error| ConstraintError::invalid(AT, error.to_string()))?;
    of_value(&value, AT)
}

fn of_value(root: &Value, at: &str) -> Result<Grammar, ConstraintError> {
    let prepared = Document { root, name: at, unsupported: Unsupported::Refuse }.prepare(root, at)?;
    let (name, at) = ("s0".to_owned(), at.to_owned());
    let schema = Schema { name, schema: prepared.schema, at, one_of: prepared.one_of, replaceable: false };
    Ok(Grammar { lark: "start: @s0\n".to_owned(), schemas: vec![schema], ..Grammar::default() })
}

fn of_regex(expression: &str, at: &str) -> Result<Grammar, ConstraintError> {
    pattern::check(expression).map_err(|problem| ConstraintError::invalid(at, format!("the regex: {problem}")))?;
    Ok(Grammar { lark: format!("start: {}\n", regex(expression)), foreign: true, ..Grammar::default() })
}

fn of_grammar(grammar: &str, at: &str) -> Result<Grammar, ConstraintError> {
    Ok(Grammar { lark: lark(grammar, at)?, foreign: true, ..Grammar::default() })
}

/// A grammar in Lark or EBNF, in Lark.
fn lark(grammar: &str, at: &str) -> Result<String, ConstraintError> {
    if grammar.len() > MAX_GRAMMAR_BYTES {
        return Err(schema::too_large(at, "the grammar is too long, in bytes", MAX_GRAMMAR_BYTES));
    }
    match ebnf::is_ebnf(grammar) {
        true => {
            ebnf::to_lark(grammar).map_err(|problem| ConstraintError::invalid(at, format!("the grammar: {problem}")))
        }
        false => Ok(grammar.to_owned()),
    }
}

/// Whether a grammar in Lark speaks of control tokens or of other grammars.
fn reaches_out(lark: &str) -> bool {
    let mut rest = lark.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            '<' | '@' => return true,
            '#' => while rest.next_if(|character| *character != '\n').is_some() {},
            '/' if rest.peek() == Some(&'/') => while rest.next_if(|character| *character != '\n').is_some() {},
            // Texts and expressions.
            quote @ ('"' | '/') => {
                while let Some(character) = rest.next().filter(|character| *character != quote) {
                    if character == '\\' {
                        rest.next();
                    }
                }
            }
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grammar_that_reaches_out_is_told_from_one_that_spells_it() {
        for lark in ["start: <[5]>", "start: \"a\" @s0", "start: /\\//  <|end|> /\\//", "# \"\nstart: @a"] {
            assert!(reaches_out(lark), "{lark}");
        }
        for lark in ["start: \"<\\\"@\"", "start: /<[^\\/>]+>@/", "// <a>\nstart: \"a\" # @b"] {
            assert!(!reaches_out(lark), "{lark}");
        }
    }
}
