//! From the vendor's types to ours, once per request.

use deepseek_recipe::request::{ConversationRequest, OutputConstraint};
use deepseek_recipe_core::conversation as core;
use deepseek_recipe_core::messages::InputMessage;
use deepseek_recipe_core::multimodal::{ImageDetail as CoreDetail, ImageSource as CoreSource};
use deepseek_recipe_core::prompt::Prompt as CorePrompt;
use deepseek_recipe_core::tools::{ToolChoice as CoreChoice, ToolDefinition as CoreTool};
use serde_json::Value;

use super::{Constraint, Request, RequestError, RequestedSampling};
use crate::conversation::{
    Content, Conversation, Effort, Image, ImageDetail, ImageSource, Message, ResponseFormat, Span, ToolCall,
    ToolChoice, ToolDefinition,
};
use crate::json::{BigIntegers, Json};

/// Translate a converted request; sampling parameters that the vendor forces are left out.
pub(super) fn request(request: ConversationRequest, integers: &BigIntegers) -> Result<Request, RequestError> {
    let translate = Translate { integers };
    let ConversationRequest { conversation, inference_options, parsing_options, response_options, stream, .. } =
        request;
    let messages = conversation.messages.into_iter().map(|message| translate.message(message));
    let mut custom_tools: Vec<String> = response_options.custom_tool_names.into_iter().collect();
    custom_tools.sort_unstable();
    let mut namespaced_tools: Vec<(String, String, String)> = response_options
        .namespace_tool_map
        .unwrap_or_default()
        .into_iter()
        .map(|(flat, (namespace, name))| (flat, namespace, name))
        .collect();
    namespaced_tools.sort_unstable();
    Ok(Request {
        conversation: Conversation {
            messages: messages.collect::<Result<_, _>>()?,
            tools: conversation.tools.into_iter().map(|tool| translate.tool(tool)).collect(),
            tool_choice: match conversation.tool_choice {
                CoreChoice::Auto => ToolChoice::Auto,
                CoreChoice::None => ToolChoice::None,
                CoreChoice::Required => ToolChoice::Required,
            },
            response_format: match conversation.response_format {
                core::ResponseFormat::Text => ResponseFormat::Text,
                core::ResponseFormat::JsonObject => ResponseFormat::JsonObject,
                core::ResponseFormat::JsonSchema(schema) => ResponseFormat::JsonSchema(translate.json(&schema)),
                core::ResponseFormat::Regex(regex) => ResponseFormat::Regex(regex),
            },
            thinking: conversation.thinking_mode,
            effort: match conversation.reasoning_effort {
                Some(core::ReasoningEffort::Low) => Effort::Low,
                Some(core::ReasoningEffort::Xhigh) => Effort::Xhigh,
                Some(core::ReasoningEffort::Max) => Effort::Max,
                Some(core::ReasoningEffort::High) | None => Effort::High,
            },
            ..Conversation::default()
        },
        sampling: RequestedSampling {
            max_tokens: inference_options.max_tokens,
            seed: inference_options.seed,
            logprobs: inference_options.logprobs,
            top_logprobs: inference_options.top_logprobs,
            ..RequestedSampling::default()
        },
        stop: parsing_options.stop_sequences,
        json_output: parsing_options.parse_json_output,
        constraint: inference_options.output_constraint.map(|constraint| match constraint {
            OutputConstraint::Json { schema } => Constraint::Json(schema.map(|schema| translate.json(&schema))),
            OutputConstraint::Regex(regex) => Constraint::Regex(regex),
            OutputConstraint::ToolCalls { required, .. } => Constraint::ToolCalls { required, parallel: true },
        }),
        stream,
        include_usage: response_options.include_usage,
        custom_tools,
        namespaced_tools,
        client_tool_search: response_options.client_tool_search,
        one_call: false,
        ignored: Vec::new(),
    })
}

struct Translate<'i> {
    integers: &'i BigIntegers,
}

impl Translate<'_> {
    fn text(&self, text: String) -> String {
        self.integers.restore(text)
    }

    fn json(&self, value: &Value) -> Json {
        Json::from_rendered(self.integers.restore(value.to_string()))
    }

    fn tool(&self, tool: CoreTool) -> ToolDefinition {
        ToolDefinition {
            name: self.text(tool.name),
            description: tool.description.map(|description| self.text(description)),
            parameters: self.json(&tool.parameters),
            strict: tool.strict,
            deferred: tool.defer_loading,
            input: None,
        }
    }

    fn message(&self, message: InputMessage) -> Result<Message, RequestError> {
        Ok(match message {
            InputMessage::System { content, image_sources, tools } => Message::System {
                content: self.content(content, image_sources)?,
                updated_tools: tools.unwrap_or_default().into_iter().map(|tool| self.tool(tool)).collect(),
            },
            InputMessage::User { content, image_sources } => {
                Message::User { content: self.content(content, image_sources)?, task: None }
            }
            InputMessage::Assistant { content, reasoning_content, tool_calls, prefix } => Message::Assistant {
                content: self.text(content),
                reasoning: reasoning_content.map(|reasoning| self.text(reasoning)),
                tool_calls: tool_calls
                    .unwrap_or_default()
                    .into_iter()
                    .map(|call| ToolCall {
                        id: self.text(call.id),
                        name: self.text(call.name),
                        arguments: self.text(call.arguments),
                    })
                    .collect(),
                prefix,
                task: None,
            },
            InputMessage::Tool { content, image_sources, tool_call_id } => Message::Tool {
                content: self.content(content, image_sources)?,
                call_id: tool_call_id.map(|id| self.text(id)),
            },
            InputMessage::LatestReminder { content } => Message::LatestReminder { content: self.text(content) },
        })
    }

    /// The library marks the place of each image by a control token in the text.
    fn content(&self, content: CorePrompt, sources: Vec<CoreSource>) -> Result<Content, RequestError> {
        let (text, ranges) = content.into_parts();
        if ranges.len() != sources.len() {
            return Err(RequestError::Internal("an image without a place in the text".to_owned()));
        }
        let mut spans = Vec::with_capacity(2 * ranges.len() + 1);
        let mut done = 0;
        for (range, source) in ranges.into_iter().zip(sources) {
            spans.push(Span::Text(self.text(text[done..range.start].to_owned())));
            spans.push(Span::Image(image(source)));
            done = range.end;
        }
        spans.push(Span::Text(self.text(text[done..].to_owned())));
        spans.retain(|span| *span != Span::Text(String::new()));
        Ok(Content { spans })
    }
}

fn image(source: CoreSource) -> Image {
    let (source, detail, path) = match source {
        CoreSource::DataUrl { data_url, detail, path } => (ImageSource::DataUrl(data_url), detail, path),
        CoreSource::Url { url, detail, path } => (ImageSource::Url(url), detail, path),
        CoreSource::Bytes { data, detail, path } => (ImageSource::Bytes(data), detail, path),
    };
    let detail = match detail {
        CoreDetail::Low => ImageDetail::Low,
        CoreDetail::High => ImageDetail::High,
        CoreDetail::Original => ImageDetail::Original,
        CoreDetail::Auto => ImageDetail::Auto,
    };
    Image { source, detail, path }
}
