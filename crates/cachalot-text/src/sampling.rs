//! Sampling defaults and limits of the vendor (protocol.md section 4).
//!
//! Owns the numbers. They are defaults only: a parameter that a user gives always wins, thinking or not.

use crate::Family;
use crate::conversation::Effort;

/// Context of the released checkpoints, in tokens.
pub const CONTEXT: usize = 1_048_576;

/// Most output that a request may ask for, in tokens.
pub const MAX_OUTPUT: usize = 393_216;

/// What a generation depends on besides the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    /// Whether the model reasons.
    pub thinking: bool,
    /// Whether tools are on offer.
    pub tools: bool,
    /// How thoroughly it reasons.
    pub effort: Effort,
}

/// Sampling parameters where none are given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingDefaults {
    /// Divides the logits.
    pub temperature: f32,
    /// Probability mass that is kept.
    pub top_p: f32,
    /// Number of tokens that are kept; 0 keeps all.
    pub top_k: usize,
    /// Least probability relative to the best token's.
    pub min_p: f32,
    /// Subtracted once from the logit of a token that occurred.
    pub presence_penalty: f32,
    /// Subtracted per occurrence.
    pub frequency_penalty: f32,
    /// Divides or multiplies the logit of a token that occurred; 1 does nothing.
    pub repetition_penalty: f32,
    /// Most tokens of output, reasoning included, before the context limits it.
    pub max_tokens: usize,
}

/// The defaults for one mode of one family.
pub fn defaults(family: Family, mode: Mode) -> SamplingDefaults {
    let top_p = match family {
        Family::V4 if mode.thinking && mode.tools => 0.95,
        // V4.1 lifts a smaller value to 0.95 while thinking; without a value it is 1.
        Family::V4 | Family::V41 => 1.0,
    };
    let max_tokens = match (mode.thinking, mode.effort) {
        (false, _) => 8 * 1024,
        (true, Effort::Max | Effort::Level(100..)) => 128 * 1024,
        (true, _) => 64 * 1024,
    };
    SamplingDefaults {
        temperature: 1.0,
        top_p,
        top_k: 0,
        min_p: 0.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        repetition_penalty: 1.0,
        max_tokens,
    }
}

/// A request that does not fit the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "This model's maximum context length is {context} tokens. However, you requested {} tokens ({prompt} in the messages, {completion} in the completion). Please reduce the length of the messages or completion.",
    prompt.saturating_add(*completion)
)]
pub struct ContextOverflow {
    /// Tokens that fit.
    pub context: usize,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens asked for; 0 when none were.
    pub completion: usize,
}

/// How many tokens to generate at most: what was asked for, or the default lowered to what the context has left, at
/// least 1.
///
/// # Errors
/// [`ContextOverflow`] when prompt and requested output exceed the context.
pub fn output_limit(
    requested: Option<usize>,
    default: usize,
    prompt: usize,
    context: usize,
) -> Result<usize, ContextOverflow> {
    let completion = requested.unwrap_or(0);
    match context.checked_sub(prompt) {
        Some(left) if completion <= left => Ok(requested.unwrap_or(default).min(left).max(1)),
        _ => Err(ContextOverflow { context, prompt, completion }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: Mode = Mode { thinking: false, tools: false, effort: Effort::High };

    #[test]
    fn defaults_are_those_of_the_table() {
        for family in [Family::V4, Family::V41] {
            let chat = defaults(family, CHAT);
            assert_eq!((chat.temperature, chat.top_p, chat.max_tokens), (1.0, 1.0, 8_192));
            let thinking = defaults(family, Mode { thinking: true, ..CHAT });
            assert_eq!((thinking.temperature, thinking.top_p, thinking.max_tokens), (1.0, 1.0, 65_536));
            let most = defaults(family, Mode { thinking: true, effort: Effort::Max, ..CHAT });
            assert_eq!(most.max_tokens, 131_072);
        }
        let tools = Mode { thinking: true, tools: true, ..CHAT };
        assert_eq!((defaults(Family::V4, tools).top_p, defaults(Family::V41, tools).top_p), (0.95, 1.0));
        assert_eq!(defaults(Family::V4, Mode { tools: true, ..CHAT }).top_p, 1.0);
    }

    #[test]
    fn output_is_limited_by_the_context() {
        assert_eq!(output_limit(None, 8192, 100, 1000), Ok(900));
        assert_eq!(output_limit(None, 8192, 1000, 1000), Ok(1));
        assert_eq!(output_limit(Some(900), 8192, 100, 1000), Ok(900));
        assert_eq!(output_limit(Some(5), 8192, 100, 1000), Ok(5));
        let error = output_limit(Some(901), 8192, 100, 1000).expect_err("one too many");
        assert_eq!(
            error.to_string(),
            "This model's maximum context length is 1000 tokens. However, you requested 1001 tokens (100 in the \
             messages, 901 in the completion). Please reduce the length of the messages or completion."
        );
        let error = output_limit(None, 8192, 1001, 1000).expect_err("the prompt alone");
        assert_eq!((error.prompt, error.completion), (1001, 0));
        assert!(output_limit(Some(usize::MAX), 1, 1, 1000).is_err());
    }
}
