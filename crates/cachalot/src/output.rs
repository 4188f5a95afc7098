//! Writing to standard output: only the answer ever goes there. A reader that has gone away is not a failure. And how errors
//! and notes are told, which go to standard error, or to the log where there is one.

use std::io::{ErrorKind, Write, stdout};

use tracing::Level;

/// The reader of standard output has gone away (`cachalot ... | head`).
#[derive(Debug, thiserror::Error)]
#[error("nobody reads standard output any more")]
pub struct Gone;

/// Writes `text` and makes it visible at once.
///
/// # Errors
/// [`Gone`] if nobody reads any more; whatever else the system says.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Gone.into(),
        _ => anyhow::Error::new(error).context("cannot write to standard output"),
    })
}

/// Tells the user something, in the log if the command keeps one: then every line on standard error has its form.
pub fn tell(level: Level, text: &str) {
    if !tracing::dispatcher::has_been_set() {
        eprintln!("cachalot: {text}");
    } else if level == Level::INFO {
        tracing::info!("{text}");
    } else if level == Level::WARN {
        tracing::warn!("{text}");
    } else {
        tracing::error!("{text}");
    }
}

/// An error and what it came from, each once: many of ours say already what their source says.
pub fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text += ": ";
            text += &cause;
        }
    }
    text
}

/// Writes a value as one line of JSON.
///
/// # Errors
/// As [`print`].
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("model-1: reading failed: {source}")]
    struct Reading {
        source: std::io::Error,
    }

    #[test]
    fn an_error_is_told_with_its_sources_each_once() {
        let reading = Reading { source: std::io::Error::other("a bad sector") };
        let error = anyhow::Error::new(reading).context("no answer");
        assert_eq!(told(&error), "no answer: model-1: reading failed: a bad sector");
        assert_eq!(told(&anyhow::anyhow!("one").context("two").context("three")), "three: two: one");
    }
}
