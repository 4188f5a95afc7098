//! Elementary functions in float32, made of additions, multiplications and divisions only.
//!
//! They have no branches that a vector unit could not take, so that a loop over them vectorises, and no fused
//! operation, so that every instruction set gives the same bits.

/// Added and subtracted, it rounds a small float32 to an integer, ties to even.
const ROUND: f32 = 12_582_912.0;

/// `2^exponent` for an integer exponent in -126..=127.
#[inline(always)]
fn power_of_two(exponent: f32) -> f32 {
    f32::from_bits(((exponent as i32 + 127) as u32) << 23)
}

/// `e^x`; within 2 units in the last place, 0 far below and infinity far above.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Beyond these the result is 0 or infinite anyway.
    let clamped = if x > 89.0 { 89.0 } else { x };
    let clamped = if clamped < -104.0 { -104.0 } else { clamped };
    let n = (clamped * std::f32::consts::LOG2_E + ROUND) - ROUND;
    // ln 2 in two parts; the first, 355/512, has few enough bits for an exact product.
    let r = (clamped - n * (355.0 / 512.0)) + n * 2.121_944_4e-4;
    let polynomial =
        ((((1.987_569_1e-4 * r + 1.398_199_9e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 0.166_666_65) * r
            + 0.5;
    let value = (polynomial * (r * r) + r) + 1.0;
    // Two steps, as 2^n may lie outside the normal range.
    let half = (n * 0.5 + ROUND) - ROUND;
    value * power_of_two(half) * power_of_two(n - half)
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `x / (1 + e^-x)`
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `ln(1 + e^x)`, rounded from float64: it decides which experts a token goes to.
pub fn softplus(x: f32) -> f32 {
    let x = f64::from(x);
    let value = if x > 40.0 { x } else { libm::log1p(libm::exp(x)) };
    value as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units in the last place of the exact value.
    fn ulps(value: f32, exact: f64) -> f64 {
        let unit = libm::exp2(libm::floor(libm::log2(exact.abs().max(f64::from(f32::MIN_POSITIVE)))) - 23.0);
        (f64::from(value) - exact).abs() / unit
    }

    #[test]
    fn exp_is_accurate_over_its_whole_range() {
        let mut worst = 0.0f64;
        for step in -8_800_000..8_870_000 {
            let x = step as f32 * 1e-5;
            worst = worst.max(ulps(exp(x), libm::exp(f64::from(x))));
        }
        assert!(worst <= 2.0, "off by {worst} units");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-100.0) > 0.0, "subnormal results are kept");
    }

    #[test]
    fn the_others_are_accurate() {
        for step in -4_000..4_000 {
            let x = step as f32 * 0.02;
            let e = libm::exp(-f64::from(x));
            assert!(ulps(sigmoid(x), 1.0 / (1.0 + e)) <= 3.0, "sigmoid({x})");
            assert!(ulps(silu(x), f64::from(x) / (1.0 + e)) <= 3.0 || x == 0.0, "silu({x})");
            assert!(ulps(softplus(x), libm::log1p(libm::exp(f64::from(x)))) <= 1.0, "softplus({x})");
        }
        assert_eq!(sigmoid(-200.0), 0.0);
        assert_eq!(sigmoid(200.0), 1.0);
        assert_eq!(softplus(1000.0), 1000.0);
    }
}
