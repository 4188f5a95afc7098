//! Fragments of a prompt and their token ids (protocol.md 1.5).

use std::sync::Arc;

use super::PromptError;
use crate::spelling;
use crate::tokenizer::Tokenizer;

/// A piece of a rendered prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fragment {
    /// One control token, by its spelling.
    Control(&'static str),
    /// The image token, whatever this checkpoint spells it.
    Image,
    /// Text, encoded without the added vocabulary.
    Plain(String),
    /// Ids as the model sampled them.
    Sampled(Arc<[u32]>),
}

/// Join neighbouring plain fragments and drop empty ones: a cut inside plain text would change its tokens.
pub(super) fn merge(fragments: &mut Vec<Fragment>) {
    let mut merged: Vec<Fragment> = Vec::with_capacity(fragments.len());
    for fragment in fragments.drain(..) {
        match (merged.last_mut(), fragment) {
            (Some(Fragment::Plain(text)), Fragment::Plain(more)) => text.push_str(&more),
            (_, Fragment::Plain(text)) if text.is_empty() => {}
            (_, fragment) => merged.push(fragment),
        }
    }
    *fragments = merged;
}

/// The ids of merged fragments.
pub(super) fn encode(tokenizer: &Tokenizer, fragments: &[Fragment]) -> Result<Vec<u32>, PromptError> {
    let mut ids = Vec::new();
    // Grounding tokens are text to a tokenizer that has none (1.5); the text around them is then one region.
    let mut text = String::new();
    for fragment in fragments {
        let id = match fragment {
            Fragment::Plain(plain) => {
                text.push_str(plain);
                continue;
            }
            Fragment::Sampled(sampled) => {
                tokenizer.check_ids(sampled)?;
                tokenizer.encode_plain_into(&text, &mut ids)?;
                text.clear();
                ids.extend_from_slice(sampled);
                continue;
            }
            Fragment::Image => tokenizer.image_token_id().ok_or(PromptError::NoVision)?,
            Fragment::Control(spelling) => match tokenizer.added_id(spelling) {
                Some(id) => id,
                None if spelling::GROUNDING.contains(spelling) => {
                    text.push_str(spelling);
                    continue;
                }
                None => return Err(PromptError::MissingControl { spelling: (*spelling).to_owned() }),
            },
        };
        tokenizer.encode_plain_into(&text, &mut ids)?;
        text.clear();
        ids.push(id);
    }
    tokenizer.encode_plain_into(&text, &mut ids)?;
    Ok(ids)
}

/// Cut the text of a model's turn at grounding tokens, which are vocabulary there.
pub(super) fn with_grounding(text: &str) -> Vec<Fragment> {
    let mut fragments = Vec::new();
    let mut rest = text;
    while let Some((at, token)) =
        spelling::GROUNDING.iter().filter_map(|token| Some((rest.find(token)?, *token))).min_by_key(|found| found.0)
    {
        fragments.push(Fragment::Plain(rest[..at].to_owned()));
        fragments.push(Fragment::Control(token));
        rest = &rest[at + token.len()..];
    }
    fragments.push(Fragment::Plain(rest.to_owned()));
    merge(&mut fragments);
    fragments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grounding_tokens_are_cut_out_and_nothing_else() {
        let fragments = with_grounding("a<｜ref｜>b<｜/ref｜><｜User｜><｜box｜>");
        let plain = |text: &str| Fragment::Plain(text.to_owned());
        assert_eq!(
            fragments,
            [
                plain("a"),
                Fragment::Control("<｜ref｜>"),
                plain("b"),
                Fragment::Control("<｜/ref｜>"),
                plain("<｜User｜>"),
                Fragment::Control("<｜box｜>"),
            ]
        );
        assert!(with_grounding("").is_empty());
    }
}
