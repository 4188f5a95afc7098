//! Who provides routed experts and table rows to the model.
//!
//! Owns the seam between the model, which asks for experts and rows by number, and the checkpoint, which has tensors.
//! A placement or caching decision made here changes speed, never a number: what is handed out is what is stored.
//! Spec sections 2.2, 2.3 and 3.10 e.
#![forbid(unsafe_code)]

mod error;
mod lazy;
mod recent;
mod rows;

pub use error::{ExpertError, RowError};
pub use lazy::{ExpertStats, LazyExperts};
pub use rows::CheckpointRows;

use cachalot_kernels::Matrix;
use std::sync::Arc;

/// One routed expert: `w2 (silu(w1 x) * w3 x)`.
pub struct Expert {
    /// Gate branch, `[moe_intermediate, hidden]`.
    pub w1: Matrix,
    /// Up branch, `[moe_intermediate, hidden]`.
    pub w3: Matrix,
    /// Down, `[hidden, moe_intermediate]`.
    pub w2: Matrix,
}

impl Expert {
    /// Bytes that it takes in memory.
    pub fn bytes(&self) -> usize {
        self.w1.bytes() + self.w3.bytes() + self.w2.bytes()
    }
}

/// Provides routed experts.
pub trait ExpertSource: Send + Sync {
    /// Replaces the content of `out` by the experts `experts` of layer `layer`, in that order.
    ///
    /// # Errors
    /// If there is no such layer or expert, or one cannot be read; `out` is empty then.
    fn fetch(&self, layer: usize, experts: &[u32], out: &mut Vec<Arc<Expert>>) -> Result<(), ExpertError>;
}

/// Provides decoded rows of tables that are too large to hold.
pub trait RowSource: Send + Sync {
    /// Fills `out` `[rows, width]` with the values of the rows `rows` of table `table`, in that order.
    ///
    /// # Errors
    /// If there is no such table or row, `out` has another length, or a row cannot be read.
    fn fetch(&self, table: usize, rows: &[u64], out: &mut [f32]) -> Result<(), RowError>;

    /// Values in a row of table `table` (0 if there is no such table).
    fn width(&self, table: usize) -> usize;
}
