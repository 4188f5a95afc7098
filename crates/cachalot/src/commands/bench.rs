//! `cachalot bench`: how fast this machine is, as ratios to what it can do.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use cachalot_bench::{Comparison, ModelOptions, ModelReport, RELEASES, Release, Test};
use cachalot_engine::Ablation;
use cachalot_kernels::Isa;
use clap::{Args, Subcommand};

use crate::cli::{EngineArgs, ModelArgs};
use crate::terminal::Bar;
use crate::{open, output};

const AFTER: &str = "\
Examples:
  cachalot bench kernels                        all shapes of DeepSeek-V4.1-Flash, all cores
  cachalot bench kernels --model v4-pro         those of another model
  cachalot bench kernels --rounds 3 --mib 128   a quick look
  cachalot bench kernels --isa avx2 --json      one instruction set, for a program";

const AFTER_ABILITIES: &str = "\
Examples:
  cachalot bench abilities                         all sets, the model that ships, from the repository's root
  cachalot bench abilities fixtures/abilities/facts.jsonl --without-engram
  cachalot bench abilities fixtures/abilities/needle-far.jsonl --window-only --json";

const AFTER_MODEL: &str = "\
Examples:
  cachalot bench decode --model DIR --tokens 16 --depth 4096    single-token steps behind 4096 tokens
  cachalot bench prefill --model DIR --tokens 512 --json        one prompt; a JSON object per window
  cachalot bench prefill --model DIR --tokens 2048 --expert-cache 2G --against-resident

Tokens are random, so every step routes to other experts. Each window stands between two probes of the machine; share is its \
rate over the roofline of their mean.";

/// Measure this machine.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure
    #[command(subcommand)]
    pub what: What,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum What {
    /// Matrix products at the shapes of a released model, over a plain read of the same bytes
    Kernels(KernelArgs),
    /// Single-token steps of a model, over what memory allows
    Decode(ModelBenchArgs),
    /// One prompt, over what float32 arithmetic allows
    Prefill(ModelBenchArgs),
    /// What a model can do: fixed sets of questions, asked greedily
    Abilities(AbilityArgs),
}

/// How to measure.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct KernelArgs {
    /// Model whose shapes are measured
    #[arg(long, value_name = "NAME", default_value = "v4.1-flash", value_parser = release)]
    pub model: Release,

    /// Threads; all cores if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Bursts of each kernel: the best counts
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub rounds: u16,

    /// Weights read in a burst, in MiB: far more than the caches hold
    #[arg(long, value_name = "N", default_value_t = 384, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub mib: u32,

    /// Only this instruction set (repeatable)
    #[arg(long, value_name = "NAME")]
    pub isa: Vec<String>,

    /// Tokens of the matrix-matrix products
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub batch: u16,

    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// How to measure a model.
#[derive(Debug, Args)]
#[command(after_help = AFTER_MODEL)]
pub struct ModelBenchArgs {
    #[command(flatten)]
    pub model: ModelArgs,

    #[command(flatten)]
    pub engine: EngineArgs,

    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    pub tokens: u32,

    /// Tokens in the context before
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub depth: u32,

    /// Windows
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub windows: u16,

    /// Measure once more with everything in memory, which must have room, and compare: the windows' time over the larger of
    /// that time and the disk's own
    #[arg(long)]
    pub against_resident: bool,

    /// Print one JSON object per window instead of a table
    #[arg(long)]
    pub json: bool,
}

fn release(name: &str) -> Result<Release, String> {
    let known = || RELEASES.map(|release| release.name).join(", ");
    RELEASES.into_iter().find(|release| release.name == name).ok_or_else(|| format!("known are {}", known()))
}

/// Measures and prints.
///
/// # Errors
/// If this machine lacks an instruction set that was asked for, or the memory.
pub fn bench(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Kernels(args) => kernels(args),
        What::Decode(args) => model(Test::Decode, args),
        What::Prefill(args) => model(Test::Prefill, args),
        What::Abilities(args) => abilities(args),
    }
}

/// What to ask.
#[derive(Debug, Args)]
#[command(after_help = AFTER_ABILITIES)]
pub struct AbilityArgs {
    /// Sets of questions: `.jsonl` files, or directories of them
    #[arg(value_name = "PATH", default_value = "fixtures/abilities", value_hint = clap::ValueHint::AnyPath)]
    pub sets: Vec<PathBuf>,

    /// Leave out what Engram remembers: its rows are zeros
    #[arg(long)]
    pub without_engram: bool,

    /// Leave out what lies beyond the window: no compressed entry is seen
    #[arg(long)]
    pub window_only: bool,

    /// Print wrong answers too
    #[arg(long)]
    pub wrong: bool,

    #[command(flatten)]
    pub model: ModelArgs,

    #[command(flatten)]
    pub engine: EngineArgs,

    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

fn abilities(args: &AbilityArgs) -> anyhow::Result<ExitCode> {
    let mut questions = Vec::new();
    for path in &args.sets {
        for file in set_files(path)? {
            questions.extend(cachalot_bench::questions(&file)?);
        }
    }
    if questions.is_empty() {
        bail!("there are no questions: name .jsonl files, or a directory of them");
    }
    let ablation = Ablation { engram: args.without_engram, entries: args.window_only };
    let engine = Arc::new(open::ablated(&args.model, &args.engine, args.json, ablation)?);
    let mut bar = Bar::tokens("asking");
    let total = questions.len() as u64;
    let report = cachalot_bench::abilities(&engine, &questions, args.wrong, &mut |done| bar.set(done as u64, total));
    bar.clear();
    let report = report?;
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&report.to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The sets at `path`: itself, or the `.jsonl` files in it by name.
fn set_files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let cannot_read = || format!("cannot read {}", path.display());
    if !std::fs::metadata(path).with_context(cannot_read)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).with_context(cannot_read)?;
    let files = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
    let mut files = files.with_context(cannot_read)?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    Ok(files)
}

fn model(test: Test, args: &ModelBenchArgs) -> anyhow::Result<ExitCode> {
    let options =
        ModelOptions { test, tokens: args.tokens as usize, depth: args.depth as usize, windows: args.windows.into() };
    let report = windows(args, &args.engine, &options, false)?;
    if args.against_resident {
        let mut engine = args.engine.clone();
        (engine.memory.memory, engine.memory.expert_cache) = (None, None);
        let resident = windows(args, &engine, &options, true)?;
        let Some(comparison) = Comparison::new(&report, &resident) else {
            bail!("nothing was read from the disk: --memory or --expert-cache says what does not fit");
        };
        if args.json {
            output::print_json(&comparison)?;
        } else {
            output::print(&format!("{comparison}\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Measures and prints the windows of one engine, which must have all in memory if `resident` says so.
fn windows(
    args: &ModelBenchArgs,
    engine: &EngineArgs,
    options: &ModelOptions,
    resident: bool,
) -> anyhow::Result<ModelReport> {
    let engine = open::model(&args.model, engine, args.json)?;
    if let Some(streaming) = engine.plan().streaming().filter(|_| !args.json) {
        output::print(&format!("{streaming}\n"))?;
    }
    if resident && !engine.experts_fit() {
        bail!(
            "not everything fits in memory, so there is nothing to compare with: measure a smaller model\n{}",
            engine.plan()
        );
    }
    let mut printed = Ok(());
    let report = cachalot_bench::model(&engine, options, &mut |window| {
        if args.json && printed.is_ok() {
            printed = output::print_json(window);
        }
    })?;
    printed?;
    if !args.json {
        output::print(&format!("{report}\n"))?;
    }
    Ok(report)
}

fn kernels(args: &KernelArgs) -> anyhow::Result<ExitCode> {
    let available: Vec<&str> = Isa::available().iter().map(|isa| isa.name()).collect();
    if let Some(name) = args.isa.iter().find(|name| !available.contains(&name.as_str())) {
        bail!("this machine has no {name}; it has {}", available.join(", "));
    }
    let options = cachalot_bench::Options {
        threads: args.threads.map_or(0, usize::from),
        rounds: args.rounds.into(),
        mebibytes: args.mib as usize,
        isas: args.isa.clone(),
        batch: args.batch.into(),
        shapes: args.model.shapes.to_vec(),
        attention: args.model.attention.to_vec(),
    };
    let report = cachalot_bench::kernels(&options)?;
    if args.json {
        output::print_json(&report)?
    } else {
        output::print(&format!("{report}\n"))?
    }
    Ok(ExitCode::SUCCESS)
}
