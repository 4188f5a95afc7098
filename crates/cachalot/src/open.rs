//! From the command line to an open engine, with a progress bar.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use cachalot_checkpoint::Checkpoint;
use cachalot_engine::{Ablation, CacheChoice, Engine, EngineOptions, KeepOptions};
use cachalot_storage::{FaultyFiles, Files, Plan, Spread};
use tracing::Level;

use crate::cli::{Arithmetic, EngineArgs, KeepArgs, ModelArgs};
use crate::terminal::Bar;
use crate::{builtin, interrupt, output};

/// What holds where the command line says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    /// How linear layers treat their inputs.
    pub arithmetic: Arithmetic,
    /// How keys and entries are kept.
    pub cache: CacheChoice,
}

impl Defaults {
    /// For answers.
    pub const ANSWER: Self = Self { arithmetic: Arithmetic::Fast, cache: CacheChoice::Vendor };
    /// For comparison with a reference.
    pub const REFERENCE: Self = Self { arithmetic: Arithmetic::Exact, cache: CacheChoice::Reference };
}

/// Opens the model of a directory.
///
/// # Errors
/// If there is no such directory, or what it holds is not complete and sound.
pub fn directory(path: &Path, args: &EngineArgs, defaults: Defaults) -> anyhow::Result<Engine> {
    checked(path, args, defaults, Extras::default())
}

/// What only some commands ask for.
#[derive(Default)]
struct Extras {
    ablation: Ablation,
    keep: Option<KeepOptions>,
}

fn checked(path: &Path, args: &EngineArgs, defaults: Defaults, extras: Extras) -> anyhow::Result<Engine> {
    open(spread(path, &args.also)?, args, defaults, extras)
        .with_context(|| format!("cannot run the model in {}", path.display()))
}

/// Opens the model that was asked for, or the one that ships; says so unless `quiet`.
///
/// # Errors
/// As [`directory`].
pub fn model(model: &ModelArgs, args: &EngineArgs, quiet: bool) -> anyhow::Result<Engine> {
    answering(model, args, quiet, Extras::default())
}

/// Opens it with states kept on the disk as `keep` says.
///
/// # Errors
/// As [`directory`].
pub fn keeping(model: &ModelArgs, args: &EngineArgs, keep: KeepArgs, quiet: bool) -> anyhow::Result<Engine> {
    let directory = cache_directory().filter(|_| keep.keep > 0);
    let keep = directory.map(|directory| KeepOptions { directory, bytes: keep.keep });
    answering(model, args, quiet, Extras { keep, ..Extras::default() })
}

/// Opens it with parts of the model left out.
///
/// # Errors
/// As [`directory`].
pub fn ablated(model: &ModelArgs, args: &EngineArgs, quiet: bool, ablation: Ablation) -> anyhow::Result<Engine> {
    answering(model, args, quiet, Extras { ablation, ..Extras::default() })
}

fn answering(model: &ModelArgs, args: &EngineArgs, quiet: bool, extras: Extras) -> anyhow::Result<Engine> {
    match &model.model {
        Some(path) => checked(path, args, Defaults::ANSWER, extras),
        None => {
            if !quiet {
                output::tell(Level::INFO, builtin::NOTE);
            }
            open(Arc::new(builtin::nano()), args, Defaults::ANSWER, extras)
        }
    }
}

/// Opens what there is of a checkpoint in `path` and in `also`, without its data.
///
/// # Errors
/// If one is no directory, or what they hold is not sound.
pub fn headers(path: &Path, also: &[PathBuf]) -> anyhow::Result<Checkpoint> {
    Checkpoint::open_headers(spread(path, also)?).with_context(|| format!("cannot read {}", path.display()))
}

/// The files in `path` and in `also`.
fn spread(path: &Path, also: &[PathBuf]) -> anyhow::Result<Arc<dyn Files>> {
    let paths = || [path].into_iter().chain(also.iter().map(PathBuf::as_path));
    paths().try_for_each(check_directory)?;
    Ok(Arc::new(Spread::new(paths())))
}

/// A better word for the commonest mistake than "config.json: not found".
///
/// # Errors
/// If `path` is not a directory.
pub fn check_directory(path: &Path) -> anyhow::Result<()> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => bail!("{} is a file; the directory of a checkpoint is needed", path.display()),
        Err(error) => Err(error).with_context(|| format!("there is no model at {}", path.display())),
    }
}

fn open(files: Arc<dyn Files>, args: &EngineArgs, defaults: Defaults, extras: Extras) -> anyhow::Result<Engine> {
    let options = EngineOptions {
        arithmetic: args.arithmetic.unwrap_or(defaults.arithmetic).into(),
        threads: args.threads.map(usize::from),
        memory: args.memory.into(),
        cache: args.cache.map_or(defaults.cache, CacheChoice::from),
        guess: !args.no_guess,
        interrupt: interrupt::handle(),
        cache_directory: cache_directory(),
        ablation: extras.ablation,
        keep: extras.keep,
        ..EngineOptions::default()
    };
    let plan = Plan::new();
    let files = match args.fault {
        Some(_) => Arc::new(FaultyFiles::new(files, Arc::clone(&plan))) as Arc<dyn Files>,
        None => files,
    };
    let mut bar = Bar::bytes("loading");
    let engine = Engine::open(files, &options, &mut |loading| bar.set(loading.done, loading.total));
    bar.clear();
    let engine = engine?;
    if let Some(rehearsal) = &args.fault {
        rehearsal.begin(&plan);
    }
    engine.notes().iter().for_each(|note| output::tell(Level::WARN, note));
    Ok(engine)
}

/// Where the program keeps what it may lose: `XDG_CACHE_HOME/cachalot`, or `.cache/cachalot` at home.
fn cache_directory() -> Option<PathBuf> {
    user_directory("XDG_CACHE_HOME", ".cache")
}

/// Where the program keeps what its user would miss: `XDG_STATE_HOME/cachalot`, or `.local/state/cachalot` at home.
pub fn state_directory() -> Option<PathBuf> {
    user_directory("XDG_STATE_HOME", ".local/state")
}

fn user_directory(variable: &str, at_home: &str) -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute(variable).or_else(|| Some(absolute("HOME")?.join(at_home)));
    base.map(|base| base.join("cachalot"))
}

/// Keeps what the next start profits from; that it cannot be kept is no failure.
pub fn remember(engine: &Engine, model: &ModelArgs) {
    if let Some(store) = engine.prefix_store() {
        store.notes().iter().for_each(|note| output::tell(Level::WARN, note));
    }
    if model.model.is_some()
        && let Err(error) = engine.remember()
    {
        let note = format!("the experts in use could not be noted for the next start: {error}");
        output::tell(Level::WARN, &note);
    }
}
