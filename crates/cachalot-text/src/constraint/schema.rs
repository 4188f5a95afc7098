//! JSON Schemas made ready for the grammar library.
//!
//! Owns the walk over a schema as written: what it says is checked, bounded and rewritten into a document of its own that
//! holds nothing but keywords that decoding can be held to. References are resolved inside the document and become
//! references to definitions. A keyword that cannot be enforced is refused, or, for tools that are not strict, left out
//! and noted. Refuses remote references, schemas that are too large or too deep, numbers that are not exact.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::error::ConstraintError;
use super::finite;
use super::pattern::{self, Format};
use super::values;

/// Longest schema, in bytes of JSON.
pub const MAX_SCHEMA_BYTES: usize = 1 << 20;
/// Most subschemas of a schema, definitions included.
pub const MAX_SUBSCHEMAS: usize = 20_000;
/// Deepest nesting of subschemas.
pub const MAX_SCHEMA_DEPTH: usize = 48;
/// Most subschemas that are referred to.
pub const MAX_DEFINITIONS: usize = 4096;
/// Most patterns and formats.
pub const MAX_PATTERNS: usize = 1024;

/// What happens to keywords that cannot be enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsupported {
    Refuse,
    /// Left out and noted: the output may then be wider than the schema.
    Relax,
}

/// A schema document.
pub(super) struct Document<'v> {
    pub(super) root: &'v Value,
    /// What it is called in messages.
    pub(super) name: &'v str,
    pub(super) unsupported: Unsupported,
}

/// A schema that stands on its own.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Prepared {
    pub(super) schema: Value,
    /// Places of `oneOf`, whose branches the grammar library must be able to tell apart.
    pub(super) one_of: Vec<String>,
    pub(super) notes: Vec<String>,
}

impl Prepared {
    /// Leaves out strings.
    pub(super) fn without_strings(&mut self) {
        if let Value::Object(fields) = &mut self.schema {
            add_to_all_of(fields, vec![json!({"type": ["null", "boolean", "number", "array", "object"]})]);
        }
    }
}

impl<'v> Document<'v> {
    /// The value at a fragment such as `#/$defs/item` or `#anchor`.
    pub(super) fn resolve(&self, reference: &str) -> Option<&'v Value> {
        let reference = match self.root.get("$id").and_then(Value::as_str) {
            Some(id) => reference.strip_prefix(id.trim_end_matches('#')).unwrap_or(reference),
            None => reference,
        };
        let fragment = percent_decoded(reference.strip_prefix('#')?)?;
        if fragment.is_empty() || fragment.starts_with('/') {
            return self.root.pointer(&fragment);
        }
        anchored(self.root, &fragment, 0)
    }

    /// Prepares `value`, a subschema of this document that stands at `at`.
    pub(super) fn prepare(&self, value: &'v Value, at: &str) -> Result<Prepared, ConstraintError> {
        let mut walk = Walk {
            document: self,
            names: HashMap::new(),
            queue: Vec::new(),
            subschemas: 0,
            patterns: 0,
            open_objects: false,
            one_of: Vec::new(),
            notes: Vec::new(),
        };
        let mut root = match walk.schema(value, at, 0)? {
            Value::Object(root) => root,
            // `true` and `false`.
            other => match other.as_bool() {
                Some(false) => return Err(ConstraintError::invalid(at, "no value fits the schema false")),
                _ => Map::new(),
            },
        };
        let mut definitions = Map::new();
        while let Some((target, name, at)) = walk.queue.pop() {
            let definition = walk.schema(target, &at, 0)?;
            definitions.insert(name, definition);
        }
        if !definitions.is_empty() {
            root.insert("$defs".to_owned(), definitions.into());
        }
        let mut schema = Value::from(root);
        if !finite::has_value(&schema) {
            return Err(ConstraintError::invalid(
                at,
                "no value fits: what is required has none, or contains itself without end",
            ));
        }
        let relaxed = self.unsupported == Unsupported::Relax;
        schema["x-guidance"] = guidance(walk.open_objects, relaxed);
        Ok(Prepared { schema, one_of: walk.one_of, notes: walk.notes })
    }
}

/// Between two tokens of JSON: eight levels of four spaces, or of tabs.
const WHITE_SPACE: &str = r" |\r?\n( {0,32}|\t{1,8})";

/// Options of the grammar library.
///
/// White space between tokens of JSON is a space, or a line end and its indentation, as every printer of JSON writes it:
/// a weak model would write more for ever. Escapes of printable characters
/// are possible in names only, and would let a name be written in another way than the one that was used already; without
/// `u` they are not.
fn guidance(open_objects: bool, relaxed: bool) -> Value {
    let escapes = if open_objects { "nrbtf\\\"" } else { "nrbtf\\\"u" };
    json!({
        "whitespace_pattern": WHITE_SPACE,
        "json_allowed_escapes": escapes,
        "coerce_one_of": relaxed,
    })
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

fn anchored<'v>(value: &'v Value, anchor: &str, depth: usize) -> Option<&'v Value> {
    if depth > 2 * MAX_SCHEMA_DEPTH {
        return None;
    }
    if value.get("$anchor").and_then(Value::as_str) == Some(anchor) {
        return Some(value);
    }
    match value {
        Value::Object(fields) => fields.values().find_map(|value| anchored(value, anchor, depth + 1)),
        Value::Array(items) => items.iter().find_map(|value| anchored(value, anchor, depth + 1)),
        _ => None,
    }
}

struct Walk<'d, 'v> {
    document: &'d Document<'v>,
    /// Definitions by the address of what they stand for.
    names: HashMap<*const Value, String>,
    queue: Vec<(&'v Value, String, String)>,
    subschemas: usize,
    patterns: usize,
    /// Whether an object has both named properties and others.
    open_objects: bool,
    one_of: Vec<String>,
    notes: Vec<String>,
}

impl<'v> Walk<'_, 'v> {
    fn schema(&mut self, value: &'v Value, at: &str, depth: usize) -> Result<Value, ConstraintError> {
        self.subschemas += 1;
        if self.subschemas > MAX_SUBSCHEMAS {
            return Err(too_large(at, "too many subschemas", MAX_SUBSCHEMAS));
        }
        if depth > MAX_SCHEMA_DEPTH {
            return Err(too_large(at, "subschemas are nested too deeply", MAX_SCHEMA_DEPTH));
        }
        let fields = match value {
            Value::Bool(_) => return Ok(value.clone()),
            Value::Object(fields) => fields,
            _ => return Err(ConstraintError::invalid(at, "a schema must be an object, true or false")),
        };
        let mut out = Map::new();
        for (keyword, value) in fields {
            let at = format!("{at}/{keyword}");
            self.keyword(keyword, value, fields, &at, depth, &mut out)?;
        }
        self.check_object(&mut out, at)?;
        Ok(out.into())
    }

    /// Writes what a keyword comes to.
    fn keyword(
        &mut self,
        keyword: &str,
        value: &'v Value,
        fields: &'v Map<String, Value>,
        at: &str,
        depth: usize,
        out: &mut Map<String, Value>,
    ) -> Result<(), ConstraintError> {
        self.patterns += usize::from(matches!(keyword, "pattern" | "format"));
        if self.patterns > MAX_PATTERNS {
            return Err(too_large(at, "too many patterns", MAX_PATTERNS));
        }
        let kept = match keyword {
            "$ref" => match self.reference(value, at)? {
                Some(reference) => reference,
                None => return Ok(()),
            },
            "anyOf" | "allOf" | "oneOf" | "prefixItems" => self.list(value, at, depth)?,
            "properties" | "patternProperties" => self.map(keyword, value, at, depth)?,
            // A list of schemas is what older drafts call prefixItems.
            "items" if value.is_array() => {
                let items = self.list(value, at, depth)?;
                out.insert("prefixItems".to_owned(), items);
                return Ok(());
            }
            "additionalItems" if fields.get("items").is_some_and(Value::is_array) => {
                let rest = self.schema(value, at, depth + 1)?;
                out.insert("items".to_owned(), rest);
                return Ok(());
            }
            "items" | "additionalProperties" => self.schema(value, at, depth + 1)?,
            "const" => values::literal(value, at)?,
            "enum" => values::list(value, at)?,
            "type" | "required" => value.clone(),
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" => {
                values::bound(keyword, value, at)?
            }
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
                match values::count(keyword, value, at)? {
                    Some(count) => count.into(),
                    None => return Ok(()),
                }
            }
            "pattern" => {
                let pattern = value.as_str().ok_or_else(|| ConstraintError::invalid(at, "must be a string"))?;
                match pattern::whole(pattern) {
                    Ok(expression) => {
                        add_pattern(out, &expression);
                        return Ok(());
                    }
                    Err(problem) => return self.unsupported(keyword, at, &problem),
                }
            }
            "format" => match value.as_str().map(pattern::format) {
                Some(Format::Known(expression)) if may_be_text(fields) => {
                    add_pattern(out, &expression);
                    return Ok(());
                }
                Some(Format::Unsupported) if may_be_text(fields) => {
                    return self.unsupported(keyword, at, &format!("{value} is not known; use a pattern"));
                }
                _ => return Ok(()),
            },
            _ => return self.other(keyword, value, fields, at),
        };
        match (keyword, kept) {
            ("allOf", Value::Array(all)) => add_to_all_of(out, all),
            ("oneOf", kept) => {
                self.one_of.push(at.to_owned());
                out.insert(keyword.to_owned(), kept);
            }
            (_, kept) => _ = out.insert(keyword.to_owned(), kept),
        }
        Ok(())
    }

    /// Keywords that are annotations, that are unknown, or that cannot be enforced.
    fn other(
        &mut self,
        keyword: &str,
        value: &Value,
        fields: &Map<String, Value>,
        at: &str,
    ) -> Result<(), ConstraintError> {
        let empty = |value: &Value| value.as_object().is_some_and(Map::is_empty);
        let anything = value == &Value::Bool(true) || empty(value);
        let harmless = match keyword {
            "uniqueItems" => value == &Value::Bool(false),
            "propertyNames" => anything || value == &json!({"type": "string"}),
            "unevaluatedProperties" | "unevaluatedItems" => anything,
            "if" => !fields.contains_key("then") && !fields.contains_key("else"),
            "then" | "else" => !fields.contains_key("if"),
            "dependentRequired" | "dependentSchemas" | "dependencies" => empty(value),
            "minContains" | "maxContains" => !fields.contains_key("contains"),
            "$id" => at.strip_suffix("/$id") == Some(self.document.name),
            "not" | "contains" | "$dynamicRef" | "$recursiveRef" => false,
            _ => true,
        };
        if harmless { Ok(()) } else { self.unsupported(keyword, at, "leave it out, or say it in another way") }
    }

    fn unsupported(&mut self, keyword: &str, at: &str, why: &str) -> Result<(), ConstraintError> {
        let (at, keyword, why) = (at.to_owned(), keyword.to_owned(), why.to_owned());
        let error = ConstraintError::Unsupported { at, keyword, why };
        match self.document.unsupported {
            Unsupported::Refuse => Err(error),
            Unsupported::Relax => {
                self.notes.push(error.to_string());
                Ok(())
            }
        }
    }

    fn reference(&mut self, value: &'v Value, at: &str) -> Result<Option<Value>, ConstraintError> {
        let reference = value.as_str().ok_or_else(|| ConstraintError::invalid(at, "must be a string"))?;
        let Some(target) = self.document.resolve(reference) else {
            let why = format!("{reference:?} is nowhere in this schema; others are not fetched");
            return self.unsupported("$ref", at, &why).map(|()| None);
        };
        if self.names.len() >= MAX_DEFINITIONS {
            return Err(too_large(at, "too many references", MAX_DEFINITIONS));
        }
        let next = format!("d{}", self.names.len());
        let name = self.names.entry(std::ptr::from_ref(target)).or_insert_with(|| {
            self.queue.push((
                target,
                next.clone(),
                format!("{}{}", self.document.name, reference.trim_start_matches('#')),
            ));
            next
        });
        Ok(Some(format!("#/$defs/{name}").into()))
    }

    fn list(&mut self, value: &'v Value, at: &str, depth: usize) -> Result<Value, ConstraintError> {
        let items = value.as_array().ok_or_else(|| ConstraintError::invalid(at, "must be a list of schemas"))?;
        let mut out = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            out.push(self.schema(item, &format!("{at}/{index}"), depth + 1)?);
        }
        Ok(out.into())
    }

    fn map(&mut self, keyword: &str, value: &'v Value, at: &str, depth: usize) -> Result<Value, ConstraintError> {
        let fields = value.as_object().ok_or_else(|| ConstraintError::invalid(at, "must map names to schemas"))?;
        let mut out = Map::new();
        for (name, schema) in fields {
            let at = format!("{at}/{name}");
            let schema = self.schema(schema, &at, depth + 1)?;
            if keyword == "properties" {
                out.insert(name.clone(), schema);
                continue;
            }
            match pattern::whole(name) {
                Ok(expression) => _ = out.insert(anchored_pattern(&expression), schema),
                Err(problem) => self.unsupported(keyword, &at, &problem)?,
            }
        }
        Ok(out.into())
    }

    /// What only the keywords of an object together say.
    fn check_object(&mut self, out: &mut Map<String, Value>, at: &str) -> Result<(), ConstraintError> {
        let size = |key: &str| out.get(key).and_then(Value::as_object).map_or(0, Map::len);
        let (named, patterns) = (size("properties"), size("patternProperties"));
        let closed = out.get("additionalProperties") == Some(&Value::Bool(false));
        self.open_objects |= !closed && named + patterns > 0;
        let required: Vec<&str> =
            out.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let properties = out.get("properties").and_then(Value::as_object);
        let optional =
            properties.is_some_and(|properties| properties.keys().any(|name| !required.contains(&name.as_str())));
        let of =
            |key: &str| out.get(key).and_then(Value::as_u64).map(|count| count.saturating_sub(required.len() as u64));
        let (least, most) = (of("minProperties").unwrap_or(0), of("maxProperties"));
        let others = !closed || patterns > 0;
        // The grammar library counts one of several optional properties, or properties that have no name.
        let one = least <= 1 && most.unwrap_or(1) == 1 && !others;
        // It would count a name twice that is written twice.
        if (optional && (least > 0 || most.is_some()) && !one) || (least > 1 && others) {
            for keyword in ["minProperties", "maxProperties"] {
                if out.shift_remove(keyword).is_some() {
                    let why = "possible only with nothing but required properties, or for exactly one of several";
                    self.unsupported(keyword, &format!("{at}/{keyword}"), why)?;
                }
            }
        }
        Ok(())
    }
}

pub(super) fn too_large(at: &str, what: &str, limit: usize) -> ConstraintError {
    ConstraintError::TooLarge { at: at.to_owned(), what: what.to_owned(), limit }
}

fn anchored_pattern(expression: &str) -> String {
    format!("^(?:{expression})$")
}

/// Adds a pattern beside those that are there.
fn add_pattern(out: &mut Map<String, Value>, expression: &str) {
    let pattern = Value::String(anchored_pattern(expression));
    if !out.contains_key("pattern") {
        out.insert("pattern".to_owned(), pattern);
    } else {
        add_to_all_of(out, vec![json!({"pattern": pattern})]);
    }
}

fn add_to_all_of(out: &mut Map<String, Value>, more: Vec<Value>) {
    match out.get_mut("allOf") {
        Some(Value::Array(all)) => all.extend(more),
        _ => _ = out.insert("allOf".to_owned(), more.into()),
    }
}

/// Whether the schema of these keywords may describe a string.
fn may_be_text(fields: &Map<String, Value>) -> bool {
    match fields.get("type") {
        None => true,
        Some(Value::Array(types)) => types.iter().any(|kind| kind == "string"),
        Some(kind) => kind == "string",
    }
}

#[cfg(test)]
mod tests {
    use super::super::values::MAX_ENUM;
    use super::*;

    fn prepare(root: &Value, pointer: &str, unsupported: Unsupported) -> Result<Prepared, ConstraintError> {
        let value = root.pointer(pointer).expect("a subschema");
        Document { root, name: "schema", unsupported }.prepare(value, &format!("schema{pointer}"))
    }

    fn prepared(root: &Value) -> Value {
        let mut schema = prepare(root, "", Unsupported::Refuse).expect("a schema").schema;
        schema.as_object_mut().expect("an object").shift_remove("x-guidance");
        schema
    }

    #[test]
    fn annotations_go_and_the_rest_stays() {
        let schema = json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "t", "type": "object",
            "properties": {"title": {"type": "string", "description": "d", "format": "int32", "maxLength": 5.0},
                "n": {"type": "integer", "maximum": 18446744073709551615u64, "minimum": 0, "deprecated": true}},
            "required": ["n"], "additionalProperties": false, "unknown": {"not": {}}});
        let wanted = json!({"type": "object", "properties": {"title": {"type": "string", "maxLength": 5},
            "n": {"type": "integer", "maximum": 9007199254740992u64, "minimum": 0}},
            "required": ["n"], "additionalProperties": false});
        assert_eq!(prepared(&schema), wanted);
        assert_eq!(prepared(&json!(true)), json!({}));
    }

    #[test]
    fn references_become_definitions_of_the_new_document() {
        let schema = json!({"$id": "https://e.org/s", "definitions": {"a/b": {"type": "object", "properties":
            {"next": {"$ref": "#/definitions/a~1b"}, "x": {"$ref": "#x"}, "y": {"$ref": "https://e.org/s#/$def/y"}}}},
            "$def": {"y": {"type": "null"}, "x": {"$anchor": "x", "type": "boolean"}},
            "properties": {"p": {"$ref": "#/definitions/a%7E1b"}}});
        let inner = prepare(&schema, "/properties/p", Unsupported::Refuse).expect("a schema").schema;
        assert_eq!(inner["$ref"], "#/$defs/d0");
        assert_eq!(inner["$defs"]["d0"]["properties"]["next"]["$ref"], "#/$defs/d0");
        let of = |name: &str| {
            let reference = inner["$defs"]["d0"]["properties"][name]["$ref"].as_str().expect("a reference");
            inner.pointer(&reference[1..]).expect("a definition")
        };
        assert_eq!((of("x"), of("y")), (&json!({"type": "boolean"}), &json!({"type": "null"})));
    }

    #[test]
    fn older_drafts_items_are_prefix_items() {
        let schema = json!({"type": "array", "items": [{"type": "null"}], "additionalItems": false});
        assert_eq!(prepared(&schema), json!({"type": "array", "prefixItems": [{"type": "null"}], "items": false}));
    }

    #[test]
    fn what_cannot_be_enforced_is_refused_by_name_or_noted() {
        for (schema, keyword, at) in [
            (json!({"not": {}}), "not", "schema/not"),
            (json!({"properties": {"a": {"uniqueItems": true}}}), "uniqueItems", "schema/properties/a/uniqueItems"),
            (json!({"if": {}, "then": {"type": "null"}}), "if", "schema/if"),
            (json!({"$ref": "https://e.org/x"}), "$ref", "schema/$ref"),
            (json!({"type": "string", "pattern": "(?=a)"}), "pattern", "schema/pattern"),
            (json!({"format": "json-pointer"}), "format", "schema/format"),
            (json!({"minProperties": 2}), "minProperties", "schema/minProperties"),
            (json!({"anyOf": [{"propertyNames": {"maxLength": 3}}]}), "propertyNames", "schema/anyOf/0/propertyNames"),
            (json!({"properties": {"a": {"$id": "x"}}}), "$id", "schema/properties/a/$id"),
        ] {
            let error = prepare(&schema, "", Unsupported::Refuse).expect_err("it is refused");
            assert!(
                matches!(&error, ConstraintError::Unsupported { at: place, keyword: word, .. } if place == at && word == keyword),
                "{error}"
            );
            let relaxed = prepare(&schema, "", Unsupported::Relax).expect("it is left out");
            assert_eq!(relaxed.notes.first(), Some(&error.to_string()));
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let deep = (0..100).fold(json!({}), |inner, _| json!({"items": inner}));
        let many = json!({"anyOf": (0..MAX_SUBSCHEMAS).map(|_| json!({})).collect::<Vec<_>>()});
        let wide = json!({"enum": (0..=MAX_ENUM).collect::<Vec<_>>()});
        for schema in [deep, many, wide, json!({"minLength": 1_000_000})] {
            let error = prepare(&schema, "", Unsupported::Relax).expect_err("it is refused");
            assert!(matches!(error, ConstraintError::TooLarge { .. }), "{error}");
        }
        for schema in [
            json!({"enum": []}),
            json!({"const": 9007199254740993u64}),
            json!({"minimum": 1e300}),
            json!({"properties": []}),
            json!({"items": 1}),
            json!({"maxItems": -1}),
            json!(false),
        ] {
            let error = prepare(&schema, "", Unsupported::Relax).expect_err("it is refused");
            assert!(matches!(error, ConstraintError::Invalid { .. }), "{error}");
        }
    }
}
