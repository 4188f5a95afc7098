//! The command line: what can be asked, in clap's words. Owns the help texts and nothing else.

use std::path::PathBuf;

use cachalot_engine::planner::MemoryRequest;
use cachalot_engine::planner::units::{parse_bytes, parse_tokens};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands::{
    bench::{BenchArgs, What},
    chat::ChatArgs,
    forward::ForwardArgs,
    inspect::InspectArgs,
    plan::PlanArgs,
    ps::PsArgs,
    run::RunArgs,
    serve::ServeArgs,
    synth::SynthArgs,
    trace::TraceArgs,
};
use crate::rehearsal::Rehearsal;

const EXAMPLES: &str = "\
Examples:
  cachalot run \"What is the capital of Japan?\"        one answer, from the small model that ships
  cachalot run --model DIR \"Why is the sky blue?\"     one answer, from a checkpoint as released
  cachalot run --model DIR --file notes.txt \"Sum up:\" the file is appended to the prompt
  git diff | cachalot run --model DIR \"Review this:\"  so is what is piped in
  cachalot chat --model DIR                           a conversation
  cachalot serve --model DIR                          an HTTP server for programs, and a chat page
  cachalot inspect DIR                                what the checkpoint holds
  cachalot plan DIR --memory 24G --context 128k       what fits where, and how fast it will run
  cachalot bench kernels                              how fast this machine is, and how fast it could be
  cachalot synth v4-flash --layers 4 DIR              a checkpoint to measure with, where there is no real one
  cachalot completions bash > cachalot.bash           completions for a shell

Standard output carries only the answer; reasoning, progress and figures go to standard error.

Exit codes: 0 done, 1 failure, 2 the command line is wrong, 130 interrupted (Ctrl-C).

Environment: NO_COLOR turns colours off; CACHALOT_KEEP stands for --keep.";

/// Runs the DeepSeek V4 family on your own machine: no conversion, no network.
#[derive(Debug, Parser)]
#[command(name = "cachalot", version, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer one prompt, streamed as it is made
    Run(RunArgs),
    /// Hold a conversation
    Chat(ChatArgs),
    /// Serve the model over HTTP: the APIs of OpenAI and Anthropic, and a chat page
    Serve(ServeArgs),
    /// Show what a running server is doing
    Ps(PsArgs),
    /// Show what a checkpoint holds
    Inspect(InspectArgs),
    /// Show what fits where, how fast it will run, and what limits it
    Plan(PlanArgs),
    /// Compute logits and internal choices of token ids, for whoever checks the engine
    Forward(ForwardArgs),
    /// Record which experts a prompt uses, and replay it under several caches
    Trace(TraceArgs),
    /// Measure this machine's speed at what dominates
    Bench(BenchArgs),
    /// Write a checkpoint with the true shapes and random weights, for measuring
    Synth(SynthArgs),
    /// Print completions for a shell
    Completions {
        /// Shell to write for
        shell: clap_complete::Shell,
    },
}

/// How linear layers treat their inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arithmetic {
    /// Float32 inputs: the reference's float32 path
    Exact,
    /// 16-bit integer inputs where that is faster
    Fast,
    /// Inputs rounded to FP8 as the vendor's kernels do; for comparison only
    Vendor,
}

impl From<Arithmetic> for cachalot_model::Arithmetic {
    fn from(arithmetic: Arithmetic) -> Self {
        match arithmetic {
            Arithmetic::Exact => Self::Exact,
            Arithmetic::Fast => Self::Fast,
            Arithmetic::Vendor => Self::Vendor,
        }
    }
}

/// How keys and compressed entries are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cache {
    /// Packed as the vendor's program rounds them
    Vendor,
    /// Float32, for comparison with references that round no cache (V4 only; takes 4 to 8 times the memory)
    Float32,
}

impl From<Cache> for cachalot_engine::CacheChoice {
    fn from(cache: Cache) -> Self {
        match cache {
            Cache::Vendor => Self::Vendor,
            Cache::Float32 => Self::Float32,
        }
    }
}

/// Where the model runs and how.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// How linear layers treat their inputs
    ///
    /// Without it: fast, and exact for `forward`.
    #[arg(long, value_enum)]
    pub arithmetic: Option<Arithmetic>,

    /// How keys and compressed entries are kept
    ///
    /// Without it: vendor, and float32 for `forward` on V4 models.
    #[arg(long, value_enum)]
    pub cache: Option<Cache>,

    /// Threads that compute; all cores if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    #[command(flatten)]
    pub memory: MemoryArgs,

    /// Another directory with shards of the model, on another disk perhaps (repeatable): all are read at once
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub also: Vec<PathBuf>,

    /// Never read experts on a guess of what the next layer will want, even where that pays
    #[arg(long)]
    pub no_guess: bool,

    /// Rehearse a disk that fails: eio@400..500 or delay=30@400..401, counted in reads since the model was opened
    #[arg(long, value_name = "FAULT", value_parser = Rehearsal::parse, hide = true)]
    pub fault: Option<Rehearsal>,
}

/// What the model may take.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Memory")]
pub struct MemoryArgs {
    /// Most memory that the program takes, such as 12G; nine tenths of what is free if not given
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub memory: Option<u64>,

    /// Most tokens of prompt and answer together, such as 128k; what the model goes up to, or what fits, if not given
    #[arg(long, value_name = "N", value_parser = parse_tokens)]
    pub context: Option<u32>,

    /// Most memory for routed experts, such as 8G; what is left if not given
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub expert_cache: Option<u64>,
}

impl From<MemoryArgs> for MemoryRequest {
    fn from(args: MemoryArgs) -> Self {
        Self { memory: args.memory, context: args.context.map(|context| context as usize), experts: args.expert_cache }
    }
}

/// What is kept between runs.
#[derive(Clone, Copy, Debug, Args)]
#[command(next_help_heading = "Memory")]
pub struct KeepArgs {
    /// Most disk space for the states of prompts and answers, so that what begins alike is not processed again; 0 for none
    ///
    /// They lie in the user's cache directory, readable by the user only, and hold what was said.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, default_value = "4G", env = "CACHALOT_KEEP")]
    pub keep: u64,
}

/// The checkpoint.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Directory of a checkpoint as released: config.json, tokenizer.json, model.safetensors.index.json, shards
    ///
    /// Without it, the small test model that ships with the program is used.
    #[arg(long, short, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub model: Option<PathBuf>,
}

impl ModelArgs {
    /// Whether the model reasons unless told otherwise: all do but the one that ships.
    pub fn thinks(&self) -> bool {
        self.model.is_some()
    }
}

impl Command {
    /// Whether a program reads the output.
    pub fn wants_json(&self) -> bool {
        match self {
            Self::Run(args) => args.json,
            Self::Ps(args) => args.json,
            Self::Inspect(args) => args.json,
            Self::Plan(args) => args.json,
            Self::Bench(args) => match &args.what {
                What::Kernels(args) => args.json,
                What::Decode(args) | What::Prefill(args) => args.json,
                What::Abilities(args) => args.json,
            },
            Self::Trace(args) => args.wants_json(),
            Self::Chat(_) | Self::Serve(_) | Self::Forward(_) | Self::Synth(_) | Self::Completions { .. } => false,
        }
    }
}
