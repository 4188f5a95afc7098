//! Weight matrices: from rows as stored to the packed form that the kernels read.
//!
//! The matrix is allocated once, at the size that it keeps; rows pass through a small staging buffer (spec section
//! 2.2: which type has which companion of scales).

use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::error::{BadCode, CheckpointError};
use crate::{Dtype, Shape};
use cachalot_kernels::{Format, Matrix};

/// Columns that share one scale of an FP4 row.
const FP4_BLOCK: usize = 32;
/// Rows that the kernels pack together: all strips but the last have a multiple of this many.
const PACKED_ROWS: usize = 16;

/// How a matrix lies in the files.
#[derive(Clone, Copy, Debug)]
pub struct StoredMatrix<'a> {
    /// How its numbers are stored.
    pub format: Format,
    /// Its rows.
    pub rows: usize,
    /// Its columns.
    pub columns: usize,
    /// The numbers: `rows` rows of `format.row_bytes(columns)` bytes.
    pub weight: &'a TensorInfo,
    /// The scales, if the format has any: rows of `format.scale_row_bytes(columns)` bytes.
    pub scales: Option<&'a TensorInfo>,
}

impl Checkpoint {
    /// Where and how the matrix called `name` is stored: FP8 with a scale per 32x32 (V4.1) or 128x128 (V4) weights, FP4
    /// with a scale per row and 32 columns, BF16 or F32. The scales of `X.weight` are `X.scale`.
    ///
    /// # Errors
    /// If there is no such tensor, it is no matrix, or has no fitting scales.
    pub fn stored_matrix(&self, name: &str) -> Result<StoredMatrix<'_>, CheckpointError> {
        let weight = self.tensor(name)?;
        let [rows, stored] = match *weight.shape {
            [rows, columns] => [rows, columns].map(usize::try_from),
            _ => return Err(weight.not("a matrix")),
        };
        let (Ok(rows), Ok(stored)) = (rows, stored) else { return Err(weight.memory_error()) };
        let (format, columns, scales) = match weight.dtype {
            Dtype::F8_E4M3 => {
                let block @ [high, wide] = self.architecture().fp8_block();
                let shape = Shape::matrix(rows.div_ceil(high), stored.div_ceil(wide));
                (Format::Fp8 { block }, stored, Some(shape))
            }
            Dtype::I8 => {
                let columns = stored.checked_mul(2).ok_or_else(|| weight.memory_error())?;
                (Format::Fp4, columns, Some(Shape::matrix(rows, columns.div_ceil(FP4_BLOCK))))
            }
            Dtype::BF16 => (Format::Bf16, stored, None),
            Dtype::F32 => (Format::F32, stored, None),
            Dtype::F8_E8M0 | Dtype::I64 => return Err(weight.not("a matrix")),
        };
        let scales = scales.map(|shape| self.scales_of(weight, shape)).transpose()?;
        Ok(StoredMatrix { format, rows, columns, weight, scales })
    }

    /// The matrix called `name`, in its released precision ([`Checkpoint::stored_matrix`]).
    ///
    /// # Errors
    /// If there is no such matrix, it cannot be read or allocated, or holds a code that is no number.
    pub fn matrix(&self, name: &str) -> Result<Matrix, CheckpointError> {
        let StoredMatrix { format, rows, columns, weight: tensor, scales } = self.stored_matrix(name)?;
        let stored = (tensor.bytes / (rows as u64 * tensor.dtype.bytes()).max(1)) as usize;
        let mut matrix = Matrix::zeroed(format, rows, columns).map_err(|_| tensor.memory_error())?;
        self.for_each_strip(tensor, PACKED_ROWS, |first, strip| {
            // The strip has been checked; should the kernels refuse more than this crate, it is an error all the same.
            let index = |place: usize| (first * stored + place) as u64;
            matrix.load_rows(first, strip).map_err(|bad| self.refused(tensor, index(bad.index), BadCode::Fp8))
        })?;
        if let Some(scales) = scales {
            let mut bytes = Vec::new();
            let length = usize::try_from(scales.bytes).ok().filter(|length| bytes.try_reserve_exact(*length).is_ok());
            bytes.resize(length.ok_or_else(|| scales.memory_error())?, 0);
            self.read(scales, 0, &mut bytes)?;
            self.check_codes(scales, 0, &bytes)?;
            matrix.load_scales(&bytes).map_err(|bad| self.refused(scales, bad.index as u64, BadCode::Scale))?;
        }
        Ok(matrix)
    }

    /// The scales that belong to the codes `tensor`, which must have this `shape`.
    fn scales_of(&self, tensor: &TensorInfo, shape: Shape) -> Result<&TensorInfo, CheckpointError> {
        let stem = tensor.name.strip_suffix(".weight").ok_or_else(|| tensor.not("a matrix with scales"))?;
        let scales = self.tensor(&format!("{stem}.scale"))?;
        if scales.dtype != Dtype::F8_E8M0 || scales.shape != shape {
            return Err(scales.not("the scales of its matrix"));
        }
        Ok(scales)
    }

    /// The error that names a code of `tensor`.
    pub fn refused(&self, tensor: &TensorInfo, index: u64, code: BadCode) -> CheckpointError {
        let shard = self.shard_of(tensor).name.clone();
        CheckpointError::BadCode { shard, tensor: tensor.name.to_string(), index, code }
    }
}
