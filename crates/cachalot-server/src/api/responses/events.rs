//! The events of a response (protocol.md 5.5), in the order that strict clients insist on.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::custom::CustomInput;
use super::object::{CallKind, ResponseObject, Slot};
use crate::answer::{Answer, Piece};
use crate::api::bytes;
use crate::error::{ApiError, Style};
use crate::sse::{Frames, Narrator};

/// Tells one response.
pub struct ResponsesNarrator {
    object: Arc<ResponseObject>,
    sequence: usize,
    /// Items begun.
    items: usize,
    open: Option<Slot>,
    custom: CustomInput,
}

/// An event about the whole response.
#[derive(Serialize)]
struct Lifecycle<'a, R> {
    r#type: &'a str,
    response: R,
    sequence_number: usize,
}

impl ResponsesNarrator {
    /// At the start.
    pub fn new(object: Arc<ResponseObject>) -> Self {
        Self { object, sequence: 0, items: 0, open: None, custom: CustomInput::default() }
    }

    fn number(&mut self) -> usize {
        self.sequence += 1;
        self.sequence - 1
    }

    fn lifecycle(&mut self, name: &str, response: impl Serialize, out: &mut Frames) {
        let sequence_number = self.number();
        out.event(name, &Lifecycle { r#type: name, response, sequence_number });
    }

    /// An event about the open item.
    fn event(&mut self, name: &str, answer: &Answer, mut data: Value, out: &mut Frames) {
        let index = self.items - 1;
        data["type"] = name.into();
        if let Some(slot) = self.open.filter(|_| data.get("item").is_none()) {
            data["item_id"] = self.object.items.item_id(answer, slot, index).into();
            if slot == Slot::Reasoning || slot == Slot::Message {
                data["content_index"] = 0.into();
            }
        }
        data["output_index"] = index.into();
        data["sequence_number"] = self.number().into();
        out.event(name, &data);
    }

    fn open(&mut self, answer: &Answer, slot: Slot, out: &mut Frames) {
        self.close(answer, out);
        self.items += 1;
        self.open = Some(slot);
        self.custom = CustomInput::default();
        let object = Arc::clone(&self.object);
        let item = object.items.item(answer, slot, self.items - 1, "in_progress");
        self.event("response.output_item.added", answer, json!({"item": item}), out);
        let part = match slot {
            Slot::Reasoning => json!({"type": "reasoning_text", "text": ""}),
            Slot::Message => json!({"type": "output_text", "annotations": [], "logprobs": [], "text": ""}),
            Slot::Call(_) => return,
        };
        self.event("response.content_part.added", answer, json!({"part": part}), out);
    }

    fn close(&mut self, answer: &Answer, out: &mut Frames) {
        let Some(slot) = self.open else { return };
        let object = Arc::clone(&self.object);
        match slot {
            Slot::Reasoning => {
                self.event("response.reasoning_text.done", answer, json!({"text": answer.reasoning}), out);
            }
            Slot::Message => {
                let logprobs = object.items.logprobs(&answer.content_logprobs);
                let data = json!({"text": answer.content, "logprobs": logprobs});
                self.event("response.output_text.done", answer, data, out);
            }
            Slot::Call(call) => {
                let call = &answer.calls[call];
                match object.items.kind(call) {
                    CallKind::Function => {
                        let data = json!({"arguments": call.arguments});
                        self.event("response.function_call_arguments.done", answer, data, out);
                    }
                    CallKind::Custom => {
                        let rest = self.custom.finish();
                        self.custom_delta(answer, rest, out);
                        let data = json!({"input": CustomInput::whole(&call.arguments)});
                        self.event("response.custom_tool_call_input.done", answer, data, out);
                    }
                    CallKind::ToolSearch => {}
                }
            }
        }
        if slot == Slot::Reasoning || slot == Slot::Message {
            let part = object.items.part(answer, slot);
            self.event("response.content_part.done", answer, json!({"part": part}), out);
        }
        let status = object.items.status(answer, slot);
        let item = object.items.item(answer, slot, self.items - 1, status);
        self.event("response.output_item.done", answer, json!({"item": item}), out);
        self.open = None;
    }

    fn custom_delta(&mut self, answer: &Answer, text: String, out: &mut Frames) {
        if !text.is_empty() {
            self.event("response.custom_tool_call_input.delta", answer, json!({"delta": text}), out);
        }
    }
}

impl Narrator for ResponsesNarrator {
    const STYLE: Style = Style::OpenAi;

    fn whole(&self, answer: &Answer) -> Vec<u8> {
        bytes(&self.object.ended(answer))
    }

    fn start(&mut self, _: &Answer, out: &mut Frames) {
        let object = Arc::clone(&self.object);
        self.lifecycle("response.created", object.started(), out);
        self.lifecycle("response.in_progress", object.started(), out);
    }

    fn piece(&mut self, answer: &Answer, piece: Piece, out: &mut Frames) {
        match piece {
            Piece::Reasoning(text, _) => {
                if self.open != Some(Slot::Reasoning) {
                    self.open(answer, Slot::Reasoning, out);
                }
                self.event("response.reasoning_text.delta", answer, json!({"delta": text}), out);
            }
            Piece::Content(text, tokens) => {
                if self.open != Some(Slot::Message) {
                    self.open(answer, Slot::Message, out);
                }
                let data = json!({"delta": text, "logprobs": self.object.items.logprobs(&tokens)});
                self.event("response.output_text.delta", answer, data, out);
            }
            Piece::CallStart(index) => self.open(answer, Slot::Call(index), out),
            Piece::CallArguments(index, text) => match self.object.items.kind(&answer.calls[index]) {
                CallKind::Function => {
                    self.event("response.function_call_arguments.delta", answer, json!({"delta": text}), out);
                }
                CallKind::Custom => {
                    let text = self.custom.feed(&text);
                    self.custom_delta(answer, text, out);
                }
                CallKind::ToolSearch => {}
            },
            Piece::CallEnd => self.close(answer, out),
        }
    }

    fn end(&mut self, answer: &Answer, out: &mut Frames) {
        self.close(answer, out);
        let object = Arc::clone(&self.object);
        let incomplete = answer.finish == Some(cachalot_text::parser::FinishReason::Length);
        let name = if incomplete { "response.incomplete" } else { "response.completed" };
        self.lifecycle(name, object.ended(answer), out);
    }

    fn fail(&mut self, error: &ApiError, out: &mut Frames) {
        let object = Arc::clone(&self.object);
        self.lifecycle("response.failed", object.failed(error), out);
    }
}
