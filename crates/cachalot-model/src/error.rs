//! Why a step could not be taken.

use cachalot_experts::{ExpertError, LayerError, RowError};

/// A step that failed; no sequence has moved.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A token id that the model does not have.
    #[error("token {token} at index {index} is outside the vocabulary of {vocabulary} tokens")]
    UnknownToken {
        /// The id.
        token: u32,
        /// Its index among the tokens given.
        index: usize,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// More tokens than the model has positions.
    #[error(
        "{more} tokens do not fit behind the {have} that are there: the model ends at {limit}; shorten the prompt or start anew"
    )]
    TooLong {
        /// Tokens in the sequence.
        have: usize,
        /// Tokens to be added.
        more: usize,
        /// `max_position_embeddings`.
        limit: usize,
    },
    /// An image placeholder without the image.
    #[error("token {token} at index {index} stands for an image, but no image was given")]
    ImageWithoutEmbedding {
        /// The placeholder's id.
        token: u32,
        /// Its index among the tokens given.
        index: usize,
    },
    /// Decoder replay of a model that has no decoder half.
    #[error("decoder replay is V4.1's; this model has an exact prefill only")]
    ReplayUnknown,
    /// Logits were asked for that the sequence had been told nobody would.
    #[error(
        "the sequence was to reach position {owed} before any logits were wanted, and was asked at {position}: advance it by the rest of the prompt, or go back to a state kept before"
    )]
    Owed {
        /// Where the sequence would have been.
        position: usize,
        /// Where it was to be.
        owed: usize,
    },
    /// The caller ended it.
    #[error("cancelled")]
    Cancelled,
    /// An expert could not be provided.
    #[error(transparent)]
    Expert(ExpertError),
    /// A layer that is not kept could not be read.
    #[error(transparent)]
    Layer(LayerError),
    /// A table row could not be read.
    #[error(transparent)]
    Row(RowError),
}

impl From<ExpertError> for StepError {
    fn from(error: ExpertError) -> Self {
        match error {
            ExpertError::Interrupted => Self::Cancelled,
            error => Self::Expert(error),
        }
    }
}

impl From<LayerError> for StepError {
    fn from(error: LayerError) -> Self {
        match error {
            LayerError::Interrupted => Self::Cancelled,
            error => Self::Layer(error),
        }
    }
}

impl From<RowError> for StepError {
    fn from(error: RowError) -> Self {
        match error {
            RowError::Interrupted => Self::Cancelled,
            error => Self::Row(error),
        }
    }
}
