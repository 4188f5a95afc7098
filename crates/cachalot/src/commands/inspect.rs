//! `cachalot inspect`: what a checkpoint holds, from its headers alone.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use cachalot_checkpoint::{Checkpoint, Inspection};
use cachalot_storage::Directory;
use clap::Args;

use crate::open;

/// Show what a checkpoint holds: parameters, sizes, where they live, what a token takes. Data need not have arrived.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Directory of a checkpoint
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub directory: PathBuf,

    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Prints what the checkpoint holds.
///
/// # Errors
/// If it is not sound.
pub fn inspect(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    open::check_directory(&args.directory)?;
    let files = Arc::new(Directory::new(&args.directory));
    let checkpoint =
        Checkpoint::open_headers(files).with_context(|| format!("cannot read {}", args.directory.display()))?;
    let inspection = Inspection::of(&checkpoint);
    if args.json {
        crate::output::print_json(&inspection)?;
    } else {
        crate::output::print(&inspection.to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}
