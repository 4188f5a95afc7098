//! Where kernels run: an instruction set and a pool of threads.

use std::sync::Arc;

use cachalot_runtime::Pool;

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Kernel, Portable};

/// An instruction set that this machine has. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// Plain Rust. Where the target has no fused multiply-add, it is a slow call: meant as the definition, and for
    /// machines that have nothing else.
    pub const PORTABLE: Self = Self(Kind::Portable);

    /// All that this machine has, the fastest last.
    pub fn available() -> Vec<Self> {
        let mut list = vec![Self::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        {
            if Avx2::detected() {
                list.push(Self(Kind::Avx2));
            }
            if Avx512::detected() {
                list.push(Self(Kind::Avx512));
            }
        }
        list
    }

    /// The fastest that this machine has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if Avx512::detected() {
                return Self(Kind::Avx512);
            }
            if Avx2::detected() {
                return Self(Kind::Avx2);
            }
        }
        Self::PORTABLE
    }

    /// The one called `name`, if this machine has it.
    pub fn named(name: &str) -> Option<Self> {
        Self::available().into_iter().find(|isa| isa.name() == name)
    }

    /// `portable`, `avx2` or `avx512`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
        }
    }

    /// Runs a kernel, compiled for these instructions.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Kind::Portable => kernel.run(Portable),
            // SAFETY: only `available` makes this value, after the instructions were detected.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { Avx2::run(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { Avx512::run(kernel) },
        }
    }
}

/// An instruction set and the threads to use it with.
#[derive(Clone)]
pub struct Compute {
    isa: Isa,
    pool: Arc<Pool>,
}

impl Compute {
    /// The fastest instructions of this machine on the threads of `pool`.
    pub fn new(pool: Arc<Pool>) -> Self {
        Self::with_isa(pool, Isa::detect())
    }

    /// Instructions of choice.
    pub fn with_isa(pool: Arc<Pool>, isa: Isa) -> Self {
        Self { isa, pool }
    }

    /// The instructions used.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The threads used.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }
}
