//! AVX-512 F, BW and VNNI: one register a vector.

use std::arch::x86_64::*;

use super::op;
use crate::simd::{Kernel, LANES, Simd};

/// Proves AVX-512 F, BW and VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// Whether this machine has the instructions.
    pub fn detected() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
    }

    /// Runs `kernel`, compiled for these instructions.
    ///
    /// # Safety
    /// [`Avx512::detected`] must have said yes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx2,fma")]
    pub unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Self(()))
    }
}

impl Simd for Avx512 {
    type F = __m512;
    type W = __m512i;
    type Sums = __m512i;

    const WIDE: bool = true;
    const E2M1_UNIT: f32 = 1.0;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        op!(_mm512_set1_ps(value))
    }

    #[inline(always)]
    fn load(self, values: &[f32; LANES]) -> __m512 {
        op!(_mm512_loadu_ps(values.as_ptr()))
    }

    #[inline(always)]
    fn store(self, values: __m512, out: &mut [f32; LANES]) {
        op!(_mm512_storeu_ps(out.as_mut_ptr(), values))
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn relu(self, a: __m512) -> __m512 {
        op!(_mm512_max_ps(a, _mm512_setzero_ps()))
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        op! {
            let halves = _mm256_add_ps(_mm512_castps512_ps256(a), _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(a))));
            super::avx2::sum_8(halves)
        }
    }

    #[inline(always)]
    fn load_words(self, bytes: &[u8; 4 * LANES]) -> __m512i {
        op!(_mm512_loadu_si512(bytes.as_ptr().cast()))
    }

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        op!(_mm_prefetch::<_MM_HINT_T0>(address.cast()))
    }

    #[inline(always)]
    fn store_words(self, words: __m512i, out: &mut [u8; 4 * LANES]) {
        op!(_mm512_storeu_si512(out.as_mut_ptr().cast(), words))
    }

    #[inline(always)]
    fn side_by_side(self, rows: &[&[u8; 4 * LANES]; LANES], out: &mut [[u8; 4 * LANES]; LANES]) {
        op!(super::avx2::side_by_side(rows, out));
    }

    #[inline(always)]
    fn settle(self) {
        op!(_mm_sfence());
    }

    #[inline(always)]
    fn splat_word(self, word: u32) -> __m512i {
        op!(_mm512_set1_epi32(word as i32))
    }

    #[inline(always)]
    fn xor(self, a: Self::W, b: Self::W) -> Self::W {
        op!(_mm512_xor_si512(a, b))
    }

    #[inline(always)]
    fn scales(self, codes: &[u8; LANES]) -> __m512 {
        op! {
            let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
            let bits = _mm512_slli_epi32::<23>(codes);
            // Code 0 is subnormal.
            _mm512_castsi512_ps(_mm512_max_epu32(bits, _mm512_set1_epi32(1 << 22)))
        }
    }

    #[inline(always)]
    fn f32_of(self, words: __m512i) -> __m512 {
        op!(_mm512_castsi512_ps(words))
    }

    #[inline(always)]
    fn bf16<const HALF: u32>(self, words: __m512i) -> __m512 {
        op! {
            _mm512_castsi512_ps(match HALF {
                0 => _mm512_slli_epi32::<16>(words),
                _ => _mm512_and_si512(words, _mm512_set1_epi32(0xffff_0000_u32 as i32)),
            })
        }
    }

    #[inline(always)]
    fn e4m3<const BYTE: i32>(self, words: __m512i) -> __m512 {
        op! {
            let top = match BYTE {
                0 => _mm512_slli_epi32::<24>(words),
                1 => _mm512_slli_epi32::<16>(words),
                2 => _mm512_slli_epi32::<8>(words),
                _ => words,
            };
            // The arithmetic shift spreads the sign; the mask leaves it, the exponent's and the mantissa's bits.
            let bits = _mm512_and_si512(_mm512_srai_epi32::<4>(top), _mm512_set1_epi32(0x87f0_0000_u32 as i32));
            _mm512_castsi512_ps(bits)
        }
    }

    #[inline(always)]
    fn e2m1<const NIBBLE: i32>(self, words: __m512i) -> __m512 {
        op! {
            // BF16 of the 16 codes, twice: the permutation looks at five bits of each index, of which four are the code's.
            let table = _mm512_broadcast_i64x4(_mm256_setr_epi16(
                0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0,
                -0x8000, -0x4100, -0x4080, -0x4040, -0x4000, -0x3fc0, -0x3f80, -0x3f40,
            ));
            let index = match NIBBLE % 4 {
                0 => words,
                1 => _mm512_srli_epi16::<4>(words),
                2 => _mm512_srli_epi16::<8>(words),
                _ => _mm512_srli_epi16::<12>(words),
            };
            // One look-up serves a code of the lower and one of the upper half: the compiler sees the same expression.
            let numbers = _mm512_permutexvar_epi16(index, table);
            _mm512_castsi512_ps(match NIBBLE / 4 {
                0 => _mm512_slli_epi32::<16>(numbers),
                _ => _mm512_and_si512(numbers, _mm512_set1_epi32(0xffff_0000_u32 as i32)),
            })
        }
    }

    #[inline(always)]
    fn lookup_nibbles(self, words: __m512i, table: &[u8; 16]) -> [__m512i; 2] {
        op! {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            let mask = _mm512_set1_epi8(15);
            let low = _mm512_shuffle_epi8(table, _mm512_and_si512(words, mask));
            let high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi32::<4>(words), mask));
            [low, high]
        }
    }

    #[inline(always)]
    fn no_sums(self) -> __m512i {
        op!(_mm512_setzero_si512())
    }

    #[inline(always)]
    fn add_byte_products(self, sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_dpbusd_epi32(sums, a, b))
    }

    #[inline(always)]
    fn byte_sums(self, high: __m512i, low: __m512i, offset: i32) -> __m512 {
        op!(self.byte_sum(_mm512_add_epi32(_mm512_slli_epi32::<7>(high), low), offset))
    }

    #[inline(always)]
    fn byte_sum(self, sums: __m512i, offset: i32) -> __m512 {
        op!(_mm512_cvtepi32_ps(_mm512_sub_epi32(sums, _mm512_set1_epi32(offset))))
    }
}
