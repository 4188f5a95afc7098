//! Arrays: the definition of every operation, and the path for machines without the others.

use cachalot_numerics::{bf16, e2m1, e8m0};

use super::{LANES, Simd};

/// Needs nothing.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

type F = [f32; LANES];
type W = [u32; LANES];

#[inline(always)]
fn lanes<T>(lane: impl FnMut(usize) -> T) -> [T; LANES] {
    std::array::from_fn(lane)
}

impl Simd for Portable {
    type F = F;
    type W = W;
    type Sums = [i32; LANES];

    const WIDE: bool = false;
    const E2M1_UNIT: f32 = 1.0;

    #[inline(always)]
    fn splat(self, value: f32) -> F {
        [value; LANES]
    }

    #[inline(always)]
    fn side_by_side(self, rows: &[&[u8; 4 * LANES]; LANES], out: &mut [[u8; 4 * LANES]; LANES]) {
        for (word, out) in out.iter_mut().enumerate() {
            for (row, out) in rows.iter().zip(out.as_chunks_mut::<4>().0) {
                out.copy_from_slice(&row[4 * word..4 * word + 4]);
            }
        }
    }

    #[inline(always)]
    fn load(self, values: &F) -> F {
        *values
    }

    #[inline(always)]
    fn store(self, values: F, out: &mut F) {
        *out = values;
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        lanes(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        lanes(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        lanes(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn relu(self, a: F) -> F {
        lanes(|i| if a[i] > 0.0 { a[i] } else { 0.0 })
    }

    #[inline(always)]
    fn sum(self, mut a: F) -> f32 {
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                a[i] += a[i + width];
            }
            width /= 2;
        }
        a[0]
    }

    #[inline(always)]
    fn load_words(self, bytes: &[u8; 4 * LANES]) -> W {
        lanes(|i| u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]]))
    }

    #[inline(always)]
    fn store_words(self, words: W, out: &mut [u8; 4 * LANES]) {
        for (out, word) in out.chunks_exact_mut(4).zip(words) {
            out.copy_from_slice(&word.to_le_bytes());
        }
    }

    #[inline(always)]
    fn splat_word(self, word: u32) -> W {
        [word; LANES]
    }

    #[inline(always)]
    fn xor(self, a: W, b: W) -> W {
        lanes(|i| a[i] ^ b[i])
    }

    #[inline(always)]
    fn scales(self, codes: &[u8; LANES]) -> F {
        lanes(|i| e8m0::decode(codes[i]))
    }

    #[inline(always)]
    fn f32_of(self, words: W) -> F {
        lanes(|i| f32::from_bits(words[i]))
    }

    #[inline(always)]
    fn bf16<const HALF: u32>(self, words: W) -> F {
        lanes(|i| bf16::decode((words[i] >> (16 * HALF)) as u16))
    }

    #[inline(always)]
    fn e4m3<const BYTE: i32>(self, words: W) -> F {
        lanes(|i| {
            let code = words[i] >> (8 * BYTE) & 0xff;
            f32::from_bits((code & 0x80) << 24 | (code & 0x7f) << 20)
        })
    }

    #[inline(always)]
    fn e2m1<const NIBBLE: i32>(self, words: W) -> F {
        lanes(|i| e2m1::decode((words[i] >> (4 * NIBBLE) & 15) as u8))
    }

    #[inline(always)]
    fn lookup_nibbles(self, words: W, table: &[u8; 16]) -> [W; 2] {
        let lookup = |word: u32, shift: u32| {
            u32::from_le_bytes(word.to_le_bytes().map(|byte| table[usize::from(byte >> shift & 15)]))
        };
        [lanes(|i| lookup(words[i], 0)), lanes(|i| lookup(words[i], 4))]
    }

    #[inline(always)]
    fn no_sums(self) -> Self::Sums {
        [0; LANES]
    }

    #[inline(always)]
    fn add_byte_products(self, sums: Self::Sums, a: W, b: W) -> Self::Sums {
        lanes(|i| {
            let products = a[i].to_le_bytes().into_iter().zip(b[i].to_le_bytes());
            sums[i] + products.map(|(a, b)| i32::from(a) * i32::from(b as i8)).sum::<i32>()
        })
    }

    #[inline(always)]
    fn byte_sums(self, high: Self::Sums, low: Self::Sums, offset: i32) -> F {
        lanes(|i| (high[i] * 128 + low[i] - offset) as f32)
    }

    #[inline(always)]
    fn byte_sum(self, sums: Self::Sums, offset: i32) -> F {
        lanes(|i| (sums[i] - offset) as f32)
    }
}
