//! Output parsing: sampled token ids to reasoning, answer and tool calls (protocol.md section 3).
//!
//! This parser is ours and not the vendor's. `deepseek-recipe` keeps its parser private behind an asynchronous stream
//! that needs the vendor's request types and a backend, takes text instead of ids, and decides otherwise on malformed
//! output: of 3.6 it lacks M1 to M5, M7, M8 and M13. The state machine of 3.2 is fully specified, small, and here
//! synchronous: one id in, events out.
//!
//! Owns the states of one output. Only sampled control tokens are markup; a marker spelled with ordinary tokens is text.
//! Never emits part of a UTF-8 character, never holds back more than one marker, and gives the same result however the
//! ids are grouped. Does not check tool names or arguments: they are data from the model (3.6, Security).

mod arguments;
mod machine;
mod matcher;

use std::ops::Deref;

use crate::conversation::{Conversation, ResponseFormat, ToolDefinition};
use crate::prompt::Prompt;
use crate::stream::StreamDecoder;
use crate::tokenizer::{Tokenizer, TokenizerError};
use machine::{ControlIds, Machine};
use matcher::Symbol;

/// Where an output begins (3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartState {
    /// In the reasoning.
    Reasoning {
        /// Whether newlines at its start are dropped: not when reasoning is continued.
        drop_newlines: bool,
    },
    /// In the answer.
    Answer {
        /// Whether newlines at its start are dropped: not when an answer is continued.
        drop_newlines: bool,
    },
    /// Inside a block of tool calls, which the prompt has opened.
    Calls,
    /// Raw text: everything is answer, control tokens included.
    Raw,
}

/// What a parser needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct ParserOptions {
    /// Where the output begins.
    pub start: StartState,
    /// Tools on offer. Without any, the markup of calls is text (3.2).
    pub tools: Vec<OfferedTool>,
    /// Strings that end the answer; empty ones are ignored.
    pub stop: Vec<String>,
    /// Whether the answer is one JSON value and everything around it becomes blanks (3.5).
    pub json_output: bool,
}

impl ParserOptions {
    /// Options for the output that follows `prompt`, which encodes `conversation`. Stop strings are added by the caller.
    pub fn new(conversation: &Conversation, prompt: &Prompt) -> Self {
        let tools = if conversation.offers_tools() { conversation.tools.as_slice() } else { &[] };
        Self {
            start: prompt.start,
            tools: tools.iter().map(OfferedTool::from).collect(),
            stop: Vec::new(),
            json_output: conversation.response_format == ResponseFormat::JsonObject,
        }
    }
}

/// A tool on offer, as far as parsing looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedTool {
    /// Its name.
    pub name: String,
    /// The properties that its schema declares.
    pub properties: Vec<String>,
}

impl From<&ToolDefinition> for OfferedTool {
    fn from(tool: &ToolDefinition) -> Self {
        let schema: serde_json::Value = serde_json::from_str(tool.parameters.as_str()).unwrap_or_default();
        let properties = schema["properties"].as_object().map(|properties| properties.keys().cloned().collect());
        Self { name: tool.name.clone(), properties: properties.unwrap_or_default() }
    }
}

/// What the model said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// More reasoning.
    Reasoning(String),
    /// More of the answer.
    Answer(String),
    /// A tool call, once its name is complete. Calls are numbered from 0.
    CallStart {
        /// Number of the call.
        index: usize,
        /// Name of the tool, not checked.
        name: String,
    },
    /// More of the call's arguments, which together are the JSON text of an object.
    CallArguments {
        /// Number of the call.
        index: usize,
        /// The text.
        text: String,
    },
    /// The call is complete.
    CallEnd {
        /// Number of the call.
        index: usize,
    },
}

/// Why the engine stopped sampling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineFinish {
    /// A stop id was sampled, or the parser was [finished](OutputParser::is_finished).
    Stop,
    /// The token limit was reached.
    Length,
    /// The caller cancelled.
    Cancelled,
}

/// Why an output ended (3.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// The model was done.
    Stop,
    /// The model was done and called a tool.
    ToolCalls,
    /// This stop string came up.
    StopSequence(String),
    /// The token limit was reached, perhaps inside a call.
    Length,
    /// The caller cancelled.
    Cancelled,
}

/// The end of an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    /// What was held back.
    pub events: Vec<Event>,
    /// Why it ended.
    pub reason: FinishReason,
    /// A block of calls was opened but none was made (M17): worth a line in a log.
    pub empty_block: bool,
}

/// Parses one output.
///
/// Generation ends at a stop id ([`Tokenizer::is_stop`]), which is not pushed (M20): like every control token that has no
/// meaning where it stands, it would be shown as its spelling.
///
/// `T` is whatever gives the tokenizer: a reference, or an `Arc` where the parser must live by itself.
pub struct OutputParser<T: Deref<Target = Tokenizer>> {
    tokenizer: T,
    decoder: StreamDecoder,
    machine: Machine,
    text: String,
}

impl<T: Deref<Target = Tokenizer>> OutputParser<T> {
    /// A parser at the start of an output.
    pub fn new(tokenizer: T, options: ParserOptions) -> Self {
        let markers = tokenizer.markers();
        let ids = ControlIds { think_open: markers.think_open, think_close: markers.think_close, dsml: markers.dsml };
        Self { tokenizer, decoder: StreamDecoder::new(), machine: Machine::new(ids, options), text: String::new() }
    }

    /// Parse one sampled id.
    ///
    /// # Errors
    /// [`TokenizerError::IdOutOfRange`].
    pub fn push(&mut self, id: u32) -> Result<Vec<Event>, TokenizerError> {
        self.push_all(&[id])
    }

    /// Parse several sampled ids.
    ///
    /// # Errors
    /// [`TokenizerError::IdOutOfRange`]; then none of them is parsed.
    pub fn push_all(&mut self, ids: &[u32]) -> Result<Vec<Event>, TokenizerError> {
        self.tokenizer.check_ids(ids)?;
        for &id in ids {
            let added = self.tokenizer.is_added(id);
            match added {
                true => self.decoder.interrupt(&mut self.text),
                false => self.decoder.push(self.tokenizer.token_bytes(id).unwrap_or_default(), &mut self.text),
            }
            for character in self.text.drain(..) {
                self.machine.feed(Symbol::Char(character), &self.tokenizer);
            }
            if added {
                self.machine.feed(Symbol::Added(id), &self.tokenizer);
            }
        }
        Ok(self.machine.take_events())
    }

    /// Whether nothing that follows matters: a stop string was found or the block of calls was closed. Stop sampling.
    pub fn is_finished(&self) -> bool {
        self.machine.is_finished()
    }

    /// Whether the output is in its reasoning, so that a progress display can tell.
    pub fn in_reasoning(&self) -> bool {
        self.machine.in_reasoning()
    }

    /// End the output. Bytes of an unfinished character are dropped (1.4).
    pub fn finish(mut self, engine: EngineFinish) -> Finish {
        self.machine.end(engine, &self.tokenizer);
        Finish {
            events: self.machine.take_events(),
            reason: self.machine.reason(engine),
            empty_block: self.machine.empty_block(),
        }
    }
}
