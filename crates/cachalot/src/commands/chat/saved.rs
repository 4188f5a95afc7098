//! Conversations in files: JSON with messages as chat programs write them. Reading checks everything before anything
//! of the present conversation is touched.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, bail};
use cachalot_text::conversation::{Content, Conversation, Effort, Message, Span};
use serde::{Deserialize, Serialize};

use crate::text_args::parse_effort;

/// Largest file that is read.
const MAX_BYTES: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    thinking: bool,
    effort: String,
    messages: Vec<SavedMessage>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "lowercase", deny_unknown_fields)]
enum SavedMessage {
    System {
        content: String,
    },
    User {
        content: String,
    },
    Assistant {
        content: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reasoning_content: Option<String>,
    },
}

/// Writes a conversation. An older file of that name is replaced only by a complete new one.
///
/// # Errors
/// If it cannot be written.
pub fn save(conversation: &Conversation, path: &Path) -> anyhow::Result<()> {
    let effort = match conversation.effort {
        Effort::Low => "low".to_owned(),
        Effort::High => "high".to_owned(),
        Effort::Xhigh => "xhigh".to_owned(),
        Effort::Max => "max".to_owned(),
        Effort::Level(level) => level.to_string(),
    };
    let messages = conversation.messages.iter().filter_map(saved_message).collect();
    let mut json = serde_json::to_string_pretty(&Saved { thinking: conversation.thinking, effort, messages })?;
    json.push('\n');
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let write = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        // What was said is its user's business.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&part)?;
        file.write_all(json.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&part, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Reads messages, thinking and effort into a conversation like `like`.
///
/// # Errors
/// If the file cannot be read or is no saved conversation.
pub fn load(path: &Path, like: &Conversation) -> anyhow::Result<Conversation> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut json = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut json).with_context(|| format!("cannot read {}", path.display()))?;
    if json.len() as u64 > MAX_BYTES {
        bail!("{} has more than {MAX_BYTES} bytes", path.display());
    }
    let bad = || format!("{} is not a saved conversation", path.display());
    let saved: Saved = serde_json::from_slice(&json).with_context(bad)?;
    let effort = parse_effort(&saved.effort).map_err(|reason| anyhow::anyhow!("effort {reason}")).with_context(bad)?;
    let messages = saved.messages.into_iter().map(|message| match message {
        SavedMessage::System { content } => Message::system(content),
        SavedMessage::User { content } => Message::user(content),
        SavedMessage::Assistant { content, reasoning_content } => Message::assistant(content, reasoning_content),
    });
    Ok(Conversation { messages: messages.collect(), thinking: saved.thinking, effort, ..like.clone() })
}

/// A message as it is saved; a chat has only these three kinds.
fn saved_message(message: &Message) -> Option<SavedMessage> {
    match message {
        Message::System { content, .. } => Some(SavedMessage::System { content: text(content) }),
        Message::User { content, .. } => Some(SavedMessage::User { content: text(content) }),
        Message::Assistant { content, reasoning, .. } => {
            Some(SavedMessage::Assistant { content: content.clone(), reasoning_content: reasoning.clone() })
        }
        Message::Developer { .. } | Message::Tool { .. } | Message::LatestReminder { .. } => None,
    }
}

/// The text of a message of this chat, which never holds images.
pub fn text(content: &Content) -> String {
    let text = |span: &Span| match span {
        Span::Text(text) => text.clone(),
        Span::Image(_) => String::new(),
    };
    content.spans.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("c.json");
        for effort in [Effort::Low, Effort::High, Effort::Xhigh, Effort::Max, Effort::Level(7)] {
            let conversation = Conversation {
                messages: vec![
                    Message::system("Be brief."),
                    Message::user("a \"b\"\n\u{1F40B}"),
                    Message::assistant("c", Some("why".to_owned())),
                    Message::user("d"),
                    Message::assistant("", None),
                ],
                thinking: effort != Effort::Low,
                effort,
                ..Conversation::default()
            };
            save(&conversation, &path).expect("written");
            assert_eq!(load(&path, &Conversation::default()).expect("read"), conversation);
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "no other file is left");
    }

    #[test]
    fn other_files_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("c.json");
        for json in [
            "",
            "[]",
            "{\"thinking\": true, \"effort\": \"high\"}",
            "{\"thinking\": true, \"effort\": \"much\", \"messages\": []}",
            "{\"thinking\": true, \"effort\": \"high\", \"messages\": [{\"role\": \"tool\", \"content\": \"x\"}]}",
            "{\"thinking\": true, \"effort\": \"high\", \"messages\": [{\"role\": \"user\"}]}",
        ] {
            std::fs::write(&path, json).expect("written");
            let error = format!("{:#}", load(&path, &Conversation::default()).expect_err(json));
            assert!(error.contains("c.json is not a saved conversation"), "{error}");
        }
        assert!(load(&folder.path().join("absent"), &Conversation::default()).is_err());
        assert!(save(&Conversation::default(), &folder.path().join("no/such/folder")).is_err());
    }
}
