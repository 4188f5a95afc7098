//! Turns of the model, written again token for token (protocol.md 5.9).
//!
//! A client sends a tool call back as JSON, perhaps spelled otherwise than the model wrote it, and a model may write a call
//! otherwise than a template would. Owns the exchange of a rendered turn for the ids that were sampled. Refuses, by leaving
//! the rendered turn alone, wherever the header differs: then the ids would mean something else.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Fragment;
use crate::conversation::{Conversation, Message, Rules};
use crate::spelling;
use crate::tokenizer::Tokenizer;

/// Sampled turns by the index of their message.
pub type SampledTurns = BTreeMap<usize, SampledTurn>;

/// A turn of the model as it was sampled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampledTurn {
    thinking: bool,
    ids: Arc<[u32]>,
}

impl SampledTurn {
    /// The turn that `generated` ends, behind a `prompt` that [`encode`](super::encode) wrote; end of sentence is no part
    /// of either. `None` if the prompt does not end in a turn of the model.
    pub fn new(tokenizer: &Tokenizer, prompt: &[u32], generated: &[u32]) -> Option<Self> {
        let markers = tokenizer.markers();
        let header = prompt.iter().rposition(|id| *id == markers.assistant)?;
        let opening = *prompt.get(header + 1)?;
        if opening != markers.think_open && opening != markers.think_close {
            return None;
        }
        // A required call is opened by the prompt: what was written there belongs to the turn.
        let ids = prompt[header + 2..].iter().chain(generated).copied().collect();
        Some(Self { thinking: opening == markers.think_open, ids })
    }

    /// How many ids it has.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }
}

/// Exchange the turns of `fragments` for `sampled` ones.
pub(super) fn splice(conversation: &Conversation, sampled: &SampledTurns, fragments: &mut Vec<Fragment>) {
    // Only the vendor's rules give every turn a header of its own, and only a whole prompt has them all.
    let tasks = |message: &Message| {
        matches!(message, Message::User { task: Some(_), .. } | Message::Assistant { task: Some(_), .. })
    };
    if sampled.is_empty()
        || conversation.rules != Rules::Api
        || conversation.cached_messages > 0
        || conversation.messages.iter().any(tasks)
    {
        return;
    }
    let control = |spelling| Fragment::Control(spelling);
    let is_turn = |(_, message): &(usize, &Message)| matches!(message, Message::Assistant { .. });
    let turns: Vec<usize> = conversation.messages.iter().enumerate().filter(is_turn).map(|(index, _)| index).collect();
    let assistant = control(spelling::ASSISTANT);
    let headers: Vec<usize> = (0..fragments.len()).filter(|&index| fragments[index] == assistant).collect();
    // From the back, so that earlier positions stay valid.
    for (index, &header) in turns.iter().zip(&headers).rev() {
        let Some(turn) = sampled.get(index) else { continue };
        let opening = control(if turn.thinking { spelling::THINK_OPEN } else { spelling::THINK_CLOSE });
        let end = fragments[header..].iter().position(|fragment| *fragment == control(spelling::EOS));
        if let Some(end) = end.map(|end| header + end).filter(|end| *end > header + 1)
            && fragments[header + 1] == opening
        {
            fragments.splice(header + 2..end, [Fragment::Sampled(Arc::clone(&turn.ids))]);
        }
    }
}
