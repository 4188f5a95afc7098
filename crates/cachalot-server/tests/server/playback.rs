//! A backend that plays given tokens, and servers to test with.

use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cachalot_engine::sampling::LogProb;
use cachalot_engine::scheduler::{Job, JobError, JobEvent, Status, SubmitError};
use cachalot_engine::session::{Finish, Outcome, Request};
use cachalot_engine::stats::StatsReport;
use cachalot_engine::{Constraints, Flow};
use cachalot_server::{Backend, ModelCard, Server, ServerOptions};
use cachalot_text::conversation::EffortTexts;
use cachalot_text::{Family, Tokenizer, TokenizerProfile};
use tokio::sync::watch;

/// What is played next.
#[derive(Clone, Debug, Default)]
pub struct Play {
    pub ids: Vec<u32>,
    /// Whether the token limit ends it.
    pub length: bool,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    /// Time between tokens.
    pub pause: Duration,
    /// Time before anything happens.
    pub delay: Duration,
    /// Whether it ends with an error.
    pub fails: bool,
}

/// Plays.
#[derive(Default)]
pub struct Playback {
    play: Mutex<Play>,
    /// What was asked for: prompts and requests.
    asked: Mutex<Vec<(Vec<u32>, Request)>>,
    /// How jobs ended.
    ends: Mutex<Vec<(Finish, usize)>>,
    stopping: Mutex<bool>,
    running: AtomicUsize,
}

impl Playback {
    pub fn set(&self, play: Play) {
        *self.play.lock().unwrap() = play;
    }

    /// Plays these ids to their end.
    pub fn plays(&self, ids: &[u32]) {
        self.set(Play { ids: ids.to_vec(), prompt_tokens: 10, cached_tokens: 4, ..Play::default() });
    }

    pub fn last_asked(&self) -> (Vec<u32>, Request) {
        self.asked.lock().unwrap().last().expect("something was asked").clone()
    }

    pub fn is_stopping(&self) -> bool {
        *self.stopping.lock().unwrap()
    }

    pub fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// Waits for the end of a job; how it ended and how many tokens were played.
    pub fn end(&self) -> (Finish, usize) {
        let start = Instant::now();
        loop {
            if let Some(end) = self.ends.lock().unwrap().pop() {
                return end;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "no job ends");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Backend for Playback {
    fn submit(&self, job: Job) -> Result<(), SubmitError> {
        if *self.stopping.lock().unwrap() {
            return Err(SubmitError::Stopping);
        }
        self.asked.lock().unwrap().push((job.prompt.clone(), job.request.clone()));
        let play = self.play.lock().unwrap().clone();
        self.running.fetch_add(1, Ordering::Relaxed);
        play_job(play, job, |finish, tokens| self.ends.lock().unwrap().push((finish, tokens)));
        self.running.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }

    fn status(&self) -> Status {
        Status { running: 1, generated_tokens: 7, kept_tokens: 900, ..Status::default() }
    }

    fn stats(&self) -> Option<StatsReport> {
        None
    }

    fn stop(&self, grace: Duration) {
        *self.stopping.lock().unwrap() = true;
        let start = Instant::now();
        while self.running.load(Ordering::Relaxed) > 0 && start.elapsed() < grace {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What plays slowly plays on a thread of its own.
pub struct Slowly(pub Arc<Playback>);

impl Backend for Slowly {
    fn submit(&self, job: Job) -> Result<(), SubmitError> {
        if self.0.is_stopping() {
            return Err(SubmitError::Stopping);
        }
        let playback = Arc::clone(&self.0);
        std::thread::spawn(move || playback.submit(job));
        Ok(())
    }

    fn status(&self) -> Status {
        self.0.status()
    }

    fn stats(&self) -> Option<StatsReport> {
        None
    }

    fn stop(&self, grace: Duration) {
        self.0.stop(grace);
    }
}

fn play_job(play: Play, mut job: Job, ended: impl FnOnce(Finish, usize)) {
    std::thread::sleep(play.delay);
    let top = job.request.top_logprobs;
    let probable = |id: u32, count: usize| -> Vec<LogProb> {
        (0..count as u32).map(|rank| LogProb { id: id + rank, logprob: -f64::from(rank) }).collect()
    };
    let (mut finish, mut played) = (if play.length { Finish::Length } else { Finish::EndOfAnswer }, 0);
    if (job.sink)(JobEvent::Prefill { done: play.cached_tokens, total: play.prompt_tokens }) == Flow::Cancel {
        finish = Finish::Cancelled;
    } else {
        if let Some(top) = job.request.prompt_logprobs {
            for (index, &id) in job.prompt.iter().enumerate().skip(1) {
                let logprob = LogProb { id, logprob: -(index as f64) };
                (job.sink)(JobEvent::PromptToken { logprob, top: &probable(id + 1, top) });
            }
            (job.sink)(JobEvent::Prefill { done: play.prompt_tokens, total: play.prompt_tokens });
        }
        for &id in &play.ids {
            if played >= job.request.max_tokens {
                finish = Finish::Length;
                break;
            }
            let probable = probable(id, top.unwrap_or(0));
            let logprobs = top.map(|_| (LogProb { id, logprob: -0.5 }, probable.as_slice()));
            played += 1;
            match (job.sink)(JobEvent::Token { id, logprobs }) {
                Flow::Continue => std::thread::sleep(play.pause),
                Flow::Stop => {
                    finish = Finish::Stopped;
                    break;
                }
                Flow::Cancel => {
                    finish = Finish::Cancelled;
                    break;
                }
            }
        }
    }
    if let Some(top) = top.filter(|_| finish == Finish::EndOfAnswer) {
        (job.sink)(JobEvent::EndToken { logprob: LogProb { id: 1, logprob: -0.75 }, top: &probable(1, top) });
    }
    let outcome = Outcome {
        finish,
        prompt_tokens: play.prompt_tokens,
        cached_tokens: play.cached_tokens,
        generated_tokens: played,
        prefill_time: Duration::from_millis(1),
        time_to_first_token: Duration::from_millis(1),
        decode_time: Duration::from_millis(1),
    };
    (job.sink)(JobEvent::End(if play.fails { Err(JobError::TimedOut) } else { Ok(outcome) }));
    ended(finish, played);
}

/// A server that runs until it is dropped.
pub struct Running {
    pub address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub fn start(card: ModelCard, backend: Arc<dyn Backend>, options: ServerOptions) -> Self {
        let options = ServerOptions { address: SocketAddr::from(([127, 0, 0, 1], 0)), ..options };
        let server = Server::bind(card, backend, options).expect("binds");
        let address = server.address();
        let (stop, stopped) = watch::channel(false);
        Self { address, stop, thread: Some(std::thread::spawn(move || server.run(stopped))) }
    }

    /// Tells the server to stop, and waits until it has.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends well");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.end();
        }
    }
}

/// A server with a playback of its own.
pub fn playing(family: Family, options: ServerOptions) -> (Running, Arc<Playback>) {
    let playback = Arc::new(Playback::default());
    let backend = Arc::new(Slowly(Arc::clone(&playback)));
    (Running::start(card(family), backend, options), playback)
}

pub fn card(family: Family) -> ModelCard {
    ModelCard {
        id: "deepseek-local".to_owned(),
        aliases: vec!["alias".to_owned()],
        tokenizer: released(family),
        constraints: Arc::new(Constraints::new(released(family))),
        context: 131_072,
        effort_texts: EffortTexts::Release,
        thinks: true,
        images: false,
        created: 0,
    }
}

pub fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../..", name].iter().collect()
}

/// The lines of a fixture file.
pub fn lines(name: &str) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path("fixtures/protocol").join(name)).expect("the fixture is there");
    text.lines().map(|line| serde_json::from_str(line).expect("fixtures are JSON")).collect()
}

pub fn family(line: &serde_json::Value) -> Family {
    if line["model"] == "v4" { Family::V4 } else { Family::V41 }
}

/// The released tokenizers.
pub fn released(family: Family) -> Arc<Tokenizer> {
    static V4: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| load(Family::V4, "v4", None));
    static V41: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| load(Family::V41, "v41", Some(129_264)));
    Arc::clone(match family {
        Family::V4 => &V4,
        Family::V41 => &V41,
    })
}

fn load(family: Family, name: &str, image_token_id: Option<u32>) -> Arc<Tokenizer> {
    let packed = std::fs::read(path(&format!("fixtures/protocol/tokenizer-{name}.json.gz"))).expect("there");
    let mut json = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut json).expect("unpacks");
    let profile = TokenizerProfile { family, vocab_size: 129_280, image_token_id, noise_token_id: Some(128_799) };
    Arc::new(Tokenizer::from_json(&json, &profile).expect("loads"))
}

/// The ids that a model would write for `text`, in which control tokens are spelled out.
pub fn written(family: Family, text: &str) -> Vec<u32> {
    released(family).encode_with_added(text).expect("encodes")
}
