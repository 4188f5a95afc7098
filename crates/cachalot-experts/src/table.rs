//! Tables of rows as stored, and what their rows mean (spec sections 2.2 and 3.10 e).

use cachalot_checkpoint::{Checkpoint, CheckpointError, Dtype, TensorInfo};
use cachalot_numerics::{e4m3, e8m0};

use crate::RowError;

/// Columns that share one scale.
const BLOCK: usize = 32;

/// A table: FP8 with a scale per 32 columns of a row, BF16 or F32.
pub(crate) struct Table {
    pub(crate) weight: TensorInfo,
    pub(crate) scale: Option<TensorInfo>,
    rows: u64,
    pub(crate) width: usize,
    /// Bytes of one row in the weight and in the scale tensor.
    pub(crate) bytes: [usize; 2],
}

impl Table {
    pub(crate) fn open(checkpoint: &Checkpoint, name: &str) -> Result<Self, CheckpointError> {
        let weight = checkpoint.tensor(&format!("{name}.weight"))?.clone();
        let (rows, bytes) = weight.rows()?;
        let mut table = Self {
            rows,
            width: (bytes / weight.dtype.bytes()) as usize,
            bytes: [bytes as usize, 0],
            weight,
            scale: None,
        };
        let form = |tensor: &TensorInfo| {
            let (dtype, shape) = (tensor.dtype, tensor.shape);
            CheckpointError::Form { tensor: tensor.name.to_string(), dtype, shape, form: "a table of rows" }
        };
        match table.weight.dtype {
            Dtype::BF16 | Dtype::F32 => {}
            Dtype::F8_E4M3 => {
                let scale = checkpoint.tensor(&format!("{name}.scale"))?.clone();
                let scales = table.width.div_ceil(BLOCK);
                if scale.dtype != Dtype::F8_E8M0 || scale.rows()? != (rows, scales as u64) {
                    return Err(form(&scale));
                }
                table.bytes[1] = scales;
                table.scale = Some(scale);
            }
            _ => return Err(form(&table.weight)),
        }
        Ok(table)
    }

    pub(crate) fn check(&self, rows: &[u64], length: usize) -> Result<(), RowError> {
        let tensor = || self.weight.name.to_string();
        if let Some(&row) = rows.iter().find(|row| **row >= self.rows) {
            return Err(RowError::NoRow { tensor: tensor(), row, rows: self.rows });
        }
        if rows.len().checked_mul(self.width) != Some(length) || u32::try_from(rows.len()).is_err() {
            return Err(RowError::Length { tensor: tensor(), rows: rows.len(), width: self.width, length });
        }
        Ok(())
    }

    /// Refuses a stored row whose codes stand for no number.
    pub(crate) fn check_stored(&self, checkpoint: &Checkpoint, row: u64, stored: &[u8]) -> Result<(), CheckpointError> {
        let (codes, scales) = stored.split_at(self.bytes[0]);
        checkpoint.check_codes(&self.weight, row * self.width as u64, codes)?;
        match &self.scale {
            Some(scale) => checkpoint.check_codes(scale, row * self.bytes[1] as u64, scales),
            None => Ok(()),
        }
    }

    /// Rows of the table.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// The error of a table that cannot be read as `form`.
    pub(crate) fn form(&self, form: &'static str) -> CheckpointError {
        let (tensor, dtype, shape) = (self.weight.name.to_string(), self.weight.dtype, self.weight.shape);
        CheckpointError::Form { tensor, dtype, shape, form }
    }

    /// Bytes of a row as stored: codes, then scales.
    pub(crate) fn row_bytes(&self) -> usize {
        self.bytes[0] + self.bytes[1]
    }

    /// The values of a stored row.
    pub(crate) fn decode_row(&self, stored: &[u8], out: &mut [f32]) {
        let (codes, scales) = stored.split_at(self.bytes[0]);
        match self.weight.dtype {
            Dtype::F8_E4M3 => {
                for ((out, codes), scale) in out.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)).zip(scales) {
                    let scale = e8m0::decode(*scale);
                    out.iter_mut().zip(codes).for_each(|(out, code)| *out = e4m3::decode(*code) * scale);
                }
            }
            Dtype::BF16 => {
                let (pairs, _) = codes.as_chunks();
                let value = |pair: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*pair)) << 16);
                out.iter_mut().zip(pairs).for_each(|(out, pair)| *out = value(pair));
            }
            _ => {
                let (words, _) = codes.as_chunks();
                out.iter_mut().zip(words).for_each(|(out, word)| *out = f32::from_le_bytes(*word));
            }
        }
    }
}
