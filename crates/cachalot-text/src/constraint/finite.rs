//! Whether a schema has a finite value at all.
//!
//! A schema can refer to itself in such a way that its values never end. Owns the search for values that do: of a prepared
//! schema, definitions are known to have one as soon as all that they need are known to.

use std::collections::HashSet;

use serde_json::{Map, Value};

/// Whether some finite value may fit `schema`, a prepared one. Bounds and combinations that exclude each other are not
/// looked at.
pub(super) fn has_value(schema: &Value) -> bool {
    let empty = Map::new();
    let definitions = schema.get("$defs").and_then(Value::as_object).unwrap_or(&empty);
    let mut known: HashSet<&str> = HashSet::new();
    loop {
        let before = known.len();
        // Definitions are found from the outside in: the last ones need the fewest others.
        for (name, definition) in definitions.iter().rev() {
            if !known.contains(name.as_str()) && has(definition, &known) {
                known.insert(name);
            }
        }
        if known.len() == before {
            return has(schema, &known);
        }
    }
}

fn has(schema: &Value, known: &HashSet<&str>) -> bool {
    let Value::Object(fields) = schema else { return schema != &Value::Bool(false) };
    let reference = fields.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix("#/$defs/"));
    let schemas = |keyword: &str| fields.get(keyword).and_then(Value::as_array);
    reference.is_none_or(|name| known.contains(name))
        && schemas("allOf").is_none_or(|all| all.iter().all(|schema| has(schema, known)))
        && ["anyOf", "oneOf"]
            .iter()
            .all(|any| schemas(any).is_none_or(|any| any.iter().any(|schema| has(schema, known))))
        && of_own_type(fields, known)
}

/// What the keywords of objects and lists need, where the value can be nothing else.
fn of_own_type(fields: &Map<String, Value>, known: &HashSet<&str>) -> bool {
    let types: Vec<&str> = match fields.get("type") {
        Some(Value::String(kind)) => vec![kind],
        Some(Value::Array(types)) => types.iter().filter_map(Value::as_str).collect(),
        _ => return true,
    };
    types.iter().any(|kind| match *kind {
        "object" => {
            let required = fields.get("required").and_then(Value::as_array).into_iter().flatten();
            required.filter_map(Value::as_str).all(|name| {
                let listed = fields.get("properties").and_then(|properties| properties.get(name));
                listed.is_none_or(|schema| has(schema, known))
            })
        }
        "array" => {
            let least = fields.get("minItems").and_then(Value::as_u64).unwrap_or(0) as usize;
            let first = fields.get("prefixItems").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let rest = fields.get("items").is_none_or(|schema| least <= first.len() || has(schema, known));
            rest && first.iter().take(least).all(|schema| has(schema, known))
        }
        _ => true,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_that_never_end_are_told_from_those_that_may() {
        let node = |rest: Value| json!({"$ref": "#/$defs/d0", "$defs": {"d0": {"type": "object", "properties": {"n": rest}, "required": ["n"]}}});
        let itself = || json!({"$ref": "#/$defs/d0"});
        for (schema, finite) in [
            (json!({}), true),
            (json!(false), false),
            (node(itself()), false),
            (node(json!({"anyOf": [itself(), {"type": "null"}]})), true),
            (node(json!({"type": "array", "items": itself()})), true),
            (node(json!({"type": "array", "items": itself(), "minItems": 1})), false),
            (node(json!({"type": "array", "prefixItems": [{"type": "null"}], "items": itself(), "minItems": 1})), true),
            (node(json!({"allOf": [itself(), {"type": "null"}]})), false),
            (json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}), false),
            (
                json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"type": ["object", "null"],
                "properties": {"x": {"$ref": "#/$defs/a"}}, "required": ["x"]}}}),
                true,
            ),
        ] {
            assert_eq!(has_value(&schema), finite, "{schema}");
        }
    }
}
