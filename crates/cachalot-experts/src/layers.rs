//! Which weights of a layer can be read anew in every step, where they lie, and which layers that should be.
//!
//! Owns the choice: all matrices of attention, compressors, indexer, shared expert and Engram projection can go; norms,
//! mixers and routers, which are small and looked at by others, stay. Reads nothing.

use std::sync::Arc;

use cachalot_checkpoint::{Checkpoint, CheckpointError, StoredMatrix};
use cachalot_kernels::Matrix;
use cachalot_storage::{Storage, Target};
use smallvec::SmallVec;

use crate::LayerError;
use crate::pieces::{self, Form, PIECE_BYTES, Piece, Stretch, locate};

/// Layers that have room at once: the one that computes, and the one being read.
pub const LAYER_BUFFERS: usize = 2;

/// The matrices of one layer, in the order of [`LayerSource::names`].
pub type Matrices = SmallVec<[Matrix; 16]>;

/// Provides the matrices of layers that are not kept in memory.
pub trait LayerSource: Send + Sync {
    /// The tensors of layer `layer` that are not kept; none if all of it stays.
    fn names(&self, layer: usize) -> &[String];

    /// Waits for the matrices of layer `layer`, and begins to read those of the layer that will be asked for next; `end`
    /// is the number of the first layer that this step does not compute. Whoever gets them gives them back before asking
    /// for other ones.
    ///
    /// # Errors
    /// If one cannot be read, or the caller was interrupted. Asking again reads again.
    fn take(&self, layer: usize, end: usize) -> Result<Matrices, LayerError>;

    /// Gives the matrices of layer `layer` back.
    fn give_back(&self, layer: usize, matrices: Matrices);
}

/// Where the matrices of all layers lie.
pub struct LayerLayout {
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) files: Vec<Arc<dyn Storage>>,
    layers: Vec<LayerMatrices>,
    piece_bytes: usize,
}

struct LayerMatrices {
    names: Vec<String>,
    forms: Vec<Form>,
    stretches: Vec<Stretch>,
}

/// Some layers that are not kept, and what that saves and takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamedSet {
    /// The layers, ascending.
    pub layers: Vec<usize>,
    /// Bytes of their matrices: not kept, and read in every step.
    pub bytes: u64,
    /// Bytes of the buffers that they are read into.
    pub buffers: u64,
}

/// Whether a tensor of a layer, named without the layer's prefix, is a matrix that can be read in every step.
fn can_go(name: &str) -> bool {
    let part = name.starts_with("attn.") || name.starts_with("ffn.shared_experts.") || name == "engram.wkv.weight";
    part && name.ends_with(".weight")
}

impl LayerLayout {
    /// Finds the matrices of layers `0..layers`.
    ///
    /// # Errors
    /// If one is of no known form, or its shard has not arrived.
    pub fn new(checkpoint: Arc<Checkpoint>, layers: usize) -> Result<Self, CheckpointError> {
        let mut names = vec![Vec::new(); layers];
        for tensor in checkpoint.tensors() {
            let rest = tensor.name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
            let Some((layer, rest)) = rest.and_then(|(layer, rest)| Some((layer.parse::<usize>().ok()?, rest))) else {
                continue;
            };
            if layer < layers && tensor.shape.len() == 2 && can_go(rest) {
                names[layer].push(tensor.name.to_string());
            }
        }
        let mut layout =
            Self { checkpoint: Arc::clone(&checkpoint), files: Vec::new(), layers: Vec::new(), piece_bytes: 0 };
        for mut names in names {
            names.sort_unstable();
            let (mut forms, mut stretches) = (Vec::new(), Vec::new());
            for (matrix, name) in names.iter().enumerate() {
                let StoredMatrix { format, rows, columns, weight, scales } = checkpoint.stored_matrix(name)?;
                let form = Form { format, rows, columns };
                for (part, tensor) in [Some(weight), scales].into_iter().enumerate() {
                    let (Some(tensor), (rows, row_bytes)) = (tensor, form.rows(part)) else { continue };
                    let place = locate(&checkpoint, tensor, &mut layout.files)?;
                    if rows * row_bytes > 0 {
                        stretches.push(Stretch { place, tensor: 2 * matrix + part, rows, row_bytes });
                    }
                }
                forms.push(form);
            }
            layout.layers.push(LayerMatrices { names, forms, stretches });
        }
        let stretches = layout.layers.iter().flat_map(|layer| &layer.stretches);
        layout.piece_bytes = stretches.map(Stretch::unit).fold(PIECE_BYTES, usize::max);
        Ok(layout)
    }

    /// Bytes of the matrices of layer `layer`.
    pub fn bytes(&self, layer: usize) -> u64 {
        self.layers[layer].forms.iter().map(|form| form.bytes() as u64).sum()
    }

    /// Longest read.
    pub fn largest_read(&self) -> usize {
        let pieces = (0..self.layers.len()).flat_map(|layer| self.pieces(layer));
        pieces.map(|piece| piece.bytes).max().unwrap_or(0)
    }

    /// For each number of layers, from one to all of them, those that should not be kept: small ones first, since
    /// buffers are as large as the largest, and among equals some that are far from each other.
    pub fn choices(&self) -> Vec<StreamedSet> {
        let mut order: Vec<usize> = (0..self.layers.len()).collect();
        order.sort_by_key(|layer| self.bytes(*layer));
        let classes: Vec<&[usize]> = order.chunk_by(|a, b| self.bytes(*a) == self.bytes(*b)).collect();
        (1..=order.len()).map(|count| self.streamed(choose(&classes, count))).collect()
    }

    /// What it saves and takes not to keep `layers`, ascending.
    pub fn streamed(&self, layers: Vec<usize>) -> StreamedSet {
        let bytes = layers.iter().map(|layer| self.bytes(*layer)).sum();
        let (forms, _) = self.slots(&layers);
        let one: usize = forms.iter().map(Form::bytes).sum();
        StreamedSet { bytes, buffers: (one * LAYER_BUFFERS.min(layers.len())) as u64, layers }
    }

    /// The matrices that a buffer for any of `layers` has, and for each of these the place of its matrices in it.
    pub(crate) fn slots(&self, layers: &[usize]) -> (Vec<Form>, Vec<Vec<usize>>) {
        let mut slot: Vec<Form> = Vec::new();
        let mut places = Vec::with_capacity(layers.len());
        for layer in layers {
            let mut taken: Vec<usize> = Vec::new();
            for form in &self.layers[*layer].forms {
                let free = (0..slot.len()).find(|place| slot[*place] == *form && !taken.contains(place));
                taken.push(free.unwrap_or_else(|| {
                    slot.push(*form);
                    slot.len() - 1
                }));
            }
            places.push(taken);
        }
        (slot, places)
    }

    pub(crate) fn names(&self, layer: usize) -> &[String] {
        self.layers.get(layer).map_or(&[], |layer| &layer.names)
    }

    pub(crate) fn form(&self, layer: usize, matrix: usize) -> Form {
        self.layers[layer].forms[matrix]
    }

    /// The reads that fetch a layer.
    pub(crate) fn pieces(&self, layer: usize) -> Vec<Piece> {
        let mut stretches = self.layers[layer].stretches.clone();
        pieces::pieces(&mut stretches, self.piece_bytes).into_vec()
    }

    /// Where the matrices of all layers lie, for a probe of the disk.
    pub fn targets(&self) -> Vec<Target> {
        let target = |(number, file): (usize, &Arc<dyn Storage>)| {
            let of_file = self.layers.iter().flat_map(|layer| &layer.stretches);
            let mut ranges = of_file.filter(|stretch| stretch.place.file as usize == number);
            let first = ranges.next()?;
            let whole = |stretch: &Stretch| stretch.place.start..stretch.place.start + stretch.bytes() as u64;
            let range = ranges.map(whole).fold(whole(first), |all, one| all.start.min(one.start)..all.end.max(one.end));
            Some(Target { file: Arc::clone(file), range })
        };
        self.files.iter().enumerate().filter_map(target).collect()
    }
}

/// `count` layers, the first classes whole, of the last one some that are far from each other; ascending.
fn choose(classes: &[&[usize]], count: usize) -> Vec<usize> {
    let mut chosen = Vec::with_capacity(count);
    for class in classes {
        let wanted = (count - chosen.len()).min(class.len());
        // The middles of equal parts.
        chosen.extend((0..wanted).map(|part| class[(2 * part + 1) * class.len() / (2 * wanted)]));
    }
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use cachalot_storage::Directory;

    fn layout(name: &str, layers: usize) -> LayerLayout {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name);
        let checkpoint = Checkpoint::open(Arc::new(Directory::new(path))).expect("a checkpoint");
        LayerLayout::new(Arc::new(checkpoint), layers).expect("a layout")
    }

    #[test]
    fn every_count_has_a_choice_and_buffers_that_hold_it() {
        for (name, layers) in [("v41-tiny", 14), ("v4-tiny", 8)] {
            let layout = layout(name, layers);
            let choices = layout.choices();
            assert_eq!(choices.len(), layers, "{name}");
            for (count, set) in (1..).zip(&choices) {
                assert!(set.layers.len() == count && set.layers.is_sorted_by(|a, b| a < b), "{name}: {set:?}");
                let largest = set.layers.iter().map(|layer| layout.bytes(*layer)).max().expect("a layer");
                assert!(set.buffers >= largest * LAYER_BUFFERS.min(count) as u64, "{name}: {set:?}");
                assert_eq!(set.bytes, set.layers.iter().map(|layer| layout.bytes(*layer)).sum::<u64>());
                let (forms, places) = layout.slots(&set.layers);
                for (layer, places) in set.layers.iter().zip(places) {
                    let distinct: std::collections::BTreeSet<_> = places.iter().collect();
                    assert_eq!(distinct.len(), layout.names(*layer).len());
                    for (matrix, place) in places.iter().enumerate() {
                        assert_eq!(forms[*place], layout.form(*layer, matrix));
                    }
                }
            }
            // Never more than the saving of one layer more than another choice of as many.
            assert!(choices.is_sorted_by_key(|set| set.bytes), "{name}");
        }
    }

    #[test]
    fn layers_that_go_are_far_from_each_other() {
        let classes: [&[usize]; 2] = [&[0, 1, 3, 4, 6, 7, 9, 10], &[2, 5, 8]];
        assert_eq!(choose(&classes, 1), [6]);
        assert_eq!(choose(&classes, 2), [3, 9]);
        assert_eq!(choose(&classes, 4), [1, 4, 7, 10]);
        assert_eq!(choose(&classes, 9), [0, 1, 3, 4, 5, 6, 7, 9, 10]);
        assert_eq!(choose(&classes, 11), (0..11).collect::<Vec<_>>());
    }
}
