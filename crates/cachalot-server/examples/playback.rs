//! A server that says what a script says: everything is the real server's, only the model's words are given.
//!
//!     playback SCRIPT LOG
//!
//! For tests with programs that must be told something certain, such as a tool call (tests/clients). Owns the script, the
//! choice of a turn for a request, and its tokens; tokenizer, context and prompt format are those of the model that ships.
//! The script is a JSON object: `thinks` (whether the model reasons where a request does not say), `turns`. A request gets
//! the first unplayed turn whose `after` occurs in what follows the last answer in the prompt and whose `within` occurs
//! anywhere in it. Each request leaves a line of JSON in the log, with `turn` null if none fitted it.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cachalot_engine::sampling::LogProb;
use cachalot_engine::scheduler::{Job, JobEvent, Status, SubmitError};
use cachalot_engine::session::{Finish, Outcome};
use cachalot_engine::stats::StatsReport;
use cachalot_engine::{Engine, EngineOptions, Flow};
use cachalot_server::{Backend, ModelCard, Server, ServerOptions};
use cachalot_storage::Spread;
use cachalot_text::{Tokenizer, TokenizerError};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// What is said where no turn fits.
const NOTHING: &str = "Nothing is scripted for this request.";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    #[serde(default)]
    thinks: bool,
    turns: Vec<Turn>,
}

/// What the model says in answer to one request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    #[serde(default)]
    after: String,
    #[serde(default)]
    within: String,
    /// Whether it is said as often as it fits.
    #[serde(default)]
    again: bool,
    /// Left out if the request wants none.
    #[serde(default)]
    reasoning: String,
    #[serde(default)]
    text: String,
    #[serde(default)]
    calls: Vec<Call>,
    /// Between tokens.
    #[serde(default)]
    pause_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    name: String,
    arguments: Map<String, Value>,
}

/// Text and markers to ids: text between two markers is one piece (protocol.md 1.5).
struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    text: String,
}

impl Writer<'_> {
    fn marker(&mut self, id: u32) -> Result<(), TokenizerError> {
        self.tokenizer.encode_plain_into(&self.text, &mut self.ids)?;
        self.text.clear();
        self.ids.push(id);
        Ok(())
    }

    /// `<`, the marker, and the rest of a tag (protocol.md 2.1, V4.1).
    fn tag(&mut self, before: &str, rest: &str) -> Result<(), TokenizerError> {
        self.text += before;
        self.marker(self.tokenizer.markers().dsml)?;
        self.text += rest;
        Ok(())
    }

    fn call(&mut self, call: &Call) -> Result<(), TokenizerError> {
        self.tag("<", &format!(" invoke name=\"{}\">\n", call.name))?;
        for (index, (key, value)) in call.arguments.iter().enumerate() {
            let (is_string, value) = match value {
                Value::String(text) => (true, text.clone()),
                other => (false, other.to_string()),
            };
            let before = if index == 0 { "<" } else { "\n<" };
            self.tag(before, &format!(" parameter name=\"{key}\" string=\"{is_string}\">{value}"))?;
            self.tag("</", " parameter>")?;
        }
        self.tag("\n</", " invoke>")
    }
}

impl Turn {
    fn ids(&self, tokenizer: &Tokenizer, thinking: bool) -> Result<Vec<u32>, TokenizerError> {
        let mut writer = Writer { tokenizer, ids: Vec::new(), text: String::new() };
        if thinking {
            writer.text += &self.reasoning;
            writer.marker(tokenizer.markers().think_close)?;
        }
        writer.text += &self.text;
        for (index, call) in self.calls.iter().enumerate() {
            if index == 0 {
                writer.tag("\n\n<", " calls>\n")?;
            } else {
                writer.text += "\n";
            }
            writer.call(call)?;
        }
        if !self.calls.is_empty() {
            writer.tag("\n</", " calls>")?;
        }
        tokenizer.encode_plain_into(&writer.text, &mut writer.ids)?;
        Ok(writer.ids)
    }
}

/// What has happened.
struct State {
    played: Vec<bool>,
    /// Prompts and what was said after them.
    seen: Vec<Vec<u32>>,
    log: File,
    status: Status,
    stopping: bool,
}

struct Playback {
    script: Script,
    tokenizer: Arc<Tokenizer>,
    state: Mutex<State>,
}

impl Playback {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn for a prompt, which is marked as played.
    fn choose(&self, prompt: &[u32]) -> Result<(Option<usize>, String), TokenizerError> {
        let user = self.tokenizer.markers().user;
        let last = prompt.iter().rposition(|id| *id == user).unwrap_or(0);
        let (whole, tail) = (self.tokenizer.decode(prompt)?, self.tokenizer.decode(&prompt[last..])?);
        let mut state = self.state();
        let turn = self.script.turns.iter().enumerate().position(|(index, turn)| {
            !state.played[index] && tail.contains(&turn.after) && whole.contains(&turn.within)
        });
        if let Some(turn) = turn {
            state.played[turn] = !self.script.turns[turn].again;
        }
        Ok((turn, whole))
    }

    /// Plays a turn to its end.
    fn play(&self, mut job: Job) -> anyhow::Result<()> {
        let start = Instant::now();
        let (index, prompt) = self.choose(&job.prompt)?;
        let nothing: Turn = serde_json::from_value(json!({"text": NOTHING}))?;
        let turn = index.map_or(&nothing, |index| &self.script.turns[index]);
        let thinking = job.prompt.last() == Some(&self.tokenizer.markers().think_open);
        let ids = turn.ids(&self.tokenizer, thinking)?;
        let known = self.state().seen.iter().map(|seen| common(seen, &job.prompt)).max().unwrap_or(0);
        let (finish, played) = tell(&mut job, &ids, known, Duration::from_millis(turn.pause_ms));
        let prompt_tokens = job.prompt.len();
        {
            let mut state = self.state();
            state.status.finished += 1;
            state.status.generated_tokens += played as u64;
            state.status.prompt_tokens += prompt_tokens as u64;
            let line = json!({
                "turn": index, "prompt": prompt, "prompt_tokens": prompt_tokens, "known_tokens": known,
                "played_tokens": played, "thinking": thinking, "max_tokens": job.request.max_tokens,
                "temperature": job.request.sampling.temperature, "finish": format!("{finish:?}"),
            });
            writeln!(state.log, "{line}")?;
            job.prompt.extend_from_slice(&ids[..played]);
            state.seen.push(std::mem::take(&mut job.prompt));
        }
        let took = start.elapsed();
        (job.sink)(JobEvent::End(Ok(Outcome {
            finish,
            prompt_tokens,
            cached_tokens: known,
            generated_tokens: played,
            prefill_time: took,
            time_to_first_token: took,
            decode_time: took,
        })));
        Ok(())
    }
}

/// Tells a job's sink of its prompt and of `ids`; why it ended, and how many were told.
fn tell(job: &mut Job, ids: &[u32], known: usize, pause: Duration) -> (Finish, usize) {
    if (job.sink)(JobEvent::Prefill { done: known, total: job.prompt.len() }) == Flow::Cancel {
        return (Finish::Cancelled, 0);
    }
    if job.request.prompt_logprobs.is_some() {
        for &id in &job.prompt[1..] {
            (job.sink)(JobEvent::PromptToken { logprob: LogProb { id, logprob: 0.0 }, top: &[] });
        }
        (job.sink)(JobEvent::Prefill { done: job.prompt.len(), total: job.prompt.len() });
    }
    for (played, &id) in ids.iter().enumerate() {
        if played == job.request.max_tokens {
            return (Finish::Length, played);
        }
        let likely: Vec<LogProb> =
            (0..job.request.top_logprobs.unwrap_or(0)).map(|rank| LogProb { id, logprob: -(rank as f64) }).collect();
        let logprobs = job.request.top_logprobs.map(|_| (LogProb { id, logprob: 0.0 }, likely.as_slice()));
        match (job.sink)(JobEvent::Token { id, logprobs }) {
            Flow::Continue => std::thread::sleep(pause),
            Flow::Stop => return (Finish::Stopped, played + 1),
            Flow::Cancel => return (Finish::Cancelled, played + 1),
        }
    }
    (Finish::EndOfAnswer, ids.len())
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Each job on a thread of its own.
struct Threads(Arc<Playback>);

impl Backend for Threads {
    fn submit(&self, job: Job) -> Result<(), SubmitError> {
        if self.0.state().stopping {
            return Err(SubmitError::Stopping);
        }
        let playback = Arc::clone(&self.0);
        std::thread::spawn(move || {
            if let Err(error) = playback.play(job) {
                eprintln!("playback: {error:#}");
            }
        });
        Ok(())
    }

    fn status(&self) -> Status {
        self.0.state().status
    }

    fn stats(&self) -> Option<StatsReport> {
        None
    }

    fn stop(&self, _: Duration) {
        self.0.state().stopping = true;
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [script, log] = arguments.as_slice() else { bail!("playback SCRIPT LOG") };
    let text = std::fs::read_to_string(script).with_context(|| format!("cannot read {script}"))?;
    let script: Script = serde_json::from_str(&text).with_context(|| format!("{script} is no script"))?;
    let log = File::create(log).with_context(|| format!("cannot write {log}"))?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
    let options = EngineOptions { threads: Some(1), ..EngineOptions::default() };
    let engine = Engine::open(Arc::new(Spread::new([folder.as_path()])), &options, &mut |_| ())?;
    let card = ModelCard::new(&engine, "playback".to_owned(), script.thinks);
    let (tokenizer, played) = (Arc::clone(&card.tokenizer), vec![false; script.turns.len()]);
    let state = State { played, seen: Vec::new(), log, status: Status::default(), stopping: false };
    let backend = Threads(Arc::new(Playback { script, tokenizer, state: Mutex::new(state) }));
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::bind(card, Arc::new(backend), ServerOptions { address, ..ServerOptions::default() })?;
    println!("http://{}", server.address());
    server.run_until_told()?;
    Ok(())
}
