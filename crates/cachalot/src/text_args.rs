//! Flags of the commands that generate text, and what they mean to the engine.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use cachalot_engine::{Prefill, SamplingChoice, TurnOptions};
use cachalot_text::Json;
use cachalot_text::conversation::{Conversation, Effort, EffortTexts, Message, ResponseFormat};
use clap::{Args, ValueEnum};

/// How tokens are chosen. What is not given is as the vendor recommends; what is given always wins.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 takes the most likely token, 1 the model's own distribution [default: 1]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,

    /// Only the K most likely tokens; 0 for all [default: 0]
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,

    /// Only the most likely tokens that together reach probability P [default: 1]
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,

    /// Only tokens at least P times as likely as the most likely [default: 0]
    #[arg(long, value_name = "P")]
    pub min_p: Option<f64>,

    /// Divides the logits of tokens seen, prompt included [default: 1]
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f64>,

    /// Subtracted once from the logits of tokens generated [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f64>,

    /// Subtracted from the logits of tokens for every time they were generated [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f64>,

    /// Start of the random numbers: same seed, same text; drawn anew for every answer if not given
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,

    /// Most tokens to generate, reasoning included [default: 8192, 65536 while thinking, 131072 with effort max]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,

    /// Ends the answer where this text would come (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

/// How a prompt is processed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PrefillArg {
    /// Every layer sees every token
    #[default]
    Exact,
    /// The vendor's approximation: the later layers see the end of the prompt only; faster, not the same answer
    Replay,
}

/// Which build's effort texts a model knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EffortTextsArg {
    /// Those of the first V4 builds: a text for `max` only
    Preview,
    /// Those of the builds since 0731: a text for `high`, another for `max`
    Release,
}

/// How the model is spoken to.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Conversation")]
pub struct TextArgs {
    /// Let the model reason before it answers (the default, but for the model that ships)
    #[arg(long, overrides_with = "no_think")]
    pub think: bool,

    /// Let it answer at once
    #[arg(long, overrides_with = "think")]
    pub no_think: bool,

    /// How thoroughly it reasons: low, high, max, or 1 to 100
    #[arg(long, value_name = "EFFORT", default_value = "high", value_parser = parse_effort)]
    pub effort: Effort,

    /// V4: which texts the model knows for its efforts
    ///
    /// Without it: those of the first release if the checkpoint has an MTP block, else those of the later builds. Only
    /// the preview builds with DSpark need `preview` to be said.
    #[arg(long, value_enum, value_name = "BUILD")]
    pub effort_texts: Option<EffortTextsArg>,

    /// Instructions that come before the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// How a prompt is processed
    #[arg(long, value_enum, default_value_t)]
    pub prefill: PrefillArg,
}

/// What the answer must be; reasoning before it is free.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Format")]
#[group(multiple = false)]
pub struct FormatArgs {
    /// The answer is JSON of the JSON Schema in this file, which is also shown to the model
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub json_schema: Option<PathBuf>,

    /// The answer matches this regular expression as a whole
    #[arg(long, value_name = "REGEX")]
    pub regex: Option<String>,

    /// The answer follows the grammar in this file, in llguidance's variant of Lark or in EBNF
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub grammar: Option<PathBuf>,
}

impl FormatArgs {
    /// The format that was asked for.
    ///
    /// # Errors
    /// A file that cannot be read, or that is no JSON.
    pub fn format(&self) -> anyhow::Result<ResponseFormat> {
        let read = |path: &PathBuf| std::fs::read_to_string(path).with_context(|| path.display().to_string());
        Ok(match (&self.json_schema, &self.regex, &self.grammar) {
            (Some(path), ..) => {
                let schema = Json::new(read(path)?).map_err(|error| anyhow!("{}: {error}", path.display()))?;
                ResponseFormat::JsonSchema(schema)
            }
            (_, Some(regex), _) => ResponseFormat::Regex(regex.clone()),
            (.., Some(path)) => ResponseFormat::Grammar(read(path)?),
            _ => ResponseFormat::Text,
        })
    }
}

/// Reads an effort: a name of protocol.md 2.3, or a number.
///
/// # Errors
/// Says what is accepted.
pub fn parse_effort(text: &str) -> Result<Effort, String> {
    match text {
        "minimal" | "low" => Ok(Effort::Low),
        "medium" | "high" => Ok(Effort::High),
        "xhigh" => Ok(Effort::Xhigh),
        "max" | "ultra" => Ok(Effort::Max),
        _ => match text.parse() {
            Ok(level @ 1..=100) => Ok(Effort::Level(level)),
            _ => Err("must be low, high, xhigh, max, or a number from 1 to 100".to_owned()),
        },
    }
}

impl TextArgs {
    /// An empty conversation as the flags ask for; `thinks` and `texts` are the model's defaults.
    pub fn conversation(&self, thinks: bool, texts: EffortTexts) -> Conversation {
        Conversation {
            messages: self.system.iter().map(Message::system).collect(),
            thinking: if thinks { !self.no_think } else { self.think },
            effort: self.effort,
            effort_texts: match self.effort_texts {
                Some(EffortTextsArg::Preview) => EffortTexts::Preview,
                Some(EffortTextsArg::Release) => EffortTexts::Release,
                None => texts,
            },
            ..Conversation::default()
        }
    }

    /// What a turn is to be like.
    pub fn turn_options(&self, sampling: &SamplingArgs, top_logprobs: Option<usize>) -> TurnOptions {
        TurnOptions {
            sampling: SamplingChoice {
                temperature: sampling.temperature,
                top_k: sampling.top_k,
                top_p: sampling.top_p,
                min_p: sampling.min_p,
                repetition_penalty: sampling.repetition_penalty,
                presence_penalty: sampling.presence_penalty,
                frequency_penalty: sampling.frequency_penalty,
                seed: sampling.seed,
                max_tokens: sampling.max_tokens,
            },
            stop: sampling.stop.clone(),
            prefill: match self.prefill {
                PrefillArg::Exact => Prefill::Exact,
                PrefillArg::Replay => Prefill::Replay,
            },
            top_logprobs,
        }
    }
}
