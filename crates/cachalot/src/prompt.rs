//! The prompt of `run`: what the command line says, then files, then what is piped in, with blank lines between.

use std::fs::File;
use std::io::{IsTerminal, Read, stdin};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use cachalot_text::tokenizer::MAX_TEXT_BYTES;

/// Puts the prompt together. Line ends at the end of a file or of piped input are not part of it.
///
/// # Errors
/// If there is nothing to ask, or a file cannot be read or is no text.
pub fn gather(words: &[String], files: &[PathBuf]) -> anyhow::Result<String> {
    let mut parts = vec![words.join(" ")];
    for path in files {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        parts.push(text(file, path)?);
    }
    if !stdin().is_terminal() {
        parts.push(text(stdin().lock(), Path::new("standard input"))?);
    }
    parts.retain(|part| !part.is_empty());
    if parts.is_empty() {
        bail!("there is nothing to ask: give a prompt, --file, or pipe text in");
    }
    Ok(parts.join("\n\n"))
}

fn text(source: impl Read, name: &Path) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    let limit = MAX_TEXT_BYTES as u64;
    source.take(limit + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {}", name.display()))?;
    if bytes.len() as u64 > limit {
        bail!("{} has more than {limit} bytes, which no context holds", name.display());
    }
    let mut text = String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8 text", name.display()))?;
    text.truncate(text.trim_end_matches(['\n', '\r']).len());
    Ok(text)
}
