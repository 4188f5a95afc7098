//! Reads of whole vectors and of rows, with every code checked on the way in.
//!
//! A UE8M0 byte of 255, an E4M3 NaN and a NaN in a BF16 or F32 tensor are refused here, before anyone computes with
//! them. Bytes are little-endian, as the safetensors format prescribes.

use crate::Dtype;
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::error::{BadCode, CheckpointError};
use std::ops::Range;

/// Most bytes that are staged on the way from a file to their place in memory.
pub(crate) const STAGING_BYTES: usize = 1 << 20;

/// Index and kind of the first element of `bytes` that is no number.
pub(crate) fn find_bad_code(dtype: Dtype, bytes: &[u8]) -> Option<(usize, BadCode)> {
    let found = |place: Option<usize>, code| place.map(|place| (place, code));
    match dtype {
        Dtype::F8_E8M0 => found(bytes.iter().position(|byte| *byte == 255), BadCode::Scale),
        Dtype::F8_E4M3 => {
            // Blocks without any are passed over at memory speed.
            let nan = |byte: &u8| byte & 0x7f == 0x7f;
            let block = bytes.chunks(256).position(|block| block.iter().fold(false, |any, byte| any | nan(byte)))?;
            let place = bytes[256 * block..].iter().position(nan);
            found(place.map(|place| 256 * block + place), BadCode::Fp8)
        }
        Dtype::BF16 => found(bf16(bytes).position(f32::is_nan), BadCode::NotANumber),
        Dtype::F32 => found(f32s(bytes).position(f32::is_nan), BadCode::NotANumber),
        Dtype::I8 | Dtype::I64 => None,
    }
}

/// The values of BF16 elements.
pub(crate) fn bf16(bytes: &[u8]) -> impl Iterator<Item = f32> {
    let (pairs, _) = bytes.as_chunks();
    pairs.iter().map(|pair| f32::from_bits(u32::from(u16::from_le_bytes(*pair)) << 16))
}

/// The values of F32 elements.
pub(crate) fn f32s(bytes: &[u8]) -> impl Iterator<Item = f32> {
    let (words, _) = bytes.as_chunks();
    words.iter().map(|word| f32::from_le_bytes(*word))
}

impl TensorInfo {
    /// Rows and bytes per row of a matrix; a vector is one row.
    ///
    /// # Errors
    /// If the tensor has another rank.
    pub fn rows(&self) -> Result<(u64, u64), CheckpointError> {
        let (rows, columns) = self.shape.rows_and_columns().ok_or_else(|| self.not("rows"))?;
        // The header's check of shape against range makes the product fit.
        Ok((rows, columns * self.dtype.bytes()))
    }

    pub(crate) fn not(&self, form: &'static str) -> CheckpointError {
        CheckpointError::Form { tensor: self.name.to_string(), dtype: self.dtype, shape: self.shape, form }
    }

    pub(crate) fn memory_error(&self) -> CheckpointError {
        CheckpointError::Memory { tensor: self.name.to_string(), bytes: self.bytes }
    }
}

impl Checkpoint {
    /// Refuses `bytes`, the elements of `tensor` from number `first` on, if one of them is no number.
    pub fn check_codes(&self, tensor: &TensorInfo, first: u64, bytes: &[u8]) -> Result<(), CheckpointError> {
        match find_bad_code(tensor.dtype, bytes) {
            Some((place, code)) => Err(self.refused(tensor, first + place as u64, code)),
            None => Ok(()),
        }
    }

    /// Fills `buffer` with the rows `rows` of `tensor`, as stored, and checks their codes.
    ///
    /// # Errors
    /// If the rows lie outside the tensor, `buffer` has not their length, they cannot be read, or hold a code that is
    /// no number.
    pub fn read_rows(&self, tensor: &TensorInfo, rows: Range<u64>, buffer: &mut [u8]) -> Result<(), CheckpointError> {
        let (count, width) = tensor.rows()?;
        let wanted = rows.end.checked_sub(rows.start).filter(|_| rows.end <= count).map(|wanted| wanted * width);
        if wanted != Some(buffer.len() as u64) {
            let what = format!("rows {}..{} of {count} in {} bytes", rows.start, rows.end, buffer.len());
            return Err(CheckpointError::Range { tensor: tensor.name.to_string(), what });
        }
        self.read(tensor, rows.start * width, buffer)?;
        self.check_codes(tensor, rows.start * width / tensor.dtype.bytes(), buffer)
    }

    /// Hands all rows of `tensor` to `take`, some at a time, in order: the number of the first row, and the rows as
    /// stored. Every strip but the last has a multiple of `multiple` rows; codes are checked.
    ///
    /// # Errors
    /// As [`Checkpoint::read_rows`], and whatever `take` returns.
    pub fn for_each_strip(
        &self,
        tensor: &TensorInfo,
        multiple: usize,
        mut take: impl FnMut(usize, &[u8]) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let (count, width) = tensor.rows()?;
        let [count, width] = [count, width].map(usize::try_from);
        let (Ok(count), Ok(width)) = (count, width) else { return Err(tensor.memory_error()) };
        let multiple = multiple.max(1);
        let strip = (STAGING_BYTES / width.max(1) / multiple).max(1).saturating_mul(multiple).min(count);
        let mut staging = Vec::new();
        let size = strip.checked_mul(width).filter(|size| staging.try_reserve_exact(*size).is_ok());
        staging.resize(size.ok_or_else(|| tensor.memory_error())?, 0);
        let mut first = 0;
        while first < count {
            let rows = strip.min(count - first);
            let bytes = &mut staging[..rows * width];
            self.read_rows(tensor, first as u64..(first + rows) as u64, bytes)?;
            take(first, bytes)?;
            first += rows;
        }
        Ok(())
    }

    /// The I64 matrix called `name`, whose rows are ids of different experts, of which there are `experts`: row by row.
    ///
    /// # Errors
    /// If there is no such tensor, it has another type or form, or cannot be read; [`CheckpointError::BadExpert`] if a
    /// row names an expert that there is not, or one twice.
    pub fn token_experts(&self, name: &str, experts: usize) -> Result<Vec<u16>, CheckpointError> {
        let tensor = self.tensor(name)?;
        let [rows, columns] = *tensor.shape else { return Err(tensor.not("ids of experts")) };
        if tensor.dtype != Dtype::I64 || columns == 0 {
            return Err(tensor.not("ids of experts"));
        }
        let mut ids = Vec::new();
        ids.try_reserve_exact((rows * columns) as usize).map_err(|_| tensor.memory_error())?;
        self.for_each_strip(tensor, 1, |first, strip| {
            let (words, _) = strip.as_chunks();
            for (row, words) in words.chunks_exact(columns as usize).enumerate() {
                for (place, word) in words.iter().enumerate() {
                    let value = i64::from_le_bytes(*word);
                    let id = u16::try_from(value).ok().filter(|id| usize::from(*id) < experts);
                    let earlier = &ids[ids.len() - place..];
                    let Some(id) = id.filter(|id| !earlier.contains(id)) else {
                        return Err(CheckpointError::BadExpert {
                            shard: self.shard_of(tensor).name.clone(),
                            tensor: tensor.name.to_string(),
                            row: (first + row) as u64,
                            value,
                            experts,
                        });
                    };
                    ids.push(id);
                }
            }
            Ok(())
        })?;
        Ok(ids)
    }

    /// The BF16 or F32 tensor called `name`, of whatever shape, as float32.
    ///
    /// # Errors
    /// If there is no such tensor, it has another type, or cannot be read; if it holds a NaN.
    pub fn vector(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let tensor = self.tensor(name)?;
        if !matches!(tensor.dtype, Dtype::BF16 | Dtype::F32) {
            return Err(tensor.not("a vector"));
        }
        let elements = (tensor.bytes / tensor.dtype.bytes()) as usize;
        let mut values = Vec::new();
        values.try_reserve_exact(elements).map_err(|_| tensor.memory_error())?;
        let mut staging = vec![0; STAGING_BYTES.min(tensor.bytes as usize)];
        let mut from = 0;
        while from < tensor.bytes {
            let length = STAGING_BYTES.min((tensor.bytes - from) as usize);
            self.read(tensor, from, &mut staging[..length])?;
            self.check_codes(tensor, from / tensor.dtype.bytes(), &staging[..length])?;
            match tensor.dtype {
                Dtype::BF16 => values.extend(bf16(&staging[..length])),
                _ => values.extend(f32s(&staging[..length])),
            }
            from += length as u64;
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_codes_are_found_where_they_are() {
        let mut bytes = vec![0x7e; 1000];
        assert_eq!(find_bad_code(Dtype::F8_E4M3, &bytes), None);
        assert_eq!(find_bad_code(Dtype::F8_E8M0, &bytes), None);
        for place in [0, 255, 256, 700, 999] {
            for code in [0x7f, 0xff] {
                bytes[place] = code;
                assert_eq!(find_bad_code(Dtype::F8_E4M3, &bytes), Some((place, BadCode::Fp8)));
            }
            assert_eq!(find_bad_code(Dtype::F8_E8M0, &bytes), Some((place, BadCode::Scale)));
            assert_eq!(find_bad_code(Dtype::I8, &bytes), None);
            bytes[place] = 0x7e;
        }
        let values = [1.0, f32::INFINITY, f32::NAN].map(f32::to_le_bytes).concat();
        assert_eq!(find_bad_code(Dtype::F32, &values), Some((2, BadCode::NotANumber)));
        assert_eq!(find_bad_code(Dtype::BF16, &[0x80, 0x3f, 0xc0, 0xff]), Some((1, BadCode::NotANumber)));
        assert_eq!(bf16(&[0x80, 0x3f, 0, 0xc0]).collect::<Vec<_>>(), [1.0, -2.0]);
    }
}
