//! A conversation, as the rest of the program knows it (protocol.md section 2).
//!
//! Plain data without a vendor type. Refuses nothing by itself: [`encode`](crate::prompt::encode) does.

use crate::json::Json;

/// Everything that decides a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// The messages, oldest first.
    pub messages: Vec<Message>,
    /// Tools on offer. Keep them constant inside a conversation: they decide how old turns are rendered (2.5).
    pub tools: Vec<ToolDefinition>,
    /// Whether the model may, must not or must call a tool.
    pub tool_choice: ToolChoice,
    /// What the answer must be.
    pub response_format: ResponseFormat,
    /// Whether the model reasons before it answers.
    pub thinking: bool,
    /// How thoroughly it reasons; without effect when `thinking` is off.
    pub effort: Effort,
    /// Which effort texts the checkpoint was trained with; V4 only.
    pub effort_texts: EffortTexts,
    /// Which of the vendor's two encoders is followed where they differ.
    pub rules: Rules,
    /// Whether the prompt begins with the begin-of-sentence token.
    pub bos: bool,
    /// How many leading messages are in the cache already: only what follows them is written, without begin of
    /// sentence. The last of them must be an assistant message.
    pub cached_messages: usize,
}

impl Default for Conversation {
    fn default() -> Self {
        Self {
            messages: Vec::new(),
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            response_format: ResponseFormat::Text,
            thinking: true,
            effort: Effort::High,
            effort_texts: EffortTexts::Release,
            rules: Rules::Api,
            bos: true,
            cached_messages: 0,
        }
    }
}

impl Conversation {
    /// Whether the prompt offers tools, and so whether tool calls are looked for in the output (3.2).
    pub fn offers_tools(&self) -> bool {
        !self.tools.is_empty() && self.tool_choice != ToolChoice::None
    }

    /// All tools, those that a later message brings included.
    pub fn tools_mut(&mut self) -> impl Iterator<Item = &mut ToolDefinition> {
        let updated = self.messages.iter_mut().flat_map(|message| match message {
            Message::System { updated_tools, .. } => updated_tools.as_mut_slice(),
            _ => &mut [],
        });
        self.tools.iter_mut().chain(updated)
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Instructions.
    System {
        /// The text, perhaps with images.
        content: Content,
        /// Tools whose schemas change from here on; V4.1, and not in the first message.
        updated_tools: Vec<ToolDefinition>,
    },
    /// Instructions as a user turn of their own, as the checkpoint's encoder renders them (2.8).
    Developer {
        /// The text.
        content: Content,
    },
    /// What the user says.
    User {
        /// The text, perhaps with images.
        content: Content,
        /// A quick instruction to carry out on this message.
        task: Option<Task>,
    },
    /// A turn of the model.
    Assistant {
        /// The answer.
        content: String,
        /// The reasoning before it.
        reasoning: Option<String>,
        /// The calls after it.
        tool_calls: Vec<ToolCall>,
        /// The message is unfinished and will be continued; last message only (2.9).
        prefix: bool,
        /// [`Task::Title`] asks for a title after this turn; no other task can stand here.
        task: Option<Task>,
    },
    /// The result of a tool call.
    Tool {
        /// The result.
        content: Content,
        /// The call it answers.
        call_id: Option<String>,
    },
    /// A reminder. Put it before the last user message (2.8).
    LatestReminder {
        /// The text.
        content: String,
    },
}

impl Message {
    /// A system message of plain text.
    pub fn system(text: impl Into<String>) -> Self {
        Self::System { content: Content::text(text), updated_tools: Vec::new() }
    }

    /// A user message of plain text.
    pub fn user(text: impl Into<String>) -> Self {
        Self::User { content: Content::text(text), task: None }
    }

    /// A finished turn of the model without calls.
    pub fn assistant(content: impl Into<String>, reasoning: Option<String>) -> Self {
        Self::Assistant { content: content.into(), reasoning, tool_calls: Vec::new(), prefix: false, task: None }
    }

    /// The result of a call.
    pub fn tool(call_id: impl Into<String>, text: impl Into<String>) -> Self {
        Self::Tool { content: Content::text(text), call_id: Some(call_id.into()) }
    }
}

/// Text with images in it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Content {
    /// The spans; rendering puts nothing between them.
    pub spans: Vec<Span>,
}

impl Content {
    /// Plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { spans: vec![Span::Text(text.into())] }
    }

    /// Parts of a message, joined by blank lines (2.6).
    pub fn from_parts(parts: impl IntoIterator<Item = Span>) -> Self {
        let mut spans = Vec::new();
        for part in parts {
            if !spans.is_empty() {
                spans.push(Span::Text("\n\n".to_owned()));
            }
            spans.push(part);
        }
        Self { spans }
    }
}

/// A piece of [`Content`].
#[derive(Debug, Clone, PartialEq)]
pub enum Span {
    /// Text. Whatever it spells, it never becomes a control token.
    Text(String),
    /// An image: one token in the prompt of V4.1, a note in V4 (2.10).
    Image(Image),
}

/// An image of a conversation, not yet fetched or decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Where it is.
    pub source: ImageSource,
    /// How closely the model should look.
    pub detail: ImageDetail,
    /// Where in the request it came from, for error messages; may be empty.
    pub path: String,
}

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageSource {
    /// A `data:` URL.
    DataUrl(String),
    /// An `http` URL.
    Url(String),
    /// The encoded file.
    Bytes(Vec<u8>),
}

/// The `detail` of an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ImageDetail {
    /// At most 512 pixels on the long side.
    Low,
    /// The default.
    #[default]
    High,
    /// As high.
    Original,
    /// As high.
    Auto,
}

/// A tool that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolDefinition {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// JSON Schema of its arguments; `{}` when it has none.
    pub parameters: Json,
    /// Whether arguments must match the schema exactly.
    pub strict: Option<bool>,
    /// Not shown until a later system message brings it.
    pub deferred: bool,
    /// What the text of its parameter `input` must be; any text if nothing is said.
    pub input: Option<InputFormat>,
}

/// What a text must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InputFormat {
    /// A match of this regular expression.
    Regex(String),
    /// In the language of this grammar, in llguidance's variant of Lark or in EBNF.
    Grammar(String),
}

/// A call that the model made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// Id that its result refers to.
    pub id: String,
    /// Tool.
    pub name: String,
    /// Arguments: JSON text of an object, or whatever the model wrote instead.
    pub arguments: String,
}

/// Whether tools may be called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// No calls; the tools are not shown.
    None,
    /// A call at once. Only without thinking (5.2).
    Required,
}

/// What the answer must be.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum ResponseFormat {
    /// Free text.
    #[default]
    Text,
    /// Some JSON object.
    JsonObject,
    /// JSON of this schema.
    JsonSchema(Json),
    /// Text of this regular expression; not mentioned in the prompt.
    Regex(String),
    /// Text of this grammar, in llguidance's variant of Lark or in EBNF; not mentioned in the prompt.
    Grammar(String),
}

/// How thoroughly the model reasons (2.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Effort {
    /// Little.
    Low,
    /// The default.
    #[default]
    High,
    /// As high.
    Xhigh,
    /// As much as it can.
    Max,
    /// V4.1 only: 1 to 100.
    Level(u8),
}

/// Which effort texts a V4 checkpoint was trained with (2.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EffortTexts {
    /// Low: none; high and max: one each (the 0731 release).
    #[default]
    Release,
    /// The first release: low and high have no text, max has the text that later became high's.
    Preview,
}

/// Which of the vendor's encoders is followed where they differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rules {
    /// The vendor's request library. Use this.
    #[default]
    Api,
    /// The encoder that ships with the checkpoints, for comparison: V4 system messages stay in place (2.4); reasoning
    /// after the last user message is shown, and a developer message before it dropped (2.5); a turn of the model that
    /// follows another or nothing has no header, and nothing follows a last one. Not followed: how it prints tools,
    /// formats, numbers, images and reminders, and the order of its V4 calls.
    Checkpoint {
        /// Show reasoning only of turns after the last user message (true), or of all turns. A tool on offer shows
        /// all.
        drop_thinking: bool,
    },
}

/// Quick instructions, which are single tokens (2.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Route the message: the model writes a word such as `Search`.
    Action,
    /// Write search queries.
    Query,
    /// Classify for authority.
    Authority,
    /// Classify the domain.
    Domain,
    /// Write a title.
    Title,
    /// Decide on reading a URL.
    ReadUrl,
}

impl Task {
    /// The spelling of its token.
    pub fn spelling(self) -> &'static str {
        match self {
            Self::Action => "<｜action｜>",
            Self::Query => "<｜query｜>",
            Self::Authority => "<｜authority｜>",
            Self::Domain => "<｜domain｜>",
            Self::Title => "<｜title｜>",
            Self::ReadUrl => "<｜read_url｜>",
        }
    }
}
