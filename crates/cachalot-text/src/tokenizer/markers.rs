//! The ids of the protocol's markers, found by spelling (protocol.md 1.3).

use std::collections::HashMap;

use super::TokenizerError;
use crate::{Family, spelling};

/// Ids of the control tokens that every prompt needs. Other control tokens (tasks, reminders, grounding) are looked up
/// by spelling where a conversation uses them: a small checkpoint need not have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Markers {
    /// Begin of sentence: first token of a prompt.
    pub bos: u32,
    /// End of sentence: ends a turn of the model.
    pub eos: u32,
    /// Opens a user turn.
    pub user: u32,
    /// Opens a turn of the model.
    pub assistant: u32,
    /// Opens a system text; V4.1 only.
    pub system: Option<u32>,
    /// `<think>`
    pub think_open: u32,
    /// `</think>`
    pub think_close: u32,
    /// The marker inside every tag of a tool call.
    pub dsml: u32,
}

impl Markers {
    pub(super) fn find(added: &HashMap<String, u32>, family: Family) -> Result<Self, TokenizerError> {
        let id = |spelling: &'static str| {
            added.get(spelling).copied().ok_or(TokenizerError::MissingMarker { spelling, family })
        };
        Ok(Self {
            bos: id(spelling::BOS)?,
            eos: id(spelling::EOS)?,
            user: id(spelling::USER)?,
            assistant: id(spelling::ASSISTANT)?,
            system: match family {
                Family::V4 => None,
                Family::V41 => Some(id(spelling::SYSTEM)?),
            },
            think_open: id(spelling::THINK_OPEN)?,
            think_close: id(spelling::THINK_CLOSE)?,
            dsml: id(spelling::DSML)?,
        })
    }
}
