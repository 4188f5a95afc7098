//! Where every routed expert lies in the shards, and in which pieces it is read.
//!
//! Computed from the headers, never assumed: in the published shards an expert's three weights are one range and its
//! three scales another, scattered tensors are ranges of their own (`pieces.rs`).

use std::ops::Range;
use std::sync::Arc;

use cachalot_checkpoint::{Checkpoint, CheckpointError, StoredMatrix, TensorInfo};
use cachalot_kernels::{Format, Matrix};
use cachalot_storage::{Storage, Target};
use smallvec::SmallVec;

use crate::Expert;
use crate::pieces::{self, Form, PIECE_BYTES, Part, Piece, Pieces, Place, Stretch, locate};

/// Most pieces of an expert: one bit each in half a word.
pub(crate) const MOST_PIECES: usize = 32;
/// The matrices of an expert, in the order of their places.
const MATRICES: [&str; 3] = ["w1", "w3", "w2"];

/// Where all experts of a model lie.
pub(crate) struct Layout {
    checkpoint: Arc<Checkpoint>,
    layers: usize,
    experts: usize,
    forms: [Form; 3],
    files: Vec<Arc<dyn Storage>>,
    /// Per expert its six tensors: weight and scales of w1, w3, w2.
    places: Vec<[Place; 6]>,
    piece_bytes: usize,
}

fn name(layer: usize, expert: usize, matrix: &str) -> String {
    format!("layers.{layer}.ffn.experts.{expert}.{matrix}.weight")
}

impl Layout {
    /// Finds experts `0..experts` of layers `0..layers`, named `layers.L.ffn.experts.E`.
    ///
    /// # Errors
    /// If one is missing, its shard has not arrived, or it has another form than the first one.
    pub(crate) fn new(checkpoint: Arc<Checkpoint>, layers: usize, experts: usize) -> Result<Self, CheckpointError> {
        let mut files: Vec<Arc<dyn Storage>> = Vec::new();
        let mut places = Vec::with_capacity(layers * experts);
        let mut forms = None;
        for (layer, expert) in (0..layers).flat_map(|layer| (0..experts).map(move |expert| (layer, expert))) {
            let mut place = [Place { file: 0, start: 0 }; 6];
            let mut found = [Form { format: Format::F32, rows: 0, columns: 0 }; 3];
            for (matrix, part) in MATRICES.iter().enumerate() {
                let stored = checkpoint.stored_matrix(&name(layer, expert, part))?;
                let StoredMatrix { format, rows, columns, weight, scales } = stored;
                found[matrix] = Form { format, rows, columns };
                place[2 * matrix] = locate(&checkpoint, weight, &mut files)?;
                if let Some(scales) = scales {
                    place[2 * matrix + 1] = locate(&checkpoint, scales, &mut files)?;
                }
            }
            if *forms.get_or_insert(found) != found {
                let tensor = checkpoint.stored_matrix(&name(layer, expert, MATRICES[0]))?.weight;
                let form = "an expert like the others";
                let (dtype, shape, tensor) = (tensor.dtype, tensor.shape, tensor.name.to_string());
                return Err(CheckpointError::Form { tensor, dtype, shape, form });
            }
            places.push(place);
        }
        let empty = [Form { format: Format::F32, rows: 0, columns: 0 }; 3];
        let mut layout =
            Self { checkpoint, layers, experts, forms: forms.unwrap_or(empty), files, places, piece_bytes: 0 };
        // A unit of rows is never cut, and an expert never has more pieces than a word has bits.
        let unit = layout.stretches(0).iter().map(Stretch::unit).max().unwrap_or(0);
        layout.piece_bytes = PIECE_BYTES.max(unit).max(layout.record_bytes() / (MOST_PIECES / 4));
        Ok(layout)
    }

    /// Number, rows and bytes per row of the tensors that the experts have.
    fn tensors(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        (0..6).filter_map(|tensor| {
            let (rows, bytes) = self.forms[tensor / 2].rows(tensor % 2);
            (rows * bytes > 0).then_some((tensor, rows, bytes))
        })
    }

    /// Layers and experts of each.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.layers, self.experts)
    }

    /// The number of an expert among all.
    pub(crate) fn key(&self, layer: usize, expert: u32) -> u32 {
        (layer * self.experts) as u32 + expert
    }

    /// Layer and expert of a key.
    pub(crate) fn of_key(&self, key: u32) -> (usize, u32) {
        (key as usize / self.experts.max(1), key % self.experts.max(1) as u32)
    }

    /// Bytes that an expert has in the files.
    pub(crate) fn record_bytes(&self) -> usize {
        self.tensors().map(|(_, rows, bytes)| rows * bytes).sum()
    }

    /// Longest read.
    pub(crate) fn largest_read(&self) -> usize {
        if self.places.is_empty() { 0 } else { self.record_bytes().min(self.piece_bytes) }
    }

    pub(crate) fn file(&self, number: u32) -> &Arc<dyn Storage> {
        &self.files[number as usize]
    }

    /// An expert of the right form without numbers.
    ///
    /// # Errors
    /// If it cannot be allocated.
    pub(crate) fn blank(&self) -> Result<Expert, CheckpointError> {
        let matrix = |index: usize| {
            let Form { format, rows, columns } = self.forms[index];
            let error =
                || CheckpointError::Memory { tensor: name(0, 0, MATRICES[index]), bytes: self.record_bytes() as u64 };
            Matrix::zeroed(format, rows, columns).map_err(|_| error())
        };
        Ok(Expert { w1: matrix(0)?, w3: matrix(1)?, w2: matrix(2)? })
    }

    /// The tensors of an expert.
    fn stretches(&self, key: u32) -> SmallVec<[Stretch; 6]> {
        let Some(places) = self.places.get(key as usize) else { return SmallVec::new() };
        let stretch = |(tensor, rows, row_bytes)| Stretch { place: places[tensor], tensor, rows, row_bytes };
        self.tensors().map(stretch).collect()
    }

    /// The reads that fetch an expert, as few as its layout allows.
    pub(crate) fn pieces(&self, key: u32) -> Pieces {
        pieces::pieces(&mut self.stretches(key), self.piece_bytes)
    }

    /// Packs one part of an expert's piece into the matrix it belongs to; its codes are checked.
    ///
    /// # Errors
    /// If a code stands for no number: names shard, tensor and index.
    pub(crate) fn pack(&self, key: u32, part: &Part, bytes: &[u8], matrix: &mut Matrix) -> Result<(), CheckpointError> {
        let form = self.forms[part.matrix()];
        pieces::pack(&self.checkpoint, form, part, bytes, matrix, || self.tensor(key, part.tensor))
    }

    /// The names of the tensors in a piece.
    pub(crate) fn names(&self, key: u32, piece: &Piece) -> String {
        let names = piece.parts.iter().filter_map(|part| Some(self.tensor(key, part.tensor).ok()?.name.to_string()));
        names.collect::<Vec<_>>().join(", ")
    }

    fn tensor(&self, key: u32, tensor: usize) -> Result<&TensorInfo, CheckpointError> {
        let (layer, expert) = self.of_key(key);
        let stored = self.checkpoint.stored_matrix(&name(layer, expert as usize, MATRICES[tensor / 2]))?;
        Ok(if tensor % 2 == 1 { stored.scales.unwrap_or(stored.weight) } else { stored.weight })
    }

    /// Where records lie, for a probe: per file the range from the first to the last of them.
    pub(crate) fn targets(&self) -> Vec<Target> {
        let mut ranges: Vec<Option<Range<u64>>> = vec![None; self.files.len()];
        for places in &self.places {
            for (tensor, rows, bytes) in self.tensors() {
                let Place { file, start } = places[tensor];
                let end = start + (rows * bytes) as u64;
                let range = ranges[file as usize].get_or_insert(start..end);
                *range = range.start.min(start)..range.end.max(end);
            }
        }
        let files = self.files.iter().zip(ranges);
        files.filter_map(|(file, range)| Some(Target { file: Arc::clone(file), range: range? })).collect()
    }
}

/// Where experts lie: what has to be known before a reader for them can be made.
pub struct ExpertLayout(pub(crate) Layout);

impl ExpertLayout {
    /// Finds experts `0..experts` of layers `0..layers`, named `layers.L.ffn.experts.E`.
    ///
    /// # Errors
    /// If one is missing or has another form than the others.
    pub fn new(checkpoint: Arc<Checkpoint>, layers: usize, experts: usize) -> Result<Self, CheckpointError> {
        Layout::new(checkpoint, layers, experts).map(Self)
    }

    /// Bytes of one expert in the files.
    pub fn record_bytes(&self) -> usize {
        self.0.record_bytes()
    }

    /// Bytes of one expert in memory.
    ///
    /// # Errors
    /// If there is not the memory for one.
    pub fn slot_bytes(&self) -> Result<usize, CheckpointError> {
        Ok(self.0.blank()?.bytes())
    }

    /// Longest read.
    pub fn largest_read(&self) -> usize {
        self.0.largest_read()
    }

    /// Number of experts of all layers.
    pub fn count(&self) -> usize {
        let (layers, experts) = self.0.size();
        layers * experts
    }

    /// Reads that fetch the given expert.
    pub fn reads(&self, layer: usize, expert: u32) -> usize {
        self.0.pieces(self.0.key(layer, expert)).len()
    }

    /// Where experts lie, for a probe of the disk.
    pub fn targets(&self) -> Vec<Target> {
        self.0.targets()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pieces::ROWS;
    use cachalot_storage::{Directory, Embedded, Files};

    fn layout(files: Arc<dyn Files>) -> Layout {
        Layout::new(Arc::new(Checkpoint::open(files).expect("a checkpoint")), 14, 14).expect("a layout")
    }

    fn fixture() -> Directory {
        Directory::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/v41-tiny"))
    }

    /// Every row of every tensor is in one piece, once, where the header says.
    fn assert_complete(layout: &Layout, key: u32) -> usize {
        let pieces = layout.pieces(key);
        for (tensor, rows, bytes) in layout.tensors() {
            let Place { file, start } = layout.places[key as usize][tensor];
            let mut next = 0;
            let parts = pieces.iter().flat_map(|piece| piece.parts.iter().map(move |part| (piece, part)));
            for (piece, part) in parts.filter(|(_, part)| part.tensor == tensor) {
                assert_eq!((piece.file, part.first_row), (file, next), "tensor {tensor}");
                assert_eq!(piece.offset + part.at as u64, start + (next * bytes) as u64);
                assert!(part.first_row.is_multiple_of(ROWS));
                next += part.bytes / bytes;
            }
            assert_eq!(next, rows, "tensor {tensor}");
        }
        assert!(pieces.len() <= MOST_PIECES && pieces.iter().all(|piece| piece.bytes <= layout.largest_read()));
        pieces.len()
    }

    #[test]
    fn neighbours_are_one_read_and_long_ranges_several() {
        let mut layout = layout(Arc::new(fixture()));
        let key = layout.key(5, 4);
        assert_eq!(layout.of_key(key), (5, 4));
        let whole = assert_complete(&layout, key);
        assert!((1..6).contains(&whole), "{whole} reads for six tensors");
        for piece in [600, 1000, 5000] {
            // Never below a unit of rows.
            let unit = layout.stretches(key).iter().map(Stretch::unit).max().expect("tensors");
            layout.piece_bytes = piece.max(unit).max(layout.record_bytes() / 8);
            assert!(assert_complete(&layout, key) > whole);
        }
    }

    /// The same tensors, each shard's data rearranged so that no two tensors of an expert are neighbours.
    #[test]
    fn scattered_tensors_are_read_one_by_one() {
        let directory = fixture();
        let index = directory.read_all("model.safetensors.index.json", 1 << 20).expect("an index");
        let mut files = Embedded::new("scattered").with("model.safetensors.index.json", index.clone());
        files = files.with("config.json", directory.read_all("config.json", 1 << 20).expect("a config"));
        let index: serde_json::Value = serde_json::from_slice(&index).expect("JSON");
        let shards = index["weight_map"].as_object().expect("a map").values().filter_map(|name| name.as_str());
        for shard in shards.collect::<std::collections::BTreeSet<_>>() {
            let bytes = directory.read_all(shard, 1 << 24).expect("a shard");
            files = files.with(shard, scatter(&bytes));
        }
        let layout = layout(Arc::new(files));
        assert_eq!(assert_complete(&layout, layout.key(5, 4)), 6);
    }

    /// Sorts a shard's tensors by their names read backwards: `w1.scale` of all experts, then `w2.scale`, and so on.
    fn scatter(shard: &[u8]) -> Vec<u8> {
        let length = u64::from_le_bytes(shard[..8].try_into().expect("eight bytes")) as usize;
        let (header, data) = shard[8..].split_at(length);
        let mut header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).expect("a header");
        let mut names: Vec<String> = header.keys().filter(|name| *name != "__metadata__").cloned().collect();
        names.sort_by_key(|name| name.bytes().rev().collect::<Vec<_>>());
        let mut out = Vec::new();
        for name in names {
            let offsets = &mut header[&name]["data_offsets"];
            let [from, to] = [0, 1].map(|at| offsets[at].as_u64().expect("an offset") as usize);
            *offsets = serde_json::json!([out.len(), out.len() + to - from]);
            out.extend_from_slice(&data[from..to]);
        }
        let header = serde_json::to_vec(&header).expect("JSON");
        [&(header.len() as u64).to_le_bytes()[..], &header, &out].concat()
    }
}
