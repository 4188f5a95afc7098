//! How keys and entries are packed in caches (spec V4 section 4.1, V4.1 section 3.3).

use cachalot_kernels::{
    Compute, decode_fp8, decode_key, decode_nvfp4, encode_fp8, encode_key, encode_mxfp4, encode_nvfp4,
};
use cachalot_numerics::records;

/// The form of one cache's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// FP8 with a scale per 32: V4.1's window keys.
    Fp8,
    /// FP4 with an FP8 scale per 16: V4.1's compressed entries.
    Nvfp4,
    /// FP4 with a power-of-two scale per 32: index keys and queries.
    Mxfp4,
    /// FP8 with a scale per 64, and BF16 for the rotated part at the end: V4's window keys and compressed entries.
    Key {
        /// Elements of the rotated part.
        rotary: usize,
    },
    /// As computed.
    Float32,
}

impl Codec {
    /// Bytes of a record of `dim` values.
    pub fn bytes(self, dim: usize) -> usize {
        match self {
            Self::Fp8 => records::fp8_bytes(dim),
            Self::Nvfp4 => records::nvfp4_bytes(dim),
            Self::Mxfp4 => records::mxfp4_bytes(dim),
            Self::Key { rotary } => records::key_bytes(dim, rotary),
            Self::Float32 => dim * size_of::<f32>(),
        }
    }

    /// Packs `values` into a record of [`Codec::bytes`].
    pub fn encode(self, compute: &Compute, values: &[f32], record: &mut [u8]) {
        match self {
            Self::Fp8 => encode_fp8(compute, values, record),
            Self::Nvfp4 => encode_nvfp4(compute, values, record),
            Self::Mxfp4 => encode_mxfp4(compute, values, record),
            Self::Key { rotary } => encode_key(compute, values, rotary, record),
            Self::Float32 => {
                record.as_chunks_mut().0.iter_mut().zip(values).for_each(|(out, value)| *out = value.to_le_bytes());
            }
        }
    }

    /// Unpacks a record into `values`.
    pub fn decode(self, compute: &Compute, record: &[u8], values: &mut [f32]) {
        match self {
            Self::Fp8 => decode_fp8(compute, record, values),
            Self::Nvfp4 => decode_nvfp4(compute, record, values),
            Self::Mxfp4 => records::decode_mxfp4(record, values),
            Self::Key { rotary } => decode_key(compute, record, rotary, values),
            Self::Float32 => {
                let bytes = record.as_chunks().0;
                values.iter_mut().zip(bytes).for_each(|(value, bytes)| *value = f32::from_le_bytes(*bytes));
            }
        }
    }
}
