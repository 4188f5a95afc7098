//! BF16: the upper half of a float32.

/// The value of a BF16 code.
#[inline]
pub const fn decode(code: u16) -> f32 {
    f32::from_bits((code as u32) << 16)
}

/// The nearest BF16 code, ties to even; NaN stays NaN.
#[inline]
pub fn encode(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        // Set a mantissa bit that survives the cut.
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_round_trip() {
        for code in 0..=u16::MAX {
            let value = decode(code);
            assert!(value.is_nan() && decode(encode(value)).is_nan() || encode(value) == code, "{code:#x}");
        }
    }

    #[test]
    fn ties_go_to_the_even_code() {
        assert_eq!(encode(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(encode(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(encode(f32::from_bits(0x3f80_8001)), 0x3f81);
        assert_eq!(encode(f32::MAX), 0x7f80);
    }
}
