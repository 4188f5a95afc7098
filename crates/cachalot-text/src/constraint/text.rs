//! What strings a schema allows: the values of calls that are written raw, without quotes or escapes.
//!
//! Owns the split of a schema into its strings, as expressions, and the question whether it allows anything else, which is
//! then written as JSON. Refuses a `oneOf` whose branches overlap, as far as they are strings.

use serde_json::Value;

use super::error::ConstraintError;
use super::pattern::{self, Format};
use super::schema::{Document, Unsupported, too_large};

/// Most ways to be a string.
const MAX_ALTERNATIVES: usize = 64;
/// Longest chain of references and combinations.
const MAX_STEPS: usize = 64;
const MAX_VISITS: usize = 4096;

/// Strings that meet all of some conditions.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Text {
    /// One of these, if there is a list.
    pub(super) one_of: Option<Vec<String>>,
    /// Expressions that match all of it.
    pub(super) expressions: Vec<String>,
    /// Fewest characters.
    pub(super) least: u64,
    /// Most characters.
    pub(super) most: Option<u64>,
}

impl Text {
    fn and(&self, other: &Self) -> Self {
        let one_of = match (&self.one_of, &other.one_of) {
            (Some(these), Some(those)) => Some(these.iter().filter(|text| those.contains(text)).cloned().collect()),
            (these, those) => these.clone().or_else(|| those.clone()),
        };
        let mut both = Self {
            one_of,
            expressions: self.expressions.iter().chain(&other.expressions).cloned().collect(),
            least: self.least.max(other.least),
            most: self.most.into_iter().chain(other.most).min(),
        };
        both.settle();
        both
    }

    /// Of listed strings, keeps those that meet the other conditions.
    fn settle(&mut self) {
        self.expressions.sort_unstable();
        self.expressions.dedup();
        let Some(list) = &mut self.one_of else { return };
        for expression in &self.expressions {
            pattern::keep_matching(expression, list);
        }
        list.retain(|text| {
            let length = text.chars().count() as u64;
            length >= self.least && self.most.is_none_or(|most| length <= most)
        });
        self.expressions.clear();
        (self.least, self.most) = (0, None);
    }

    fn is_empty(&self) -> bool {
        self.one_of.as_ref().is_some_and(Vec::is_empty) || self.most.is_some_and(|most| most < self.least)
    }

    /// Conditions, each an expression; none for any text.
    pub(super) fn conditions(&self) -> Vec<String> {
        if let Some(list) = &self.one_of {
            let escaped: Vec<String> = list.iter().map(|text| regex_syntax::escape(text)).collect();
            return vec![format!("(?:{})", escaped.join("|"))];
        }
        let mut conditions = self.expressions.clone();
        match (self.least, self.most) {
            (0, None) => {}
            (least, None) => conditions.push(format!("(?s:.{{{least},}})")),
            (least, Some(most)) => conditions.push(format!("(?s:.{{{least},{most}}})")),
        }
        conditions
    }
}

/// What a schema allows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kinds {
    /// Ways to be a string.
    pub(super) texts: Vec<Text>,
    /// Whether it may be something else.
    pub(super) others: bool,
}

impl Kinds {
    fn anything() -> Self {
        Self { texts: vec![Text::default()], others: true }
    }

    fn and(&self, other: &Self, at: &str) -> Result<Self, ConstraintError> {
        let pairs = self.texts.iter().flat_map(|this| other.texts.iter().map(move |that| this.and(that)));
        let texts: Vec<Text> = pairs.filter(|text| !text.is_empty()).take(MAX_ALTERNATIVES + 1).collect();
        if texts.len() > MAX_ALTERNATIVES {
            return Err(too_large(at, "too many ways to be a string", MAX_ALTERNATIVES));
        }
        Ok(Self { texts, others: self.others && other.others })
    }
}

/// Splits the subschema `value` of a document.
pub(super) fn split(
    document: &Document<'_>,
    value: &Value,
    at: &str,
    notes: &mut Vec<String>,
) -> Result<Kinds, ConstraintError> {
    Split { document, notes, visits: 0 }.schema(value, at, 0)
}

struct Split<'d> {
    document: &'d Document<'d>,
    notes: &'d mut Vec<String>,
    /// Subschemas looked at, again and again where several references lead to one.
    visits: usize,
}

impl Split<'_> {
    fn schema(&mut self, value: &Value, at: &str, steps: usize) -> Result<Kinds, ConstraintError> {
        self.visits += 1;
        if steps > MAX_STEPS || self.visits > MAX_VISITS {
            return Err(too_large(at, "references and combinations follow on each other for too long", MAX_STEPS));
        }
        let fields = match value {
            Value::Bool(false) => return Ok(Kinds { texts: Vec::new(), others: false }),
            Value::Object(fields) => fields,
            _ => return Ok(Kinds::anything()),
        };
        let mut kinds = Kinds::anything();
        for (keyword, value) in fields {
            let at = format!("{at}/{keyword}");
            let found = match keyword.as_str() {
                "type" => of_types(value),
                "const" => of_values(std::slice::from_ref(value)),
                "enum" => of_values(value.as_array().map_or(&[], Vec::as_slice)),
                "pattern" | "format" | "minLength" | "maxLength" => of_text(keyword, value),
                "$ref" => match value.as_str().and_then(|reference| self.document.resolve(reference)) {
                    Some(target) => {
                        let reference = value.as_str().unwrap_or_default().trim_start_matches('#');
                        self.schema(target, &format!("{}{reference}", self.document.name), steps + 1)?
                    }
                    None => continue,
                },
                "anyOf" | "oneOf" => self.any(keyword, value, &at, steps)?,
                "allOf" => {
                    let mut all = Kinds::anything();
                    for value in value.as_array().into_iter().flatten() {
                        all = all.and(&self.schema(value, &at, steps + 1)?, &at)?;
                    }
                    all
                }
                _ => continue,
            };
            kinds = kinds.and(&found, &at)?;
        }
        Ok(kinds)
    }

    fn any(&mut self, keyword: &str, value: &Value, at: &str, steps: usize) -> Result<Kinds, ConstraintError> {
        let mut any = Kinds { texts: Vec::new(), others: false };
        let mut overlap = false;
        for value in value.as_array().into_iter().flatten() {
            let branch = self.schema(value, at, steps + 1)?;
            let pairs = any.texts.iter().flat_map(|this| branch.texts.iter().map(move |that| (this, that)));
            overlap |= pairs.clone().any(|(this, that)| {
                // Lists are known to have nothing in common, or to have something; of others nobody knows.
                !this.and(that).is_empty()
            });
            any.texts.extend(branch.texts);
            if any.texts.len() > MAX_ALTERNATIVES {
                return Err(too_large(at, "too many ways to be a string", MAX_ALTERNATIVES));
            }
            any.others |= branch.others;
        }
        if overlap && keyword == "oneOf" {
            let (at, keyword) = (at.to_owned(), keyword.to_owned());
            let why = "strings may fit several of its branches; use anyOf".to_owned();
            let error = ConstraintError::Unsupported { at, keyword, why };
            match self.document.unsupported {
                Unsupported::Refuse => return Err(error),
                Unsupported::Relax => self.notes.push(error.to_string()),
            }
        }
        Ok(any)
    }
}

fn of_types(value: &Value) -> Kinds {
    let types: Vec<&str> = match value {
        Value::String(kind) => vec![kind],
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        _ => return Kinds::anything(),
    };
    let texts = if types.contains(&"string") { vec![Text::default()] } else { Vec::new() };
    Kinds { texts, others: types.iter().any(|kind| *kind != "string") }
}

fn of_values(values: &[Value]) -> Kinds {
    let list: Vec<String> = values.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let others = list.len() < values.len();
    let texts = if list.is_empty() { Vec::new() } else { vec![Text { one_of: Some(list), ..Text::default() }] };
    Kinds { texts, others }
}

/// Keywords that say something of strings only. What is wrong in them has been found when the schema was prepared.
fn of_text(keyword: &str, value: &Value) -> Kinds {
    let mut text = Text::default();
    let count = || value.as_f64().map_or(0, |count| count as u64);
    match keyword {
        "pattern" => text.expressions.extend(value.as_str().and_then(|pattern| pattern::whole(pattern).ok())),
        "format" => {
            if let Some(Format::Known(expression)) = value.as_str().map(pattern::format) {
                text.expressions.push(expression);
            }
        }
        "minLength" => text.least = count(),
        _ => text.most = Some(count().min(super::values::MAX_COUNT)),
    }
    Kinds { texts: vec![text], others: true }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kinds(root: &Value) -> Result<Kinds, ConstraintError> {
        let document = Document { root, name: "schema", unsupported: Unsupported::Refuse };
        split(&document, root, "schema", &mut Vec::new())
    }

    fn list(texts: &[&str]) -> Text {
        Text { one_of: Some(texts.iter().map(|text| (*text).to_owned()).collect()), ..Text::default() }
    }

    #[test]
    fn strings_and_the_rest_are_told_apart() {
        let any = Text::default;
        for (schema, texts, others) in [
            (json!({}), vec![any()], true),
            (json!({"type": "string"}), vec![any()], false),
            (json!({"type": "integer"}), vec![], true),
            (json!({"type": ["string", "null"]}), vec![any()], true),
            (json!({"enum": ["a", "b"]}), vec![list(&["a", "b"])], false),
            (json!({"type": "string", "enum": ["a", 1, null]}), vec![list(&["a"])], false),
            (json!({"enum": ["a", 1], "type": ["string", "integer"]}), vec![list(&["a"])], true),
            (json!({"const": "x"}), vec![list(&["x"])], false),
            (json!({"anyOf": [{"type": "string"}, {"type": "object"}]}), vec![any()], true),
            (json!({"oneOf": [{"const": "a"}, {"const": "b"}]}), vec![list(&["a"]), list(&["b"])], false),
            (
                json!({"allOf": [{"type": "string"}, {"enum": ["a", "bc"]}, {"minLength": 2}]}),
                vec![list(&["bc"])],
                false,
            ),
            (json!({"$ref": "#/$defs/s", "$defs": {"s": {"type": "string"}}}), vec![any()], false),
            (json!({"enum": ["ab", "b"], "pattern": "^a"}), vec![list(&["ab"])], false),
            (json!({"type": "object", "properties": {"a": {"type": "string"}}}), vec![], true),
        ] {
            assert_eq!(kinds(&schema).expect("it can be split"), Kinds { texts, others }, "{schema}");
        }
    }

    #[test]
    fn conditions_are_expressions() {
        let schema = json!({"type": "string", "pattern": "^a", "minLength": 2, "maxLength": 4});
        let kinds = kinds(&schema).expect("it can be split");
        let conditions = kinds.texts[0].conditions();
        assert_eq!(conditions.len(), 2);
        let fits = |text: &str| conditions.iter().all(|condition| pattern::matches(condition, text));
        assert!(fits("ab\n") && !fits("a") && !fits("bb") && !fits("abcde"));
        assert_eq!(list(&["a.b", "c"]).conditions(), ["(?:a\\.b|c)"]);
    }

    #[test]
    fn overlapping_branches_of_one_of_and_endless_chains_are_refused() {
        let overlap = json!({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]});
        assert!(matches!(kinds(&overlap), Err(ConstraintError::Unsupported { .. })));
        let chain = json!({"$ref": "#"});
        assert!(matches!(kinds(&chain), Err(ConstraintError::TooLarge { .. })));
        let product = json!({"allOf": (0..8).map(|index| json!({"anyOf": [{"pattern": format!("a{index}")},
            {"pattern": format!("b{index}")}]})).collect::<Vec<_>>()});
        assert!(matches!(kinds(&product), Err(ConstraintError::TooLarge { .. })));
    }
}
