//! Blocks that both generations of the family are made of.

pub mod buffer;
pub mod experts;
pub mod hyper_connections;
pub mod inputs;
pub mod records;
pub mod rope;
