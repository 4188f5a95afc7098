//! One output under a constraint.
//!
//! Owns where the output is: in free text, or inside a grammar. Says before each token which ones are allowed and takes
//! the one that was chosen. Free text costs nothing: only a block of calls must be opened in one way, and an output that
//! owes an answer does not end.

use std::panic::AssertUnwindSafe;
use std::sync::PoisonError;

use cachalot_text::Tokenizer;
use llguidance::TokenParser;
use llguidance::api::StopReason;
use llguidance::panic_utils::catch_unwind;

use super::vocabulary::{Ids, plain};
use super::{Compiled, Constraint, ConstraintError, Start};
use crate::sampling::Allowed;

/// An output under a constraint.
pub(crate) struct Constrained {
    constraint: Constraint,
    phase: Phase,
}

enum Phase {
    /// Free text; `reasoning` if it is not the answer yet, `opens` if a block's marker may follow.
    Free { reasoning: bool, opens: bool },
    /// An answer, in one of these grammars, which agree so far.
    Answer(Vec<Walk>),
    /// Inside a block of calls.
    Block(Box<Walk>),
}

struct Walk {
    parser: TokenParser,
    foreign: bool,
}

impl Constrained {
    /// At the start of an output.
    pub fn new(constraint: &Constraint) -> Self {
        let mut this = Self { constraint: constraint.clone(), phase: Phase::Free { reasoning: true, opens: false } };
        if !constraint.0.rules.reasoning {
            this.begin_answer();
        }
        this
    }

    fn begin_answer(&mut self) {
        let answer = &self.constraint.0.answer;
        self.phase = match answer.is_empty() {
            true => Phase::Free { reasoning: false, opens: false },
            false => Phase::Answer(answer.iter().map(Walk::new).collect()),
        };
    }

    fn begin_block(&mut self) {
        if let Some(block) = &self.constraint.0.block {
            self.phase = Phase::Block(Box::new(Walk::new(block)));
        }
    }

    /// What the next token may be.
    ///
    /// # Errors
    /// [`ConstraintError::Step`] if finding out would take too long.
    pub fn allowed(&mut self) -> Result<Allowed, ConstraintError> {
        let Compiled { ids, block, answer, .. } = &*self.constraint.0;
        let walks = match &mut self.phase {
            Phase::Free { reasoning, opens } => {
                let mut without = Vec::new();
                if !*opens && block.is_some() {
                    without.push(ids.marker);
                }
                // Who owes an answer does not end in the middle of the reasoning.
                if *reasoning && !answer.is_empty() {
                    without.extend_from_slice(&ids.stops);
                }
                return Ok(Allowed::AllBut(without));
            }
            Phase::Answer(walks) => walks.as_mut_slice(),
            Phase::Block(walk) => std::slice::from_mut(&mut **walk),
        };
        let mut only = vec![0u32; ids.added.len()];
        for walk in walks {
            walk.allow(ids, &mut only)?;
        }
        Ok(Allowed::Only(only))
    }

    /// Takes the token that was chosen among those allowed.
    ///
    /// # Errors
    /// [`ConstraintError::Step`] if following it would take too long.
    pub fn accept(&mut self, id: u32, tokenizer: &Tokenizer) -> Result<(), ConstraintError> {
        let ids = &self.constraint.0.ids;
        let is_marker = id == ids.marker;
        match &mut self.phase {
            Phase::Free { reasoning, opens } => {
                let (closes, opened) = (*reasoning && id == ids.think_close, *opens);
                *opens =
                    !tokenizer.is_added(id) && tokenizer.token_bytes(id).is_some_and(|bytes| bytes.ends_with(b"<"));
                if closes {
                    self.begin_answer();
                } else if is_marker && opened {
                    self.begin_block();
                }
            }
            Phase::Answer(walks) => {
                let mut kept = Vec::with_capacity(1);
                for mut walk in walks.drain(..) {
                    if walk.takes(id)? {
                        kept.push(walk);
                    }
                }
                let taken = !kept.is_empty();
                *walks = kept;
                if is_marker {
                    self.begin_block();
                }
                return taken.then_some(()).ok_or_else(not_taken);
            }
            Phase::Block(walk) => return walk.takes(id)?.then_some(()).ok_or_else(not_taken),
        }
        Ok(())
    }
}

fn not_taken() -> ConstraintError {
    ConstraintError::Step("internal error: a token that was allowed does not fit".to_owned())
}

impl Walk {
    fn new(start: &Start) -> Self {
        let parser = start.parser.lock().unwrap_or_else(PoisonError::into_inner);
        Self { parser: parser.deep_clone(), foreign: start.foreign }
    }

    /// Adds what may follow to `only`.
    fn allow(&mut self, ids: &Ids, only: &mut [u32]) -> Result<(), ConstraintError> {
        let mut add_eos = || only[ids.eos as usize / 32] |= 1 << (ids.eos % 32);
        if self.parser.stopped() {
            add_eos();
            return Ok(());
        }
        let mask = match careful(|| self.parser.compute_mask()) {
            Ok(mask) => mask,
            Err(_) if self.parser.stop_reason() == StopReason::NoExtensionBias => return Ok(()),
            Err(error) => return Err(error),
        };
        if mask.is_allowed(ids.eos) {
            add_eos();
        }
        for ((only, allowed), added) in only.iter_mut().zip(mask.as_slice()).zip(&ids.added) {
            *only |= if self.foreign { *allowed & !*added } else { *allowed };
        }
        Ok(())
    }

    /// Takes a token if it fits.
    fn takes(&mut self, id: u32) -> Result<bool, ConstraintError> {
        let Self { parser, .. } = self;
        if parser.stopped() || !careful(|| parser.validate_token(id))? {
            return Ok(false);
        }
        let taken_back = careful(|| {
            let taken_back = parser.consume_token(id)?;
            parser.check_stop()?;
            Ok(taken_back)
        })?;
        if taken_back > 0 {
            return Err(ConstraintError::Step("stop= would take back what was said; use suffix=".to_owned()));
        }
        Ok(true)
    }
}

/// Runs the library; a panic of it is an error, and the walk it happened in is not gone on with.
fn careful<T>(work: impl FnOnce() -> anyhow::Result<T>) -> Result<T, ConstraintError> {
    let done = catch_unwind(AssertUnwindSafe(work));
    done.map_err(|error| ConstraintError::Step(plain(&error.to_string())))
}
