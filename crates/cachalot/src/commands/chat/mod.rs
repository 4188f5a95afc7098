//! `cachalot chat`: a conversation in the terminal, or over a pipe.

mod command;
mod lines;
mod saved;
mod talk;

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use crate::cli::{EngineArgs, KeepArgs, ModelArgs};
use crate::text_args::{SamplingArgs, TextArgs};
use crate::{interrupt, open};
use command::Input;
use lines::Line;
use talk::Talk;

/// The file of the last chat.
const LAST_CHAT: &str = "last-chat.json";

const AFTER: &str = "\
Examples:
  cachalot chat --model DIR
  cachalot chat --model DIR --system \"Answer in one sentence.\" --effort low
  cachalot chat --resume                              goes on where the last chat was left
  printf 'What is the capital of Japan?\\n/stats\\n' | cachalot chat     one message a line, when piped

Inside, /help lists the commands. Ctrl-C stops an answer and keeps the conversation; a second one leaves.

Exit codes: 0 left, 1 failure (piped: also if a message or command failed), 2 the command line is wrong, 130 interrupted.";

/// Hold a conversation. Standard output carries only the answers.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct ChatArgs {
    /// Go on with the last chat that was held in this terminal or with --resume
    #[arg(long)]
    pub resume: bool,

    /// Show after each answer what came from memory and from the disk, and what was waited for
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
    pub sampling: SamplingArgs,
}

/// Talks until the user leaves.
///
/// # Errors
/// If the model cannot be opened or the terminal cannot be used; a message that fails does not end the chat.
pub fn chat(args: &ChatArgs) -> anyhow::Result<ExitCode> {
    let options = args.text.turn_options(&args.sampling, None);
    options.sampling.validate()?;
    let engine = Arc::new(open::keeping(&args.model, &args.engine, args.keep, false)?);
    let conversation = args.text.conversation(args.model.thinks(), engine.effort_texts());
    let mut talk = Talk::new(Arc::clone(&engine), args.stats, conversation, options);
    let interactive = std::io::IsTerminal::is_terminal(&std::io::stdin());
    let last = open::state_directory().map(|directory| directory.join(LAST_CHAT));
    if args.resume {
        talk.resume(last.as_deref())?;
    }
    let last = last.filter(|_| (interactive || args.resume) && args.keep.keep > 0);
    let mut lines = lines::open()?;
    interrupt::listen();
    if interactive {
        eprintln!("{}\n/help lists the commands, Ctrl-D leaves", talk.greeting());
    }
    let mut failed = false;
    loop {
        let text = match lines::next_text(&mut *lines)? {
            Line::Text(text) => text,
            Line::Interrupted => {
                eprintln!("(Ctrl-D or /exit leaves)");
                continue;
            }
            Line::End => break,
        };
        let outcome = match command::parse(&text) {
            Ok(Input::Exit) => break,
            Ok(input) => talk.handle(input),
            Err(reason) => Err(anyhow::anyhow!(reason)),
        };
        match outcome {
            Err(error) if error.is::<crate::output::Gone>() => return Err(error),
            Err(error) => {
                eprintln!("{}", crate::output::told(&error));
                failed = true;
            }
            Ok(()) => {}
        }
        if let Some(last) = &last {
            talk.save_last(last);
        }
    }
    open::remember(&engine, &args.model);
    Ok(if failed && !interactive { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
