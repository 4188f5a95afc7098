//! AVX2 with FMA, and AVX-512 (F, BW, VNNI).

mod avx2;
mod avx512;

pub(crate) use avx2::Avx2;
pub(crate) use avx512::Avx512;

/// One or several intrinsics of the instruction set that the surrounding token proves.
///
/// SAFETY: a token is made only after the instruction set was detected, and all methods take the token; loads and
/// stores go through references to arrays of exactly their size, and need no alignment or have looked at it.
macro_rules! op {
    ($($body:tt)*) => {
        // SAFETY: see the macro: the token proves the instruction set, and references bound every access.
        unsafe { $($body)* }
    };
}
use op;
