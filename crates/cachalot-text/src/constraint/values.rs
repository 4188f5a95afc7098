//! Values and numbers inside of schemas.
//!
//! Owns what `const`, `enum`, bounds and counts may hold. Refuses numbers that are not exact in every program.

use serde_json::{Map, Value};

use super::error::ConstraintError;
use super::schema::too_large;

/// Most values of one `enum`.
pub const MAX_ENUM: usize = 4096;
/// Largest count of characters, items or properties.
pub const MAX_COUNT: u64 = 100_000;
/// Integers up to here are exact in every JSON library.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The values of an `enum`.
pub(super) fn list(value: &Value, at: &str) -> Result<Value, ConstraintError> {
    let values = value.as_array().ok_or_else(|| ConstraintError::invalid(at, "must be a list of values"))?;
    if values.is_empty() {
        return Err(ConstraintError::invalid(at, "no value fits an empty list"));
    }
    if values.len() > MAX_ENUM {
        return Err(too_large(at, "too many values", MAX_ENUM));
    }
    values.iter().map(|value| literal(value, at)).collect::<Result<Vec<_>, _>>().map(Value::from)
}

/// A value of `const` or `enum`; its numbers must be exact.
pub(super) fn literal(value: &Value, at: &str) -> Result<Value, ConstraintError> {
    match value {
        // The next number above rounds to this one.
        Value::Number(number) if number.as_f64().is_none_or(|number| number.abs() >= EXACT) => {
            Err(ConstraintError::invalid(at, format!("{number} is not exact in every program; use a string")))
        }
        Value::Array(items) => {
            items.iter().map(|item| literal(item, at)).collect::<Result<Vec<_>, _>>().map(Value::from)
        }
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| Ok((name.clone(), literal(value, at)?)));
            fields.collect::<Result<Map<_, _>, _>>().map(Value::from)
        }
        _ => Ok(value.clone()),
    }
}

/// A bound of a number, drawn in to where numbers are exact.
pub(super) fn bound(keyword: &str, value: &Value, at: &str) -> Result<Value, ConstraintError> {
    if value.is_boolean() && keyword.starts_with("exclusive") {
        return Ok(value.clone());
    }
    let number = value.as_f64().ok_or_else(|| ConstraintError::invalid(at, "must be a number"))?;
    if number.abs() <= EXACT {
        return Ok(value.clone());
    }
    match (keyword, number > 0.0) {
        ("minimum" | "exclusiveMinimum", false) | ("maximum" | "exclusiveMaximum", true) => {
            Ok((EXACT.copysign(number) as i64).into())
        }
        _ => {
            Err(ConstraintError::invalid(at, format!("{value} is beyond the numbers that are exact in every program")))
        }
    }
}

/// A count; none if it says nothing.
pub(super) fn count(keyword: &str, value: &Value, at: &str) -> Result<Option<u64>, ConstraintError> {
    let whole = value.as_u64().or_else(|| {
        let number = value.as_f64().filter(|number| number.fract() == 0.0 && (0.0..=EXACT).contains(number));
        number.map(|number| number as u64)
    });
    match whole {
        None => Err(ConstraintError::invalid(at, "must be a number without a fraction, from 0 on")),
        Some(0) if keyword.starts_with("min") => Ok(None),
        Some(count) if count <= MAX_COUNT => Ok(Some(count)),
        Some(_) if keyword.starts_with("max") => Ok(Some(MAX_COUNT)),
        Some(count) => Err(too_large(at, &format!("it is {count}"), MAX_COUNT as usize)),
    }
}
