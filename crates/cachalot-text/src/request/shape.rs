//! JSON of a known shape, and errors that name the field where a text is not of it.

use serde::Deserialize;
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use super::RequestError;

/// Deepest nesting of JSON that is read: the limit of the library.
const MAX_LEVELS: usize = 127;
/// Most parts of a path that is told.
const MAX_SEGMENTS: usize = 6;

/// Reads `body`.
///
/// # Errors
/// [`RequestError::Field`] with the path of what is wrong, or [`RequestError::Shape`] if all of it is.
pub fn parse<'b, T: Deserialize<'b>>(body: &'b str) -> Result<T, RequestError> {
    match serde_json::from_str(body) {
        Ok(value) => Ok(value),
        // Paths cost time, so only who needs one pays for it.
        Err(error) => {
            let json = &mut serde_json::Deserializer::from_str(body);
            let found = serde_path_to_error::deserialize::<_, T>(json).err();
            let path = found.as_ref().map(|found| path(found.path())).unwrap_or_default();
            Err(refusal(path, &error.to_string()))
        }
    }
}

/// Makes `value` a `T`.
///
/// # Errors
/// As [`parse`].
pub fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, RequestError> {
    serde_path_to_error::deserialize(value).map_err(|error| refusal(path(error.path()), &error.inner().to_string()))
}

fn refusal(field: String, problem: &str) -> RequestError {
    let problem = match problem.starts_with("recursion limit exceeded") {
        true => format!("JSON may be nested {MAX_LEVELS} levels deep at most"),
        false => plainly(problem),
    };
    match field.is_empty() {
        true => RequestError::Shape(format!("the body is not as it should be: {problem}")),
        false => RequestError::Field { message: format!("Invalid {field}: {problem}"), field },
    }
}

/// How a program calls its types is nothing to a client.
fn plainly(problem: &str) -> String {
    let Some((text, kind)) = problem.rsplit_once("expected ") else { return problem.to_owned() };
    let (kind, place) = kind.split_at(kind.find(" at line").unwrap_or(kind.len()));
    let kind = match kind {
        "u8" => "an integer from 0 to 255",
        "u32" => "an integer from 0 to 4294967295",
        "u64" => "an integer from 0 to 2^64 - 1",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        _ if kind.starts_with("struct ") || kind.starts_with("internally tagged enum ") => "an object",
        _ => kind,
    };
    format!("{text}expected {kind}{place}")
}

/// As clients write it: `tools[0].function`.
fn path(path: &Path) -> String {
    let mut text = String::new();
    for segment in path.iter().take(MAX_SEGMENTS) {
        match segment {
            Segment::Seq { index } => text += &format!("[{index}]"),
            Segment::Map { key } => {
                text += if text.is_empty() { "" } else { "." };
                text += key;
            }
            Segment::Enum { .. } => {}
            Segment::Unknown => break,
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn errors_name_the_field() {
        let field = |body: &str| match parse::<HashMap<String, Vec<u32>>>(body) {
            Err(RequestError::Field { field, message }) => (field, message),
            other => panic!("{other:?}"),
        };
        let (at, text) = field(r#"{"a": [1], "b": [1, -2]}"#);
        assert_eq!(at, "b[1]");
        assert!(
            text.starts_with("Invalid b[1]: invalid value: integer `-2`, expected an integer from 0 to 4294967295")
        );
        assert!(matches!(parse::<HashMap<String, u32>>("[]"), Err(RequestError::Shape(_))));
        let deep = format!(r#"{{"tools": [{{"a": {}{}}}]}}"#, "[".repeat(200), "]".repeat(200));
        let Err(RequestError::Field { field, message }) = parse::<Value>(&deep) else { panic!("a field") };
        assert_eq!((field.as_str(), message.contains("127 levels")), ("tools[0].a[0][0][0]", true));
        let Err(RequestError::Field { field, .. }) = typed::<HashMap<String, u8>>(serde_json::json!({"x": 300})) else {
            panic!("a field")
        };
        assert_eq!(field, "x");
        for (told, plain) in [
            ("expected a sequence at line 1 column 2", "expected a list at line 1 column 2"),
            ("invalid type: null, expected struct Options", "invalid type: null, expected an object"),
            ("expected internally tagged enum Choice", "expected an object"),
            ("expected one of `a`, `b`", "expected one of `a`, `b`"),
            ("missing field `a`", "missing field `a`"),
        ] {
            assert_eq!(plainly(told), plain);
        }
    }
}
