//! Where a model's bytes will be, decided before any of them is allocated.
//!
//! Owns the division of a budget: what must be there, the state of the context, buffers, head-room, and routed experts
//! with what is left. Where even what must be there does not fit, as few layers as need be are read in every step. Refuses
//! a budget in which the model cannot run so either, with the numbers and what would fit.

use std::cmp::Ordering;
use std::fmt;

use cachalot_checkpoint::Architecture;
use cachalot_experts::StreamedSet;
use serde::Serialize;

use super::available::Available;
use super::forecast::touched;
use super::units::{gigabytes, tokens as token_count};
use crate::generation::LOGITS_AT_ONCE;

/// What is left to the rest of the machine where no budget is given: a tenth, at least a gigabyte.
const LEFT_PART: u64 = 10;
const LEFT_LEAST: u64 = 1 << 30;
/// Head-room inside the budget: allocators, page tables, stacks. One part in so many, at least [`HEADROOM_LEAST`].
const HEADROOM_PART: u64 = 25;
const HEADROOM_LEAST: u64 = 48 << 20;
/// The program, its tokenizer and what libraries keep: measured with the released vocabulary, 129,280 tokens.
const PROGRAM_BYTES: u64 = 60 << 20;
const TOKENIZER_BYTES_PER_TOKEN: u64 = 1200;
/// Tokens per prefill step: each expert is read once per step, so more are better, as far as memory allows.
const CHUNKS: [usize; 5] = [128, 256, 512, 1024, 2048];
/// Tokens per prefill step that are worth reading a few more layers in every step; fewer only where nothing else fits.
const GOOD_CHUNK: usize = 512;
/// Routed experts kept where neither the system nor the user says how much memory there is.
const EXPERTS_UNTOLD: u64 = 8 << 30;
/// The line of sequences' states.
const STATE: &str = "state of the context";
/// Shortest context that is chosen where none is asked for.
const SHORTEST_CONTEXT: usize = 4096;
/// A context with which larger steps are worth more than still more context, where none is asked for.
const GOOD_CONTEXT: usize = 128 << 10;

/// Sizes of a model that memory is planned for.
#[derive(Clone, Debug)]
pub struct Sizes<'a> {
    /// What kind of model it is: dimensions, and the size of a sequence's state.
    pub architecture: &'a Architecture,
    /// Weights that every token needs.
    pub resident: u64,
    /// All routed experts.
    pub experts: u64,
    /// Memory that one of them takes.
    pub expert: u64,
    /// Experts that must have room at once.
    pub fewest_experts: usize,
    /// Buffers of reads in flight, and rows of tables that are kept.
    pub reading: u64,
    /// Sequences whose states are kept besides the current one; they share most of their pages.
    pub kept_states: u64,
    /// Layers that need not be kept, for each number of them.
    pub streamed: Vec<StreamedSet>,
}

/// What a user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryRequest {
    /// Bytes that the process may take; what the machine has free, less a part for others, if absent.
    pub memory: Option<u64>,
    /// Tokens of a sequence; what the model goes up to, or what fits, if absent.
    pub context: Option<usize>,
    /// Bytes of routed experts at most; what is left if absent.
    pub experts: Option<u64>,
}

/// One use of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What for.
    pub what: &'static str,
    /// Bytes.
    pub bytes: u64,
}

/// Where the bytes will be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Every use, in bytes.
    pub lines: Vec<Line>,
    /// Bytes of all of them: the process stays below.
    pub total: u64,
    /// What it was allowed.
    pub budget: u64,
    /// What the machine has free, where it says.
    pub available: Option<Available>,
    /// Tokens of a sequence.
    pub context: usize,
    /// Tokens per prefill step.
    pub chunk: usize,
    /// Bytes of routed experts that are kept.
    pub experts: u64,
    /// Whether that is all of them.
    pub experts_fit: bool,
    /// Layers.
    pub layers: usize,
    /// Of these, those whose matrices are read in every step.
    pub streamed_layers: Vec<usize>,
    /// Bytes that a step reads for that.
    pub streamed_bytes: u64,
}

/// Why a model cannot be run in the memory there is.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// More was asked for than the machine has.
    #[error(
        "{} of memory were asked for, but {} leaves {}: ask for less (the model needs {} at a context of {}), or close other programs",
        gigabytes(*asked), available.by, gigabytes(available.bytes), gigabytes(*needed), token_count(*context)
    )]
    NotThere {
        /// What was asked for, in bytes.
        asked: u64,
        /// Bytes needed, with as many layers read in every step as saves memory.
        needed: u64,
        /// Tokens of a sequence for that.
        context: usize,
        /// What there is.
        available: Available,
    },
    /// A longer context was asked for than the model was made for.
    #[error("a context of {asked} tokens was asked for, but the model goes up to {limit}: --context {limit} or less")]
    TooLong {
        /// Tokens asked for.
        asked: usize,
        /// Tokens that the model goes up to.
        limit: usize,
    },
    /// The least that the model needs is more than the budget.
    #[error(
        "the model needs {} at a context of {}, even if its layers are read in every step, and {} are allowed: {}--memory {}M would fit",
        gigabytes(*needed), token_count(*context), gigabytes(*budget),
        fits.map_or_else(String::new, |fits| format!("--context {fits}, or ")),
        needed.div_ceil(1_000_000)
    )]
    TooSmall {
        /// Bytes needed, with as many layers read in every step as saves memory.
        needed: u64,
        /// Bytes allowed.
        budget: u64,
        /// Tokens asked for.
        context: usize,
        /// Longest context that would fit, if any does.
        fits: Option<usize>,
    },
}

impl MemoryPlan {
    /// Bytes for the states of sequences: the line of that name.
    pub fn state_bytes(&self) -> u64 {
        self.lines.iter().filter(|line| line.what == STATE).map(|line| line.bytes).sum()
    }

    /// Divides the memory there is.
    ///
    /// # Errors
    /// If more is asked for than there is or the model goes up to, or the model cannot run in it.
    pub fn new(sizes: &Sizes, request: &MemoryRequest, available: Option<Available>) -> Result<Self, PlanError> {
        let limit = sizes.architecture.trunk().max_position_embeddings;
        if let Some(asked) = request.context.filter(|asked| *asked > limit) {
            return Err(PlanError::TooLong { asked, limit });
        }
        let shortest = request.context.unwrap_or(SHORTEST_CONTEXT.min(limit));
        let least = |context| Choice::new(sizes.smallest(), context, CHUNKS[0]);
        let needed = || sizes.needed(&least(shortest), u64::MAX);
        let free = available.as_ref().map_or(u64::MAX, |available| available.bytes);
        let budget = match request.memory {
            Some(asked) if asked > free => {
                let available = available.unwrap_or(Available { bytes: free, by: "the system".to_owned() });
                return Err(PlanError::NotThere { asked, needed: needed(), context: shortest, available });
            }
            Some(asked) => asked,
            None if free == u64::MAX => free,
            None => free.saturating_sub((free / LEFT_PART).max(LEFT_LEAST)),
        };
        let fits = |choice: &Choice| sizes.needed(choice, budget) <= budget;
        let Some(choice) = sizes.choices(request.context, limit).into_iter().find(fits) else {
            // The longest context that fits, found by halves.
            let (mut fitting, mut above) = (1, shortest);
            while above - fitting > 1 {
                let middle = fitting.midpoint(above);
                let half = if fits(&least(middle)) { &mut fitting } else { &mut above };
                *half = middle;
            }
            let fits = Some(fitting).filter(|context| *context > 1);
            return Err(PlanError::TooSmall { needed: needed(), budget, context: shortest, fits });
        };
        let untold = available.is_none() && request.memory.is_none();
        let most = request.experts.unwrap_or(if untold { EXPERTS_UNTOLD } else { u64::MAX });
        Ok(sizes.divide(budget, choice, most, available))
    }
}

/// What could be done with the memory there is.
#[derive(Clone, Copy)]
struct Choice<'a> {
    /// Layers that are read in every step.
    set: &'a StreamedSet,
    /// Tokens of a sequence.
    context: usize,
    /// Tokens per prefill step.
    chunk: usize,
}

impl<'a> Choice<'a> {
    fn new(set: &'a StreamedSet, context: usize, chunk: usize) -> Self {
        Self { set, context, chunk: chunk.min(context) }
    }
}

/// All layers stay.
static ALL_STAY: StreamedSet = StreamedSet { layers: Vec::new(), bytes: 0, buffers: 0 };

impl Sizes<'_> {
    /// The layers to read in every step that saves most memory.
    fn smallest(&self) -> &StreamedSet {
        let saving = |set: &&StreamedSet| set.bytes.saturating_sub(set.buffers);
        self.streamed.iter().filter(|set| saving(set) > 0).max_by_key(saving).unwrap_or(&ALL_STAY)
    }

    /// What could be done, the best first. Neither context nor chunk grows along the list, nor does the number of layers
    /// that stay, so more memory never makes anything of it worse.
    fn choices(&self, asked: Option<usize>, limit: usize) -> Vec<Choice<'_>> {
        let shortest = asked.unwrap_or(SHORTEST_CONTEXT.min(limit));
        let halves = |longest: usize, least: usize| {
            std::iter::successors(Some(longest), |length| Some(length / 2)).take_while(move |length| *length >= least)
        };
        let (few, many) = CHUNKS.split_at(CHUNKS.partition_point(|chunk| *chunk < GOOD_CHUNK));
        let mut choices = Vec::new();
        let contexts: Vec<usize> = asked.map_or_else(|| halves(limit, shortest).collect(), |asked| vec![asked]);
        let good = contexts.iter().position(|context| *context <= GOOD_CONTEXT).unwrap_or(contexts.len() - 1);
        for (place, context) in contexts.iter().enumerate() {
            let chunks = match place.cmp(&good) {
                Ordering::Less => &many[many.len() - 1..],
                Ordering::Equal => many,
                Ordering::Greater => &many[..1],
            };
            choices.extend(chunks.iter().rev().map(|chunk| Choice::new(&ALL_STAY, *context, *chunk)));
        }
        let saving = self.streamed.iter().filter(|set| set.bytes > set.buffers);
        choices.extend(saving.map(|set| Choice::new(set, shortest, GOOD_CHUNK)));
        choices.extend(few.iter().rev().map(|chunk| Choice::new(self.smallest(), shortest, *chunk)));
        if asked.is_none() {
            choices.extend(halves(shortest / 2, 2).map(|context| Choice::new(self.smallest(), context, CHUNKS[0])));
        }
        choices
    }

    fn fewest(&self) -> u64 {
        self.expert.saturating_mul(self.fewest_experts as u64).min(self.experts)
    }

    fn state(&self, context: usize) -> u64 {
        let fixed = self.architecture.fixed_cache_bytes().saturating_mul(1 + self.kept_states);
        fixed.saturating_add(self.architecture.entry_cache_bytes(context as u64))
    }

    fn program(&self) -> u64 {
        PROGRAM_BYTES + TOKENIZER_BYTES_PER_TOKEN * self.architecture.trunk().vocab_size as u64
    }

    /// Weights that stay where `set` does not, and the buffers that it is read into.
    fn weights(&self, set: &StreamedSet) -> u64 {
        self.resident.saturating_sub(set.bytes) + set.buffers
    }

    /// What a choice takes besides routed experts.
    fn fixed(&self, choice: &Choice) -> u64 {
        let Choice { set, context, chunk } = *choice;
        let buffers = self.buffers(context, chunk);
        let parts = [self.program(), self.weights(set), self.state(context), self.reading, buffers];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// The least that runs.
    fn needed(&self, choice: &Choice, budget: u64) -> u64 {
        let sum = self.fixed(choice).saturating_add(self.fewest());
        sum.saturating_add(headroom(sum.min(budget)))
    }

    /// Buffers of a step of `chunk` tokens (`cachalot_model`'s workspace), at a context of `context`.
    fn buffers(&self, context: usize, chunk: usize) -> u64 {
        let t = self.architecture.trunk();
        let per_row = [
            // Streams, their projections' input, and what a sublayer reads and writes.
            2 * t.hc_mult * t.hidden_size,
            8 * t.hidden_size,
            // Queries, heads, heads by group and their inputs; latents.
            5 * t.num_attention_heads * t.head_dim,
            4 * (t.q_lora_rank + t.o_groups * t.o_lora_rank + t.head_dim),
            2 * t.index_n_heads * t.index_head_dim,
            // Window records of all layers.
            t.num_hidden_layers * (t.head_dim + t.head_dim / 8) / 4,
            // Routed pairs: gate, up, activated and their integers; gathered inputs; results.
            t.num_experts_per_tok * (6 * t.moe_intermediate_size + 3 * t.hidden_size),
            6 * t.moe_intermediate_size + 3 * t.hidden_size,
            2 * t.index_topk + t.n_routed_experts,
        ];
        let rows = (per_row.iter().sum::<usize>() * chunk * 4) as u64;
        // Scores and their order of one query per thread, decoded keys; logits and their order.
        let scores = (context.min(1 << 20) * 12 * 4) as u64;
        rows + scores + ((LOGITS_AT_ONCE + 1) * t.vocab_size * 4) as u64
    }

    /// Routed experts that are kept, `most` at most, in bytes.
    fn kept(&self, choice: &Choice, budget: u64, most: u64) -> u64 {
        let fixed = self.fixed(choice);
        let headroom = headroom(budget.min(fixed.saturating_add(self.experts)));
        let room = budget.saturating_sub(fixed).saturating_sub(headroom).max(self.fewest());
        let experts = room.min(most.max(self.fewest())).min(self.experts);
        // Whole experts.
        if experts == self.experts { experts } else { experts / self.expert.max(1) * self.expert.max(1) }
    }

    /// Share of all experts that a long prompt reads per token.
    fn read_per_token(&self, chunk: usize, kept: u64) -> f64 {
        let trunk = self.architecture.trunk();
        let (experts, chosen) = (trunk.n_routed_experts as f64, trunk.num_experts_per_tok as f64);
        let missing = 1.0 - kept as f64 / self.experts.max(1) as f64;
        touched(experts, chosen, chunk) / experts * missing / chunk as f64
    }

    fn divide(&self, budget: u64, choice: Choice, most: u64, available: Option<Available>) -> MemoryPlan {
        // Where smaller steps leave room for nearly all experts, a prompt reads less in them.
        let chunks = CHUNKS.iter().rev().map(|chunk| (*chunk).min(choice.chunk));
        let fewer = chunks.filter(|chunk| *chunk >= GOOD_CHUNK.min(choice.chunk)).map(|chunk| {
            let choice = Choice { chunk, ..choice };
            let kept = self.kept(&choice, budget, most);
            (choice, kept, self.read_per_token(chunk, kept))
        });
        let best = fewer.min_by(|(.., one), (.., other)| one.total_cmp(other));
        let (choice, experts) = best.map_or((choice, self.fewest()), |(choice, kept, _)| (choice, kept));
        let Choice { set, context, chunk } = choice;
        let mut lines = vec![
            Line { what: "weights that every token needs", bytes: self.resident.saturating_sub(set.bytes) },
            Line { what: "routed experts", bytes: experts },
            Line { what: STATE, bytes: self.state(context) },
            Line { what: "buffers of a step", bytes: self.buffers(context, chunk) },
            Line { what: "reads in flight, table rows", bytes: self.reading },
            Line { what: "program and tokenizer", bytes: self.program() },
            Line { what: "head-room", bytes: headroom(self.fixed(&choice) + experts) },
        ];
        if !set.layers.is_empty() {
            lines.insert(1, Line { what: "two layers being read", bytes: set.buffers });
        }
        MemoryPlan {
            total: lines.iter().map(|line| line.bytes).sum(),
            lines,
            budget,
            available,
            context,
            chunk,
            experts,
            experts_fit: experts == self.experts,
            layers: self.architecture.trunk().num_hidden_layers,
            streamed_layers: set.layers.clone(),
            streamed_bytes: set.bytes,
        }
    }
}

fn headroom(sum: u64) -> u64 {
    (sum / HEADROOM_PART).max(HEADROOM_LEAST)
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Line { what, bytes } in &self.lines {
            writeln!(f, "  {what:<34}{:>12}", gigabytes(*bytes))?;
        }
        write!(f, "  {:<34}{:>12}", "together, at most", gigabytes(self.total))?;
        if let Some(Available { bytes, by }) = &self.available {
            write!(f, "   of {} free (by {by})", gigabytes(*bytes))?;
        }
        write!(f, "\n  context {}, prefill in steps of {} tokens", token_count(self.context), self.chunk)?;
        self.streaming().map_or(Ok(()), |streaming| write!(f, "\n  {streaming}"))
    }
}

impl MemoryPlan {
    /// Which layers stay, in words; absent if all do.
    pub fn streaming(&self) -> Option<String> {
        let (layers, streamed) = (self.layers, self.streamed_layers.len());
        (streamed > 0).then(|| {
            let stay = layers - streamed;
            format!(
                "{stay} of {layers} layers stay, the others are read every step: {}",
                gigabytes(self.streamed_bytes)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn architecture() -> Architecture {
        let config = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/v41-tiny/config.json");
        Architecture::from_config(&std::fs::read(config).unwrap()).unwrap()
    }

    fn sizes(architecture: &Architecture) -> Sizes<'_> {
        Sizes {
            architecture,
            resident: 8 * GB,
            experts: 280 * GB,
            expert: 20_000_000,
            fewest_experts: 16,
            reading: 200_000_000,
            kept_states: 8,
            streamed: Vec::new(),
        }
    }

    fn free(bytes: u64) -> Option<Available> {
        Some(Available { bytes, by: "the system".to_owned() })
    }

    #[test]
    fn experts_get_what_is_left_and_the_total_stays_within() {
        let architecture = architecture();
        let sizes = sizes(&architecture);
        for (memory, available) in [(Some(12 * GB), 20 * GB), (None, 24 * GB), (Some(20 * GB), 20 * GB)] {
            let plan =
                MemoryPlan::new(&sizes, &MemoryRequest { memory, ..Default::default() }, free(available)).unwrap();
            assert_eq!(plan.total, plan.lines.iter().map(|line| line.bytes).sum::<u64>());
            assert!(plan.total <= plan.budget && plan.budget <= available, "{plan:?}");
            // What is not used is less than an expert and the rounding of the head-room.
            assert!(plan.budget - plan.total < plan.budget / 20, "{plan:?}");
            assert_eq!(plan.experts % sizes.expert, 0);
            assert!(!plan.experts_fit && plan.context == 4096);
        }
        let few = MemoryRequest { memory: Some(12 * GB), experts: Some(GB), ..Default::default() };
        assert_eq!(MemoryPlan::new(&sizes, &few, free(20 * GB)).unwrap().experts, GB);
        // A system that does not say what it has free is not filled up.
        let untold = MemoryPlan::new(&sizes, &MemoryRequest::default(), None).unwrap();
        assert!(untold.experts <= EXPERTS_UNTOLD && untold.experts > EXPERTS_UNTOLD / 2, "{untold:?}");
        let small = Sizes { resident: GB / 100, experts: GB / 50, expert: 100_000, ..sizes };
        let plan = MemoryPlan::new(&small, &MemoryRequest::default(), free(24 * GB)).unwrap();
        assert!(plan.experts_fit && plan.experts == GB / 50 && plan.total < GB);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let architecture = architecture();
        let sizes = sizes(&architecture);
        let plan = |memory, context, available| {
            MemoryPlan::new(&sizes, &MemoryRequest { memory, context, experts: None }, free(available))
        };
        let error = plan(Some(30 * GB), None, 20 * GB).unwrap_err();
        let needed = gigabytes(sizes.needed(&Choice::new(&ALL_STAY, 4096, CHUNKS[0]), u64::MAX));
        let needs = format!("ask for less (the model needs {needed} at a context of 4k tokens)");
        assert!(["30.0 GB", "20.0 GB", &needs].iter().all(|part| error.to_string().contains(part)), "{error}");
        let error = plan(None, Some(4097), 20 * GB).unwrap_err();
        let words = "a context of 4097 tokens was asked for, but the model goes up to 4096: --context 4096 or less";
        assert_eq!(error.to_string(), words);
        let error = plan(Some(7 * GB), None, 20 * GB).unwrap_err();
        assert!(matches!(error, PlanError::TooSmall { fits: None, .. }), "{error}");
        assert!(plan(None, None, 5 * GB).is_err());
        // A context that is too long for the budget, while a shorter one fits.
        let needed = |context| sizes.needed(&Choice::new(&ALL_STAY, context, CHUNKS[0]), 24 * GB);
        let room = needed(1000);
        let error = plan(Some(room), Some(4096), 24 * GB).unwrap_err();
        let PlanError::TooSmall { fits: Some(longest), .. } = error else { panic!("{error}") };
        // As long as it may be, to the token.
        assert!(longest >= 1000 && needed(longest) <= room && needed(longest + 1) > room, "{error}");
        assert_eq!(plan(Some(room), Some(longest), 24 * GB).unwrap().context, longest);
        assert_eq!(plan(None, Some(2), 24 * GB).unwrap().context, 2);
    }

    #[test]
    fn as_few_layers_as_need_be_are_read_in_every_step() {
        let architecture = architecture();
        let layer = GB / 2;
        let set = |count: usize| StreamedSet {
            layers: (0..count).collect(),
            bytes: layer * count as u64,
            buffers: layer * count.min(2) as u64,
        };
        let sizes = Sizes { streamed: (1..=14).map(set).collect(), ..sizes(&architecture) };
        let plan = |memory: u64, context| {
            let request = MemoryRequest { memory: Some(memory), context, experts: None };
            MemoryPlan::new(&sizes, &request, free(20 * GB))
        };
        let plenty = plan(12 * GB, None).unwrap();
        assert_eq!((plenty.streamed_layers.len(), plenty.streaming()), (0, None));
        let mut before = 0;
        for memory in (12..40).rev().map(|quarters| quarters * GB / 4) {
            let Ok(plan) = plan(memory, None) else { break };
            let streamed = plan.streamed_layers.len();
            // One or two layers save nothing: there are as many buffers.
            assert!(streamed >= before && streamed != 1 && streamed != 2, "{plan:?}");
            assert!(plan.total <= memory && plan.context == 4096, "{plan:?}");
            let fewer = StreamedSet { layers: Vec::new(), ..set(streamed.saturating_sub(1)) };
            assert!(streamed < 4 || sizes.needed(&Choice::new(&fewer, 4096, plan.chunk), memory) > memory, "{plan:?}");
            assert!(streamed == 0 || streamed == 14 || plan.chunk >= GOOD_CHUNK, "{plan:?}");
            assert_eq!(plan.streaming().is_some(), streamed > 0);
            before = streamed;
        }
        assert!(before >= 13, "{before}");
        let error = plan(GB, Some(4096)).unwrap_err().to_string();
        let needed = sizes.needed(&Choice::new(&set(14), 4096, CHUNKS[0]), u64::MAX).div_ceil(1_000_000);
        assert!(error.contains(&format!("--memory {needed}M would fit")), "{error}");
        assert!(plan(needed * 1_000_000, Some(4096)).is_ok());
    }
}
