//! The layers of a model: most stay in memory, and some may have matrices that are read anew in every step.
//!
//! Owns the seam between a forward pass, which borrows one layer after the other, and a source of the matrices that are
//! not there: they move into their layer while it is borrowed, and back.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cachalot_experts::{LayerError, LayerSource, Matrices};
use cachalot_kernels::Matrix;

use crate::load::LoadError;

/// A layer whose matrices can go and come back.
pub trait Layer {
    /// Calls `each` for every matrix that need not stay, always in the same order, with its name behind the layer's prefix.
    fn matrices<'a>(&'a mut self, each: &mut dyn FnMut(&'static str, &'a mut Matrix));
}

/// All layers, in order.
pub struct Stack<L> {
    layers: Vec<Place<L>>,
    source: Option<Arc<dyn LayerSource>>,
}

enum Place<L> {
    Stays(L),
    Streamed {
        /// Without its matrices unless it is borrowed.
        layer: Mutex<L>,
        /// For each matrix as [`Layer::matrices`] visits them its number as the source hands them over.
        order: Vec<usize>,
    },
}

impl<L: Layer> Stack<L> {
    /// No layers yet; `source` has what will not stay, if anything.
    pub fn new(source: Option<Arc<dyn LayerSource>>) -> Self {
        Self { layers: Vec::new(), source }
    }

    /// The tensors of layer `layer` that are not to be read.
    pub fn streamed(&self, layer: usize) -> &[String] {
        self.source.as_ref().map_or(&[], |source| source.names(layer))
    }

    /// Adds the next layer, read but for its [`Stack::streamed`] tensors.
    ///
    /// # Errors
    /// If the layer has no such matrix.
    pub fn push(&mut self, mut layer: L) -> Result<(), LoadError> {
        let number = self.layers.len();
        let names = self.streamed(number);
        if names.is_empty() {
            self.layers.push(Place::Stays(layer));
            return Ok(());
        }
        let (prefix, mut visited) = (format!("layers.{number}."), Vec::new());
        layer.matrices(&mut |name, _| visited.push(format!("{prefix}{name}.weight")));
        if let Some(tensor) = names.iter().find(|name| !visited.contains(name)) {
            return Err(LoadError::Streamed { tensor: tensor.clone() });
        }
        let place = |tensor: &String| {
            let found = names.iter().position(|name| name == tensor);
            found.ok_or_else(|| LoadError::Streamed { tensor: tensor.clone() })
        };
        let order = visited.iter().map(place).collect::<Result<_, _>>()?;
        self.layers.push(Place::Streamed { layer: Mutex::new(layer), order });
        Ok(())
    }

    /// Number of layers.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Borrows layer `layer`, with all of its matrices; the step goes through no layer from `end` on.
    ///
    /// # Errors
    /// If they cannot be read, or the caller was interrupted.
    pub fn hold(&self, layer: usize, end: usize) -> Result<Held<'_, L>, LayerError> {
        match (&self.layers[layer], &self.source) {
            (Place::Stays(layer), _) => Ok(Held::Stays(layer)),
            (Place::Streamed { .. }, None) => Err(LayerError::Kept { layer }),
            (Place::Streamed { layer: place, order }, Some(source)) => {
                // Another step that computes with this layer has it first.
                let mut guard = place.lock().unwrap_or_else(PoisonError::into_inner);
                let mut matrices = source.take(layer, end)?;
                exchange(&mut *guard, &mut matrices, order);
                Ok(Held::Borrowed(Borrowed { guard, matrices, order, source: &**source, number: layer }))
            }
        }
    }
}

/// Exchanges the matrices of `layer` with `matrices`.
fn exchange<L: Layer>(layer: &mut L, matrices: &mut Matrices, order: &[usize]) {
    let mut order = order.iter();
    layer.matrices(&mut |_, matrix| {
        if let Some(other) = order.next().and_then(|place| matrices.get_mut(*place)) {
            std::mem::swap(matrix, other);
        }
    });
}

/// A borrowed layer.
#[allow(clippy::large_enum_variant, reason = "a box would be allocated for every layer of every step")]
pub enum Held<'a, L: Layer> {
    /// One that stays.
    Stays(&'a L),
    /// One whose matrices go back.
    Borrowed(Borrowed<'a, L>),
}

/// A layer with matrices that it gives back.
pub struct Borrowed<'a, L: Layer> {
    guard: MutexGuard<'a, L>,
    /// What stands in their place meanwhile.
    matrices: Matrices,
    order: &'a [usize],
    source: &'a dyn LayerSource,
    number: usize,
}

impl<L: Layer> Deref for Held<'_, L> {
    type Target = L;

    fn deref(&self) -> &L {
        match self {
            Self::Stays(layer) => layer,
            Self::Borrowed(borrowed) => &borrowed.guard,
        }
    }
}

impl<L: Layer> Drop for Borrowed<'_, L> {
    fn drop(&mut self) {
        exchange(&mut *self.guard, &mut self.matrices, self.order);
        self.source.give_back(self.number, std::mem::take(&mut self.matrices));
    }
}
