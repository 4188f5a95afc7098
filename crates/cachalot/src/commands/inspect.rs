//! `cachalot inspect`: what a checkpoint holds, from its headers alone.

use std::path::PathBuf;
use std::process::ExitCode;

use cachalot_checkpoint::Inspection;
use clap::Args;

use crate::open;

/// Show what a checkpoint holds: parameters, sizes, where they live, what a token takes. Data need not have arrived.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Directory of a checkpoint
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub directory: PathBuf,

    /// Another directory with shards of the model, on another disk perhaps (repeatable)
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub also: Vec<PathBuf>,

    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Prints what the checkpoint holds.
///
/// # Errors
/// If it is not sound.
pub fn inspect(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let checkpoint = open::headers(&args.directory, &args.also)?;
    let inspection = Inspection::of(&checkpoint);
    if args.json {
        crate::output::print_json(&inspection)?;
    } else {
        crate::output::print(&inspection.to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}
