//! Weights in released precision, in the kernels' order.
//!
//! Rows are taken 16 at a time: a *strip*. Within a strip the released bytes are cut in words of 4 bytes along the
//! columns (8 FP4, 4 FP8, 2 BF16 or 1 F32 number), and the 16 rows' words lie side by side: one vector load gives every
//! lane the next columns of its own row. No bit of a weight is changed; missing rows and columns of the last strip and
//! the last group of 32 columns are zeros.

use cachalot_numerics::{e4m3, e8m0};

use crate::compute::Isa;
use crate::memory::Memory;
use crate::simd::{Kernel, LANES, Simd};

/// Columns that are summed before their scale is applied.
pub(crate) const GROUP: usize = 32;

/// Bytes of one word of each lane.
pub(crate) const BLOCK: usize = 4 * LANES;

/// How numbers are stored (spec V4 section 2.1, V4.1 section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// E2M1, two to a byte, with an E8M0 scale per row and 32 columns.
    Fp4,
    /// E4M3 with an E8M0 scale per block of rows and columns: 32 times a power of two of each; blocks at the edges may be
    /// cut off.
    Fp8 {
        /// Rows and columns that share a scale.
        block: [usize; 2],
    },
    /// BF16 without scales.
    Bf16,
    /// Float32 without scales.
    F32,
}

impl Format {
    /// Numbers in a word of 4 bytes.
    pub(crate) fn per_word(self) -> usize {
        match self {
            Self::Fp4 => 8,
            Self::Fp8 { .. } => 4,
            Self::Bf16 => 2,
            Self::F32 => 1,
        }
    }

    /// Bytes of one row of `cols` numbers in the released layout.
    pub fn row_bytes(self, cols: usize) -> usize {
        (cols * 4).div_ceil(self.per_word())
    }

    /// Bytes of one row of scales over `cols` numbers in the released layout; 0 without scales.
    pub fn scale_row_bytes(self, cols: usize) -> usize {
        match self {
            Self::Fp4 => cols.div_ceil(GROUP),
            Self::Fp8 { block } => cols.div_ceil(block[1].max(1)),
            Self::Bf16 | Self::F32 => 0,
        }
    }
}

/// Bytes of a row that are asked for ahead: 16 rows at once are more than a processor follows by itself.
const AHEAD: usize = 256;

/// Puts strips of up to 16 rows of `row_bytes` each side by side, word by word.
struct Pack<'a> {
    packed: &'a mut [u8],
    strip_bytes: usize,
    raw: &'a [u8],
    row_bytes: usize,
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let strips = self.packed.chunks_exact_mut(self.strip_bytes.max(1));
        for (strip, rows) in strips.zip(self.raw.chunks(LANES * self.row_bytes)) {
            let done = if rows.len() == LANES * self.row_bytes { pack_whole(simd, strip, rows) } else { 0 };
            let (blocks, _) = strip.as_chunks_mut::<BLOCK>();
            for (lane, row) in rows.chunks_exact(self.row_bytes).enumerate() {
                for (word, block) in row[done..].chunks(4).zip(&mut blocks[done / 4..]) {
                    block[4 * lane..4 * lane + word.len()].copy_from_slice(word);
                }
            }
        }
        simd.settle();
    }
}

/// The shape that matters, 16 rows: all that 64 bytes divide of each. Returns how many bytes of a row that is.
#[inline(always)]
fn pack_whole<S: Simd>(simd: S, strip: &mut [u8], rows: &[u8]) -> usize {
    let row_bytes = rows.len() / LANES;
    let lanes: [&[[u8; BLOCK]]; LANES] =
        std::array::from_fn(|lane| rows[lane * row_bytes..][..row_bytes].as_chunks().0);
    let (squares, _) = strip.as_chunks_mut::<BLOCK>().0.as_chunks_mut::<LANES>();
    for (at, square) in squares.iter_mut().take(row_bytes / BLOCK).enumerate() {
        let rows = lanes.map(|lane| &lane[at]);
        rows.iter().for_each(|row| simd.prefetch(row.as_ptr().wrapping_add(AHEAD)));
        simd.side_by_side(&rows, square);
    }
    row_bytes / BLOCK * BLOCK
}

/// The first E4M3 code that is no number; blocks without any are passed over at memory speed.
fn find_fp8_nan(raw: &[u8]) -> Option<usize> {
    let nan = |code: &u8| e4m3::is_nan(*code);
    let block = raw.chunks(256).position(|block| block.iter().fold(false, |any, code| any | nan(code)))?;
    raw[256 * block..].iter().position(nan).map(|place| 256 * block + place)
}

/// `[rows, cols]` weights.
pub struct Matrix {
    format: Format,
    rows: usize,
    cols: usize,
    /// Strip by strip, word by word, row by row.
    codes: Memory,
    /// FP4: strip by strip, group by group, row by row. FP8: as released.
    scales: Memory,
}

/// Why there can be no such matrix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatrixError {
    /// More bytes than can be addressed or allocated.
    #[error("a matrix of {rows} x {cols} does not fit in memory")]
    TooLarge {
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
    },
    /// Scale blocks that the kernels do not know.
    #[error("scale blocks of {block:?} are not known; both sides must be 32 times a power of two")]
    Block {
        /// The block's rows and columns.
        block: [usize; 2],
    },
}

/// A code that stands for no number: the file is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("code {code:#04x} at element {index} stands for no number")]
pub struct BadCode {
    /// The byte.
    pub code: u8,
    /// Its index among the elements given.
    pub index: usize,
}

impl Matrix {
    /// A matrix of zeros: the one allocation of its life.
    ///
    /// # Errors
    /// If it cannot be allocated, or its blocks are not known.
    pub fn zeroed(format: Format, rows: usize, cols: usize) -> Result<Self, MatrixError> {
        let too_large = MatrixError::TooLarge { rows, cols };
        let groups = cols.div_ceil(GROUP);
        let strips = rows.div_ceil(LANES);
        let words = groups * (GROUP / format.per_word());
        let codes = strips.checked_mul(words).and_then(|words| words.checked_mul(BLOCK));
        let scales = match format {
            Format::Fp4 => strips.checked_mul(groups).and_then(|groups| groups.checked_mul(LANES)),
            Format::Fp8 { block } if block.iter().any(|side| *side < GROUP || !side.is_power_of_two()) => {
                return Err(MatrixError::Block { block });
            }
            Format::Fp8 { block: [r, c] } => Some(rows.div_ceil(r) * cols.div_ceil(c)),
            Format::Bf16 | Format::F32 => Some(0),
        };
        let (Some(codes), Some(scales)) = (codes, scales) else { return Err(too_large) };
        let zeros = |length| Memory::zeroed(length).ok_or(too_large.clone());
        Ok(Self { format, rows, cols, codes: zeros(codes)?, scales: zeros(scales)? })
    }

    /// A matrix without numbers: what stands in the place of one that is being read.
    pub fn empty() -> Self {
        Self { format: Format::F32, rows: 0, cols: 0, codes: Memory::empty(), scales: Memory::empty() }
    }

    /// Rows, the length of the output.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns, the length of the input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How its numbers are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.codes.as_slice().len() + self.scales.as_slice().len()
    }

    /// Bytes of one row in the released layout.
    pub fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols)
    }

    /// Takes over whole rows in the released row-major layout, from `first_row` (a multiple of 16) on.
    ///
    /// # Errors
    /// If an FP8 code stands for no number; the index counts from `raw`'s start.
    ///
    /// # Panics
    /// If `first_row` is no multiple of 16, or `raw` is not whole rows of this matrix.
    pub fn load_rows(&mut self, first_row: usize, raw: &[u8]) -> Result<(), BadCode> {
        let row_bytes = self.row_bytes();
        let count = raw.len() / row_bytes.max(1);
        assert!(first_row.is_multiple_of(LANES) && raw.len() == count * row_bytes, "whole rows from a strip's start");
        assert!(first_row + count <= self.rows, "rows {first_row} + {count} of {}", self.rows);
        if matches!(self.format, Format::Fp8 { .. })
            && let Some(index) = find_fp8_nan(raw)
        {
            return Err(BadCode { code: raw[index], index });
        }
        let strip_bytes = self.strip_bytes();
        if row_bytes > 0 {
            let packed = &mut self.codes.as_mut_slice()[first_row / LANES * strip_bytes..];
            Isa::detect().run(Pack { packed, strip_bytes, raw, row_bytes });
        }
        Ok(())
    }

    /// Takes over all scales in the released layout.
    ///
    /// # Errors
    /// If a scale stands for no number.
    ///
    /// # Panics
    /// If `raw` has another length than the matrix has scales.
    pub fn load_scales(&mut self, raw: &[u8]) -> Result<(), BadCode> {
        assert_eq!(raw.len(), self.released_scales(), "scales of a {} x {} matrix", self.rows, self.cols);
        self.load_scale_rows(0, raw)
    }

    /// Takes over whole rows of scales in the released layout, from row `first_row` of the scales on: an FP4 matrix has a
    /// row of scales per row, an FP8 matrix one per block of rows.
    ///
    /// # Errors
    /// If a scale stands for no number; the index counts from `raw`'s start.
    ///
    /// # Panics
    /// If `raw` is not whole rows of this matrix's scales.
    pub fn load_scale_rows(&mut self, first_row: usize, raw: &[u8]) -> Result<(), BadCode> {
        let row_bytes = self.scale_row_bytes();
        let (first, end) = (first_row * row_bytes, first_row * row_bytes + raw.len());
        assert!(raw.len().is_multiple_of(row_bytes.max(1)) && end <= self.released_scales(), "whole rows of scales");
        if let Some(index) = raw.iter().position(|&code| code == e8m0::NAN) {
            return Err(BadCode { code: e8m0::NAN, index });
        }
        let packed = self.scales.as_mut_slice();
        if self.format != Format::Fp4 {
            packed[first..end].copy_from_slice(raw);
            return Ok(());
        }
        for (row, scales) in (first_row..).zip(raw.chunks_exact(row_bytes.max(1))) {
            let strip = row / LANES * row_bytes * LANES + row % LANES;
            for (group, &scale) in scales.iter().enumerate() {
                packed[strip + group * LANES] = scale;
            }
        }
        Ok(())
    }

    /// Bytes of one row of scales in the released layout; 0 without scales.
    pub fn scale_row_bytes(&self) -> usize {
        self.format.scale_row_bytes(self.cols)
    }

    /// Number of scales in the released layout.
    pub fn released_scales(&self) -> usize {
        match self.format {
            Format::Fp4 => self.rows * self.groups(),
            _ => self.scales.as_slice().len(),
        }
    }

    /// All packed codes, and all packed scales.
    pub(crate) fn parts(&self) -> [&[u8]; 2] {
        [self.codes.as_slice(), self.scales.as_slice()]
    }

    /// Groups of 32 columns.
    pub(crate) fn groups(&self) -> usize {
        self.cols.div_ceil(GROUP)
    }

    fn strip_bytes(&self) -> usize {
        self.groups() * GROUP / self.format.per_word() * BLOCK
    }

    /// The codes of one strip: `[groups][words of a group][16 rows]` words.
    pub(crate) fn strip(&self, strip: usize) -> &[u8] {
        let bytes = self.strip_bytes();
        &self.codes.as_slice()[strip * bytes..(strip + 1) * bytes]
    }

    /// FP4: the scales of one strip, `[groups][16 rows]`.
    pub(crate) fn strip_scales(&self, strip: usize) -> &[u8] {
        let count = self.groups() * LANES;
        &self.scales.as_slice()[strip * count..(strip + 1) * count]
    }

    /// FP8: the scales that one strip's rows share; 2 to the power of the second part are the groups that share each.
    pub(crate) fn row_of_scales(&self, strip: usize, block: [usize; 2]) -> (&[u8], u32) {
        let columns = self.cols.div_ceil(block[1]);
        let row = strip * LANES / block[0];
        (&self.scales.as_slice()[row * columns..(row + 1) * columns], (block[1] / GROUP).trailing_zeros())
    }
}

impl std::fmt::Debug for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Matrix({:?}, {} x {})", self.format, self.rows, self.cols)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_trusted() {
        let mut matrix = Matrix::zeroed(Format::Fp8 { block: [32, 32] }, 32, 64).unwrap();
        let mut raw = vec![0x38; 32 * 64];
        raw[70] = 0xff;
        assert_eq!(matrix.load_rows(0, &raw), Err(BadCode { code: 0xff, index: 70 }));
        assert_eq!(matrix.load_scales(&[127, 255]), Err(BadCode { code: 255, index: 1 }));
        assert!(Matrix::zeroed(Format::F32, usize::MAX / 2, 64).is_err());
        assert!(Matrix::zeroed(Format::F32, 1 << 40, 1 << 40).is_err());
        for block in [[0, 32], [32, 16], [96, 32], [32, 96]] {
            assert!(Matrix::zeroed(Format::Fp8 { block }, 32, 32).is_err(), "{block:?}");
        }
    }

    /// Rows of whole and broken words and squares, whole and broken strips, on aligned memory and off it.
    #[test]
    fn rows_are_packed_word_by_word_by_every_instruction_set() {
        for (rows, row_bytes) in
            [(16_usize, 64_usize), (16, 256), (32, 192), (37, 128), (16, 100), (20, 67), (5, 3), (48, 1152)]
        {
            let raw: Vec<u8> = (0..rows * row_bytes).map(|i| (i * 31 + i / 251) as u8).collect();
            let strip_bytes = row_bytes.div_ceil(16) * 16 * LANES;
            let mut want = vec![0; rows.div_ceil(LANES) * strip_bytes];
            for (row, bytes) in raw.chunks(row_bytes).enumerate() {
                for (at, byte) in bytes.iter().enumerate() {
                    want[row / LANES * strip_bytes + at / 4 * BLOCK + row % LANES * 4 + at % 4] = *byte;
                }
            }
            for isa in Isa::available() {
                for off in [0, 4] {
                    let mut memory = Memory::zeroed(want.len() + off).unwrap();
                    let packed = &mut memory.as_mut_slice()[off..];
                    isa.run(Pack { packed: &mut *packed, strip_bytes, raw: &raw, row_bytes });
                    assert!(packed == want, "{rows} rows of {row_bytes} bytes, {} at {off}", isa.name());
                }
            }
        }
    }

    #[test]
    fn a_matrix_takes_the_bytes_of_its_file() {
        let w1 = Matrix::zeroed(Format::Fp4, 2304, 5120).unwrap();
        assert_eq!(w1.bytes(), 2304 * 2560 + 2304 * 160);
        let wkv = Matrix::zeroed(Format::Fp8 { block: [32, 32] }, 512, 5120).unwrap();
        assert_eq!(wkv.bytes(), 512 * 5120 + 16 * 160);
        let ragged = Matrix::zeroed(Format::Fp8 { block: [128, 128] }, 160, 576).unwrap();
        assert_eq!((ragged.bytes(), ragged.released_scales()), (160 * 576 + 2 * 5, 2 * 5));
    }
}
