//! The resident worker pool.
//!
//! Owns the threads that compute. Refuses to know what they compute: it depends on nothing above it. A decode step
//! synchronises a few times per layer, so workers spin for a bounded while before they sleep, and the calling thread
//! works too.

mod pool;

pub use pool::Pool;
