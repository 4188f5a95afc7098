//! Number codecs of the released checkpoints and elementary functions with one defined result.
