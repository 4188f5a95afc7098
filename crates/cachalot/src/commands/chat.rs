//! `cachalot chat`: a conversation.
use std::process::ExitCode;

use clap::Args;

/// Hold a conversation.
#[derive(Debug, Args)]
pub struct ChatArgs {
}

/// Talks.
///
/// # Errors
/// x
pub fn chat(_args: &ChatArgs) -> anyhow::Result<ExitCode> { Ok(ExitCode::SUCCESS) }
