//! What a model can do, measured on fixed sets of questions, greedily.
//!
//! Owns the form of a question (`nano/README.md`) and how an answer is judged. Refuses a question whose prompt is not, id
//! by id, what the set says: another prompt would measure something else.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cachalot_engine::chat::{Turn, TurnError};
use cachalot_engine::engine::Engine;
use cachalot_engine::{Flow, SamplingChoice, Session, TurnOptions, turn};
use cachalot_text::prompt::{self, Prompt, PromptError};
use cachalot_text::request::{Api, RequestError, convert};
use cachalot_text::{Conversation, Tokenizer};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most tokens of an answer, reasoning included.
const MAX_TOKENS: usize = 128;

/// One question.
#[derive(Clone, Debug, Deserialize)]
pub struct Question {
    /// What it asks for; results are summed by it.
    pub ability: String,
    /// Its own name.
    pub name: String,
    /// A chat-completion request.
    pub request: Value,
    /// The prompt's token ids.
    pub prompt_ids: Vec<u32>,
    /// How the answer is judged.
    pub judge: Judge,
}

/// How an answer is judged.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Judge {
    /// The answer is this text.
    Exact {
        /// The text.
        text: String,
    },
    /// Every string occurs in it, as words of their own.
    Contains {
        /// The strings.
        all: Vec<String>,
    },
    /// One call of this tool, with these arguments.
    Call {
        /// The tool.
        name: String,
        /// The arguments.
        arguments: Value,
    },
    /// An answer, and no call.
    NoCall,
    /// A person reads it: it counts for nothing.
    Read,
}

/// How often an ability was shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Score {
    /// Right answers.
    pub right: usize,
    /// Questions asked.
    pub asked: usize,
    /// Questions where a call was wanted and one, and only one, was made, whatever it says.
    pub calls: usize,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AbilityReport {
    /// By ability.
    pub scores: BTreeMap<String, Score>,
    /// Questions with images, which this engine cannot be asked.
    pub skipped: usize,
    /// Answers that a person is to read, and wrong ones if they were asked for: name and text.
    pub answers: Vec<(String, String)>,
}

/// Why a set could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AbilityError {
    /// A file that cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A line that is no question.
    #[error("{path}, line {line}: {source}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A request that cannot be converted.
    #[error("{name}: {source}")]
    Request {
        /// The question.
        name: String,
        /// What is wrong.
        source: RequestError,
    },
    /// A prompt that cannot be written.
    #[error("{name}: {source}")]
    Prompt {
        /// The question.
        name: String,
        /// What is wrong.
        source: PromptError,
    },
    /// Another prompt than the set's.
    #[error("{name}: the prompt differs from the set's at token {at}: the set is of another tokenizer or protocol")]
    OtherPrompt {
        /// The question.
        name: String,
        /// First token that differs.
        at: usize,
    },
    /// The model could not answer.
    #[error("{name}: {source}")]
    Turn {
        /// The question.
        name: String,
        /// What went wrong.
        source: TurnError,
    },
}

/// Reads the questions of a `.jsonl` file.
///
/// # Errors
/// If it cannot be read, or a line is no question.
pub fn questions(path: &Path) -> Result<Vec<Question>, AbilityError> {
    let text = std::fs::read_to_string(path).map_err(|source| AbilityError::File { path: path.to_owned(), source })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let question = |(index, line)| {
        let line_of = |source| AbilityError::Line { path: path.to_owned(), line: index + 1, source };
        serde_json::from_str(line).map_err(line_of)
    };
    lines.map(question).collect()
}

/// Asks `questions`; `keep_wrong` reports wrong answers too, and `on_question` hears how many have been asked.
///
/// # Errors
/// If a request cannot be converted, its prompt is not the set's, or the model fails.
pub fn abilities(
    engine: &Arc<Engine>,
    questions: &[Question],
    keep_wrong: bool,
    on_question: &mut dyn FnMut(usize),
) -> Result<AbilityReport, AbilityError> {
    let mut report = AbilityReport::default();
    for (index, question) in questions.iter().enumerate() {
        match ask(engine, question)? {
            None => report.skipped += 1,
            Some(turn) => report.add(question, &turn, keep_wrong),
        }
        on_question(index + 1);
    }
    Ok(report)
}

/// The conversation of a question and its prompt, which is the set's id by id.
///
/// # Errors
/// If the request cannot be converted, or its prompt is another one.
pub fn prompt_of(tokenizer: &Tokenizer, question: &Question) -> Result<(Conversation, Prompt), AbilityError> {
    let name = || question.name.clone();
    let request = convert(Api::Chat, tokenizer.family(), &question.request.to_string());
    let conversation = request.map_err(|source| AbilityError::Request { name: name(), source })?.conversation;
    let prompt = prompt::encode(tokenizer, &conversation);
    let prompt = prompt.map_err(|source| AbilityError::Prompt { name: name(), source })?;
    if prompt.ids != question.prompt_ids {
        let same = prompt.ids.iter().zip(&question.prompt_ids).take_while(|(ours, theirs)| ours == theirs);
        return Err(AbilityError::OtherPrompt { name: name(), at: same.count() });
    }
    Ok((conversation, prompt))
}

/// The model's answer; `None` if the question shows an image.
fn ask(engine: &Arc<Engine>, question: &Question) -> Result<Option<Turn>, AbilityError> {
    let (conversation, prompt) = prompt_of(engine.tokenizer(), question)?;
    if !prompt.images.is_empty() {
        return Ok(None);
    }
    let sampling = SamplingChoice { temperature: Some(0.0), max_tokens: Some(MAX_TOKENS), ..SamplingChoice::default() };
    let options = TurnOptions { sampling, ..TurnOptions::default() };
    let answered = turn(&mut Session::new(Arc::clone(engine)), &conversation, &options, &mut |_| Flow::Continue);
    answered.map(Some).map_err(|source| AbilityError::Turn { name: question.name.clone(), source })
}

impl AbilityReport {
    fn add(&mut self, question: &Question, turn: &Turn, keep_wrong: bool) {
        let right = question.judge.accepts(turn);
        if right != Some(true) && (right.is_none() || keep_wrong) {
            let calls = turn.calls.iter().map(|call| format!("{}({})", call.name, call.arguments));
            let said = [turn.answer.trim().to_owned()].into_iter().chain(calls).collect::<Vec<_>>().join(" ");
            self.answers.push((question.name.clone(), said));
        }
        if let Some(right) = right {
            let score = self.scores.entry(question.ability.clone()).or_default();
            score.asked += 1;
            score.right += usize::from(right);
            score.calls += usize::from(matches!(question.judge, Judge::Call { .. }) && turn.calls.len() == 1);
        }
    }
}

impl Judge {
    /// Whether the turn is right; `None` if a person has to say.
    pub fn accepts(&self, turn: &Turn) -> Option<bool> {
        let answer = turn.answer.trim();
        Some(match self {
            Self::Exact { text } => answer == text && turn.calls.is_empty(),
            Self::Contains { all } => all.iter().all(|words| contains_words(answer, words)),
            Self::Call { name, arguments } => match &*turn.calls {
                [call] => {
                    let given: Option<Value> = serde_json::from_str(&call.arguments).ok();
                    call.name == *name && given.as_ref() == Some(arguments)
                }
                _ => false,
            },
            Self::NoCall => turn.calls.is_empty() && !answer.is_empty(),
            Self::Read => return None,
        })
    }
}

/// Whether `words` occurs in `text` with no letter or digit before or after it.
fn contains_words(text: &str, words: &str) -> bool {
    text.match_indices(words).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + words.len()..].chars().next();
        ![before, after].into_iter().flatten().any(char::is_alphanumeric)
    })
}

impl fmt::Display for AbilityReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (ability, Score { right, asked, calls }) in &self.scores {
            write!(f, "{ability:<24}{right:>5} of {asked:>4}  {:>5.1} %", 100.0 * *right as f64 / *asked as f64)?;
            if *calls > 0 {
                write!(f, "   ({:.1} % made one call)", 100.0 * *calls as f64 / *asked as f64)?;
            }
            writeln!(f)?;
        }
        if self.skipped > 0 {
            writeln!(f, "{} questions with images were not asked", self.skipped)?;
        }
        for (name, answer) in &self.answers {
            writeln!(f, "  {name}: {answer}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_on_their_own() {
        let cases = [
            ("The capital is Bern.", "Bern", true),
            ("Bernard", "Bern", false),
            ("It is 14.", "14", true),
            ("It is 141.", "14", false),
            ("141 or 14", "14", true),
            ("", "x", false),
            ("São Tomé", "Tomé", true),
        ];
        for (text, words, expected) in cases {
            assert_eq!(contains_words(text, words), expected, "{words} in {text}");
        }
    }

    #[test]
    fn judges_are_read_as_the_sets_write_them() {
        let read = |text: &str| serde_json::from_str::<Judge>(text);
        assert_eq!(read(r#"{"kind": "contains", "all": ["a"]}"#).unwrap(), Judge::Contains { all: vec!["a".into()] });
        assert_eq!(read(r#"{"kind": "no_call"}"#).unwrap(), Judge::NoCall);
        assert!(read(r#"{"kind": "call", "name": "f", "arguments": {"x": 1}}"#).is_ok());
        assert!(read(r#"{"kind": "guess"}"#).is_err());
    }
}
