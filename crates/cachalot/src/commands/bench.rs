//! `cachalot bench`: how fast this machine is, as ratios to what it can do.

use std::process::ExitCode;

use anyhow::bail;
use cachalot_bench::{ModelOptions, RELEASES, Release, Test};
use cachalot_kernels::Isa;
use clap::{Args, Subcommand};

use crate::cli::{EngineArgs, ModelArgs};
use crate::{open, output};

const AFTER: &str = "\
Examples:
  cachalot bench kernels                        all shapes of DeepSeek-V4.1-Flash, all cores
  cachalot bench kernels --model v4-pro         those of another model
  cachalot bench kernels --rounds 3 --mib 128   a quick look
  cachalot bench kernels --isa avx2 --json      one instruction set, for a program";

const AFTER_MODEL: &str = "\
Examples:
  cachalot bench decode --model DIR --tokens 16 --depth 4096    single-token steps behind 4096 tokens
  cachalot bench prefill --model DIR --tokens 512 --json        one prompt; a JSON object per window

Tokens are random, so every step routes to other experts. Each window stands between two probes of the machine; share is its
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
}

/// How to measure.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct KernelArgs {
    /// Model whose shapes are measured
    #[arg(long, value_name = "NAME", default_value = "v41-flash", value_parser = release)]
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
    }
}

fn model(test: Test, args: &ModelBenchArgs) -> anyhow::Result<ExitCode> {
    let engine = open::model(&args.model, &args.engine, args.json)?;
    let options =
        ModelOptions { test, tokens: args.tokens as usize, depth: args.depth as usize, windows: args.windows.into() };
    let mut printed = Ok(());
    let report = cachalot_bench::model(&engine, &options, &mut |window| {
        if args.json && printed.is_ok() {
            printed = output::print_json(window);
        }
    })?;
    printed?;
    if !args.json {
        output::print(&format!("{report}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
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
        ..cachalot_bench::Options::default()
    };
    let report = cachalot_bench::kernels(&options)?;
    if args.json {
        output::print_json(&report)?
    } else {
        output::print(&format!("{report}\n"))?
    }
    Ok(ExitCode::SUCCESS)
}
