//! `cachalot run`: one prompt, one answer.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use cachalot_engine::{Session, turn};
use cachalot_text::Message;
use clap::Args;

use crate::cli::{EngineArgs, KeepArgs, ModelArgs};
use crate::report::Roofline;
use crate::stream::{Stream, figures};
use crate::text_args::{FormatArgs, SamplingArgs, TextArgs};
use crate::{interrupt, open, output, prompt, report};

const AFTER: &str = "\
Examples:
  cachalot run \"What is the capital of Japan?\"
  cachalot run --model DIR --temperature 0 --max-tokens 200 \"Why is the sky blue?\"
  cachalot run --model DIR --file a.rs --file b.rs \"What do these do?\"
  cachalot run --model DIR --json-schema person.json \"Who wrote Faust?\"
  cachalot run --json --logprobs 3 \"What is the capital of Japan?\" | jq .answer

--json prints one object: answer, reasoning, finish (stop, stop_sequence, length or cancelled), model, usage, timings, \
sampling (the seed among it), stats and, with --logprobs, logprobs. Errors are then an object on standard error: {\"error\": ...}.

Exit codes: 0 answered, 1 failure, 2 the command line is wrong, 130 interrupted (what was said so far is printed).";

/// Answer one prompt, streamed as it is made. Standard output carries only the answer.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct RunArgs {
    /// What to ask; files and piped input are appended to it
    #[arg(value_name = "PROMPT")]
    pub prompt: Vec<String>,

    /// Append the text of this file to the prompt (repeatable)
    #[arg(long, short, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub file: Vec<PathBuf>,

    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,

    /// With --json: log-probabilities of every token and of the N most likely beside it
    #[arg(long, value_name = "N", requires = "json", value_parser = clap::value_parser!(u8).range(0..=20))]
    pub logprobs: Option<u8>,

    /// Show at the end what came from memory and from the disk, and what was waited for and how far
    /// from the roofline that was (with --json all but the last is always there)
    #[arg(long)]
    pub stats: bool,

    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub keep: KeepArgs,
    #[command(flatten)]
    pub text: TextArgs,
    #[command(flatten)]
    pub format: FormatArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Answers.
///
/// # Errors
/// If the prompt cannot be read, the model cannot be opened, or generation fails.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let question = prompt::gather(&args.prompt, &args.file)?;
    let options = args.text.turn_options(&args.sampling, args.logprobs.map(usize::from));
    options.sampling.validate()?;
    let format = args.format.format()?;
    let engine = Arc::new(open::keeping(&args.model, &args.engine, args.keep, args.json)?);
    let mut conversation = args.text.conversation(args.model.thinks(), engine.effort_texts());
    conversation.messages.push(Message::user(question));
    conversation.response_format = format;
    let mut session = Session::new(Arc::clone(&engine));

    interrupt::listen();
    let mut stream = Stream::new(&engine, !args.json);
    let turn = turn(&mut session, &conversation, &options, &mut |event| stream.event(&event))?;
    stream.finish()?;
    let stats = engine.stats();
    let roofline = args.stats.then(|| Roofline::measure(&engine, &stats, &turn)).transpose()?;
    if args.json {
        output::print_json(&report::turn(&engine, &turn, args.logprobs.is_some(), roofline.as_ref()))?;
    } else {
        eprintln!("{}", figures(&turn));
        if let Some(roofline) = &roofline {
            eprintln!("{}", report::stats(&stats, &turn, roofline));
        }
    }
    open::remember(&engine, &args.model);
    Ok(interrupt::exit_code(&turn))
}
