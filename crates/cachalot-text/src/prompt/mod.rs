//! Prompt encoding: a conversation to token ids (protocol.md section 2).
//!
//! The vendor's library renders; this module prepares its input, adds what it lacks (numeric effort, task tokens, big
//! integers, the checkpoint encoder's rules, continuing from cached messages) by editing the rendered fragments, and
//! turns fragments into ids. A fragment is either one control token or plain text, and plain text is encoded without
//! the added vocabulary, so nothing that a user, a tool or a model wrote can become a control token (1.5).

mod edit;
mod error;
mod fragment;
mod replay;
mod vendor;

use crate::conversation::{Conversation, Image, Message, Task, ToolChoice};
use crate::parser::StartState;
use crate::spelling;
use crate::tokenizer::Tokenizer;
pub use error::PromptError;
pub use fragment::Fragment;
pub use replay::{SampledTurn, SampledTurns};

/// A prompt, ready for the engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The token ids.
    pub ids: Vec<u32>,
    /// The images, in the order of their tokens.
    pub images: Vec<PromptImage>,
    /// Where the parser of the model's output begins (2.9, 3.2).
    pub start: StartState,
}

/// An image of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptImage {
    /// Index of its token in [`Prompt::ids`].
    pub position: usize,
    /// The image.
    pub image: Image,
}

/// Encode a conversation for the family of `tokenizer`.
///
/// # Errors
/// [`PromptError`]: a conversation that cannot be written, or a control token that the tokenizer lacks.
pub fn encode(tokenizer: &Tokenizer, conversation: &Conversation) -> Result<Prompt, PromptError> {
    encode_replaying(tokenizer, conversation, &SampledTurns::new())
}

/// As [`encode`], with turns of the model written as they were sampled wherever they would stand behind the same header
/// (5.9): the prompt then begins with the tokens whose state is kept.
///
/// # Errors
/// As [`encode`].
pub fn encode_replaying(
    tokenizer: &Tokenizer,
    conversation: &Conversation,
    sampled: &SampledTurns,
) -> Result<Prompt, PromptError> {
    let (mut fragments, images) = render(tokenizer, conversation)?;
    replay::splice(conversation, sampled, &mut fragments);
    let mut prompt = from_fragments(tokenizer, &fragments)?;
    let positions = prompt.ids.iter().enumerate().filter(|(_, id)| Some(**id) == tokenizer.image_token_id());
    let positions: Vec<usize> = positions.map(|(position, _)| position).collect();
    if positions.len() != images.len() {
        return Err(PromptError::VendorTemplate("an image token for every image"));
    }
    prompt.images =
        positions.into_iter().zip(images).map(|(position, image)| PromptImage { position, image }).collect();
    prompt.start = start_state(conversation);
    Ok(prompt)
}

/// Render a conversation to fragments, with its images in prompt order: what [`encode`] encodes, to look at.
///
/// # Errors
/// As [`encode`].
pub fn render(tokenizer: &Tokenizer, conversation: &Conversation) -> Result<(Vec<Fragment>, Vec<Image>), PromptError> {
    check(tokenizer, conversation)?;
    let (mut fragments, mut images) = render_whole(tokenizer, conversation)?;
    if conversation.cached_messages > 0 {
        let cached_images;
        (fragments, cached_images) = without_cached(tokenizer, conversation, fragments)?;
        images.drain(..cached_images.min(images.len()));
    } else if !conversation.bos {
        fragments.remove(0);
    }
    Ok((fragments, images))
}

/// The prompt for filling a hole between two texts (2.8). Only without thinking.
///
/// # Errors
/// [`PromptError::MissingControl`] when the tokenizer has no such tokens; tokenizer errors.
pub fn fill_in_middle(tokenizer: &Tokenizer, before: &str, after: &str) -> Result<Prompt, PromptError> {
    from_fragments(
        tokenizer,
        &[
            Fragment::Control(spelling::BOS),
            Fragment::Control(spelling::FIM_BEGIN),
            Fragment::Plain(before.to_owned()),
            Fragment::Control(spelling::FIM_HOLE),
            Fragment::Plain(after.to_owned()),
            Fragment::Control(spelling::FIM_END),
        ],
    )
}

/// The prompt of a raw completion: `text` exactly as given, added tokens recognised, after begin of sentence unless
/// the text begins with it (5.4).
///
/// # Errors
/// Tokenizer errors.
pub fn completion(tokenizer: &Tokenizer, text: &str) -> Result<Prompt, PromptError> {
    let mut ids = tokenizer.encode_with_added(text)?;
    if ids.first() != Some(&tokenizer.markers().bos) {
        ids.insert(0, tokenizer.markers().bos);
    }
    Ok(Prompt { ids, images: Vec::new(), start: StartState::Raw })
}

fn from_fragments(tokenizer: &Tokenizer, fragments: &[Fragment]) -> Result<Prompt, PromptError> {
    Ok(Prompt { ids: fragment::encode(tokenizer, fragments)?, images: Vec::new(), start: StartState::Raw })
}

fn check(tokenizer: &Tokenizer, conversation: &Conversation) -> Result<(), PromptError> {
    let last = conversation.messages.len().saturating_sub(1);
    for (index, message) in conversation.messages.iter().enumerate() {
        match message {
            Message::Assistant { prefix: true, .. } if index != last => {
                return Err(PromptError::PrefixNotLast { index });
            }
            Message::Assistant { task: Some(task), prefix, .. } if *task != Task::Title || *prefix => {
                return Err(PromptError::TaskPlace { index, task: task.spelling() });
            }
            Message::User { task: Some(task), .. }
                if index == last && conversation.tool_choice == ToolChoice::Required =>
            {
                return Err(PromptError::TaskPlace { index, task: task.spelling() });
            }
            _ => {}
        }
    }
    if conversation.thinking && conversation.tool_choice == ToolChoice::Required && conversation.offers_tools() {
        return Err(PromptError::RequiredWhileThinking);
    }
    if conversation.thinking {
        edit::check_effort(tokenizer.family(), conversation.effort)?;
    }
    Ok(())
}

/// Render and edit, from begin of sentence to tail.
fn render_whole(
    tokenizer: &Tokenizer,
    conversation: &Conversation,
) -> Result<(Vec<Fragment>, Vec<Image>), PromptError> {
    let family = tokenizer.family();
    let (mut fragments, images) = vendor::render(family, conversation)?;
    edit::effort(family, conversation, &mut fragments)?;
    edit::own_turns(&mut fragments);
    edit::assistants(family, conversation, &mut fragments)?;
    edit::tail(conversation, &mut fragments)?;
    fragment::merge(&mut fragments);
    Ok((fragments, images))
}

/// What follows the cached messages, and how many images they hold.
fn without_cached(
    tokenizer: &Tokenizer,
    conversation: &Conversation,
    fragments: Vec<Fragment>,
) -> Result<(Vec<Fragment>, usize), PromptError> {
    let cached = conversation.cached_messages;
    let error = PromptError::CachedMessages { cached, messages: conversation.messages.len() };
    let ends_turn = |message: &Message| matches!(message, Message::Assistant { prefix: false, .. });
    if !conversation.messages.get(..cached).and_then(<[Message]>::last).is_some_and(ends_turn) {
        return Err(error);
    }
    let mut head = conversation.clone();
    head.messages.truncate(cached);
    // A required call opens a block after the tail, which is no part of the cached turns.
    head.tool_choice = if head.offers_tools() { ToolChoice::Auto } else { head.tool_choice };
    let (mut head, images) = render_whole(tokenizer, &head)?;
    let end = head.iter().rposition(|fragment| *fragment == Fragment::Control(spelling::EOS));
    head.truncate(end.map_or(0, |end| end + 1));
    if head.is_empty() || !fragments.starts_with(&head) {
        return Err(error);
    }
    Ok((fragments[head.len()..].to_vec(), images.len()))
}

/// Where the model's output begins (2.9 and the start row of 3.2).
fn start_state(conversation: &Conversation) -> StartState {
    if conversation.tool_choice == ToolChoice::Required && conversation.offers_tools() {
        return StartState::Calls;
    }
    match conversation.messages.last() {
        Some(Message::User { task: Some(_), .. } | Message::Assistant { task: Some(_), .. }) => {
            StartState::Answer { drop_newlines: true }
        }
        Some(Message::Assistant { prefix: true, content, reasoning, .. }) if conversation.thinking => {
            if content.is_empty() {
                let continues = reasoning.as_ref().is_some_and(|reasoning| !reasoning.is_empty());
                StartState::Reasoning { drop_newlines: !continues }
            } else {
                StartState::Answer { drop_newlines: false }
            }
        }
        _ if conversation.thinking => StartState::Reasoning { drop_newlines: true },
        _ => StartState::Answer { drop_newlines: true },
    }
}
