//! From where tensors lie to the reads that fetch them, and from what was read to packed matrices.
//!
//! Tensors that lie one behind the other are one range; a long range is cut between rows, so that packing the first
//! piece goes on while the next is read. Tensors are numbered: twice the matrix's number for its weight, one more for its
//! scales.

use std::sync::Arc;

use cachalot_checkpoint::{BadCode, Checkpoint, CheckpointError, TensorInfo};
use cachalot_kernels::{Format, Matrix};
use cachalot_storage::{ALIGNMENT, Storage};
use smallvec::SmallVec;

/// Ranges longer than this are read in pieces of about this size: disks are no faster with more. With the pages at both
/// ends that a range begins and ends in, a piece fills whole huge pages.
pub(crate) const PIECE_BYTES: usize = (4 << 20) - 2 * ALIGNMENT;
/// Rows that a matrix takes over at once.
pub(crate) const ROWS: usize = 16;

/// How a matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl Form {
    /// Rows and bytes per row of the weight (`part` 0) or of the scales (1).
    pub(crate) fn rows(&self, part: usize) -> (usize, usize) {
        match (part, self.format) {
            (0, format) => (self.rows, format.row_bytes(self.columns)),
            (_, Format::Fp8 { block }) => (self.rows.div_ceil(block[0]), self.format.scale_row_bytes(self.columns)),
            (_, format) => (self.rows, format.scale_row_bytes(self.columns)),
        }
    }

    /// Bytes of weight and scales.
    pub(crate) fn bytes(&self) -> usize {
        [0, 1].map(|part| self.rows(part)).iter().map(|(rows, bytes)| rows * bytes).sum()
    }
}

/// Where a tensor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// Number among the files of a layout.
    pub(crate) file: u32,
    pub(crate) start: u64,
}

/// One tensor to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stretch {
    pub(crate) place: Place,
    pub(crate) tensor: usize,
    pub(crate) rows: usize,
    pub(crate) row_bytes: usize,
}

impl Stretch {
    pub(crate) fn bytes(&self) -> usize {
        self.rows * self.row_bytes
    }

    /// Bytes that are never cut.
    pub(crate) fn unit(&self) -> usize {
        self.rows.min(ROWS) * self.row_bytes
    }
}

/// A read, and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) file: u32,
    pub(crate) offset: u64,
    pub(crate) bytes: usize,
    pub(crate) parts: SmallVec<[Part; 6]>,
}

/// Rows of one tensor inside a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) tensor: usize,
    pub(crate) first_row: usize,
    /// Where they are in the piece.
    pub(crate) at: usize,
    pub(crate) bytes: usize,
}

impl Part {
    /// Which matrix they belong to.
    pub(crate) fn matrix(&self) -> usize {
        self.tensor / 2
    }
}

pub(crate) type Pieces = SmallVec<[Piece; 8]>;

/// The reads that fetch `tensors`, which are sorted for that, as few as their places allow; none is longer than
/// `piece_bytes`, which must be at least the longest [`Stretch::unit`].
pub(crate) fn pieces(tensors: &mut [Stretch], piece_bytes: usize) -> Pieces {
    tensors.sort_unstable();
    let mut pieces = Pieces::new();
    let mut rest = &tensors[..];
    while let Some(first) = rest.first() {
        let mut end = first.place.start;
        let together = rest.iter().take_while(|stretch| {
            let next = stretch.place == Place { file: first.place.file, start: end };
            end += stretch.bytes() as u64;
            next
        });
        let (neighbours, others) = rest.split_at(together.count());
        let range: usize = neighbours.iter().map(Stretch::bytes).sum();
        let size = range.div_ceil(range.div_ceil(piece_bytes).max(1));
        cut(neighbours, size, piece_bytes, &mut pieces);
        rest = others;
    }
    pieces
}

/// Cuts neighbouring tensors in pieces of about `size` bytes, at most `most`.
fn cut(tensors: &[Stretch], size: usize, most: usize, pieces: &mut Pieces) {
    let mut open = false;
    for &Stretch { place: Place { file, start }, tensor, rows, row_bytes } in tensors {
        let mut first_row = 0;
        while first_row < rows {
            if !open {
                let offset = start + (first_row * row_bytes) as u64;
                pieces.push(Piece { file, offset, bytes: 0, parts: SmallVec::new() });
            }
            let Some(piece) = pieces.last_mut() else { return };
            let room = (size.saturating_sub(piece.bytes)).min(most - piece.bytes.min(most));
            let units = (room / (row_bytes * ROWS)).max(usize::from(piece.bytes == 0));
            let count = (units * ROWS).min(rows - first_row);
            if count > 0 {
                piece.parts.push(Part { tensor, first_row, at: piece.bytes, bytes: count * row_bytes });
                piece.bytes += count * row_bytes;
            }
            first_row += count;
            // Rows are left: they begin the next piece.
            open = first_row == rows;
        }
    }
}

/// Packs one part of a piece into `matrix`, which has the form `form`; its codes are checked. `tensor` finds the part's.
///
/// # Errors
/// If a code stands for no number: names shard, tensor and index.
pub(crate) fn pack<'a>(
    checkpoint: &'a Checkpoint,
    form: Form,
    part: &Part,
    bytes: &[u8],
    matrix: &mut Matrix,
    tensor: impl Fn() -> Result<&'a TensorInfo, CheckpointError>,
) -> Result<(), CheckpointError> {
    let bytes = &bytes[part.at..part.at + part.bytes];
    let (_, row_bytes) = form.rows(part.tensor % 2);
    let before = (part.first_row * row_bytes) as u64;
    let refused = |index: usize, code| match tensor() {
        Ok(tensor) => checkpoint.refused(tensor, before + index as u64, code),
        Err(error) => error,
    };
    if part.tensor % 2 == 1 {
        let outcome = matrix.load_scale_rows(part.first_row, bytes);
        return outcome.map_err(|bad| refused(bad.index, BadCode::Scale));
    }
    if matches!(form.format, Format::Bf16 | Format::F32) {
        let tensor = tensor()?;
        checkpoint.check_codes(tensor, before / tensor.dtype.bytes(), bytes)?;
    }
    matrix.load_rows(part.first_row, bytes).map_err(|bad| refused(bad.index, BadCode::Fp8))
}

/// Where `tensor` begins; its file is added to `files` if it is not there.
///
/// # Errors
/// If its file has not arrived.
pub(crate) fn locate(
    checkpoint: &Checkpoint,
    tensor: &TensorInfo,
    files: &mut Vec<Arc<dyn Storage>>,
) -> Result<Place, CheckpointError> {
    let file = checkpoint.file_of(tensor).ok_or_else(|| CheckpointError::NotArrived {
        tensor: tensor.name.to_string(),
        shard: checkpoint.shard_of(tensor).name.clone(),
    })?;
    // Neighbouring tensors mostly lie in the shard found last.
    let number = match files.iter().rposition(|other| Arc::ptr_eq(other, file)) {
        Some(number) => number,
        None => {
            files.push(Arc::clone(file));
            files.len() - 1
        }
    };
    Ok(Place { file: number as u32, start: checkpoint.file_offset(tensor) })
}
