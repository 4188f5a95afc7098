//! Random bytes at the speed of memory, and the normal distribution.

/// Mixes 64 bits: the finaliser of SplitMix64.
pub fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A key that depends on every byte of `name`, and on `seed`.
pub fn key(seed: u64, name: &str) -> u64 {
    name.bytes().fold(mix(seed ^ 0x9e37_79b9_7f4a_7c15), |key, byte| mix(key ^ u64::from(byte)))
}

/// Word number `index` of the stream of `key` (SplitMix64 started at `key`).
pub fn word(key: u64, index: u64) -> u64 {
    mix(key.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// Fills `buffer` with the bytes from `offset` on, a multiple of 8, of the stream of `key`.
pub fn fill(key: u64, offset: u64, buffer: &mut [u8]) {
    debug_assert!(offset.is_multiple_of(8));
    let first = offset / 8;
    let (words, rest) = buffer.as_chunks_mut();
    for (index, out) in (first..).zip(&mut *words) {
        *out = word(key, index).to_le_bytes();
    }
    let last = word(key, first + words.len() as u64).to_le_bytes();
    let length = rest.len();
    rest.copy_from_slice(&last[..length]);
}

/// A number of the stream of `key` below `bound`, nearly uniform: the bias is below `bound / 2^64`.
pub fn below(key: u64, index: u64, bound: u64) -> u64 {
    ((u128::from(word(key, index)) * u128::from(bound)) >> 64) as u64
}

/// The value below which a standard normal variable lies with probability `p`, 0 < p < 1.
pub fn normal_quantile(p: f64) -> f64 {
    let cumulated = |x: f64| libm::erfc(-x / std::f64::consts::SQRT_2) / 2.0;
    let (mut low, mut high) = (-40.0, 40.0);
    // Each round halves an interval of 80: 64 rounds reach the spacing of the numbers.
    for _ in 0..64 {
        let middle = (low + high) / 2.0;
        if cumulated(middle) < p { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// 256 equally likely values of a standard normal variable, ascending: what a random byte stands for.
pub fn normal_table() -> [f64; 256] {
    std::array::from_fn(|byte| normal_quantile((byte as f64 + 0.5) / 256.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_do_not_depend_on_how_they_are_cut() {
        let mut whole = vec![0; 1001];
        fill(7, 0, &mut whole);
        let mut parts = vec![0; 1001];
        fill(7, 0, &mut parts[..24]);
        fill(7, 24, &mut parts[24..800]);
        fill(7, 800, &mut parts[800..]);
        assert_eq!(whole, parts);
        let mean = whole.iter().map(|byte| f64::from(*byte)).sum::<f64>() / 1001.0;
        assert!((mean - 127.5).abs() < 10.0, "{mean}");
        assert_ne!(key(1, "a"), key(2, "a"));
        assert_ne!(key(1, "a"), key(1, "b"));
    }

    #[test]
    fn quantiles_are_those_of_the_normal_distribution() {
        for (p, x) in [(0.5, 0.0), (0.841_344_746_068_543, 1.0), (0.022_750_131_948_179, -2.0), (1e-12, -7.034_483_8)] {
            assert!((normal_quantile(p) - x).abs() < 1e-6, "{p}: {}", normal_quantile(p));
        }
        let squares: f64 = normal_table().iter().map(|value| value * value).sum();
        assert!((squares / 256.0 - 1.0).abs() < 0.02);
    }

    #[test]
    fn numbers_below_a_bound_reach_all_of_them() {
        let mut seen = [0; 10];
        (0..1000).for_each(|index| seen[below(3, index, 10) as usize] += 1);
        assert!(seen.iter().all(|count| (60..140).contains(count)), "{seen:?}");
    }
}
