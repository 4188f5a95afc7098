//! `cachalot serve`: the HTTP server.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use cachalot_engine::planner::units::parse_bytes;
use cachalot_engine::{Scheduler, SchedulerOptions};
use cachalot_server::{Backend, DEFAULT_PORT, Keys, Limits, ModelCard, Server, ServerOptions};
use cachalot_text::conversation::EffortTexts;
use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};
use tracing::Level;

use crate::cli::{EngineArgs, KeepArgs, ModelArgs};
use crate::text_args::EffortTextsArg;
use crate::{open, output};

const AFTER: &str = "\
Examples:
  cachalot serve                                        the small model that ships, http://127.0.0.1:8080
  cachalot serve --model DIR --port 9000
  cachalot serve --model DIR --host 0.0.0.0 --api-key-file keys.txt
  cachalot serve --config server.toml                   model = \"DIR\", port = 9000, allow-host = [\"box.lan\"]

Programs for OpenAI's APIs need the base URL http://127.0.0.1:8080/v1, those for Anthropic's http://127.0.0.1:8080; any key \
will do unless keys are given. The page at / is a chat in the browser.

Every flag can also be an environment variable (CACHALOT_ and its name in capitals, as in CACHALOT_API_KEY_FILE; several \
values with commas between) or a line of the TOML file. What the command line says of a flag replaces what the environment \
says, and that what the file says, lists and switches (CACHALOT_OPEN=false) included.

SIGINT and SIGTERM stop the server: what runs may finish for the time of --grace. A second one cuts it off.";

/// Serve the model over HTTP: the APIs of OpenAI and Anthropic, and a chat page
#[derive(Debug, Args)]
#[command(after_help = AFTER, args_override_self = true)]
pub struct ServeArgs {
    /// Read flags from this TOML file
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub config: Option<PathBuf>,

    /// Address to listen at; one that others can reach needs keys or --open
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: IpAddr,

    /// Port to listen at; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = DEFAULT_PORT)]
    pub port: u16,

    /// The model's name in the APIs; that of its directory if not given
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Another name that it answers to (repeatable)
    #[arg(long, value_name = "NAME")]
    pub alias: Vec<String>,

    #[command(flatten)]
    pub access: AccessArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub logs: LogArgs,
    #[command(flatten)]
    pub text: ServeTextArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub keep: KeepArgs,
}

/// Who is let in.
#[derive(Debug, Args)]
#[command(next_help_heading = "Access")]
pub struct AccessArgs {
    /// A key that clients must bring (repeatable); others on this machine may see it here: prefer a file
    #[arg(long, value_name = "KEY")]
    pub api_key: Vec<String>,

    /// A file of such keys, one a line
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub api_key_file: Option<PathBuf>,

    /// Let everybody who can reach the address use the model without a key
    #[arg(long)]
    pub open: bool,

    /// A name under which the server is reached, besides addresses and localhost (repeatable)
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,

    /// The origin of a page elsewhere that may ask, such as https://app.example (repeatable)
    #[arg(long, value_name = "ORIGIN")]
    pub allow_origin: Vec<String>,
}

/// How much is done at once, and for how long.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Answers in the making at once
    #[arg(long, value_name = "N", default_value_t = SchedulerOptions::default().sequences, value_parser = at_least_one)]
    pub parallel: usize,

    /// Requests that may wait while no more can be answered at once; 0 for none
    #[arg(long, value_name = "N", default_value_t = SchedulerOptions::default().waiting)]
    pub queue: usize,

    /// Largest body of a request
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = parse_bytes)]
    pub max_body: u64,

    /// Seconds that the body of a request may take to arrive, and that it may wait for room before
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().body_time.as_secs(), value_parser = seconds_from(1))]
    pub body_timeout: u64,

    /// Seconds that a client may read nothing at all while there is something for it
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().unread_time.as_secs(), value_parser = seconds_from(1))]
    pub unread_timeout: u64,

    /// Seconds that an answer may take from its request on; any time if not given
    #[arg(long, value_name = "SECONDS", value_parser = seconds_from(1))]
    pub request_timeout: Option<u64>,

    /// Seconds between signs of life to those who wait
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = seconds_from(1))]
    pub keep_alive: u64,

    /// Seconds that answers may go on after the server was told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = seconds_from(0))]
    pub grace: u64,

    /// Connections at once; further clients wait until one ends
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1 << 20))]
    pub max_connections: usize,

    /// Memory for responses that may be gone on from (`previous_response_id`); the oldest are dropped first
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = parse_bytes)]
    pub max_stored: u64,
}

/// Seconds from `least` to a year: no point in time that a program reckons with is out of reach.
fn seconds_from(least: u64) -> RangedU64ValueParser {
    const YEAR: u64 = 365 * 24 * 3600;
    clap::value_parser!(u64).range(least..=YEAR)
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("must be a number from 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// What is written to standard error.
#[derive(Debug, Args)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// How much is logged
    #[arg(long, value_enum, default_value_t)]
    pub log_level: LogLevel,

    /// How a line looks
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,

    /// Log what is asked, too
    #[arg(long)]
    pub log_prompts: bool,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// What went wrong
    Warn,
    /// A line per request and per answer
    #[default]
    Info,
    /// Connections, too
    Debug,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// How the model is spoken to where a request does not say.
#[derive(Debug, Args)]
#[command(next_help_heading = "Conversation")]
pub struct ServeTextArgs {
    /// Let the model reason unless a request says no (the default, but for the model that ships)
    #[arg(long, overrides_with = "no_think")]
    pub think: bool,

    /// Let it reason only if a request says so
    #[arg(long, overrides_with = "think")]
    pub no_think: bool,

    /// V4: which texts the model knows for its efforts; see `cachalot run --help`
    #[arg(long, value_enum, value_name = "BUILD")]
    pub effort_texts: Option<EffortTextsArg>,
}

/// Serves until it is told to stop.
///
/// # Errors
/// If the model cannot be opened, the address cannot be had, or a key file cannot be read.
pub fn serve(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    start_log(&args.logs);
    let options = options(args)?;
    let name = match (&args.name, &args.model.model) {
        (Some(name), _) => name.clone(),
        (None, Some(path)) => directory_name(path)?,
        (None, None) => "cachalot-nano".to_owned(),
    };
    let engine = Arc::new(open::keeping(&args.model, &args.engine, args.keep, false)?);
    if let Some(store) = engine.prefix_store() {
        store.tell(|note| output::tell(Level::WARN, note));
    }
    let thinks = if args.model.thinks() { !args.text.no_think } else { args.text.think };
    let mut card = ModelCard::new(&engine, name, thinks);
    card.aliases.clone_from(&args.alias);
    match args.text.effort_texts {
        Some(EffortTextsArg::Preview) => card.effort_texts = EffortTexts::Preview,
        Some(EffortTextsArg::Release) => card.effort_texts = EffortTexts::Release,
        None => {}
    }
    let scheduling =
        SchedulerOptions { sequences: args.limits.parallel, waiting: args.limits.queue, ..SchedulerOptions::default() };
    let scheduler = Scheduler::start(Arc::clone(&engine), scheduling).context("no thread for the model")?;
    let id = card.id.clone();
    let server = Server::bind(card, Arc::new(scheduler) as Arc<dyn Backend>, options)?;
    let listening = format!("{id} at http://{} (chat page; the APIs are under /v1)", server.address());
    output::tell(Level::INFO, &listening);
    server.run_until_told()?;
    open::remember(&engine, &args.model);
    Ok(ExitCode::SUCCESS)
}

fn options(args: &ServeArgs) -> anyhow::Result<ServerOptions> {
    let seconds = Duration::from_secs;
    let body_bytes = usize::try_from(args.limits.max_body).unwrap_or(usize::MAX);
    if body_bytes > cachalot_text::request::MAX_BODY_BYTES {
        bail!("--max-body can be {} MiB at most", cachalot_text::request::MAX_BODY_BYTES >> 20);
    }
    let limits = Limits::default();
    Ok(ServerOptions {
        address: SocketAddr::new(args.host, args.port),
        keys: keys(&args.access)?,
        open: args.access.open,
        allowed_hosts: args.access.allow_host.clone(),
        allowed_origins: args.access.allow_origin.clone(),
        keep_alive: seconds(args.limits.keep_alive),
        grace: seconds(args.limits.grace),
        request_timeout: args.limits.request_timeout.map(seconds),
        log_prompts: args.logs.log_prompts,
        limits: Limits {
            body_bytes,
            // Bodies of the largest size must find room.
            bodies_bytes: limits.bodies_bytes.max(body_bytes),
            body_time: seconds(args.limits.body_timeout),
            unread_time: seconds(args.limits.unread_timeout),
            connections: args.limits.max_connections,
            stored_bytes: usize::try_from(args.limits.max_stored).unwrap_or(usize::MAX),
            ..limits
        },
    })
}

fn keys(args: &AccessArgs) -> anyhow::Result<Keys> {
    let mut keys = args.api_key.clone();
    if let Some(path) = &args.api_key_file {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read keys from {}", path.display()))?;
        keys.extend(text.lines().map(str::to_owned));
        if Keys::new(&keys).is_empty() {
            bail!("{} holds no key", path.display());
        }
    }
    Ok(Keys::new(keys))
}

/// The name of a directory, however it was written.
fn directory_name(path: &Path) -> anyhow::Result<String> {
    open::check_directory(path)?;
    let path = path.canonicalize().with_context(|| format!("there is no model at {}", path.display()))?;
    Ok(path.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned()))
}

fn start_log(args: &LogArgs) {
    let level = match args.log_level {
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
    };
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false);
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
    match args.log_format {
        LogFormat::Text => log.with_ansi(colours).init(),
        LogFormat::Json => {
            log.json().init();
            std::panic::set_hook(Box::new(|panic| output::tell(Level::ERROR, &panic.to_string())));
        }
    }
}
