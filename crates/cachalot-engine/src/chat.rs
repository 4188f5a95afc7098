//! One turn of a conversation: messages to prompt, generation, output to reasoning, answer and calls.
//!
//! Owns what every front end would otherwise repeat: the sampling parameters that a user did not give, the limit on the
//! output, stop strings, and the order of prompt, session and parser (protocol.md sections 2, 3 and 4). Refuses to show
//! or to store anything.

use cachalot_text::conversation::{Effort, ToolCall};
use cachalot_text::parser::{self, EngineFinish, FinishReason, OutputParser, ParserOptions};
use cachalot_text::prompt::{self, PromptError};
use cachalot_text::sampling::{ContextOverflow, Mode, defaults, output_limit};
use cachalot_text::{Conversation, Family, TokenizerError};

use crate::constraint::ConstraintError;
use crate::sampling::{LogProb, SamplingError, SamplingParams, random_seed};
use crate::session::{Event, Finish, Flow, GenerateError, Outcome, Prefill, Request, Session};

/// Sampling parameters as a user gives them: what is absent gets the vendor's default for the mode.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingChoice {
    /// See [`SamplingParams::temperature`].
    pub temperature: Option<f64>,
    /// See [`SamplingParams::top_k`].
    pub top_k: Option<usize>,
    /// See [`SamplingParams::top_p`].
    pub top_p: Option<f64>,
    /// See [`SamplingParams::min_p`].
    pub min_p: Option<f64>,
    /// See [`SamplingParams::repetition_penalty`].
    pub repetition_penalty: Option<f64>,
    /// See [`SamplingParams::presence_penalty`].
    pub presence_penalty: Option<f64>,
    /// See [`SamplingParams::frequency_penalty`].
    pub frequency_penalty: Option<f64>,
    /// Drawn anew for every answer if absent.
    pub seed: Option<u64>,
    /// Most tokens to generate, reasoning included.
    pub max_tokens: Option<usize>,
}

impl SamplingChoice {
    /// Checks what is given, so that a mistake is found before a model is loaded.
    ///
    /// # Errors
    /// Names the first parameter outside its range.
    pub fn validate(&self) -> Result<(), SamplingError> {
        // Defaults are within range whatever the mode.
        self.resolve(Family::V41, Mode { thinking: false, tools: false, effort: Effort::High }).validate()
    }

    /// The parameters for one answer: a value that is given always wins, thinking or not.
    pub fn resolve(&self, family: Family, mode: Mode) -> SamplingParams {
        let default = defaults(family, mode);
        SamplingParams {
            temperature: self.temperature.unwrap_or(default.temperature.into()),
            top_k: self.top_k.unwrap_or(default.top_k),
            // Widened by way of its shortest decimal form: 0.95 is meant, not the float32 next to it.
            top_p: self.top_p.unwrap_or_else(|| decimal(default.top_p)),
            min_p: self.min_p.unwrap_or_else(|| decimal(default.min_p)),
            repetition_penalty: self.repetition_penalty.unwrap_or_else(|| decimal(default.repetition_penalty)),
            presence_penalty: self.presence_penalty.unwrap_or_else(|| decimal(default.presence_penalty)),
            frequency_penalty: self.frequency_penalty.unwrap_or_else(|| decimal(default.frequency_penalty)),
            seed: self.seed.unwrap_or_else(random_seed),
        }
    }
}

fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(value.into())
}

/// What one turn is to be like.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TurnOptions {
    /// How tokens are chosen, and how many.
    pub sampling: SamplingChoice,
    /// Strings that end the answer and are no part of it.
    pub stop: Vec<String>,
    /// How the prompt is processed.
    pub prefill: Prefill,
    /// Log-probabilities of that many most likely tokens beside each chosen one; none if absent.
    pub top_logprobs: Option<usize>,
}

/// What happens during a turn.
#[derive(Debug)]
pub enum TurnEvent<'a> {
    /// Tokens of the prompt processed, and their number.
    Prefill {
        /// Tokens done.
        done: usize,
        /// All tokens of the prompt.
        total: usize,
    },
    /// Reasoning, answer or a piece of a tool call.
    Output(&'a parser::Event),
    /// A token that shows nothing yet: part of a character, or markup.
    Silent,
}

/// A token with its log-probability and those of the most likely tokens at its place.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogProbs {
    /// The token that was chosen.
    pub chosen: LogProb,
    /// The most likely ones, best first.
    pub top: Vec<LogProb>,
}

/// What the model said, and what it took.
#[derive(Clone, Debug)]
pub struct Turn {
    /// The reasoning; empty without.
    pub reasoning: String,
    /// The answer.
    pub answer: String,
    /// The calls, in order.
    pub calls: Vec<ToolCall>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Per generated token, if asked for.
    pub logprobs: Vec<TokenLogProbs>,
    /// The parameters that were used, the seed among them.
    pub sampling: SamplingParams,
    /// Times and counts.
    pub outcome: Outcome,
}

/// Why there is no turn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TurnError {
    /// The conversation cannot be written.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// It holds images, and this program does not look at images.
    #[error("the conversation holds {images} images; this engine reads text only")]
    Images {
        /// How many.
        images: usize,
    },
    /// Prompt and requested output exceed the context.
    #[error(transparent)]
    Context(#[from] ContextOverflow),
    /// The output cannot be what the conversation asks for.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// Nothing, or no more, could be generated.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A sampled token that the tokenizer does not have.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Writes `conversation` as a prompt and lets the model answer; `on_event` hears of everything and may end it.
///
/// What has been said when [`Flow::Cancel`] comes is in the turn.
///
/// # Errors
/// [`TurnError`]; the session stays usable.
pub fn turn(
    session: &mut Session,
    conversation: &Conversation,
    options: &TurnOptions,
    on_event: &mut dyn FnMut(TurnEvent<'_>) -> Flow,
) -> Result<Turn, TurnError> {
    let engine = std::sync::Arc::clone(session.engine());
    let tokenizer = engine.tokenizer();
    let prompt = prompt::encode(tokenizer, conversation)?;
    if !prompt.images.is_empty() {
        return Err(TurnError::Images { images: prompt.images.len() });
    }
    let (thinking, effort) = (conversation.thinking, conversation.effort);
    let mode = Mode { thinking, tools: conversation.offers_tools(), effort };
    let family = tokenizer.family();
    session.check_length(prompt.ids.len())?;
    let default_limit = defaults(family, mode).max_tokens;
    let max_tokens = output_limit(options.sampling.max_tokens, default_limit, prompt.ids.len(), engine.context())?;
    let sampling = options.sampling.resolve(family, mode);
    let request = Request {
        sampling: sampling.clone(),
        max_tokens,
        prefill: options.prefill,
        top_logprobs: options.top_logprobs,
        prompt_logprobs: None,
        constraint: engine.constraints().for_conversation(conversation, prompt.start, None)?,
    };
    let mut parser_options = ParserOptions::new(conversation, &prompt);
    parser_options.stop.clone_from(&options.stop);
    let mut parser = OutputParser::new(tokenizer, parser_options);

    let mut said = Said::default();
    let mut logprobs = Vec::new();
    let mut failed = None;
    let outcome = session.generate(&prompt.ids, &request, &mut |event| match event {
        Event::Prefill { done, total } => on_event(TurnEvent::Prefill { done, total }),
        Event::PromptToken { .. } | Event::EndToken { .. } => Flow::Continue,
        Event::Token { id, logprobs: probabilities } => {
            logprobs.extend(probabilities.map(|(chosen, top)| TokenLogProbs { chosen, top: top.to_vec() }));
            let events = match parser.push(id) {
                Ok(events) => events,
                Err(error) => {
                    failed = Some(error);
                    return Flow::Cancel;
                }
            };
            let flow = said.tell(&events, on_event);
            if flow == Flow::Continue && parser.is_finished() { Flow::Stop } else { flow }
        }
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let end = parser.finish(match outcome.finish {
        Finish::EndOfAnswer | Finish::Stopped => EngineFinish::Stop,
        Finish::Length => EngineFinish::Length,
        Finish::Cancelled => EngineFinish::Cancelled,
    });
    if !end.events.is_empty() {
        said.tell(&end.events, on_event);
    }
    let Said { reasoning, answer, calls } = said;
    Ok(Turn { reasoning, answer, calls, finish: end.reason, logprobs, sampling, outcome })
}

/// What has been said so far.
#[derive(Default)]
struct Said {
    reasoning: String,
    answer: String,
    calls: Vec<ToolCall>,
}

impl Said {
    /// Keeps events and passes them on.
    fn tell(&mut self, events: &[parser::Event], on_event: &mut dyn FnMut(TurnEvent<'_>) -> Flow) -> Flow {
        let mut flow = Flow::Continue;
        for event in events {
            match event {
                parser::Event::Reasoning(text) => self.reasoning.push_str(text),
                parser::Event::Answer(text) => self.answer.push_str(text),
                parser::Event::CallStart { index, name } => {
                    let (id, name) = (format!("call_{index}"), name.clone());
                    self.calls.push(ToolCall { id, name, arguments: String::new() });
                }
                parser::Event::CallArguments { index, text } => {
                    if let Some(call) = self.calls.get_mut(*index) {
                        call.arguments.push_str(text);
                    }
                }
                parser::Event::CallEnd { .. } => {}
            }
            match on_event(TurnEvent::Output(event)) {
                Flow::Continue => {}
                other => flow = other,
            }
        }
        // A token without output (held back, or markup) must be able to end the turn too.
        if events.is_empty() { on_event(TurnEvent::Silent) } else { flow }
    }
}
