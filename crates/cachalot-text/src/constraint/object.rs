//! The parameters of a tool, as its schema lists them.
//!
//! Owns the keywords of the outermost object, which the tags of a call stand for. Refuses those that combine schemas there:
//! the tags hold one list of parameters.

use serde_json::Value;

use super::error::ConstraintError;
use super::schema::{Document, Unsupported, too_large};

/// Most parameters of a tool.
pub const MAX_PARAMETERS: usize = 1024;

/// How many of a tool's parameters are given.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) least: usize,
    pub(super) most: Option<usize>,
}

/// A tool's parameters as its schema says them.
pub(super) struct Object<'v> {
    /// Name, schema, its place, whether it is required.
    pub(super) listed: Vec<(String, &'v Value, String, bool)>,
    /// The schema of parameters that are not listed, if there may be any.
    pub(super) others: Option<(&'v Value, &'static str)>,
    pub(super) counts: Counts,
}

const ANYTHING: &Value = &Value::Bool(true);

impl<'v> Object<'v> {
    /// Reads the keywords of an object. Those that combine schemas are refused here: the tags hold one list of
    /// parameters.
    pub(super) fn of(document: &Document<'v>, at: &str, notes: &mut Vec<String>) -> Result<Self, ConstraintError> {
        let fields = match document.root {
            Value::Object(fields) => fields,
            Value::Bool(true) => return Ok(Self { listed: Vec::new(), others: None, counts: Counts::default() }),
            _ => return Err(ConstraintError::invalid(at, "a tool's schema must be an object")),
        };
        for keyword in [
            "anyOf",
            "oneOf",
            "allOf",
            "$ref",
            "enum",
            "const",
            "patternProperties",
            "not",
            "if",
            "then",
            "else",
            "propertyNames",
            "dependentRequired",
            "dependentSchemas",
            "dependencies",
            "unevaluatedProperties",
        ] {
            let harmless = |value: &Value| {
                matches!(value, Value::Bool(_)) && keyword == "unevaluatedProperties"
                    || keyword == "propertyNames" && value == &serde_json::json!({"type": "string"})
            };
            if fields.get(keyword).is_none_or(harmless) {
                continue;
            }
            let why =
                "the parameters of a tool are a plain list: properties, required, additionalProperties".to_owned();
            let error = ConstraintError::Unsupported { at: at.to_owned(), keyword: keyword.to_owned(), why };
            match document.unsupported {
                Unsupported::Refuse => return Err(error),
                Unsupported::Relax => notes.push(error.to_string()),
            }
        }
        let required: Vec<&str> =
            fields.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let properties = fields.get("properties").and_then(Value::as_object);
        let additional = fields.get("additionalProperties");
        let mut listed = Vec::new();
        for (name, value) in properties.into_iter().flatten() {
            let pointer = format!("/properties/{}", name.replace('~', "~0").replace('/', "~1"));
            listed.push((name.clone(), value, pointer, required.contains(&name.as_str())));
        }
        for name in required {
            if listed.iter().any(|(listed, ..)| listed == name) {
                continue;
            }
            // Required, but described by what is said of all others.
            match additional {
                Some(Value::Bool(false)) => {
                    return Err(ConstraintError::invalid(
                        at,
                        format!("{name:?} is required, but not among its properties"),
                    ));
                }
                _ => listed.push((
                    name.to_owned(),
                    additional.unwrap_or(ANYTHING),
                    "/additionalProperties".to_owned(),
                    true,
                )),
            }
        }
        if listed.len() > MAX_PARAMETERS {
            return Err(too_large(at, &format!("{} parameters", listed.len()), MAX_PARAMETERS));
        }
        let count = |keyword: &str| fields.get(keyword).and_then(Value::as_u64).map(|count| count as usize);
        let counts = Counts { least: count("minProperties").unwrap_or(0), most: count("maxProperties") };
        // Nothing is said where neither properties nor others are mentioned: an object of any kind, if it says so.
        let open = additional.is_none() && properties.is_none() && fields.get("type").is_some();
        let others = match additional {
            Some(Value::Bool(false)) => None,
            Some(value) => Some((value, "/additionalProperties")),
            None => open.then_some((ANYTHING, "/additionalProperties")),
        };
        // Names could come twice, which would be counted twice.
        let others = others.filter(|_| counts.most.is_none());
        if counts.least > listed.len() {
            let problem = "minProperties is more than the properties that are listed";
            return Err(ConstraintError::invalid(at, problem));
        }
        Ok(Self { listed, others, counts })
    }
}

/// Whether a name can stand in a tag as it is.
pub(super) fn plain(name: &str) -> bool {
    !name.is_empty() && !name.chars().any(|character| character.is_control() || matches!(character, '"' | '<' | '>'))
}
