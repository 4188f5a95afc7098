//! What the machine can do at best: the ceilings that the kernels are measured against.

use std::array::from_fn;
use std::hint::black_box;

use crate::compute::Compute;
use crate::matrix::{BLOCK, Matrix};
use crate::simd::{Kernel, Simd};

/// Bytes that one task reads.
const PIECE: usize = 1 << 18;

/// Reads all bytes of `matrices` and does nothing with them, on all threads as one list of work.
///
/// Returns the number of bytes read.
pub fn read(compute: &Compute, matrices: &[Matrix]) -> usize {
    let parts = || matrices.iter().flat_map(Matrix::parts);
    let total = parts().map(|part| part.len().div_ceil(PIECE)).sum();
    compute.pool().run(total, |mut index| {
        for part in parts() {
            let tasks = part.len().div_ceil(PIECE);
            if index < tasks {
                compute.isa().run(Read(&part[index * PIECE..part.len().min((index + 1) * PIECE)]));
                return;
            }
            index -= tasks;
        }
    });
    parts().map(<[u8]>::len).sum()
}

struct Read<'a>(&'a [u8]);

impl Kernel for Read<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut sums = [simd.splat_word(0); 4];
        for blocks in self.0.as_chunks::<BLOCK>().0.as_chunks::<4>().0 {
            for (sum, block) in sums.iter_mut().zip(blocks) {
                *sum = simd.xor(*sum, simd.load_words(block));
            }
        }
        let mut out = [0; BLOCK];
        for sum in sums {
            simd.store_words(sum, &mut out);
            black_box(&out);
        }
    }
}

/// Does float32 multiply-adds in registers on all threads, `rounds` times 1,000 steps each.
///
/// Returns the number of operations, two for a multiply-add.
pub fn multiply_add(compute: &Compute, rounds: usize) -> f64 {
    let threads = compute.pool().threads();
    // Many pieces: threads that are disturbed do fewer.
    let pieces = 8 * threads;
    compute.pool().run(pieces, |_| compute.isa().run(MultiplyAdd(rounds.div_ceil(8))));
    (pieces * rounds.div_ceil(8) * 1000) as f64 * 2.0 * (CHAINS * crate::simd::LANES) as f64
}

/// Enough to hide the latency of one multiply-add, few enough for 16 registers of half a vector.
const CHAINS: usize = 6;

struct MultiplyAdd(usize);

impl Kernel for MultiplyAdd {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (factor, term) = (simd.splat(black_box(0.999)), simd.splat(black_box(1e-3)));
        if S::WIDE {
            // Twice as wide registers need no more steps, but the same number of chains in flight.
            chains::<S, { 2 * CHAINS }>(simd, factor, term, self.0 * 500);
        } else {
            chains::<S, CHAINS>(simd, factor, term, self.0 * 1000);
        }
    }
}

#[inline(always)]
fn chains<S: Simd, const N: usize>(simd: S, factor: S::F, term: S::F, steps: usize) {
    let mut sums: [S::F; N] = from_fn(|chain| simd.splat(black_box(chain as f32)));
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = simd.fma(*sum, factor, term);
        }
    }
    let mut out = [0.0; crate::simd::LANES];
    for sum in sums {
        simd.store(sum, &mut out);
        black_box(&out);
    }
}
