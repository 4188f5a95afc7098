//! Groups of tokens pooled to one row, channel by channel (spec V4 section 3.6, V4.1 section 3.7).
//!
//! Order: the exponentials of a channel's gates, and their products with the values, are added slot by slot.

use cachalot_numerics::math;

use crate::compute::Compute;
use crate::simd::{Kernel, LANES, Simd};

/// One token of a group.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    /// Value of each channel.
    pub values: &'a [f32],
    /// Gate of each channel.
    pub gates: &'a [f32],
}

/// `out[c] = sum over slots of softmax(gates[c]) * values[c]`.
///
/// # Panics
/// If there is no slot, or one has not as many channels as `out`.
pub fn pool(compute: &Compute, slots: &[Slot<'_>], out: &mut [f32]) {
    let fits = |slot: &Slot| slot.values.len() == out.len() && slot.gates.len() == out.len();
    assert!(!slots.is_empty() && slots.iter().all(fits), "slots of {} channels", out.len());
    compute.isa().run(Pool { slots, out });
}

struct Pool<'a> {
    slots: &'a [Slot<'a>],
    out: &'a mut [f32],
}

impl Kernel for Pool<'_> {
    type Output = ();

    /// Plain Rust: the compiler makes vectors of the loops over 16 channels.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (index, out) in self.out.chunks_mut(LANES).enumerate() {
            let range = index * LANES..index * LANES + out.len();
            let load = |values: &[f32]| {
                let mut lanes = [0.0; LANES];
                lanes[..range.len()].copy_from_slice(&values[range.clone()]);
                lanes
            };
            let mut max = [f32::MIN; LANES];
            for slot in self.slots {
                for (max, gate) in max.iter_mut().zip(load(slot.gates)) {
                    *max = if gate > *max { gate } else { *max };
                }
            }
            let (mut sums, mut products) = ([0.0; LANES], [0.0; LANES]);
            for slot in self.slots {
                let (gates, values) = (load(slot.gates), load(slot.values));
                for lane in 0..LANES {
                    let weight = math::exp(gates[lane] - max[lane]);
                    sums[lane] += weight;
                    products[lane] += weight * values[lane];
                }
            }
            for ((out, product), sum) in out.iter_mut().zip(products).zip(sums) {
                *out = product / sum;
            }
        }
    }
}
