//! Where the lines of a chat come from: an editor with history on a terminal, or piped input.
//!
//! Several lines make one text: a backslash at the end continues, `"""` begins and ends a block.

use std::io::{BufRead, IsTerminal, Read, stdin};
use std::path::PathBuf;

use anyhow::Context;
use cachalot_text::tokenizer::MAX_TEXT_BYTES;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A text of one line or several.
    Text(String),
    /// Ctrl-C at the prompt.
    Interrupted,
    /// There will be no more.
    End,
}

/// A source of lines.
pub trait Lines {
    /// The next line, without its end.
    ///
    /// # Errors
    /// If the system cannot read.
    fn next_line(&mut self, prompt: &str) -> anyhow::Result<Line>;

    /// Keeps a text for the arrow keys.
    fn remember(&mut self, _text: &str) {}
}

/// Lines from the terminal or from a pipe, whichever standard input is.
///
/// # Errors
/// If the terminal cannot be used.
pub fn open() -> anyhow::Result<Box<dyn Lines>> {
    if stdin().is_terminal() { Ok(Box::new(Terminal::new()?)) } else { Ok(Box::new(Piped(stdin().lock()))) }
}

/// The next text: a line, or several of which one continues the other.
///
/// # Errors
/// As [`Lines::next_line`].
pub fn next_text(lines: &mut dyn Lines) -> anyhow::Result<Line> {
    let mut text = match lines.next_line("> ")? {
        Line::Text(text) => text,
        other => return Ok(other),
    };
    if text.trim() == "\"\"\"" {
        text = match block(lines)? {
            Line::Text(text) => text,
            other => return Ok(other),
        };
    } else {
        while text.ends_with('\\') {
            text.pop();
            match lines.next_line("| ")? {
                Line::Text(more) => text = text + "\n" + &more,
                Line::Interrupted => return Ok(Line::Interrupted),
                // A text whose end is missing is still what was said.
                Line::End => break,
            }
        }
    }
    lines.remember(&text);
    Ok(Line::Text(text))
}

fn block(lines: &mut dyn Lines) -> anyhow::Result<Line> {
    let mut block: Vec<String> = Vec::new();
    loop {
        match lines.next_line("| ")? {
            Line::Text(line) if line.trim() == "\"\"\"" => break,
            Line::Text(line) => block.push(line),
            Line::Interrupted => return Ok(Line::Interrupted),
            Line::End => break,
        }
    }
    Ok(Line::Text(block.join("\n")))
}

/// Lines from a pipe or a file.
struct Piped<R>(R);

impl<R: BufRead> Lines for Piped<R> {
    fn next_line(&mut self, _prompt: &str) -> anyhow::Result<Line> {
        let mut bytes = Vec::new();
        let limit = MAX_TEXT_BYTES as u64;
        let read = (&mut self.0).take(limit).read_until(b'\n', &mut bytes).context("cannot read standard input")?;
        if read == 0 {
            return Ok(Line::End);
        }
        let mut line = String::from_utf8(bytes).context("standard input is not UTF-8 text")?;
        line.truncate(line.trim_end_matches(['\n', '\r']).len());
        Ok(Line::Text(line))
    }
}

/// Lines that are typed.
struct Terminal {
    editor: DefaultEditor,
    history: Option<PathBuf>,
}

impl Terminal {
    fn new() -> anyhow::Result<Self> {
        let mut editor = DefaultEditor::new().context("cannot use the terminal")?;
        let history = history_file();
        if let Some(path) = &history {
            // There is none the first time.
            let _ = editor.load_history(path);
        }
        Ok(Self { editor, history })
    }
}

impl Lines for Terminal {
    fn next_line(&mut self, prompt: &str) -> anyhow::Result<Line> {
        match self.editor.readline(prompt) {
            Ok(line) => Ok(Line::Text(line)),
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(error) => Err(error).context("cannot read the terminal"),
        }
    }

    fn remember(&mut self, text: &str) {
        let _ = self.editor.add_history_entry(text);
        if let Some(path) = &self.history {
            // A history that cannot be kept is no reason to stop talking.
            let _ = self.editor.append_history(path);
        }
    }
}

/// `chat-history` in the user's state directory; its folder is made if it is missing.
fn history_file() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("LOCALAPPDATA"))
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))?;
    let folder = state.join("cachalot");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("chat-history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(input: &str) -> Vec<Line> {
        let mut lines = Piped(input.as_bytes());
        let mut texts = Vec::new();
        loop {
            let text = next_text(&mut lines).expect("readable");
            if text == Line::End {
                return texts;
            }
            texts.push(text);
        }
    }

    #[test]
    fn lines_become_texts() {
        for (input, expected) in [
            ("", &[][..]),
            ("a\nb", &["a", "b"]),
            ("a\r\n\r\nb\n", &["a", "", "b"]),
            ("a\\\nb\\\nc\nd\n", &["a\nb\nc", "d"]),
            ("a\\", &["a"]),
            ("\"\"\"\na\n\n b\\\n\"\"\"\nc\n", &["a\n\n b\\", "c"]),
            ("\"\"\"\nopen", &["open"]),
        ] {
            let expected: Vec<Line> = expected.iter().map(|text| Line::Text((*text).to_owned())).collect();
            assert_eq!(texts(input), expected, "{input:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        assert!(Piped(&b"a\xff\n"[..]).next_line("").is_err());
    }
}
