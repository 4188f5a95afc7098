//! The constants of the Engram hash and the row ids it gives (spec section 3.10 b to d).
//!
//! Owns primes, multipliers and row ids, which are rebuilt from the config and not stored in any checkpoint. Refuses a
//! config whose tables do not have as many rows as the primes need. The map from tokens to classes is not here.

use super::EngramConfig;

/// Why the hash cannot be rebuilt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is {stored} for layer {layer}, but the primes of its hash sum to {needed}")]
pub struct EngramError {
    /// The layer.
    pub layer: usize,
    /// Rows that the config gives its table.
    pub stored: u64,
    /// Rows that its hash needs.
    pub needed: u64,
}

/// The hash into one layer's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngramTable {
    /// The layer that reads it.
    pub layer: usize,
    /// Rows of the table.
    pub rows: u64,
    /// Modulus of each column, n-gram lengths outermost.
    pub primes: Vec<u64>,
    /// First row of each column.
    pub offsets: Vec<u64>,
    /// Odd multiplier of each look-back distance.
    pub multipliers: Vec<u64>,
}

/// The hashes of all Engram layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngramTables {
    tables: Vec<EngramTable>,
    heads: usize,
    max_ngram: usize,
    classes: u32,
}

impl EngramTables {
    /// Rebuilds the hashes that `config` describes.
    ///
    /// # Errors
    /// If a layer's primes do not sum to the rows of its table.
    pub fn new(config: &EngramConfig) -> Result<Self, EngramError> {
        let mut tables = Vec::with_capacity(config.layer_ids.len());
        let layers = config.layer_ids.iter().zip(&config.num_embeddings);
        for ((&layer, &stored), primes) in layers.zip(primes(config.vocab_size, config.columns())) {
            let needed = primes.iter().sum();
            if needed != stored {
                return Err(EngramError { layer, stored, needed });
            }
            let offsets = primes
                .iter()
                .scan(0, |next, prime| {
                    let offset = *next;
                    *next += prime;
                    Some(offset)
                })
                .collect();
            let multipliers = multipliers(layer, config.compressed_vocab_size, config.max_ngram_size);
            tables.push(EngramTable { layer, rows: stored, primes, offsets, multipliers });
        }
        let (heads, max_ngram, classes) = (config.n_heads, config.max_ngram_size, config.compressed_vocab_size);
        Ok(Self { tables, heads, max_ngram, classes })
    }

    /// Rows of each of `tables` tables with `columns` columns, if the search for primes starts at `vocab_size`.
    pub fn rows(vocab_size: u64, columns: usize, tables: usize) -> Vec<u64> {
        primes(vocab_size, columns).take(tables).map(|primes| primes.iter().sum()).collect()
    }

    /// One hash per Engram layer, in the order of the config.
    pub fn tables(&self) -> &[EngramTable] {
        &self.tables
    }

    /// Rows per token and layer.
    pub fn columns(&self) -> usize {
        (self.max_ngram - 1) * self.heads
    }

    /// Tokens that a row depends on, the newest included.
    pub fn look_back(&self) -> usize {
        self.max_ngram
    }

    /// Classes that the hash is made for.
    pub fn classes(&self) -> u32 {
        self.classes
    }

    /// The rows of table `table` for the newest token of `history`, into `rows` (one per column).
    ///
    /// `history[s]` is the class of the token `s` positions back, below [`EngramTables::classes`], or `None` if it
    /// lies before the sequence's start or in an image span; from the first `None` (or the end of `history`) on, all
    /// are `pad_class`.
    ///
    /// # Panics
    /// If there is no such table or `rows` is not [`EngramTables::columns`] long.
    pub fn hash_rows(&self, table: usize, history: &[Option<u32>], pad_class: u32, rows: &mut [u64]) {
        let table = &self.tables[table];
        assert_eq!(rows.len(), table.primes.len(), "one row per column");
        let mut known = history.iter().map_while(|class| *class).fuse();
        let mut hash = 0;
        for (distance, multiplier) in table.multipliers.iter().enumerate() {
            let class = known.next().unwrap_or(pad_class);
            debug_assert!(class < self.classes, "a class of the map that the hash is made for");
            // A class below `classes` times a multiplier stays below 2^63.
            hash ^= u64::from(class).wrapping_mul(*multiplier);
            if distance > 0 {
                let first = (distance - 1) * self.heads;
                let columns = table.primes[first..].iter().zip(&table.offsets[first..]);
                for (row, (prime, offset)) in rows[first..first + self.heads].iter_mut().zip(columns) {
                    *row = hash % prime + offset;
                }
            }
        }
    }
}

/// The primes of one table after the other, one per column.
///
/// The spec starts the search anew for every n-gram length and skips primes that were given out: as each search takes
/// all primes on its way, this is the same as carrying on behind the last one.
fn primes(vocab_size: u64, columns: usize) -> impl Iterator<Item = Vec<u64>> {
    let mut last = vocab_size.saturating_sub(1);
    let mut next = move || {
        last = next_prime(last);
        last
    };
    std::iter::repeat_with(move || (0..columns).map(|_| next()).collect())
}

/// Smallest prime above `after`.
fn next_prime(after: u64) -> u64 {
    (after + 1..).find(|number| is_prime(*number)).unwrap_or(u64::MAX)
}

/// Exact below 4,759,123,141: strong pseudoprime tests to the bases 2, 7 and 61, after small divisors.
fn is_prime(number: u64) -> bool {
    const SMALL: [u64; 12] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 61];
    if number < 2 || SMALL.contains(&number) {
        return number >= 2;
    }
    if SMALL.iter().any(|divisor| number.is_multiple_of(*divisor)) {
        return false;
    }
    let twos = (number - 1).trailing_zeros();
    [2, 7, 61].into_iter().all(|base| {
        let mut power = power_mod(base, (number - 1) >> twos, number);
        if power == 1 || power == number - 1 {
            return true;
        }
        (1..twos).any(|_| {
            power = times_mod(power, power, number);
            power == number - 1
        })
    })
}

fn times_mod(a: u64, b: u64, modulus: u64) -> u64 {
    (u128::from(a) * u128::from(b) % u128::from(modulus)) as u64
}

fn power_mod(mut base: u64, mut exponent: u64, modulus: u64) -> u64 {
    let mut result = 1;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = times_mod(result, base, modulus);
        }
        base = times_mod(base, base, modulus);
        exponent >>= 1;
    }
    result
}

/// The odd multipliers of one layer, one per look-back distance (spec section 3.10 c).
fn multipliers(layer: usize, classes: u32, count: usize) -> Vec<u64> {
    let bound = i64::MAX as u64 / u64::from(classes.max(1)) / 2;
    let mut generator = Pcg64::seeded(10_007 * layer as u64);
    (0..count).map(|_| 2 * generator.below(bound) + 1).collect()
}

/// NumPy's default generator: PCG64 (XSL-RR 128/64) seeded through a `SeedSequence`.
struct Pcg64 {
    state: u128,
    increment: u128,
}

impl Pcg64 {
    const MULTIPLIER: u128 = 0x2360_ED05_1FC6_5DA4_4385_DF64_9FCC_F645;

    fn seeded(seed: u64) -> Self {
        let words = seed_sequence(seed);
        let pair = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
        let mut generator = Self { state: 0, increment: pair(words[2], words[3]) << 1 | 1 };
        generator.step();
        generator.state = generator.state.wrapping_add(pair(words[0], words[1]));
        generator.step();
        generator
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(Self::MULTIPLIER).wrapping_add(self.increment);
    }

    fn next(&mut self) -> u64 {
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    /// Uniform in `[0, bound)`: Lemire's multiplication with rejection.
    fn below(&mut self, bound: u64) -> u64 {
        let mut product = u128::from(self.next()) * u128::from(bound);
        if (product as u64) < bound {
            let threshold = bound.wrapping_neg().checked_rem(bound).unwrap_or(0);
            while (product as u64) < threshold {
                product = u128::from(self.next()) * u128::from(bound);
            }
        }
        (product >> 64) as u64
    }
}

/// Four 64-bit words from an integer seed, as NumPy's `SeedSequence` generates them.
fn seed_sequence(seed: u64) -> [u64; 4] {
    let mut hash_state = 0x43b0_d7e5_u32;
    let mut hash = |value: u32| {
        let mut value = value ^ hash_state;
        hash_state = hash_state.wrapping_mul(0x931e_8875);
        value = value.wrapping_mul(hash_state);
        value ^ value >> 16
    };
    let mix = |x: u32, y: u32| {
        let mixed = x.wrapping_mul(0xca01_f9dd).wrapping_sub(y.wrapping_mul(0x4973_f715));
        mixed ^ mixed >> 16
    };
    // A seed has at most two words, so none is left over beyond the pool of four.
    let mut pool = [seed as u32, (seed >> 32) as u32, 0, 0].map(&mut hash);
    for source in 0..4 {
        for target in (0..4).filter(|target| *target != source) {
            pool[target] = mix(pool[target], hash(pool[source]));
        }
    }
    let mut output_state = 0x8b51_f9dd_u32;
    let mut output = |word: u32| {
        let mut value = word ^ output_state;
        output_state = output_state.wrapping_mul(0x58f3_8ded);
        value = value.wrapping_mul(output_state);
        value ^ value >> 16
    };
    let halves: [u32; 8] = std::array::from_fn(|place| output(pool[place % 4]));
    std::array::from_fn(|word| u64::from(halves[2 * word]) | u64::from(halves[2 * word + 1]) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release() -> EngramConfig {
        EngramConfig {
            layer_ids: vec![1, 14],
            num_embeddings: vec![384_006_168, 384_016_682],
            max_ngram_size: 4,
            vocab_size: 16_000_000,
            n_heads: 8,
            head_dim: 256,
            pad_token_id: 2,
            compressed_vocab_size: 99_092,
        }
    }

    /// The tiny configuration of spec section 9.
    fn tiny() -> EngramConfig {
        EngramConfig {
            layer_ids: vec![1, 4],
            num_embeddings: vec![462, 630],
            vocab_size: 64,
            n_heads: 2,
            head_dim: 64,
            compressed_vocab_size: 100,
            ..release()
        }
    }

    fn rows(tables: &EngramTables, table: usize, history: &[Option<u32>]) -> Vec<u64> {
        let mut rows = vec![0; tables.columns()];
        tables.hash_rows(table, history, 2, &mut rows);
        rows
    }

    #[test]
    fn seeding_and_first_outputs_are_numpys() {
        assert_eq!(
            seed_sequence(10_007),
            [0x77d3_2a34_8ad7_0d07, 0x993e_d609_b84a_4fa5, 0xd5f9_72de_c869_8e49, 0x7d79_ebae_bcf1_48de]
        );
        assert_eq!(
            seed_sequence(140_098),
            [0xdb58_69fe_eecc_f2be, 0xad46_5727_d9cf_3645, 0x5155_d263_78b6_bab4, 0x9f9e_49df_66ff_1c85]
        );
        for (seed, state, increment, outputs) in [
            (
                10_007,
                78_698_009_995_358_412_790_897_477_648_799_726_887,
                228_559_182_809_729_053_680_923_842_009_152_786_877,
                [0xd2c3_f840_2666_1e33, 0x0d4f_b696_9eb5_7435, 0x62e6_e1c5_8c3b_d72b, 0xcb7d_d1a9_4ca9_6343],
            ),
            (
                140_098,
                10_740_298_142_812_363_042_693_322_873_234_528_667,
                216_226_160_157_035_218_372_809_288_510_034_819_339,
                [0xba3e_cc29_cf07_c111, 0x8dac_4bbe_1061_0b7c, 0x550b_7148_777f_f213, 0xe33b_7455_bc98_449e],
            ),
        ] {
            let mut generator = Pcg64::seeded(seed);
            assert_eq!((generator.state, generator.increment), (state, increment));
            assert_eq!(outputs.map(|_| generator.next()), outputs);
        }
    }

    #[test]
    fn bounded_integers_are_inside_the_bound_even_where_rejection_is_frequent() {
        let bound = (1 << 63) + 1;
        let mut generator = Pcg64::seeded(1);
        let draws: Vec<u64> = (0..1000).map(|_| generator.below(bound)).collect();
        assert!(draws.iter().all(|draw| *draw < bound));
        assert!(draws.iter().any(|draw| *draw > bound / 2));
        assert_eq!(generator.below(1), 0);
    }

    #[test]
    fn primes_and_multipliers_of_the_release() {
        let tables = EngramTables::new(&release()).expect("the release");
        let [first, second] = tables.tables() else { panic!("two tables") };
        let primes = |text: &str| -> Vec<u64> { text.split(' ').map(|n| n.parse().expect("a number")).collect() };
        assert_eq!(
            first.primes,
            primes(
                "16000057 16000079 16000081 16000097 16000121 16000129 16000133 16000183 \
                 16000189 16000207 16000211 16000253 16000277 16000289 16000307 16000321 \
                 16000339 16000381 16000393 16000399 16000403 16000409 16000447 16000463"
            )
        );
        assert_eq!(
            second.primes,
            primes(
                "16000477 16000487 16000499 16000507 16000511 16000573 16000609 16000627 \
                 16000667 16000669 16000693 16000697 16000711 16000729 16000759 16000769 \
                 16000781 16000799 16000813 16000819 16000841 16000877 16000879 16000889"
            )
        );
        assert_eq!([first.offsets[8], first.offsets[16], first.offsets[23]], [128_000_880, 256_002_934, 368_005_705]);
        assert_eq!(
            [second.offsets[8], second.offsets[16], second.offsets[23]],
            [128_004_290, 256_009_984, 368_015_793]
        );
        assert_eq!(first.multipliers, [76_632_096_046_245, 4_839_876_093_313, 35_959_672_319_349, 73_987_337_458_391]);
        assert_eq!(
            second.multipliers,
            [67_716_810_739_261, 51_510_806_800_915, 30_921_347_202_721, 82_619_226_485_591]
        );
    }

    #[test]
    fn rows_of_the_release() {
        let tables = EngramTables::new(&release()).expect("the release");
        let history = [Some(8), Some(7), Some(6), Some(5)];
        assert_eq!(
            rows(&tables, 0, &history),
            [
                11_754_974,
                24_210_124,
                42_797_160,
                63_493_520,
                78_540_315,
                88_889_911,
                110_064_958,
                126_757_584,
                143_641_730,
                148_232_863,
                163_475_809,
                179_531_185,
                206_996_897,
                220_731_181,
                225_334_082,
                246_693_705,
                259_287_126,
                280_637_906,
                293_598_051,
                308_078_758,
                323_066_193,
                337_547_390,
                359_933_296,
                371_888_815
            ]
        );
        let ends = |rows: Vec<u64>| (rows[0], rows[23]);
        assert_eq!(ends(rows(&tables, 1, &history)), (15_557_494, 370_262_006));
        for start in [&[Some(8)][..], &[Some(8), None, Some(99), Some(98)]] {
            assert_eq!(ends(rows(&tables, 0, start)), (15_625_456, 372_290_501));
            assert_eq!(ends(rows(&tables, 1, start)), (772_916, 381_150_600));
        }
        // A token inside an image span: everything is the pad class.
        assert_eq!(rows(&tables, 0, &[None, Some(3)]), rows(&tables, 0, &[Some(2); 4]));
    }

    #[test]
    fn constants_and_rows_of_the_tiny_configuration() {
        let tables = EngramTables::new(&tiny()).expect("tiny");
        let [first, second] = tables.tables() else { panic!("two tables") };
        assert_eq!(first.primes, [67, 71, 73, 79, 83, 89]);
        assert_eq!(second.primes, [97, 101, 103, 107, 109, 113]);
        assert_eq!(first.offsets, [0, 67, 138, 211, 290, 373]);
        assert_eq!(second.offsets, [0, 97, 198, 301, 408, 517]);
        assert_eq!(
            first.multipliers,
            [75_936_276_614_146_333, 4_795_930_018_386_233, 35_633_158_494_689_637, 73_315_532_434_270_253]
        );
        assert_eq!(
            second.multipliers,
            [81_513_295_853_596_807, 4_992_048_871_498_501, 72_984_681_045_300_789, 18_782_752_802_206_679]
        );
        let history = [Some(8), Some(7), Some(6), Some(5)];
        assert_eq!(rows(&tables, 0, &history), [60, 82, 157, 250, 363, 409]);
        assert_eq!(rows(&tables, 1, &history), [15, 175, 227, 386, 431, 625]);
        assert_eq!(rows(&tables, 0, &[Some(8)]), [17, 87, 172, 269, 328, 432]);
        assert_eq!(rows(&tables, 1, &[Some(8)]), [76, 112, 297, 375, 428, 624]);
    }

    #[test]
    fn tables_of_another_size_are_refused() {
        let config = EngramConfig { num_embeddings: vec![462, 631], ..tiny() };
        let error = EngramTables::new(&config).expect_err("one row too many");
        assert_eq!(error.to_string(), "is 631 for layer 4, but the primes of its hash sum to 630");
    }

    #[test]
    fn primality_agrees_with_trial_division() {
        let slow = |n: u64| n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
        assert!((0..20_000).all(|n| is_prime(n) == slow(n)));
        assert!((4_294_967_000..4_294_967_400).all(|n| is_prime(n) == slow(n)));
        // Strong pseudoprimes to base 2 (and to 2, 3, 5 and 7).
        assert!([2047, 3277, 4033, 3_215_031_751].iter().all(|n| !is_prime(*n)));
    }
}
