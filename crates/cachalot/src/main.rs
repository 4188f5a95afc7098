//! Runs the DeepSeek V4 family on a machine its user owns.
//!
//! The program reads the command line, opens an engine, and shows what it says. It holds no logic that another program
//! would need: that is in `cachalot-engine` and below.
#![forbid(unsafe_code)]

mod builtin;
mod cli;
mod commands;
mod config;
mod interrupt;
mod open;
mod output;
mod prompt;
mod rehearsal;
mod report;
mod status;
mod stream;
mod terminal;
mod text_args;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::{Cli, Command};

fn main() -> ExitCode {
    let arguments = match config::expand(std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(error) => {
            report_error(&error, false);
            return ExitCode::from(2);
        }
    };
    let cli = Cli::parse_from(arguments);
    let json = cli.command.wants_json();
    match dispatch(&cli.command) {
        Ok(code) => code,
        // Whoever read the answer has seen enough (`cachalot run ... | head`).
        Err(error) if error.is::<output::Gone>() => ExitCode::SUCCESS,
        Err(error) => {
            report_error(&error, json);
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => commands::run::run(args),
        Command::Chat(args) => commands::chat::chat(args),
        Command::Serve(args) => commands::serve::serve(args),
        Command::Ps(args) => commands::ps::ps(args),
        Command::Inspect(args) => commands::inspect::inspect(args),
        Command::Plan(args) => commands::plan::plan(args),
        Command::Forward(args) => commands::forward::forward(args),
        Command::Trace(args) => commands::trace::trace(args),
        Command::Bench(args) => commands::bench::bench(args),
        Command::Synth(args) => commands::synth::synth(args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "cachalot", &mut script);
            output::print(&String::from_utf8_lossy(&script))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn report_error(error: &anyhow::Error, json: bool) {
    let told = output::told(error);
    if json {
        eprintln!("{}", serde_json::json!({ "error": told }));
    } else {
        output::tell(tracing::Level::ERROR, &told);
    }
}
