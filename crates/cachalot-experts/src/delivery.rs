//! The experts of one layer on their way to whoever computes with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Expert;

/// Asks whatever waits for a device to stop waiting. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl PartialEq for Interrupt {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Interrupt {}

impl Interrupt {
    /// Not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets or clears it.
    pub fn set(&self, on: bool) {
        self.0.store(on, Ordering::Relaxed);
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// An expert, and how many tokens of the step go to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The expert.
    pub expert: u32,
    /// Tokens.
    pub tokens: u32,
}

/// How sure it is that an expert will be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// It will be.
    Certain,
    /// Nearly every expert of the layer will be: a long chunk comes.
    Likely,
    /// It may be.
    Guess,
}

/// Where one expert is.
#[derive(Clone, Default)]
pub(crate) enum Place {
    /// Not asked for yet, or being read.
    #[default]
    Waiting,
    /// Here.
    Arrived(Arc<Expert>),
    /// Computed with, and given back.
    Done,
}

/// The experts of one layer and step, in ascending order; reused from layer to layer.
#[derive(Default)]
pub struct Delivery {
    pub(crate) layer: usize,
    pub(crate) wanted: Vec<Wanted>,
    pub(crate) places: Vec<Place>,
    /// All before it have been asked for.
    pub(crate) started: usize,
}

impl Delivery {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of experts.
    pub fn len(&self) -> usize {
        self.wanted.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// The expert at `index` of those ordered, if it has arrived and has not been given back.
    pub fn arrived(&self, index: usize) -> Option<&Arc<Expert>> {
        match self.places.get(index) {
            Some(Place::Arrived(expert)) => Some(expert),
            _ => None,
        }
    }

    /// Begins anew.
    pub fn reset(&mut self, layer: usize, wanted: &[Wanted]) {
        self.layer = layer;
        self.started = 0;
        self.wanted.clear();
        self.wanted.extend_from_slice(wanted);
        self.places.clear();
        self.places.resize(wanted.len(), Place::Waiting);
    }

    /// Hands over the expert at `index`.
    pub fn put(&mut self, index: usize, expert: Arc<Expert>) {
        self.places[index] = Place::Arrived(expert);
    }

    /// Takes the expert at `index` back; false if it had not arrived.
    pub fn take(&mut self, index: usize) -> bool {
        matches!(std::mem::replace(&mut self.places[index], Place::Done), Place::Arrived(_))
    }
}
