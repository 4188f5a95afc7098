//! E2M1: four bits, the weights of routed experts and the entries of compressed caches.

/// The values of codes 0 to 7; code 8 + c is the negative of code c.
pub const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// The value of the code in the low four bits.
#[inline]
pub fn decode(code: u8) -> f32 {
    let magnitude = MAGNITUDES[usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// The nearest code, ties to the even one; the sign is kept, zero's too. Values beyond 6 become 6.
#[inline]
pub fn encode(value: f32) -> u8 {
    let magnitude = value.abs();
    // Each boundary is a tie between two codes: it belongs to the even one.
    let code = u8::from(magnitude > 0.25)
        + u8::from(magnitude >= 0.75)
        + u8::from(magnitude > 1.25)
        + u8::from(magnitude >= 1.75)
        + u8::from(magnitude > 2.5)
        + u8::from(magnitude >= 3.5)
        + u8::from(magnitude > 5.0);
    code | if value.is_sign_negative() { 8 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_round_trip() {
        for code in 0..16 {
            assert_eq!(encode(decode(code)), code);
        }
    }

    #[test]
    fn ties_go_to_the_even_code() {
        let ties = [(0.25, 0), (0.75, 2), (1.25, 2), (1.75, 4), (2.5, 4), (3.5, 6), (5.0, 6)];
        for (value, code) in ties {
            assert_eq!(encode(value), code, "{value}");
            assert_eq!(encode(-value), code | 8, "-{value}");
        }
        assert_eq!(encode(100.0), 7);
        assert_eq!(encode(-0.0), 8);
    }

    #[test]
    fn the_nearest_code_wins() {
        for step in 0..=700 {
            let value = step as f32 / 100.0;
            let best = MAGNITUDES.iter().map(|magnitude| (magnitude - value).abs()).fold(f32::MAX, f32::min);
            assert_eq!((decode(encode(value)) - value).abs(), best, "{value}");
        }
    }
}
