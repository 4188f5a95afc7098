//! E4M3 (the "fn" variant): eight bits, 448 at most, no infinity.

/// Largest finite value.
pub const MAX: f32 = 448.0;

/// Whether the code stands for no number.
#[inline]
pub const fn is_nan(code: u8) -> bool {
    code & 0x7f == 0x7f
}

/// The value of a code; NaN for the two codes without one.
#[inline]
pub fn decode(code: u8) -> f32 {
    if is_nan(code) {
        return f32::NAN;
    }
    // With the exponent moved to float32's place, only the bias is missing, for subnormal codes too.
    let bits = u32::from(code & 0x80) << 24 | u32::from(code & 0x7f) << 20;
    // The product of a float32 subnormal and 2^120 is exact.
    f32::from_bits(bits) * f32::from_bits((127 + 120) << 23)
}

/// The nearest code, ties to even; beyond 448 it saturates, NaN stays NaN.
#[inline]
pub fn encode(value: f32) -> u8 {
    let sign = ((value.to_bits() >> 24) & 0x80) as u8;
    let magnitude = value.abs();
    if value.is_nan() {
        return sign | 0x7f;
    }
    if magnitude >= MAX {
        return sign | 0x7e;
    }
    if magnitude < 0.015_625 {
        // Below 2^-6 the codes count steps of 2^-9: adding 2^14 rounds to that step, to even.
        let steps = (magnitude + 16_384.0) - 16_384.0;
        return sign | (steps * 512.0) as u8;
    }
    let bits = magnitude.to_bits();
    let rounded = bits + 0x0007_ffff + (bits >> 20 & 1);
    sign | ((rounded >> 20) - (120 << 3)).min(0x7e) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_the_definition() {
        for code in 0..=255u8 {
            let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
            let magnitude = if exponent == 0 {
                mantissa * libm::exp2(-9.0)
            } else {
                (1.0 + mantissa / 8.0) * libm::exp2(f64::from(exponent - 7))
            };
            let expected = if code & 0x80 == 0 { magnitude } else { -magnitude };
            match is_nan(code) {
                true => assert!(decode(code).is_nan()),
                false => assert_eq!(f64::from(decode(code)), expected, "code {code:#x}"),
            }
        }
    }

    #[test]
    fn codes_survive_the_round_trip() {
        for code in (0..=255u8).filter(|&code| !is_nan(code)) {
            assert_eq!(encode(decode(code)), code);
        }
        assert!(is_nan(encode(f32::NAN)));
    }

    #[test]
    fn the_nearest_code_wins_and_ties_go_to_even() {
        for code in 0..0x7eu8 {
            let (low, high) = (decode(code), decode(code + 1));
            let middle = (low + high) / 2.0;
            let even = code + (code & 1);
            assert_eq!(encode(middle), even, "between {low} and {high}");
            assert_eq!(encode(f32::from_bits(middle.to_bits() - 1)), code);
            assert_eq!(encode(f32::from_bits(middle.to_bits() + 1)), code + 1);
            assert_eq!(encode(-middle), even | 0x80);
        }
        assert_eq!(encode(1e9), 0x7e);
        assert_eq!(encode(463.9), 0x7e);
        assert_eq!(encode(-0.0), 0x80);
    }
}
