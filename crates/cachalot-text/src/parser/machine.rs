//! The states of an output (protocol.md 3.2, 3.5, 3.6).
//!
//! Owns the transitions. Where the table of 3.2 ends a tag at `</` and the marker token, the rest of the tag is read too:
//! its name says whether a parameter, a call or the block was closed, which keeps a call whose other tags are missing
//! (M6), and tells an empty block (M7).

use super::arguments::{Arguments, ValueKind};
use super::matcher::{Matcher, Pattern, Step, Symbol};
use super::{EngineFinish, Event, FinishReason, OfferedTool, ParserOptions, StartState};
use crate::tokenizer::Tokenizer;

/// The control tokens that are markup in an output.
#[derive(Debug, Clone, Copy)]
pub(super) struct ControlIds {
    pub(super) think_open: u32,
    pub(super) think_close: u32,
    pub(super) dsml: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// `fresh` while nothing of the reasoning was seen.
    Reasoning {
        drop_newlines: bool,
        fresh: bool,
    },
    Answer {
        drop_newlines: bool,
    },
    /// JSON mode before the JSON.
    BeforeJson {
        drop_newlines: bool,
    },
    Json,
    AfterJson,
    /// A closing tag where no block is open (M8); `reasoning` says where it stood.
    StrayTag {
        reasoning: bool,
    },
    /// Inside a block, outside of a call.
    Calls,
    /// A tool's name.
    Name,
    /// The rest of the call's opening tag.
    AfterName,
    /// Inside a call, outside of a parameter.
    Body,
    /// A parameter's name.
    Key,
    /// The rest of the parameter's opening tag.
    Attribute,
    Value,
    /// The rest of a closing tag, which stood in the given place.
    CloseTag {
        place: Place,
    },
    Raw,
    Finished,
}

/// Where a closing tag stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Block,
    Call,
    Parameter,
}

/// What a marker means.
#[derive(Debug, Clone, Copy)]
enum Action {
    StopString(usize),
    DropToken,
    CloseReasoning,
    OpenBlock,
    StrayTag,
    OpenJson(Option<char>),
    CloseJson,
    OpenCall,
    NextCall,
    OpenParameter,
    CloseTag(Place),
}

/// Longest tag name that is read before a closing tag is taken for finished.
const MAX_TAG: usize = 64;

#[derive(Debug)]
pub(super) struct Machine {
    ids: ControlIds,
    tools: Vec<OfferedTool>,
    stop: Vec<String>,
    json_output: bool,
    state: State,
    matcher: Matcher<Action>,
    /// Symbols of the name, key or tag that is being read.
    reading: Vec<Symbol>,
    arguments: Option<Arguments>,
    calls: usize,
    opened: bool,
    stopped_by: Option<usize>,
    events: Vec<Event>,
    /// A blank was written for this push (JSON mode).
    blanked: bool,
}

impl Machine {
    pub(super) fn new(ids: ControlIds, options: ParserOptions) -> Self {
        let ParserOptions { start, tools, mut stop, json_output } = options;
        stop.retain(|text| !text.is_empty());
        let state = match start {
            StartState::Reasoning { drop_newlines } => State::Reasoning { drop_newlines, fresh: drop_newlines },
            StartState::Answer { drop_newlines } if json_output => State::BeforeJson { drop_newlines },
            StartState::Answer { drop_newlines } => State::Answer { drop_newlines },
            StartState::Calls => State::Calls,
            StartState::Raw => State::Raw,
        };
        let mut machine = Self {
            ids,
            tools,
            stop,
            json_output,
            state,
            matcher: Matcher::new([]),
            reading: Vec::new(),
            arguments: None,
            calls: 0,
            opened: start == StartState::Calls,
            stopped_by: None,
            events: Vec::new(),
            blanked: false,
        };
        machine.enter(state);
        machine
    }

    pub(super) fn is_finished(&self) -> bool {
        self.state == State::Finished
    }

    pub(super) fn in_reasoning(&self) -> bool {
        matches!(self.state, State::Reasoning { .. } | State::StrayTag { reasoning: true })
    }

    pub(super) fn empty_block(&self) -> bool {
        self.opened && self.calls == 0
    }

    pub(super) fn take_events(&mut self) -> Vec<Event> {
        self.blanked = false;
        std::mem::take(&mut self.events)
    }

    pub(super) fn reason(&self, engine: EngineFinish) -> FinishReason {
        match (self.stopped_by, engine) {
            (Some(index), _) => FinishReason::StopSequence(self.stop[index].clone()),
            (None, EngineFinish::Length) => FinishReason::Length,
            (None, EngineFinish::Cancelled) => FinishReason::Cancelled,
            (None, EngineFinish::Stop) if self.calls > 0 => FinishReason::ToolCalls,
            (None, EngineFinish::Stop) => FinishReason::Stop,
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.reading.clear();
        let tools = !self.tools.is_empty() || self.opened;
        let mut markers: Vec<(Pattern, Action)> = Vec::new();
        let stops = self.stop.iter().enumerate().map(|(index, text)| (Pattern::text(text), Action::StopString(index)));
        let added = |id: u32, newlines| Pattern::new(vec![Symbol::Added(id)], newlines);
        let dsml = Symbol::Added(self.ids.dsml);
        let open = || (Pattern::new(vec![Symbol::Char('<'), dsml], true), Action::OpenBlock);
        let close = || Pattern::new(vec![Symbol::Char('<'), Symbol::Char('/'), dsml], false);
        match state {
            State::Reasoning { .. } => {
                if tools {
                    markers.extend([open(), (close(), Action::StrayTag)]);
                }
                markers.push((added(self.ids.think_close, true), Action::CloseReasoning));
            }
            State::Answer { .. } => {
                markers.extend(stops);
                if tools {
                    markers.extend([open(), (close(), Action::StrayTag)]);
                }
                markers.push((added(self.ids.think_close, false), Action::DropToken));
            }
            State::BeforeJson { .. } => {
                for fence in ["```json\n", "```\n"] {
                    markers.push((Pattern::text(fence), Action::OpenJson(None)));
                }
                for bracket in ['{', '['] {
                    markers.push((Pattern::text(bracket.encode_utf8(&mut [0; 4])), Action::OpenJson(Some(bracket))));
                }
                markers.extend(tools.then(open));
                markers.push((added(self.ids.think_close, false), Action::DropToken));
            }
            State::Json => {
                markers.extend(stops);
                markers.push((Pattern::text("\n```"), Action::CloseJson));
            }
            State::AfterJson => markers.extend(tools.then(open)),
            State::Calls => {
                markers.push((Pattern::text("invoke name=\""), Action::OpenCall));
                markers.push((close(), Action::CloseTag(Place::Block)));
            }
            State::Body => {
                markers.push((Pattern::text("parameter name=\""), Action::OpenParameter));
                for text in ["invoke name=\"", " invoke name=\""] {
                    let symbols = std::iter::once(dsml).chain(text.chars().map(Symbol::Char));
                    markers.push((Pattern::new(symbols.collect(), false), Action::NextCall));
                }
                markers.push((close(), Action::CloseTag(Place::Call)));
            }
            State::Value => markers.push((close(), Action::CloseTag(Place::Parameter))),
            State::Raw => markers.extend(stops),
            _ => {}
        }
        self.matcher = Matcher::new(markers);
    }

    /// Feed one symbol.
    pub(super) fn feed(&mut self, symbol: Symbol, tokenizer: &Tokenizer) {
        match self.state {
            State::Finished => {}
            State::Name if symbol == Symbol::Char('"') => self.start_call(tokenizer),
            State::Key if symbol == Symbol::Char('"') => {
                let key = self.take_reading(tokenizer);
                self.write_arguments(|arguments, out| arguments.key(&key, out));
                self.enter(State::Attribute);
            }
            State::Name | State::Key => self.reading.push(symbol),
            State::AfterName | State::Attribute => self.feed_opening_tag(symbol, tokenizer),
            State::StrayTag { .. } | State::CloseTag { .. } => self.feed_closing_tag(symbol, tokenizer),
            _ => self.feed_matcher(symbol, tokenizer),
        }
    }

    fn feed_matcher(&mut self, symbol: Symbol, tokenizer: &Tokenizer) {
        if let State::Reasoning { fresh, .. } = &mut self.state
            && *fresh
            && symbol != Symbol::Char('\n')
        {
            *fresh = false;
            if symbol == Symbol::Added(self.ids.think_open) {
                return; // the prompt has opened the reasoning already (M13)
            }
        }
        if let State::Reasoning { drop_newlines, .. }
        | State::Answer { drop_newlines }
        | State::BeforeJson { drop_newlines } = &mut self.state
            && *drop_newlines
        {
            if symbol == Symbol::Char('\n') {
                return;
            }
            *drop_newlines = false;
        }
        match self.matcher.feed(symbol) {
            Step::Text(text) => self.text(&text, tokenizer),
            Step::Found(text, action) => {
                self.text(&text, tokenizer);
                self.act(action);
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::StopString(index) => {
                self.stopped_by = Some(index);
                self.enter(State::Finished);
            }
            Action::DropToken => match self.state {
                State::BeforeJson { .. } => self.enter(State::BeforeJson { drop_newlines: false }),
                _ => self.enter(State::Answer { drop_newlines: false }),
            },
            Action::CloseReasoning => self.enter_answer(),
            Action::OpenBlock => {
                self.opened = true;
                self.enter(State::Calls);
            }
            Action::StrayTag => {
                let reasoning = matches!(self.state, State::Reasoning { .. });
                self.enter(State::StrayTag { reasoning });
            }
            Action::OpenJson(bracket) => {
                self.enter(State::Json);
                if let Some(bracket) = bracket {
                    self.answer(bracket.encode_utf8(&mut [0; 4]));
                }
            }
            Action::CloseJson => self.enter(State::AfterJson),
            Action::OpenCall => self.enter(State::Name),
            Action::NextCall => {
                self.end_call();
                self.enter(State::Name);
            }
            Action::OpenParameter => self.enter(State::Key),
            Action::CloseTag(place) => {
                if place == Place::Parameter {
                    self.write_arguments(Arguments::value_end);
                }
                self.enter(State::CloseTag { place });
            }
        }
    }

    fn enter_answer(&mut self) {
        self.enter(match self.json_output {
            true => State::BeforeJson { drop_newlines: true },
            false => State::Answer { drop_newlines: true },
        });
    }

    /// The rest of a call's or a parameter's opening tag.
    fn feed_opening_tag(&mut self, symbol: Symbol, tokenizer: &Tokenizer) {
        if let Symbol::Added(_) = symbol {
            // The tag was never closed: what was read belongs to what follows it.
            let read = std::mem::take(&mut self.reading);
            self.after_opening_tag("");
            read.into_iter().chain([symbol]).for_each(|symbol| self.feed(symbol, tokenizer));
        } else if symbol == Symbol::Char('>') {
            let rest = self.take_reading(tokenizer);
            self.after_opening_tag(&rest);
        } else {
            self.reading.push(symbol);
        }
    }

    fn after_opening_tag(&mut self, rest: &str) {
        if self.state == State::Attribute {
            let kind = if rest.contains("true") { ValueKind::Text } else { ValueKind::Json };
            self.write_arguments(|arguments, out| arguments.value_start(kind, out));
            self.enter(State::Value);
        } else if rest.trim_end().ends_with('/') {
            self.end_call();
            self.enter(State::Calls);
        } else {
            self.enter(State::Body);
        }
    }

    /// The rest of a closing tag: up to `>`, or to where it cannot go on.
    fn feed_closing_tag(&mut self, symbol: Symbol, tokenizer: &Tokenizer) {
        let ends = symbol == Symbol::Char('>');
        let breaks = matches!(symbol, Symbol::Added(_) | Symbol::Char('\n')) || self.reading.len() >= MAX_TAG;
        if !ends && !breaks {
            self.reading.push(symbol);
            return;
        }
        let tag = self.take_reading(tokenizer);
        let name = tag.trim();
        match self.state {
            State::StrayTag { reasoning: true } => self.enter(State::Reasoning { drop_newlines: false, fresh: false }),
            State::CloseTag { place } => self.close_tag(place, name),
            _ => self.enter(State::Answer { drop_newlines: false }),
        }
        if !ends {
            self.feed(symbol, tokenizer);
        }
    }

    fn close_tag(&mut self, place: Place, name: &str) {
        let block = matches!(name, "calls" | "tool_calls" | "function_calls");
        let call = place == Place::Call || block || (!name.is_empty() && "invoke".starts_with(name));
        if place == Place::Parameter && !call {
            self.enter(State::Body);
            return;
        }
        self.end_call();
        if !block {
            self.enter(State::Calls);
        } else if self.calls > 0 {
            self.enter(State::Finished);
        } else {
            // An empty block (M7): what follows is the answer.
            self.enter_answer();
        }
    }

    fn start_call(&mut self, tokenizer: &Tokenizer) {
        let name = self.take_reading(tokenizer);
        let tool = self.tools.iter().find(|tool| tool.name == name);
        self.arguments = Some(Arguments::new(tool.map(|tool| tool.properties.clone())));
        self.events.push(Event::CallStart { index: self.calls, name });
        self.calls += 1;
        self.enter(State::AfterName);
    }

    /// Close the arguments of the call that is open, if one is.
    fn end_call(&mut self) {
        if self.arguments.is_some() {
            self.write_arguments(Arguments::close);
            self.arguments = None;
            self.events.push(Event::CallEnd { index: self.calls - 1 });
        }
    }

    fn write_arguments(&mut self, write: impl FnOnce(&mut Arguments, &mut String)) {
        let Some(arguments) = &mut self.arguments else { return };
        let mut out = String::new();
        write(arguments, &mut out);
        if out.is_empty() {
            return;
        }
        let call = self.calls - 1;
        match self.events.last_mut() {
            Some(Event::CallArguments { index, text }) if *index == call => text.push_str(&out),
            _ => self.events.push(Event::CallArguments { index: call, text: out }),
        }
    }

    fn answer(&mut self, more: &str) {
        match self.events.last_mut() {
            Some(Event::Answer(text)) => text.push_str(more),
            _ => self.events.push(Event::Answer(more.to_owned())),
        }
    }

    /// Text that is no marker, with the meaning of the state.
    fn text(&mut self, symbols: &[Symbol], tokenizer: &Tokenizer) {
        if symbols.is_empty() {
            return;
        }
        let text = spell(symbols, tokenizer);
        match self.state {
            State::Reasoning { .. } => match self.events.last_mut() {
                Some(Event::Reasoning(reasoning)) => reasoning.push_str(&text),
                _ => self.events.push(Event::Reasoning(text)),
            },
            State::Answer { .. } | State::Json | State::Raw => self.answer(&text),
            State::BeforeJson { .. } | State::AfterJson if !std::mem::replace(&mut self.blanked, true) => {
                self.answer(" ");
            }
            State::Body => self.write_arguments(|arguments, _| arguments.body(&text)),
            State::Value => self.write_arguments(|arguments, out| arguments.value_text(&text, out)),
            _ => {}
        }
    }

    fn take_reading(&mut self, tokenizer: &Tokenizer) -> String {
        let symbols = std::mem::take(&mut self.reading);
        spell(&symbols, tokenizer)
    }

    /// Generation ended: what is held has the meaning of the state (3.3).
    pub(super) fn end(&mut self, engine: EngineFinish, tokenizer: &Tokenizer) {
        let held = self.matcher.flush();
        self.text(&held, tokenizer);
        if self.arguments.is_none() {
            return;
        }
        if engine == EngineFinish::Stop {
            // The model was done: what it left open counts as closed (M6).
            if matches!(self.state, State::Attribute | State::Value) {
                self.write_arguments(Arguments::value_end);
            }
            self.end_call();
        } else {
            self.write_arguments(Arguments::cut);
        }
    }
}

fn spell(symbols: &[Symbol], tokenizer: &Tokenizer) -> String {
    let mut text = String::with_capacity(symbols.len());
    for symbol in symbols {
        match symbol {
            Symbol::Char(character) => text.push(*character),
            Symbol::Added(id) => text.push_str(tokenizer.token_spelling(*id).unwrap_or_default()),
        }
    }
    text
}
