//! Reading a JSON object field by field, with every value checked and every problem named by its path.
//!
//! A reader returns some value of the right type even where the field is wrong, and notes the problem: the caller
//! reads on, and looks at the list before it uses anything.

use crate::problems::Problems;
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;

/// One field of a config file that is missing or wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field, such as `text_config.head_dim`.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

/// An object inside a config file.
pub(crate) struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
    problems: &'a RefCell<Problems<FieldError>>,
}

/// A value as an error shows it: short, whatever the file holds.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
        other => other.to_string(),
    }
}

impl<'a> Fields<'a> {
    pub(crate) fn root(map: &'a Map<String, Value>, problems: &'a RefCell<Problems<FieldError>>) -> Self {
        Self { path: String::new(), map, problems }
    }

    /// Reads a config file's bytes with `read`, which notes what is wrong.
    pub(crate) fn read_json<T>(
        json: &[u8],
        read: impl FnOnce(&Fields<'_>) -> Option<T>,
    ) -> Result<T, Problems<FieldError>> {
        match serde_json::from_slice::<Map<String, Value>>(json) {
            Ok(map) => Self::read_map(&map, read),
            Err(error) => {
                let mut problems = Problems::default();
                problems.push(FieldError { field: "config.json".to_owned(), reason: error.to_string() });
                Err(problems)
            }
        }
    }

    /// Reads an object with `read`, which notes what is wrong.
    pub(crate) fn read_map<T>(
        map: &Map<String, Value>,
        read: impl FnOnce(&Fields<'_>) -> Option<T>,
    ) -> Result<T, Problems<FieldError>> {
        let problems = RefCell::default();
        let config = read(&Fields::root(map, &problems));
        match config {
            Some(config) if problems.borrow().is_empty() => Ok(config),
            _ => Err(problems.into_inner()),
        }
    }

    /// The path of field `key`.
    pub(crate) fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Notes that `key` is wrong.
    pub(crate) fn wrong(&self, key: &str, reason: impl Into<String>) {
        self.problems.borrow_mut().push(FieldError { field: self.path(key), reason: reason.into() });
    }

    /// Whether no problem has been noted, here or elsewhere in the file.
    pub(crate) fn all_right(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    /// Notes every field that `belongs` elsewhere: a config of `model_type` has it, this one has not.
    pub(crate) fn foreign(&self, belongs: impl Fn(&str) -> bool, model_type: &str) {
        for (key, _) in self.map.iter().filter(|(key, value)| !value.is_null() && belongs(key)) {
            self.wrong(key, format!("belongs into a {model_type} config, not here"));
        }
    }

    /// Notes if `value`, read from `key`, is no multiple of `of`.
    pub(crate) fn multiple(&self, key: &str, value: usize, of: usize, why: &str) {
        if !value.is_multiple_of(of) {
            self.wrong(key, format!("is {value}, no multiple of {of}: {why}"));
        }
    }

    fn required(&self, key: &str) -> Option<&'a Value> {
        let value = self.map.get(key);
        if value.is_none() {
            self.wrong(key, "is missing");
        }
        value
    }

    /// The value of a field that may be absent or null.
    pub(crate) fn optional(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn to_integer(&self, key: &str, value: &Value, range: &RangeInclusive<usize>) -> usize {
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        number.filter(|number| range.contains(number)).unwrap_or_else(|| {
            let (low, high) = (range.start(), range.end());
            self.wrong(key, format!("is {}; an integer from {low} to {high} is possible", shown(value)));
            *low
        })
    }

    /// An integer that must be there and inside `range`.
    pub(crate) fn integer(&self, key: &str, range: RangeInclusive<usize>) -> usize {
        self.required(key).map_or(*range.start(), |value| self.to_integer(key, value, &range))
    }

    /// An integer that may be absent or null.
    pub(crate) fn optional_integer(&self, key: &str, range: RangeInclusive<usize>) -> Option<usize> {
        self.optional(key).map(|value| self.to_integer(key, value, &range))
    }

    /// Integers, at most `most` of them; a single number stands for a list of one.
    pub(crate) fn integers(&self, key: &str, most: usize, range: RangeInclusive<usize>) -> Vec<usize> {
        match self.required(key) {
            None => Vec::new(),
            Some(Value::Array(list)) if list.len() > most => {
                self.wrong(key, format!("has {} entries; at most {most} are possible", list.len()));
                Vec::new()
            }
            Some(Value::Array(list)) => list.iter().map(|value| self.to_integer(key, value, &range)).collect(),
            Some(value) => vec![self.to_integer(key, value, &range)],
        }
    }

    /// Words, at most `most` of them, as what `known` says they mean.
    pub(crate) fn words<T: Copy>(&self, key: &str, most: usize, known: &[(&str, T)]) -> Vec<T> {
        let list = match self.required(key) {
            Some(Value::Array(list)) if list.len() <= most => list,
            Some(other) => {
                self.wrong(key, format!("is {}; a list of at most {most} words is possible", shown(other)));
                return Vec::new();
            }
            None => return Vec::new(),
        };
        let meaning = |value: &Value| {
            let found = known.iter().find(|(word, _)| value.as_str() == Some(word));
            if found.is_none() {
                let words: Vec<_> = known.iter().map(|(word, _)| *word).collect();
                self.wrong(key, format!("has {}; {} are known", shown(value), words.join(", ")));
            }
            found.map(|(_, meaning)| *meaning)
        };
        list.iter().filter_map(meaning).collect()
    }

    /// A number that must be there and inside `range`.
    pub(crate) fn number(&self, key: &str, range: RangeInclusive<f64>) -> f64 {
        let Some(value) = self.required(key) else { return *range.start() };
        value.as_f64().filter(|number| range.contains(number)).unwrap_or_else(|| {
            let (low, high) = (range.start(), range.end());
            self.wrong(key, format!("is {}; a number from {low} to {high} is possible", shown(value)));
            *low
        })
    }

    /// A field that may be absent, but if it is there only has one value that is known.
    pub(crate) fn fixed(&self, key: &str, only: impl Into<Value>) {
        let only = only.into();
        let same = |value: &Value| *value == only || value.as_f64().is_some_and(|number| Some(number) == only.as_f64());
        if let Some(value) = self.optional(key)
            && !same(value)
        {
            self.wrong(key, format!("is {}; only {only} is known", shown(value)));
        }
    }

    /// An object that must be there.
    pub(crate) fn object(&self, key: &str) -> Option<Self> {
        self.to_object(key, self.required(key)?)
    }

    /// An object that may be absent or null.
    pub(crate) fn optional_object(&self, key: &str) -> Option<Self> {
        self.to_object(key, self.optional(key)?)
    }

    fn to_object(&self, key: &str, value: &'a Value) -> Option<Self> {
        match value {
            Value::Object(map) => Some(Self { path: self.path(key), map, problems: self.problems }),
            other => {
                self.wrong(key, format!("is {}, not an object", shown(other)));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_problem_names_its_path() {
        let value = json!({"a": {"n": 1e30, "s": "x", "f": -0.5, "l": [1, "2", 3], "long": [0, 0, 0], "neg": -1,
            "frac": 2.5, "nil": null, "obj": 3, "one": 7, "fix": 1.0}});
        let problems = RefCell::default();
        let root = Fields::root(value.as_object().expect("an object"), &problems);
        let a = root.object("a").expect("there");
        assert_eq!(a.integer("n", 3..=9), 3);
        a.integer("s", 1..=2);
        a.integer("neg", 1..=2);
        a.integer("frac", 1..=2);
        a.integer("gone", 1..=2);
        a.integer("nil", 1..=2);
        a.number("f", 0.0..=1.0);
        a.number("s", 0.0..=1.0);
        assert_eq!(a.integers("l", 3, 0..=5), [1, 0, 3]);
        assert!(a.integers("long", 2, 0..=5).is_empty());
        assert_eq!(a.integers("one", 3, 0..=9), [7]);
        a.fixed("s", "y");
        a.fixed("fix", 1);
        a.fixed("gone", true);
        assert_eq!(a.optional_integer("nil", 0..=1), None);
        assert!(a.object("obj").is_none() && root.object("b").is_none() && a.optional_object("nil").is_none());
        let text = problems.borrow().to_string();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "a.n: is 1e+30; an integer from 3 to 9 is possible",
                "a.s: is \"x\"; an integer from 1 to 2 is possible",
                "a.neg: is -1; an integer from 1 to 2 is possible",
                "a.frac: is 2.5; an integer from 1 to 2 is possible",
                "a.gone: is missing",
                "a.nil: is null; an integer from 1 to 2 is possible",
                "a.f: is -0.5; a number from 0 to 1 is possible",
                "a.s: is \"x\"; a number from 0 to 1 is possible",
                "a.l: is \"2\"; an integer from 0 to 5 is possible",
                "a.long: has 3 entries; at most 2 are possible",
                "a.s: is \"x\"; only \"y\" is known",
                "a.obj: is 3, not an object",
                "b: is missing",
            ]
        );
    }
}
