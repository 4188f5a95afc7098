//! Why a conversation cannot be written as a prompt.

use crate::Family;
use crate::tokenizer::TokenizerError;

/// A conversation that cannot be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PromptError {
    /// The tokenizer refused.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A control token that this checkpoint's tokenizer does not have.
    #[error("the conversation needs the token {spelling:?}, which this checkpoint's tokenizer does not have")]
    MissingControl {
        /// The token.
        spelling: String,
    },
    /// An image for a model without vision.
    #[error("the conversation holds an image, but config.json has no image_token_id: this checkpoint cannot see")]
    NoVision,
    /// A numeric effort outside 1 to 100.
    #[error("reasoning effort {level} is not within 1 to 100")]
    EffortLevel {
        /// What was asked for.
        level: u8,
    },
    /// A numeric effort for a family without.
    #[error("{family} has no numeric reasoning effort; use low, high or max")]
    EffortNumeric {
        /// The family.
        family: Family,
    },
    /// A continued message that is not the last.
    #[error("messages[{index}] has prefix set, which only the last message can have")]
    PrefixNotLast {
        /// Its position.
        index: usize,
    },
    /// A task where it cannot stand.
    #[error("messages[{index}] cannot have the task {task}")]
    TaskPlace {
        /// Its position.
        index: usize,
        /// The task's token.
        task: &'static str,
    },
    /// A forced call while thinking.
    #[error("a tool call can be required only with thinking off")]
    RequiredWhileThinking,
    /// Cached messages whose rendering is not the beginning of the conversation's.
    #[error(
        "{cached} of {messages} messages are said to be cached, but they do not end in a finished turn of the model, or later messages change how they are written"
    )]
    CachedMessages {
        /// Messages said to be cached.
        cached: usize,
        /// Messages in all.
        messages: usize,
    },
    /// The vendor's renderer wrote something this crate was not made for.
    #[error("internal error: the vendor's renderer did not write {0}")]
    VendorTemplate(&'static str),
}
