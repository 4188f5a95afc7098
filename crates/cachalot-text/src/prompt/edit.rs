//! What the vendor's renderer lacks, as edits of rendered fragments (protocol.md 2.3, 2.5, 2.8).
//!
//! The renderer writes exactly one assistant token per assistant message, in order, and one more in the tail: that is how
//! a message is found again.

use super::vendor::{self, marks};
use super::{Fragment, PromptError, fragment};
use crate::conversation::{Conversation, Effort, Message, Rules, Task};
use crate::{Family, spelling};

const ASSISTANT: Fragment = Fragment::Control(spelling::ASSISTANT);
const USER: Fragment = Fragment::Control(spelling::USER);
const EOS: Fragment = Fragment::Control(spelling::EOS);
const THINK_OPEN: Fragment = Fragment::Control(spelling::THINK_OPEN);
const THINK_CLOSE: Fragment = Fragment::Control(spelling::THINK_CLOSE);

/// Refuse an effort that the family cannot express (2.3).
pub(super) fn check_effort(family: Family, effort: Effort) -> Result<(), PromptError> {
    match (family, effort) {
        (Family::V41, Effort::Level(level)) if !(1..=100).contains(&level) => Err(PromptError::EffortLevel { level }),
        (Family::V4, Effort::Level(_)) => Err(PromptError::EffortNumeric { family }),
        _ => Ok(()),
    }
}

/// Write V4.1's effort number: the renderer knows three of the hundred.
pub(super) fn effort(
    family: Family,
    conversation: &Conversation,
    fragments: &mut [Fragment],
) -> Result<(), PromptError> {
    if family == Family::V4 || !conversation.thinking || conversation.messages.is_empty() {
        return Ok(());
    }
    let number = match conversation.effort {
        Effort::Low => 50,
        Effort::High | Effort::Xhigh => 75,
        Effort::Max => 100,
        Effort::Level(level) => level,
    };
    // Begin of sentence, the system token, then the text.
    let missing = PromptError::VendorTemplate("the reasoning effort");
    let Some(Fragment::Plain(text)) = fragments.get_mut(2) else { return Err(missing) };
    let rest = text.strip_prefix("Reasoning Effort: ").ok_or(missing)?;
    let rest = rest.trim_start_matches(|character: char| character.is_ascii_digit());
    *text = format!("Reasoning Effort: {number}{rest}");
    Ok(())
}

/// Undo the merging of messages that stand alone: the renderer saw them as user messages.
pub(super) fn own_turns(fragments: &mut Vec<Fragment>) {
    let mut edited: Vec<Fragment> = Vec::with_capacity(fragments.len());
    let mut after_turn = false;
    for fragment in fragments.drain(..) {
        let was_after_turn = std::mem::replace(&mut after_turn, false);
        match fragment {
            Fragment::Control(marks::TURN) => match edited.last_mut() {
                // The header, or the blank line that stood for it.
                Some(last) if *last == USER => drop(edited.pop()),
                Some(Fragment::Plain(text)) if text.ends_with("\n\n") => text.truncate(text.len() - 2),
                _ => {}
            },
            Fragment::Control(marks::TURN_END) => after_turn = true,
            Fragment::Plain(text) if was_after_turn && text.starts_with("\n\n") => {
                edited.push(USER);
                // Nothing between two such turns: the next one must find the header.
                edited.extend((text.len() > 2).then(|| Fragment::Plain(text[2..].to_owned())));
            }
            other => edited.push(other),
        }
    }
    *fragments = edited;
}

/// What one assistant message needs.
struct Edit<'c> {
    /// Neither header nor think part: the message follows a task, or nothing at all.
    headless: bool,
    /// The token of the `action` task, which stands after the header.
    action_before: bool,
    /// Reasoning to show although the renderer left it out.
    reasoning: Option<&'c str>,
    /// Whether the title token follows.
    title: bool,
    finished: bool,
}

/// Edit the assistant messages: tasks (2.8) and the checkpoint encoder's reasoning (2.5).
pub(super) fn assistants(
    family: Family,
    conversation: &Conversation,
    fragments: &mut Vec<Fragment>,
) -> Result<(), PromptError> {
    let edits = edits(family, conversation);
    let headers: Vec<usize> =
        fragments.iter().enumerate().filter(|(_, fragment)| **fragment == ASSISTANT).map(|(index, _)| index).collect();
    if headers.len() < edits.len() {
        return Err(PromptError::VendorTemplate("a header for every turn of the model"));
    }
    // From the back, so that earlier positions stay valid.
    for (edit, &header) in edits.iter().zip(&headers).rev() {
        let after = |token: Fragment| {
            let found = fragments[header..].iter().position(|fragment| *fragment == token);
            found.map(|offset| header + offset)
        };
        if edit.title && edit.finished {
            let end = after(EOS).ok_or(PromptError::VendorTemplate("the end of a turn"))?;
            fragments.insert(end + 1, Fragment::Control(Task::Title.spelling()));
        }
        if let Some(reasoning) = edit.reasoning
            && fragments.get(header + 1) == Some(&THINK_CLOSE)
        {
            let mut part = vec![THINK_OPEN];
            part.extend(fragment::with_grounding(reasoning));
            fragments.splice(header + 1..header + 1, part);
        }
        if edit.headless || edit.action_before {
            let close = fragments[header..].iter().position(|fragment| *fragment == THINK_CLOSE);
            let close = header + close.ok_or(PromptError::VendorTemplate("a think part"))?;
            let part = if edit.headless {
                Vec::new()
            } else {
                // While thinking the model chose after `<think>`, otherwise after `</think>`.
                let opening = if conversation.thinking { THINK_OPEN } else { THINK_CLOSE };
                vec![ASSISTANT, opening, Fragment::Control(Task::Action.spelling())]
            };
            fragments.splice(header..=close, part);
        }
    }
    Ok(())
}

fn edits<'c>(family: Family, conversation: &'c Conversation) -> Vec<Edit<'c>> {
    let messages = &conversation.messages;
    let first_shown = first_with_reasoning(family, conversation);
    let mut edits = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        let Message::Assistant { reasoning, prefix, task, .. } = message else { continue };
        let earlier = &messages[..index];
        let previous_task = match earlier.last() {
            Some(Message::User { task, .. } | Message::Assistant { task, .. }) => *task,
            _ => None,
        };
        // The checkpoint's encoder writes the header as part of the message before it, if that is not the model's.
        let without_header = conversation.rules != Rules::Api
            && (matches!(earlier.last(), Some(Message::Assistant { .. }))
                || (0..index).all(|earlier| vendor::is_dropped(conversation, earlier)));
        edits.push(Edit {
            headless: without_header || previous_task.is_some_and(|task| task != Task::Action),
            action_before: previous_task == Some(Task::Action),
            reasoning: (conversation.thinking && index >= first_shown).then(|| reasoning.as_deref().unwrap_or("")),
            title: *task == Some(Task::Title),
            finished: !prefix,
        });
    }
    edits
}

/// The first message whose reasoning the checkpoint's encoder shows although no tool is on offer.
fn first_with_reasoning(family: Family, conversation: &Conversation) -> usize {
    match conversation.rules {
        Rules::Api => usize::MAX,
        Rules::Checkpoint { drop_thinking: false } => 0,
        Rules::Checkpoint { drop_thinking: true } => {
            // V4 counts a turn of tool results as the user's (2.5), V4.1 a system message that comes last.
            let messages = &conversation.messages;
            let is_user = |index: &usize| match messages[*index] {
                Message::User { .. } | Message::Developer { .. } => true,
                Message::Tool { .. } => family == Family::V4,
                Message::System { .. } => family == Family::V41 && index + 1 == messages.len(),
                _ => false,
            };
            let last = (0..messages.len()).rev().find(is_user);
            last.map_or(0, |last| last + 1)
        }
    }
}

/// The tail after a task: `action` follows it, every other task replaces it (2.8).
pub(super) fn tail(conversation: &Conversation, fragments: &mut Vec<Fragment>) -> Result<(), PromptError> {
    let task = match conversation.messages.last() {
        Some(Message::User { task, .. } | Message::Assistant { task, .. }) => *task,
        _ => None,
    };
    let unanswered = conversation.rules == Rules::Api
        || !matches!(conversation.messages.last(), Some(Message::Assistant { prefix: false, .. }));
    match task {
        None if unanswered => {}
        Some(Task::Action) => fragments.push(Fragment::Control(Task::Action.spelling())),
        // A task that is not `action`; or, in the checkpoint's encoder, nothing to answer.
        _ => {
            let header = fragments.iter().rposition(|fragment| *fragment == ASSISTANT);
            fragments.truncate(header.ok_or(PromptError::VendorTemplate("a tail"))?);
        }
    }
    Ok(())
}
