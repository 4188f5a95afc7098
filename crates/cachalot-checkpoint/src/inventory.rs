//! What a checkpoint holds against what its config says it must hold.
//!
//! Owns the comparison: missing, unknown, of another type or shape. Every problem names the tensor and its shard.

use crate::problems::Problems;
use crate::safetensors::HeaderError;
use crate::{Dtype, Shape};
use cachalot_storage::StorageError;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;

/// What a tensor is for; the groups of spec section 1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// The token embedding.
    Embedding,
    /// The output matrix.
    Head,
    /// Block norms and the final norm.
    Norms,
    /// Attention projections, their norms, sinks.
    Attention,
    /// Compressors and indexers.
    Indexers,
    /// The mixers of the residual streams.
    Mixers,
    /// Routers.
    Routers,
    /// Tables from token ids to experts.
    HashTables,
    /// Shared experts.
    SharedExperts,
    /// Routed experts.
    RoutedExperts,
    /// Engram tables.
    EngramTables,
    /// Engram projections and gates.
    EngramProjections,
    /// The draft module without its routed experts.
    Draft,
    /// The draft module's routed experts.
    DraftExperts,
    /// Vision tower, aligner, span vectors.
    Vision,
    /// Known by name, but the config does not declare it.
    SetAside,
}

impl Group {
    /// What people call it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Embedding => "token embedding",
            Self::Head => "output head",
            Self::Norms => "norms",
            Self::Attention => "attention",
            Self::Indexers => "indexers and compressors",
            Self::Mixers => "stream mixers",
            Self::Routers => "routers",
            Self::HashTables => "hash routing tables",
            Self::SharedExperts => "shared experts",
            Self::RoutedExperts => "routed experts",
            Self::EngramTables => "Engram tables",
            Self::EngramProjections => "Engram projections",
            Self::Draft => "draft module",
            Self::DraftExperts => "draft experts",
            Self::Vision => "vision",
            Self::SetAside => "set aside",
        }
    }
}

/// A tensor that must be there.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type in the release.
    pub dtype: Dtype,
    /// Another type that it may be stored as.
    pub also: Option<Dtype>,
    /// Its shape.
    pub shape: Shape,
    /// What it is for.
    pub group: Group,
}

impl Expected<'_> {
    /// Whether the tensor may be stored as `dtype`.
    pub fn accepts(&self, dtype: Dtype) -> bool {
        dtype == self.dtype || Some(dtype) == self.also
    }
}

/// Receives expected tensors one by one, and says whether to go on.
pub type Visit<'a> = dyn FnMut(Expected<'_>) -> ControlFlow<()> + 'a;

/// One thing that is wrong with a checkpoint's files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A shard cannot be opened or read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A shard of which only the header was written.
    #[error(
        "{shard} holds its header only, over a hole that reads as zeros: inspect and plan can do with that, nothing can run it"
    )]
    Hollow {
        /// The shard.
        shard: String,
    },
    /// A shard's header is refused.
    #[error("{shard}: {error}")]
    Header {
        /// The shard.
        shard: String,
        /// Why.
        error: HeaderError,
    },
    /// A shard ends before its data does.
    #[error("{shard} is truncated: its header describes {expected} bytes, the file has {found}")]
    Truncated {
        /// The shard.
        shard: String,
        /// Length of the whole file, by its header.
        expected: u64,
        /// Length of the file.
        found: u64,
    },
    /// A shard goes on after its data.
    #[error("{shard} has {bytes} bytes behind its last tensor")]
    Trailing {
        /// The shard.
        shard: String,
        /// How many.
        bytes: u64,
    },
    /// The index puts the tensor into a shard that does not have it.
    #[error("{tensor} is missing from {shard}, where the index puts it")]
    NotInShard {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// A shard holds a tensor that the index puts elsewhere.
    #[error("{tensor} is in {shard}, but the index puts it into {index}")]
    OtherShard {
        /// The tensor.
        tensor: String,
        /// Where it is.
        shard: String,
        /// Where it should be.
        index: String,
    },
    /// A shard holds a tensor that the index does not know.
    #[error("{tensor} is in {shard}, but not in the index")]
    NotInIndex {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// A tensor of all experts of a layer that cannot be taken apart.
    #[error(
        "{tensor} in {shard} has shape {found}: it must be [{experts}, rows, columns], with the rows of each expert's \
         matrices, or whole blocks of scales"
    )]
    Stack {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
        /// Its shape.
        found: Shape,
        /// Experts of a layer.
        experts: usize,
    },
    /// Two tensors of the file have the same meaning.
    #[error("{tensor} is there twice, under names of two dialects, in {} and {}", shards[0], shards[1])]
    Twice {
        /// The tensor, by its released name.
        tensor: String,
        /// Where they are.
        shards: [String; 2],
    },
    /// The config asks for a tensor that the checkpoint does not hold.
    #[error("{tensor} is missing ({dtype} {shape})")]
    Missing {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Shape,
    },
    /// The checkpoint holds a tensor that its architecture does not have.
    #[error("{tensor} in {shard} is unknown: a {architecture} of this config has no such tensor")]
    Unknown {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
        /// `model_type`.
        architecture: &'static str,
    },
    /// A tensor of another type.
    #[error("{tensor} in {shard} is {found}, it must be {expected}")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
        /// Its type.
        found: Dtype,
        /// The type it must have.
        expected: Dtype,
    },
    /// A tensor of another shape.
    #[error("{tensor} in {shard} has shape {found}, the config requires {expected}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
        /// Its shape.
        found: Shape,
        /// The shape it must have.
        expected: Shape,
    },
}

/// A tensor that the checkpoint holds, as the comparison needs it; type and shape are unknown while its shard's
/// header has not arrived.
pub(crate) struct Held<'a> {
    pub(crate) name: &'a str,
    pub(crate) stored: Option<(Dtype, Shape)>,
    pub(crate) shard: &'a str,
}

/// Compares the `held` tensors, ascending by name, with those that `visit_expected` visits. `set_aside` are prefixes
/// of tensors that may be there without being expected.
pub(crate) fn compare(
    held: &[Held<'_>],
    architecture: &'static str,
    set_aside: &[&str],
    visit_expected: impl FnOnce(&mut Visit<'_>) -> ControlFlow<()>,
    problems: &mut Problems<Problem>,
) {
    let mut expected_too = vec![false; held.len()];
    // Missing tensors are only counted up to here: an absurd config may ask for millions.
    let mut patience = 100_000;
    let _ = visit_expected(&mut |expected| {
        let tensor = || expected.name.to_owned();
        let Ok(place) = held.binary_search_by(|tensor| tensor.name.cmp(expected.name)) else {
            problems.push(Problem::Missing { tensor: tensor(), dtype: expected.dtype, shape: expected.shape });
            patience -= 1;
            return if patience == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        };
        expected_too[place] = true;
        let Held { stored, shard, .. } = held[place];
        if let Some((dtype, shape)) = stored {
            let shard = || shard.to_owned();
            if !expected.accepts(dtype) {
                let (tensor, shard) = (tensor(), shard());
                problems.push(Problem::Dtype { tensor, shard, found: dtype, expected: expected.dtype });
            } else if shape != expected.shape {
                let (tensor, shard) = (tensor(), shard());
                problems.push(Problem::Shape { tensor, shard, found: shape, expected: expected.shape });
            }
        }
        ControlFlow::Continue(())
    });
    if patience == 0 {
        return;
    }
    for (Held { name, shard, .. }, _) in held.iter().zip(expected_too).filter(|(_, expected)| !expected) {
        if !set_aside.iter().any(|prefix| name.starts_with(prefix)) {
            problems.push(Problem::Unknown { tensor: (*name).to_owned(), shard: (*shard).to_owned(), architecture });
        }
    }
}
