//! Blocks that both generations of the family are made of.

pub mod attention;
pub mod buffer;
pub mod codec;
pub mod experts;
pub mod foresight;
pub mod hyper_connections;
pub mod index;
pub mod inputs;
pub mod records;
pub mod rope;
pub mod routing;
pub mod selection;
pub mod stack;
pub mod trunk;
pub mod weights;
