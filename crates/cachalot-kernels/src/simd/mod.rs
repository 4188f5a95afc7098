//! Sixteen lanes: the one vector width that all kernels are written for.
//!
//! An instruction set implements [`Simd`] on a token that can only be made where the instructions are there; a kernel
//! is written once over the trait. Sixteen float32 lanes are one AVX-512 register, two AVX2, four NEON or an array:
//! lanes never mix except in [`Simd::sum`], whose order is fixed, so every instruction set computes the same bits.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub(crate) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{Avx2, Avx512};

/// Lanes of every vector.
pub(crate) const LANES: usize = 16;

/// A kernel: arguments packed in a struct, and one body for all instruction sets.
pub(crate) trait Kernel {
    type Output;
    /// The body; implementations are `#[inline(always)]`, so that it is compiled with the caller's instructions.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Operations on 16 lanes. The methods with numbers of the formats state what they make of a lane's 32-bit word.
pub(crate) trait Simd: Copy {
    /// 16 float32 lanes.
    type F: Copy;
    /// 16 lanes of 32 bits, read as words or as 4 bytes each.
    type W: Copy;
    /// Sums of byte products; may be narrower than 32 bits until [`Simd::byte_sums`].
    type Sums: Copy;

    /// Whether there are 32 registers of 16 lanes; else there are 16 of 8.
    const WIDE: bool;

    fn splat(self, value: f32) -> Self::F;
    fn load(self, values: &[f32; LANES]) -> Self::F;
    fn store(self, values: Self::F, out: &mut [f32; LANES]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of each lane and zero.
    fn relu(self, a: Self::F) -> Self::F;
    /// All lanes, added in halves: lane i and i + 8, then i and i + 4, i + 2, i + 1.
    fn sum(self, a: Self::F) -> f32;

    fn load_words(self, bytes: &[u8; 4 * LANES]) -> Self::W;
    /// Asks for the line at `address`, which may be anything, to be brought near.
    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        let _ = address;
    }
    fn store_words(self, words: Self::W, out: &mut [u8; 4 * LANES]);
    /// Word `w` of row `r` becomes word `r` of `out[w]`; past the caches where `out` is aligned for it. Only after
    /// [`Simd::settle`] do other threads see it for certain.
    fn side_by_side(self, rows: &[&[u8; 4 * LANES]; LANES], out: &mut [[u8; 4 * LANES]; LANES]);
    /// Lets all that was stored before be seen before all that is stored after.
    #[inline(always)]
    fn settle(self) {}
    fn splat_word(self, word: u32) -> Self::W;
    fn xor(self, a: Self::W, b: Self::W) -> Self::W;
    /// 16 E8M0 codes as powers of two; code 255 is not expected.
    fn scales(self, codes: &[u8; LANES]) -> Self::F;

    /// Each lane's word read as a float32.
    fn f32_of(self, words: Self::W) -> Self::F;
    /// BF16 number `HALF` (0 or 1) of each word.
    fn bf16<const HALF: u32>(self, words: Self::W) -> Self::F;
    /// E4M3 code number `BYTE` (0 to 3) of each word, times 2^-120.
    fn e4m3<const BYTE: i32>(self, words: Self::W) -> Self::F;
    /// What [`Simd::e2m1`] multiplies its numbers with, a power of two.
    const E2M1_UNIT: f32;
    /// E2M1 code number `NIBBLE` (0 to 7) of each word, times [`Simd::E2M1_UNIT`].
    fn e2m1<const NIBBLE: i32>(self, words: Self::W) -> Self::F;
    /// Looks up each byte's low and high nibble in a table of 16 bytes.
    fn lookup_nibbles(self, words: Self::W, table: &[u8; 16]) -> [Self::W; 2];

    fn no_sums(self) -> Self::Sums;
    /// Adds each lane's 4 products of unsigned `a` and signed `b`; the sums stay below 2^15.
    fn add_byte_products(self, sums: Self::Sums, a: Self::W, b: Self::W) -> Self::Sums;
    /// `high * 128 + low - offset` as float32; exact, as it stays below 2^24.
    fn byte_sums(self, high: Self::Sums, low: Self::Sums, offset: i32) -> Self::F;
    /// `sums - offset` as float32.
    fn byte_sum(self, sums: Self::Sums, offset: i32) -> Self::F;
}
