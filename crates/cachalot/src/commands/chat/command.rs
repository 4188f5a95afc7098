//! What a line of the chat means: a message, or one of the /commands.

use std::path::PathBuf;

use cachalot_text::conversation::Effort;

use crate::text_args::parse_effort;

/// What `/help` prints.
pub const HELP: &str = "Commands:
  /help            this text
  /clear           forget the conversation, keep the instructions
  /system [TEXT]   show the instructions, or replace them; /system - removes them
  /think on|off    let the model reason before it answers, or not
  /effort EFFORT   how thoroughly it reasons: low, high, xhigh, max, or 1 to 100
  /save FILE       write the conversation to a file (JSON)
  /load FILE       go on with a conversation from a file
  /regenerate      answer the last message anew
  /stats           figures of the last answer and of the session
  /exit            leave; so does Ctrl-D
  A \\ at the end of a line continues it; \"\"\" on a line of its own begins and ends a longer text.
  A message that begins with / is written with //. Ctrl-C stops an answer and keeps the conversation.";

/// A line, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Nothing.
    Empty,
    /// Something to say to the model.
    Message(String),
    /// `/help`
    Help,
    /// `/clear`
    Clear,
    /// `/system`: show the instructions.
    ShowSystem,
    /// `/system TEXT`; none to remove them.
    System(Option<String>),
    /// `/think on|off`
    Think(bool),
    /// `/effort EFFORT`
    Effort(Effort),
    /// `/save FILE`
    Save(PathBuf),
    /// `/load FILE`
    Load(PathBuf),
    /// `/regenerate`
    Regenerate,
    /// `/stats`
    Stats,
    /// `/exit`
    Exit,
}

/// Understands a line (or several, of one message).
///
/// # Errors
/// Says what is wrong with a command.
pub fn parse(text: &str) -> Result<Input, String> {
    if text.trim().is_empty() {
        return Ok(Input::Empty);
    }
    let Some(command) = text.strip_prefix('/') else { return Ok(Input::Message(text.to_owned())) };
    if command.starts_with('/') {
        return Ok(Input::Message(command.to_owned()));
    }
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    let file = || match rest {
        "" => Err(format!("/{name} needs the name of a file")),
        _ => Ok(PathBuf::from(rest)),
    };
    let input = match name {
        "system" => match rest {
            "" => Input::ShowSystem,
            "-" => Input::System(None),
            _ => Input::System(Some(rest.to_owned())),
        },
        "think" => match rest {
            "on" => Input::Think(true),
            "off" => Input::Think(false),
            _ => return Err("/think needs on or off".to_owned()),
        },
        "effort" => Input::Effort(parse_effort(rest).map_err(|reason| format!("/effort {rest}: {reason}"))?),
        "save" => Input::Save(file()?),
        "load" => Input::Load(file()?),
        _ => {
            let input = match name {
                "help" | "?" => Input::Help,
                "clear" => Input::Clear,
                "regenerate" => Input::Regenerate,
                "stats" => Input::Stats,
                "exit" | "quit" => Input::Exit,
                _ => {
                    return Err(format!(
                        "/{name} is no command; /help lists them (// writes a message that begins with /)"
                    ));
                }
            };
            if !rest.is_empty() {
                return Err(format!("/{name} takes nothing behind it"));
            }
            input
        }
    };
    Ok(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_understood() {
        let file = |name: &str| PathBuf::from(name);
        for (line, expected) in [
            ("", Input::Empty),
            ("  \n", Input::Empty),
            ("Hello /help", Input::Message("Hello /help".to_owned())),
            ("//etc is a folder", Input::Message("/etc is a folder".to_owned())),
            ("a\nb", Input::Message("a\nb".to_owned())),
            ("/help", Input::Help),
            ("/clear ", Input::Clear),
            ("/system", Input::ShowSystem),
            ("/system -", Input::System(None)),
            ("/system Be brief.\nBe kind.", Input::System(Some("Be brief.\nBe kind.".to_owned()))),
            ("/think on", Input::Think(true)),
            ("/think off", Input::Think(false)),
            ("/effort max", Input::Effort(Effort::Max)),
            ("/effort 42", Input::Effort(Effort::Level(42))),
            ("/save a file.json", Input::Save(file("a file.json"))),
            ("/load x", Input::Load(file("x"))),
            ("/regenerate", Input::Regenerate),
            ("/stats", Input::Stats),
            ("/exit", Input::Exit),
            ("/quit", Input::Exit),
        ] {
            assert_eq!(parse(line).as_ref(), Ok(&expected), "{line:?}");
        }
    }

    #[test]
    fn wrong_commands_say_what_is_wrong() {
        for (line, part) in [
            ("/think", "on or off"),
            ("/effort", "1 to 100"),
            ("/effort 0", "1 to 100"),
            ("/effort 101", "1 to 100"),
            ("/save", "name of a file"),
            ("/load  ", "name of a file"),
            ("/stats now", "nothing behind"),
            ("/etc/passwd", "no command"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
