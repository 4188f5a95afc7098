//! Rendering by the vendor's library `deepseek-recipe-encoding`.
//!
//! Owns the translation of a [`Conversation`] into the library's types and of its rendered text into fragments. What the
//! library cannot express is marked in the text with control tokens of our own ([`marks`]), which [`super::edit`] acts
//! on; a user's text cannot contain one, because only fragments are looked at.

use deepseek_recipe_core::conversation as core;
use deepseek_recipe_core::messages::{InputMessage, ToolCall as CoreToolCall};
use deepseek_recipe_core::multimodal::{ImageDetail as CoreDetail, ImageSource as CoreSource};
use deepseek_recipe_core::prompt::Prompt as CorePrompt;
use deepseek_recipe_core::special_tokens::SpecialToken;
use deepseek_recipe_core::tools::{ToolChoice as CoreChoice, ToolDefinition as CoreTool};
use deepseek_recipe_encoding::PromptEncoding;
use deepseek_recipe_encoding::dsv4::DeepseekV4Encoding;
use deepseek_recipe_encoding::dsv41::DeepseekV41Encoding;

use super::{Fragment, PromptError};
use crate::conversation::{
    Content, Conversation, Effort, EffortTexts, Image, Message, ResponseFormat, Rules, Span, Task, ToolChoice,
    ToolDefinition,
};
use crate::json::{BigIntegers, Json, has_big_integer};
use crate::{Family, spelling};

/// Control tokens that exist only between rendering and editing.
pub(super) mod marks {
    /// A message begins that the library must not merge with its neighbours.
    pub(crate) const TURN: &str = "<turn of its own>";
    /// It ends.
    pub(crate) const TURN_END: &str = "<end of that turn>";
}

/// What V4 prompts say where an image was (2.10).
const UNSUPPORTED_IMAGE: &str = "[Unsupported Image]";

/// Every control token that a rendered prompt can hold.
const CONTROLS: [&str; 16] = [
    spelling::BOS,
    spelling::EOS,
    spelling::USER,
    spelling::ASSISTANT,
    spelling::SYSTEM,
    spelling::THINK_OPEN,
    spelling::THINK_CLOSE,
    spelling::DSML,
    spelling::LATEST_REMINDER,
    marks::TURN,
    marks::TURN_END,
    "<｜query｜>",
    "<｜authority｜>",
    "<｜domain｜>",
    "<｜title｜>",
    "<｜read_url｜>",
];

/// Render a whole conversation; images in prompt order.
pub(super) fn render(family: Family, conversation: &Conversation) -> Result<(Vec<Fragment>, Vec<Image>), PromptError> {
    let mut writer = Writer { family, integers: BigIntegers::default(), images: Vec::new(), everything: None };
    let translated = writer.conversation(conversation);
    let rendered = match family {
        Family::V4 => DeepseekV4Encoding::new().render_conversation(&translated),
        Family::V41 => DeepseekV41Encoding::new().render_conversation(&translated),
    };
    let mut fragments = Vec::with_capacity(2 * rendered.special_ranges.len() + 1);
    let mut done = 0;
    for range in rendered.special_ranges {
        fragments.push(Fragment::Plain(rendered.prompt[done..range.start].to_owned()));
        fragments.push(control(&rendered.prompt[range.clone()])?);
        done = range.end;
    }
    fragments.push(Fragment::Plain(rendered.prompt[done..].to_owned()));
    if !writer.integers.is_empty() {
        for fragment in &mut fragments {
            if let Fragment::Plain(text) = fragment {
                *text = writer.integers.restore(std::mem::take(text));
            }
        }
    }
    super::fragment::merge(&mut fragments);
    let order = rendered.image_sources.iter().map(|source| match source {
        // The library only carries the number of the image around.
        CoreSource::Url { url, .. } => url.parse().ok().and_then(|number: usize| writer.images.get(number).cloned()),
        _ => None,
    });
    let images = order.collect::<Option<Vec<Image>>>().ok_or(PromptError::VendorTemplate("the images it was given"))?;
    Ok((fragments, images))
}

fn control(token: &str) -> Result<Fragment, PromptError> {
    if token == SpecialToken::Image.default_str() {
        return Ok(Fragment::Image);
    }
    let known = CONTROLS.iter().chain(&spelling::GROUNDING).find(|known| **known == token);
    known.map(|known| Fragment::Control(known)).ok_or(PromptError::VendorTemplate("only known control tokens"))
}

struct Writer {
    family: Family,
    integers: BigIntegers,
    images: Vec<Image>,
    /// All text of the conversation, made when the first big integer is met.
    everything: Option<String>,
}

impl Writer {
    fn conversation(&mut self, conversation: &Conversation) -> core::Conversation {
        let mut leading = true;
        let mut messages = Vec::with_capacity(conversation.messages.len());
        for (index, message) in conversation.messages.iter().enumerate() {
            let head = std::mem::replace(&mut leading, false);
            if !is_dropped(conversation, index) {
                messages.push(self.message(conversation, message, head));
            }
        }
        core::Conversation {
            messages,
            thinking_mode: conversation.thinking,
            tools: conversation.tools.iter().map(|tool| self.tool(conversation, tool)).collect(),
            tool_choice: match conversation.tool_choice {
                ToolChoice::Auto => CoreChoice::Auto,
                ToolChoice::None => CoreChoice::None,
                ToolChoice::Required => CoreChoice::Required,
            },
            reasoning_effort: Some(effort(conversation)),
            response_format: match &conversation.response_format {
                ResponseFormat::Text | ResponseFormat::Grammar(_) => core::ResponseFormat::Text,
                ResponseFormat::JsonObject => core::ResponseFormat::JsonObject,
                ResponseFormat::JsonSchema(schema) => core::ResponseFormat::JsonSchema(self.json(conversation, schema)),
                ResponseFormat::Regex(regex) => core::ResponseFormat::Regex(regex.clone()),
            },
        }
    }

    /// One message; `head` says whether it is the first of all.
    fn message(&mut self, conversation: &Conversation, message: &Message, head: bool) -> InputMessage {
        let in_place = self.family == Family::V4 && conversation.rules != Rules::Api && !head;
        match message {
            Message::System { content, .. } if in_place => self.own_turn(content, false),
            Message::System { content, updated_tools } => {
                let (content, image_sources) = self.content(content);
                let tools: Vec<_> = updated_tools.iter().map(|tool| self.tool(conversation, tool)).collect();
                InputMessage::System { content, image_sources, tools: (!tools.is_empty()).then_some(tools) }
            }
            Message::Developer { content } => self.own_turn(content, true),
            Message::User { content, task } => {
                let (mut content, image_sources) = self.content(content);
                // In history `action` follows the header of the next turn: `edit` puts it there.
                if let Some(task) = task.filter(|task| *task != Task::Action) {
                    content.push_special(task.spelling());
                }
                InputMessage::User { content, image_sources }
            }
            Message::Assistant { content, reasoning, tool_calls, prefix, .. } => {
                let calls: Vec<_> = tool_calls
                    .iter()
                    .map(|call| CoreToolCall {
                        id: call.id.clone(),
                        name: call.name.clone(),
                        arguments: self.digits(conversation, &call.arguments),
                    })
                    .collect();
                InputMessage::Assistant {
                    content: content.clone(),
                    // In thinking mode a turn without reasoning counts as one with empty reasoning (2.5).
                    reasoning_content: conversation.thinking.then(|| reasoning.clone().unwrap_or_default()),
                    tool_calls: (!calls.is_empty()).then_some(calls),
                    prefix: *prefix,
                }
            }
            Message::Tool { content, call_id } => {
                let (content, image_sources) = self.content(content);
                InputMessage::Tool { content, image_sources, tool_call_id: call_id.clone() }
            }
            Message::LatestReminder { content } => InputMessage::LatestReminder { content: content.clone() },
        }
    }

    /// A message that the library must neither move nor merge.
    fn own_turn(&mut self, content: &Content, as_user: bool) -> InputMessage {
        let (content, image_sources) = self.content(content);
        let mut marked = CorePrompt::special(marks::TURN);
        if as_user {
            marked.push_special(spelling::USER);
        }
        marked += content;
        marked.push_special(marks::TURN_END);
        InputMessage::User { content: marked, image_sources }
    }

    fn content(&mut self, content: &Content) -> (CorePrompt, Vec<CoreSource>) {
        let (mut prompt, mut sources) = (CorePrompt::new(), Vec::new());
        for span in &content.spans {
            match (span, self.family) {
                (Span::Text(text), _) => prompt.push_plain(text),
                (Span::Image(_), Family::V4) => prompt.push_plain(UNSUPPORTED_IMAGE),
                (Span::Image(image), Family::V41) => {
                    prompt.push_special(SpecialToken::Image.default_str());
                    let url = self.images.len().to_string();
                    sources.push(CoreSource::Url { url, detail: CoreDetail::High, path: String::new() });
                    self.images.push(image.clone());
                }
            }
        }
        (prompt, sources)
    }

    fn tool(&mut self, conversation: &Conversation, tool: &ToolDefinition) -> CoreTool {
        CoreTool {
            name: tool.name.clone(),
            description: tool.description.clone(),
            parameters: self.json(conversation, &tool.parameters),
            strict: tool.strict,
            defer_loading: tool.deferred,
        }
    }

    fn json(&mut self, conversation: &Conversation, json: &Json) -> serde_json::Value {
        // Checked when it was made; a number beyond the range of floats is all that can still be wrong.
        serde_json::from_str(&self.digits(conversation, json.as_str())).unwrap_or_default()
    }

    /// JSON text whose big integers the library will not round.
    fn digits(&mut self, conversation: &Conversation, text: &str) -> String {
        if !has_big_integer(text) {
            return text.to_owned();
        }
        let everything = self.everything.get_or_insert_with(|| format!("{conversation:?}"));
        self.integers.hide(text, &|digits| everything.contains(digits))
    }
}

/// Developer messages before the last user message disappear in the checkpoint's encoder while thinking (2.5).
pub(super) fn is_dropped(conversation: &Conversation, index: usize) -> bool {
    let drops = conversation.thinking
        && conversation.rules == Rules::Checkpoint { drop_thinking: true }
        && !conversation.offers_tools();
    let later = conversation.messages.get(index + 1..).unwrap_or_default();
    drops
        && matches!(conversation.messages[index], Message::Developer { .. })
        && later.iter().any(|message| matches!(message, Message::User { .. } | Message::Developer { .. }))
}

/// The library's effort. For V4.1 `edit` writes the number; here it only has to print one.
fn effort(conversation: &Conversation) -> core::ReasoningEffort {
    use core::ReasoningEffort::{High, Low, Max, Xhigh};
    match (conversation.effort, conversation.effort_texts) {
        (Effort::Low, _) => Low,
        (Effort::High | Effort::Level(_), EffortTexts::Release) => High,
        (Effort::Xhigh, EffortTexts::Release) => Xhigh,
        (Effort::Max, EffortTexts::Release) => Max,
        (Effort::High | Effort::Xhigh | Effort::Level(_), EffortTexts::Preview) => Low,
        (Effort::Max, EffortTexts::Preview) => High,
    }
}
