//! Who provides routed experts, table rows and layers that are not kept to the model.
//!
//! Owns the seam between the model, which asks for experts, rows and layers by number, and the checkpoint, which has tensors.
//! A placement or caching decision made here changes speed, never a number: what is handed out is what is stored.
//! Spec sections 2.2, 2.3 and 3.10 e.
#![forbid(unsafe_code)]

mod delivery;
mod error;
mod guard;
mod layers;
mod layout;
mod load;
mod pieces;
mod policy;
mod row_cache;
mod rows;
mod stats;
mod streamed;
mod streamed_layers;
mod table;
pub mod trace;

pub use delivery::{Certainty, Delivery, Interrupt, Wanted};
pub use error::{ExpertError, LayerError, RowError};
pub use layers::{LAYER_BUFFERS, LayerLayout, LayerSource, Matrices, StreamedSet};
pub use layout::ExpertLayout;
pub use policy::{Policy, Residency};
pub use rows::{CheckpointRows, RowStats};
pub use stats::{ExpertStats, LayerStats, PrefetchStats};
pub use streamed::{FEWEST_SLOTS, StreamOptions, StreamedExperts};
pub use streamed_layers::StreamedLayers;

use cachalot_kernels::Matrix;
use std::ops::Range;

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
///
/// A layer's experts are ordered all at once and handed over as they arrive; each is given back when it has been
/// computed with. In between nobody may wait for another layer's.
pub trait ExpertSource: Send + Sync {
    /// Asks for the experts `wanted` of layer `layer`, ascending and distinct; `delivery` then holds those that are at
    /// hand. The order in which the others arrive is not defined.
    ///
    /// # Errors
    /// If there is no such layer or expert.
    fn order(&self, layer: usize, wanted: &[Wanted], delivery: &mut Delivery) -> Result<(), ExpertError>;

    /// Waits until one of the experts `range` of the delivery is there that has not been given back, or all have been.
    ///
    /// # Errors
    /// If one of them cannot be read, or the caller was interrupted. The delivery must then be released.
    fn wait(&self, delivery: &mut Delivery, range: Range<usize>) -> Result<(), ExpertError>;

    /// Gives the experts `range` of the delivery back, or up.
    fn release(&self, delivery: &mut Delivery, range: Range<usize>);

    /// Says that experts of a layer will be, or may be, asked for soon. What is expected never delays what is waited
    /// for, and is dropped if the layer's order shows that it was wrong.
    fn prefetch(&self, layer: usize, experts: &mut dyn Iterator<Item = u32>, certainty: Certainty) {
        let _ = (layer, experts, certainty);
    }

    /// Whether a guess of the next layer's experts is welcome: it costs its maker time.
    fn guesses(&self) -> bool {
        false
    }
}

/// Provides decoded rows of tables that are too large to hold.
pub trait RowSource: Send + Sync {
    /// Fills `out` `[rows, width]` with the values of the rows `rows` of table `table`, in that order.
    ///
    /// # Errors
    /// If there is no such table or row, `out` has another length, or a row cannot be read.
    fn fetch(&self, table: usize, rows: &[u64], out: &mut [f32]) -> Result<(), RowError>;

    /// Says that rows will be asked for soon; those of which there are none are left out.
    fn prefetch(&self, table: usize, rows: &[u64]) {
        let _ = (table, rows);
    }

    /// Rows of table `table` that can be expected and not yet asked for: more would displace each other.
    fn room(&self, table: usize) -> usize {
        let _ = table;
        0
    }

    /// Values in a row of table `table` (0 if there is no such table).
    fn width(&self, table: usize) -> usize;
}
