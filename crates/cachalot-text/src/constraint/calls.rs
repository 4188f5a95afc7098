//! The grammar of a block of tool calls (protocol.md 2.1, 3.7).
//!
//! Owns the tags of both families, the order in which parameters may come, and how each is written: strings raw, anything
//! else as JSON. A tool that is strict has its parameters in the order of its schema; of any other tool they come in any
//! order, each once, and optional ones may be missing. Refuses names that would break a tag.

use std::fmt::Write;

use serde_json::Value;

use super::error::ConstraintError;
use super::object::{Counts, Object, plain};
use super::schema::{Document, MAX_SCHEMA_BYTES, Prepared, Unsupported, too_large};
use super::text::{self, Text};
use super::{Grammar, Inner, Schema, lark, pattern, reaches_out};
use crate::Family;
use crate::conversation::{InputFormat, ToolDefinition};

/// Most parameters that may come in any order; with more of them a tool has all in the order of its schema.
const MAX_FREE: usize = 60;
/// Most tools.
pub const MAX_TOOLS: usize = 512;
/// The bit that says that a parameter without a name in the schema has come.
const OTHERS: usize = 63;
/// Names of parameters that the schema does not list. One may come twice; then the last one counts.
const OTHER_NAME: &str = "[a-zA-Z_][a-zA-Z0-9_.-]{0,63}";

/// Where a grammar of calls begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// Behind the marker of the block's tag.
    Block,
    /// Inside the block, which the prompt has opened.
    Inside,
}

/// The grammar of a block of calls of `tools`; several, or one.
pub(super) fn grammar(
    family: Family,
    tools: &[&ToolDefinition],
    marker: u32,
    opening: Opening,
    several: bool,
    notes: &mut Vec<String>,
) -> Result<Grammar, ConstraintError> {
    if tools.len() > MAX_TOOLS {
        return Err(too_large("tools", &format!("{} tools", tools.len()), MAX_TOOLS));
    }
    let (space, block) = match family {
        Family::V4 => ("", "tool_calls"),
        Family::V41 => (" ", "calls"),
    };
    let mut writer = Writer { family, space, marker: format!("<[{marker}]>"), terminals: 0, out: Grammar::default() };
    let first = match opening {
        Opening::Block => literal(&format!("{space}{block}>\n<")),
        Opening::Inside => literal("<"),
    };
    let marker = writer.marker.clone();
    let end = format!("{} {marker} {}", literal("\n</"), literal(&format!("{space}{block}>")));
    let next = if several { format!("{} {marker} call more | {end}", literal("\n<")) } else { end };
    writeln!(writer.out.lark, "start: {first} {marker} call more\nmore: {next}").ok();
    let mut calls = Vec::new();
    for (index, tool) in tools.iter().enumerate() {
        calls.push(writer.tool(index, tool, notes)?);
    }
    writeln!(writer.out.lark, "call: {}", calls.join("\n | ")).ok();
    Ok(writer.out)
}

/// A parameter of a tool.
struct Parameter {
    /// How its name is written in the grammar.
    name: Name,
    required: bool,
    texts: Vec<Text>,
    /// The schema of its values that are no strings, by the name it has in the grammar.
    json: Option<String>,
    /// The grammar of its text, by the name it has in the grammar.
    inner: Option<String>,
}

enum Name {
    Listed(String),
    /// Any name but these.
    Other(Vec<String>),
}

struct Writer {
    family: Family,
    /// What stands between a marker and the name of its tag.
    space: &'static str,
    marker: String,
    terminals: usize,
    out: Grammar,
}

impl Writer {
    /// Writes the rules of a tool; what a call of it is.
    fn tool(
        &mut self,
        index: usize,
        tool: &ToolDefinition,
        notes: &mut Vec<String>,
    ) -> Result<String, ConstraintError> {
        let place = at_tool(index);
        let at = format!("{place}.parameters ({})", tool.name);
        if !plain(&tool.name) {
            let problem =
                format!("the name {:?} cannot be written in a call: no quotes, brackets or line ends", tool.name);
            return Err(ConstraintError::invalid(&place, problem));
        }
        if tool.parameters.as_str().len() > MAX_SCHEMA_BYTES {
            return Err(too_large(&at, "the schema is too long, in bytes", MAX_SCHEMA_BYTES));
        }
        let root: Value = serde_json::from_str(tool.parameters.as_str())
            .map_err(|error| ConstraintError::invalid(&at, error.to_string()))?;
        let unsupported = if tool.strict == Some(true) { Unsupported::Refuse } else { Unsupported::Relax };
        let document = Document { root: &root, name: &at, unsupported };
        let object = Object::of(&document, &at, notes)?;
        let mut parameters = Vec::new();
        for (name, value, pointer, required) in &object.listed {
            if !plain(name) {
                let problem =
                    format!("the name {name:?} cannot be written in a call: no quotes, brackets or line ends");
                if *required || unsupported == Unsupported::Refuse {
                    return Err(ConstraintError::invalid(&at, problem));
                }
                notes.push(format!("{at}: {problem}; the parameter is never given"));
                continue;
            }
            if let Some(format) = tool.input.as_ref().filter(|_| name == "input") {
                let name = Name::Listed(name.clone());
                parameters.push(self.input(name, format, &format!("{}.format", at_tool(index)))?);
                continue;
            }
            let place = format!("{at}{pointer}");
            if let Some(parameter) =
                self.parameter(&document, Name::Listed(name.clone()), value, &place, *required, notes)?
            {
                parameters.push(parameter);
            } else if *required {
                return Err(ConstraintError::invalid(&place, "a required parameter for which no value fits"));
            }
        }
        let names = object.listed.iter().map(|(name, ..)| name.clone()).collect();
        let others = match object.others {
            Some((value, pointer)) => {
                self.parameter(&document, Name::Other(names), value, &format!("{at}{pointer}"), false, notes)?
            }
            None => None,
        };
        let free = tool.strict != Some(true) && parameters.len() <= MAX_FREE;
        if !free && (object.counts.least > 0 || object.counts.most.is_some()) {
            notes.push(format!("{at}: minProperties and maxProperties are not counted where parameters come in order"));
        }
        let rules = match free {
            true => self.any_order(index, parameters, others.as_ref(), &object.counts),
            false => self.in_order(index, &parameters),
        };
        let head = literal(&format!("{}invoke name=\"{}\">", self.space, tool.name));
        Ok(format!("{head} {rules}"))
    }

    /// The free text of a custom tool.
    fn input(&mut self, name: Name, format: &InputFormat, at: &str) -> Result<Parameter, ConstraintError> {
        let mut parameter = Parameter { name, required: true, texts: Vec::new(), json: None, inner: None };
        match format {
            InputFormat::Regex(regex) => {
                let checked = pattern::check(regex);
                checked.map_err(|problem| ConstraintError::invalid(at, format!("the regex: {problem}")))?;
                parameter.texts.push(Text { expressions: vec![regex.clone()], ..Text::default() });
            }
            InputFormat::Grammar(text) => {
                let lark = lark(text, at)?;
                if reaches_out(&lark) {
                    let problem =
                        "the grammar: control tokens (<...>) and other grammars (@...) cannot be part of a text";
                    return Err(ConstraintError::invalid(at, problem));
                }
                let name = format!("g{}", self.out.inner.len());
                self.out.inner.push(Inner { name: name.clone(), lark, at: at.to_owned() });
                parameter.inner = Some(name);
            }
        }
        Ok(parameter)
    }

    /// A parameter, or none if no value fits.
    fn parameter<'v>(
        &mut self,
        document: &Document<'v>,
        name: Name,
        value: &'v Value,
        at: &str,
        required: bool,
        notes: &mut Vec<String>,
    ) -> Result<Option<Parameter>, ConstraintError> {
        let kinds = text::split(document, value, at, notes)?;
        let mut prepared = document.prepare(value, at)?;
        notes.append(&mut prepared.notes);
        for text in &kinds.texts {
            if text.one_of.is_none() && text.conditions().len() > 1 {
                // Is there such a text at all? The library finds out when it reads the schema.
                self.schema(Prepared { schema: text_schema(text), one_of: Vec::new(), notes: Vec::new() }, at, false);
            }
        }
        let relaxed = document.unsupported == Unsupported::Relax;
        let json = kinds.others.then(|| {
            if !kinds.texts.is_empty() {
                prepared.without_strings();
            }
            self.schema(prepared, at, relaxed)
        });
        let possible = !kinds.texts.is_empty() || kinds.others;
        Ok(possible.then_some(Parameter { name, required, texts: kinds.texts, json, inner: None }))
    }

    fn schema(&mut self, prepared: Prepared, at: &str, replaceable: bool) -> String {
        let name = format!("s{}", self.out.schemas.len());
        self.out.schemas.push(Schema {
            name: name.clone(),
            schema: prepared.schema,
            at: at.to_owned(),
            one_of: prepared.one_of,
            replaceable,
        });
        name
    }

    /// The rule of one parameter; its name.
    fn rule(&mut self, rule: &str, parameter: &Parameter) {
        let name = match &parameter.name {
            Name::Listed(name) => literal(&format!("{}parameter name=\"{name}\" string=\"", self.space)),
            Name::Other(listed) => {
                let names: Vec<String> = listed.iter().map(|name| regex_syntax::escape(name)).collect();
                let terminal = self.terminal(&match names.is_empty() {
                    true => regex(OTHER_NAME),
                    false => format!("{} & ~{}", regex(OTHER_NAME), regex(&format!("(?:{})", names.join("|")))),
                });
                format!(
                    "{} {terminal} {}",
                    literal(&format!("{}parameter name=\"", self.space)),
                    literal("\" string=\"")
                )
            }
        };
        let mut values = Vec::new();
        for text in &parameter.texts {
            // The text ends where a marker follows, and only there: `</` may be part of it.
            let conditions = text.conditions();
            let terminal = self.terminal(&match conditions.as_slice() {
                [] => regex("(?s:.*)</"),
                [one] => regex(&format!("(?:{one})</")),
                several => {
                    let all: Vec<String> = several.iter().map(|condition| regex(condition)).collect();
                    format!("({}) {}", all.join(" & "), literal("</"))
                }
            });
            values.push(format!("{} {terminal}", literal("true\">")));
        }
        if let Some(schema) = &parameter.json {
            values.push(format!("{} @{schema} {}", literal("false\">"), literal("</")));
        }
        if let Some(inner) = &parameter.inner {
            values.push(format!("{} @{inner} {}", literal("true\">"), literal("</")));
        }
        let (marker, begin, end) = (&self.marker, literal("\n<"), literal(&format!("{}parameter>", self.space)));
        writeln!(self.out.lark, "{rule}: {begin} {marker} {name} ({}) {marker} {end}", values.join(" | ")).ok();
    }

    fn terminal(&mut self, definition: &str) -> String {
        self.terminals += 1;
        let name = format!("T{}", self.terminals);
        writeln!(self.out.lark, "{name}: {definition}").ok();
        name
    }

    /// The end of a call with parameters, and of one without: V4.1 leaves a blank line there.
    fn ends(&self) -> (String, String) {
        let end = |lines: &str| {
            format!("{} {} {}", literal(&format!("{lines}</")), self.marker, literal(&format!("{}invoke>", self.space)))
        };
        (end("\n"), end(if self.family == Family::V41 { "\n\n" } else { "\n" }))
    }

    /// Parameters in any order, each once.
    fn any_order(
        &mut self,
        tool: usize,
        mut parameters: Vec<Parameter>,
        others: Option<&Parameter>,
        counts: &Counts,
    ) -> String {
        // Bit by bit what has come, required ones first.
        parameters.sort_by_key(|parameter| !parameter.required);
        let required = parameters.iter().filter(|parameter| parameter.required).count();
        let (end, empty_end) = self.ends();
        if parameters.is_empty() && others.is_none() {
            return empty_end;
        }
        let rule = format!("a{tool}");
        let mut options = Vec::new();
        let mut enough = Vec::new();
        if required > 0 {
            enough.push(format!("is_ones([0:{required}])"));
        }
        if counts.least > required {
            enough.push(format!("bit_count_ge([0:{}], {})", parameters.len(), counts.least));
        }
        if enough.is_empty() {
            options.push(format!("{empty_end} %if is_zeros(_)"));
            enough.push("ne(_, 0)".to_owned());
        }
        options.push(format!("{end} %if {}", all(&enough)));
        for (bit, parameter) in parameters.iter().enumerate() {
            let name = format!("p{tool}x{bit}");
            self.rule(&name, parameter);
            let mut free = vec![format!("bit_clear({bit})")];
            free.extend(counts.most.map(|most| format!("bit_count_lt(_, {most})")));
            options.push(format!("{name} {rule}::set_bit({bit}) %if {}", all(&free)));
        }
        if let Some(others) = others {
            let name = format!("p{tool}other");
            self.rule(&name, others);
            options.push(format!("{name} {rule}::set_bit({OTHERS})"));
        }
        writeln!(self.out.lark, "{rule}::_ : {}", options.join("\n | ")).ok();
        format!("{rule}::0x0")
    }

    /// Parameters in the order of the schema.
    fn in_order(&mut self, tool: usize, parameters: &[Parameter]) -> String {
        let (end, empty_end) = self.ends();
        let count = parameters.len();
        // Two rules for each place: something has come already, or nothing has.
        writeln!(self.out.lark, "g{tool}x{count}: {end}\nn{tool}x{count}: {empty_end}").ok();
        for (index, parameter) in parameters.iter().enumerate() {
            let name = format!("p{tool}x{index}");
            self.rule(&name, parameter);
            let next = index + 1;
            for state in ["g", "n"] {
                let skip = if parameter.required { String::new() } else { format!(" | {state}{tool}x{next}") };
                writeln!(self.out.lark, "{state}{tool}x{index}: {name} g{tool}x{next}{skip}").ok();
            }
        }
        format!("n{tool}x0")
    }
}

fn at_tool(index: usize) -> String {
    format!("tools[{index}]")
}

/// All of some conditions.
fn all(conditions: &[String]) -> String {
    let (last, rest) = conditions.split_last().map_or((String::new(), &[][..]), |(last, rest)| (last.clone(), rest));
    rest.iter().rev().fold(last, |inner, condition| format!("and({condition}, {inner})"))
}

/// A schema for the strings of a text.
fn text_schema(text: &Text) -> Value {
    let mut all: Vec<Value> = Vec::new();
    all.extend(text.expressions.iter().map(|expression| serde_json::json!({"pattern": format!("^(?:{expression})$")})));
    let mut schema = serde_json::json!({"type": "string", "allOf": all, "minLength": text.least});
    if let (Some(most), Value::Object(fields)) = (text.most, &mut schema) {
        fields.insert("maxLength".to_owned(), most.into());
    }
    schema
}

/// A literal of the grammar language.
pub(super) fn literal(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A regular expression of the grammar language, in which a slash ends it.
pub(super) fn regex(expression: &str) -> String {
    let mut out = String::from("/");
    let mut escaped = false;
    for character in expression.chars() {
        match character {
            '/' if !escaped => out.push_str("\\/"),
            '\n' if !escaped => out.push_str("\\n"),
            other => out.push(other),
        }
        escaped = character == '\\' && !escaped;
    }
    out.push('/');
    out
}
