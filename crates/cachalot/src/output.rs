//! Writing to standard output: only the answer ever goes there. A reader that has gone away is not a failure.

use std::io::{ErrorKind, Write, stdout};

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

/// Writes a value as one line of JSON.
///
/// # Errors
/// As [`print`].
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string(value)?))
}
