//! Number codecs of the released checkpoints and elementary functions with one defined result.
//!
//! Pure functions on values and slices, without unsafe code and without the platform's math library: every machine
//! gets the same bits. Follows spec V4.1 sections 2.2 (formats) and 3.3 (cache quantisers).
#![forbid(unsafe_code)]

pub mod bf16;
pub mod e2m1;
pub mod e4m3;
pub mod e8m0;
pub mod math;
pub mod records;
