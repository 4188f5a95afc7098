//! AVX2 with FMA: two registers a vector.

use std::arch::x86_64::*;

use super::op;
use crate::simd::{Kernel, LANES, Simd};

/// Twice the value of each E2M1 code as a signed byte.
const DOUBLED: [u8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, 255, 254, 253, 252, 250, 248, 244];

/// Proves AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// Whether this machine has the instructions.
    pub fn detected() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
    }

    /// Runs `kernel`, compiled for these instructions.
    ///
    /// # Safety
    /// [`Avx2::detected`] must have said yes.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Self(()))
    }
}

/// Adds 8 lanes in halves.
///
/// # Safety
/// The machine must have AVX2.
#[inline(always)]
pub(super) unsafe fn sum_8(a: __m256) -> f32 {
    op! {
        let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// Bits shifted left so that the field of `bits` bits at `offset` becomes the uppermost.
#[inline(always)]
unsafe fn to_top<const AMOUNT: i32>(words: __m256i) -> __m256i {
    op!(if AMOUNT == 0 { words } else { _mm256_sll_epi32(words, _mm_cvtsi32_si128(AMOUNT)) })
}

/// Eight rows of eight words become their columns.
///
/// # Safety
/// The machine must have AVX2.
#[inline(always)]
unsafe fn columns_of(rows: [__m256i; 8]) -> [__m256i; 8] {
    op! {
        let low = |a, b| _mm256_unpacklo_epi32(a, b);
        let high = |a, b| _mm256_unpackhi_epi32(a, b);
        let pairs = |i: usize| [low(rows[i], rows[i + 1]), high(rows[i], rows[i + 1])];
        let fours = |i: usize| {
            let ([a, b], [c, d]) = (pairs(i), pairs(i + 2));
            [
                _mm256_unpacklo_epi64(a, c),
                _mm256_unpackhi_epi64(a, c),
                _mm256_unpacklo_epi64(b, d),
                _mm256_unpackhi_epi64(b, d),
            ]
        };
        let ([a, b, c, d], [e, f, g, h]) = (fours(0), fours(4));
        let first = |x, y| _mm256_permute2x128_si256::<0x20>(x, y);
        let second = |x, y| _mm256_permute2x128_si256::<0x31>(x, y);
        [first(a, e), first(b, f), first(c, g), first(d, h), second(a, e), second(b, f), second(c, g), second(d, h)]
    }
}

/// `Simd::side_by_side` in four squares of eight by eight words.
///
/// # Safety
/// The machine must have AVX2.
#[inline(always)]
pub(super) unsafe fn side_by_side(rows: &[&[u8; 4 * LANES]; LANES], out: &mut [[u8; 4 * LANES]; LANES]) {
    let aligned = out.as_ptr().addr().is_multiple_of(32);
    for half in 0..2 {
        let half_of = |first: usize| {
            op!(columns_of(std::array::from_fn(|row| _mm256_loadu_si256(
                rows[first + row].as_ptr().cast::<__m256i>().add(half)
            ))))
        };
        for ((left, right), out) in half_of(0).into_iter().zip(half_of(8)).zip(&mut out[8 * half..8 * half + 8]) {
            let out = out.as_mut_ptr().cast::<__m256i>();
            if aligned {
                op! { _mm256_stream_si256(out, left); _mm256_stream_si256(out.add(1), right) }
            } else {
                op! { _mm256_storeu_si256(out, left); _mm256_storeu_si256(out.add(1), right) }
            }
        }
    }
}

/// Applies an operation of one register to both.
macro_rules! both {
    (|$($name:ident = $value:ident),+| $body:expr) => {
        op!([
            { $(let $name = $value[0];)+ $body },
            { $(let $name = $value[1];)+ $body },
        ])
    };
}

impl Simd for Avx2 {
    type F = [__m256; 2];
    type W = [__m256i; 2];
    /// 16-bit sums of two products each.
    type Sums = [__m256i; 2];

    const WIDE: bool = false;
    // Twice the value as an integer in the uppermost byte.
    const E2M1_UNIT: f32 = 33_554_432.0;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::F {
        op!([_mm256_set1_ps(value); 2])
    }

    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> Self::F {
        op!([_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8))])
    }

    #[inline(always)]
    fn store(self, values: Self::F, out: &mut [f32; LANES]) {
        op! {
            _mm256_storeu_ps(out.as_mut_ptr(), values[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), values[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        both!(|a = a, b = b| _mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        both!(|a = a, b = b| _mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(|a = a, b = b, c = c| _mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn relu(self, a: Self::F) -> Self::F {
        both!(|a = a| _mm256_max_ps(a, _mm256_setzero_ps()))
    }

    #[inline(always)]
    fn sum(self, a: Self::F) -> f32 {
        op!(sum_8(_mm256_add_ps(a[0], a[1])))
    }

    #[inline(always)]
    fn load_words(self, bytes: &[u8; 4 * LANES]) -> Self::W {
        op!([_mm256_loadu_si256(bytes.as_ptr().cast()), _mm256_loadu_si256(bytes.as_ptr().add(32).cast())])
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        op!(_mm_prefetch::<_MM_HINT_T0>(address.cast()))
    }

    #[inline(always)]
    fn store_words(self, words: Self::W, out: &mut [u8; 4 * LANES]) {
        op! {
            _mm256_storeu_si256(out.as_mut_ptr().cast(), words[0]);
            _mm256_storeu_si256(out.as_mut_ptr().add(32).cast(), words[1]);
        }
    }

    #[inline(always)]
    fn side_by_side(self, rows: &[&[u8; 4 * LANES]; LANES], out: &mut [[u8; 4 * LANES]; LANES]) {
        op!(side_by_side(rows, out));
    }

    #[inline(always)]
    fn settle(self) {
        op!(_mm_sfence());
    }

    #[inline(always)]
    fn splat_word(self, word: u32) -> Self::W {
        op!([_mm256_set1_epi32(word as i32); 2])
    }

    #[inline(always)]
    fn xor(self, a: Self::W, b: Self::W) -> Self::W {
        both!(|a = a, b = b| _mm256_xor_si256(a, b))
    }

    #[inline(always)]
    fn scales(self, codes: &[u8; LANES]) -> Self::F {
        let codes = op! {
            let codes = _mm_loadu_si128(codes.as_ptr().cast());
            [_mm256_cvtepu8_epi32(codes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(codes))]
        };
        // Code 0 is subnormal.
        both!(|c = codes| _mm256_castsi256_ps(_mm256_max_epu32(_mm256_slli_epi32::<23>(c), _mm256_set1_epi32(1 << 22))))
    }

    #[inline(always)]
    fn f32_of(self, words: Self::W) -> Self::F {
        both!(|w = words| _mm256_castsi256_ps(w))
    }

    #[inline(always)]
    fn bf16<const HALF: u32>(self, words: Self::W) -> Self::F {
        both!(|w = words| _mm256_castsi256_ps(match HALF {
            0 => _mm256_slli_epi32::<16>(w),
            _ => _mm256_and_si256(w, _mm256_set1_epi32(0xffff_0000_u32 as i32)),
        }))
    }

    #[inline(always)]
    fn e4m3<const BYTE: i32>(self, words: Self::W) -> Self::F {
        both!(|w = words| {
            let top = match BYTE {
                0 => to_top::<24>(w),
                1 => to_top::<16>(w),
                2 => to_top::<8>(w),
                _ => w,
            };
            // The arithmetic shift spreads the sign; the mask leaves it, the exponent's and the mantissa's bits.
            _mm256_castsi256_ps(_mm256_and_si256(
                _mm256_srai_epi32::<4>(top),
                _mm256_set1_epi32(0x87f0_0000_u32 as i32),
            ))
        })
    }

    #[inline(always)]
    fn e2m1<const NIBBLE: i32>(self, words: Self::W) -> Self::F {
        // The compiler sees that the look-up is the same for four nibbles.
        let looked_up = self.lookup_nibbles(words, &DOUBLED)[(NIBBLE % 2) as usize];
        both!(|w = looked_up| {
            let upper = _mm256_set1_epi32(0xff00_0000_u32 as i32);
            _mm256_cvtepi32_ps(match NIBBLE / 2 {
                0 => _mm256_slli_epi32::<24>(w),
                1 => _mm256_and_si256(_mm256_slli_epi32::<16>(w), upper),
                2 => _mm256_and_si256(_mm256_slli_epi32::<8>(w), upper),
                _ => _mm256_and_si256(w, upper),
            })
        })
    }

    #[inline(always)]
    fn lookup_nibbles(self, words: Self::W, table: &[u8; 16]) -> [Self::W; 2] {
        let table = op!(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())));
        let mask = op!(_mm256_set1_epi8(15));
        let high = both!(|w = words| _mm256_srli_epi32::<4>(w));
        [
            both!(|w = words| _mm256_shuffle_epi8(table, _mm256_and_si256(w, mask))),
            both!(|h = high| _mm256_shuffle_epi8(table, _mm256_and_si256(h, mask))),
        ]
    }

    #[inline(always)]
    fn no_sums(self) -> Self::Sums {
        op!([_mm256_setzero_si256(); 2])
    }

    #[inline(always)]
    fn add_byte_products(self, sums: Self::Sums, a: Self::W, b: Self::W) -> Self::Sums {
        both!(|s = sums, a = a, b = b| _mm256_add_epi16(s, _mm256_maddubs_epi16(a, b)))
    }

    #[inline(always)]
    fn byte_sums(self, high: Self::Sums, low: Self::Sums, offset: i32) -> Self::F {
        both!(|h = high, l = low| {
            let high = _mm256_madd_epi16(h, _mm256_set1_epi16(128));
            let low = _mm256_madd_epi16(l, _mm256_set1_epi16(1));
            let sum = _mm256_sub_epi32(_mm256_add_epi32(high, low), _mm256_set1_epi32(offset));
            _mm256_cvtepi32_ps(sum)
        })
    }

    #[inline(always)]
    fn byte_sum(self, sums: Self::Sums, offset: i32) -> Self::F {
        both!(|s = sums| {
            let sum = _mm256_madd_epi16(s, _mm256_set1_epi16(1));
            _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_set1_epi32(offset)))
        })
    }
}
