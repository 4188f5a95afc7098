//! A model of either generation: what the engine holds.

use std::ops::Range;

use cachalot_checkpoint::{Architecture, Checkpoint, family};

use crate::error::StepError;
use crate::load::{LoadError, Parts};
use crate::shared::inputs::Arithmetic;
use crate::shared::trunk::Trunk;
use crate::state::Sequence;
use crate::step::{Segment, Workspace};
use crate::trace::Trace;
use crate::{deepseek_v4, deepseek_v41};

/// A loaded text model. Shared by all sequences; a step borrows it.
pub enum Model {
    /// V4: Flash, Pro and their builds.
    V4(Box<deepseek_v4::Model>),
    /// V4.1.
    V41(Box<deepseek_v41::Model>),
}

impl Model {
    /// Reads all weights that every token needs; `progress` hears of the bytes of each matrix as it arrives.
    ///
    /// # Errors
    /// If a tensor cannot be read or a part does not fit the config.
    pub fn load(checkpoint: &Checkpoint, parts: Parts, progress: &mut dyn FnMut(usize)) -> Result<Self, LoadError> {
        match checkpoint.architecture() {
            Architecture::DeepseekV4(config) => {
                Ok(Self::V4(Box::new(deepseek_v4::Model::load(checkpoint, config, parts, progress)?)))
            }
            Architecture::DeepseekV41(config) => {
                Ok(Self::V41(Box::new(deepseek_v41::Model::load(checkpoint, config, parts, progress)?)))
            }
            other => Err(LoadError::Architecture { model_type: other.model_type() }),
        }
    }

    fn trunk(&self) -> &Trunk {
        match self {
            Self::V4(model) => &model.trunk,
            Self::V41(model) => &model.trunk,
        }
    }

    /// The dimensions that both generations have.
    pub fn config(&self) -> &family::Trunk {
        &self.trunk().config
    }

    /// The treatment of linear layers' inputs.
    pub fn arithmetic(&self) -> Arithmetic {
        self.trunk().arithmetic
    }

    /// A new, empty sequence.
    pub fn sequence(&self) -> Sequence {
        match self {
            Self::V4(model) => model.sequence(),
            Self::V41(model) => model.sequence(),
        }
    }

    /// Advances every segment's sequence by its tokens; returns at how many positions logits are wanted, segment by
    /// segment: until the next step [`Model::logits`] computes them. The sequences must be this model's.
    ///
    /// How tokens are cut into steps and which sequences share one changes no bit of any result.
    ///
    /// # Errors
    /// If a token is outside the vocabulary, a sequence would outgrow the model's positions, or a weight cannot be
    /// read. Then no sequence has moved.
    pub fn step(
        &self,
        work: &mut Workspace,
        segments: &mut [Segment],
        trace: Option<&mut Trace>,
    ) -> Result<usize, StepError> {
        match self {
            Self::V4(model) => model.step(work, segments, trace),
            Self::V41(model) => model.step(work, segments, trace),
        }?;
        Ok(work.wanted.len())
    }

    /// Logits of these positions among those that the last step wanted: `[positions, vocabulary]`.
    ///
    /// # Panics
    /// If the step wanted fewer.
    pub fn logits<'w>(&self, work: &'w mut Workspace, positions: Range<usize>) -> &'w [f32] {
        self.trunk().logits(work, positions);
        &work.logits
    }

    /// [`Model::step`], and the logits of all positions that it wants: for a few, as those of a long prompt are large.
    ///
    /// # Errors
    /// As [`Model::step`].
    pub fn advance<'w>(
        &self,
        work: &'w mut Workspace,
        segments: &mut [Segment],
        trace: Option<&mut Trace>,
    ) -> Result<&'w [f32], StepError> {
        let wanted = self.step(work, segments, trace)?;
        Ok(self.logits(work, 0..wanted))
    }

    /// Has the table rows that `tokens`, the ones that will follow `sequence` (the rest of a prompt, or a draft), ask for
    /// read beforehand, each once, those of the first `from` tokens excepted: they have been expected before. Returns how
    /// many of the tokens have been expected now; the others have no room yet.
    pub fn expect(&self, work: &mut Workspace, sequence: &Sequence, tokens: &[u32], from: usize) -> usize {
        match self {
            Self::V4(model) => model.trunk.expect(work, tokens, from),
            Self::V41(model) => model.expect(work, sequence, tokens, from),
        }
    }

    /// Advances `sequence` by `tokens` in chunks of at most `chunk`, with decoder replay, the vendor's approximate
    /// prefill of V4.1; returns the last position's logits, `[vocabulary]`. `progress` hears of the tokens done and ends
    /// the step early by returning false.
    ///
    /// # Errors
    /// As [`Model::step`]; also if the model's layers do not allow it. Then the sequence has not moved.
    pub fn prefill_replay<'w>(
        &self,
        work: &'w mut Workspace,
        sequence: &mut Sequence,
        tokens: &[u32],
        chunk: usize,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<&'w [f32], StepError> {
        match self {
            Self::V4(_) => Err(StepError::ReplayUnknown),
            Self::V41(model) => model.prefill_replay(work, sequence, tokens, chunk, progress),
        }
    }
}
