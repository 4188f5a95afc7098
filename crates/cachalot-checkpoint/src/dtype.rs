//! Element types and shapes of stored tensors (spec section 2.2).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Deref;

/// How one stored element is encoded. The names are those of the safetensors format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(non_camel_case_types, reason = "the format's own names")]
pub enum Dtype {
    /// 8 bits: 1 sign, 4 exponent, 3 mantissa; no infinities, 0x7f and 0xff are NaN.
    F8_E4M3,
    /// 8 bits: a power of two, `2^(byte - 127)`; 255 is NaN.
    F8_E8M0,
    /// Opaque bytes: two E2M1 codes each, the even column in the low nibble.
    I8,
    /// The upper half of an F32.
    BF16,
    /// IEEE single precision.
    F32,
    /// Signed 64-bit integers.
    I64,
}

impl Dtype {
    /// All types, narrow ones first.
    pub const ALL: [Self; 6] = [Self::F8_E4M3, Self::F8_E8M0, Self::I8, Self::BF16, Self::F32, Self::I64];

    /// Bytes of one element.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::F8_E4M3 | Self::F8_E8M0 | Self::I8 => 1,
            Self::BF16 => 2,
            Self::F32 => 4,
            Self::I64 => 8,
        }
    }

    /// The name in a safetensors header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F8_E4M3 => "F8_E4M3",
            Self::F8_E8M0 => "F8_E8M0",
            Self::I8 => "I8",
            Self::BF16 => "BF16",
            Self::F32 => "F32",
            Self::I64 => "I64",
        }
    }

    /// The type that a safetensors header calls `name`, if it is one that is read.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A tensor's shape, at most [`Shape::MAX_RANK`] dimensions; dereferences to a slice.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    sizes: [u64; Self::MAX_RANK],
    rank: u8,
}

impl Shape {
    /// No tensor of this family has more dimensions.
    pub const MAX_RANK: usize = 4;

    /// The shape with these sizes, if there are not too many of them.
    pub fn new(sizes: &[u64]) -> Option<Self> {
        let mut shape = Self::default();
        shape.sizes.get_mut(..sizes.len())?.copy_from_slice(sizes);
        shape.rank = sizes.len() as u8;
        Some(shape)
    }

    /// `[size]`.
    pub const fn vector(size: usize) -> Self {
        Self { sizes: [size as u64, 0, 0, 0], rank: 1 }
    }

    /// `[rows, columns]`.
    pub const fn matrix(rows: usize, columns: usize) -> Self {
        Self { sizes: [rows as u64, columns as u64, 0, 0], rank: 2 }
    }

    /// Number of elements, if it fits 64 bits.
    pub fn elements(&self) -> Option<u64> {
        self.iter().try_fold(1u64, |product, size| product.checked_mul(*size))
    }

    /// `(rows, columns)` of a matrix; a vector is one row.
    pub fn rows_and_columns(&self) -> Option<(u64, u64)> {
        match **self {
            [columns] => Some((1, columns)),
            [rows, columns] => Some((rows, columns)),
            _ => None,
        }
    }
}

impl Deref for Shape {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        &self.sizes[..usize::from(self.rank)]
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_print_and_multiply() {
        assert_eq!(Shape::matrix(3, 5).to_string(), "[3, 5]");
        assert_eq!(Shape::matrix(3, 5).elements(), Some(15));
        assert_eq!(Shape::new(&[]).and_then(|scalar| scalar.elements()), Some(1));
        assert_eq!(Shape::new(&[u64::MAX, 2]).and_then(|huge| huge.elements()), None);
        assert_eq!(Shape::new(&[1; 5]), None);
        assert_eq!(Shape::vector(7).rows_and_columns(), Some((1, 7)));
        assert_eq!(Shape::new(&[1, 2, 3]).and_then(|cube| cube.rows_and_columns()), None);
    }

    #[test]
    fn names_are_the_formats() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::from_name("F16"), None);
    }
}
