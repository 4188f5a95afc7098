//! E8M0: a power of two as a block's scale.

/// The code that stands for no number; a file that holds it is damaged.
pub const NAN: u8 = 255;

/// `2^(code - 127)`; code 0 is the float32 subnormal 2^-127. [`NAN`] gives NaN.
#[inline]
pub const fn decode(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(0x0040_0000),
        NAN => f32::NAN,
        _ => f32::from_bits((code as u32) << 23),
    }
}

/// The code of `2^ceil(log2(value))` for a positive normal `value`, by its bits (spec section 3.2, `AQ8`).
#[inline]
pub fn ceil_code(value: f32) -> u8 {
    let bits = value.to_bits();
    let exponent = bits >> 23 & 0xff;
    (exponent + u32::from(bits & 0x007f_ffff != 0)).min(254) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_its_power_of_two() {
        for code in 0..NAN {
            assert_eq!(f64::from(decode(code)), libm::exp2(f64::from(code) - 127.0), "code {code}");
        }
        assert!(decode(NAN).is_nan());
    }

    #[test]
    fn the_ceiling_is_exact_at_powers_of_two() {
        assert_eq!(ceil_code(1.0), 127);
        assert_eq!(ceil_code(1.0 + f32::EPSILON), 128);
        assert_eq!(ceil_code(0.75), 127);
        assert_eq!(ceil_code(f32::MIN_POSITIVE), 1);
    }
}
