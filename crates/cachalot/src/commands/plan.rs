//! `cachalot plan`: what fits where, what it will do per second, and what bounds it; before anything is loaded.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use cachalot_checkpoint::Inspection;
use cachalot_engine::disk;
use cachalot_engine::planner::units::tokens;
use cachalot_engine::planner::{Available, Bound, Forecast, Late, MemoryPlan, Rates, sizes};
use cachalot_experts::{ExpertLayout, LayerLayout};
use cachalot_storage::Probe;
use clap::Args;
use serde::Serialize;

use crate::cli::MemoryArgs;
use crate::{open, output};

const AFTER: &str = "\
Examples:
  cachalot plan DIR                              with what this machine has free
  cachalot plan DIR --memory 24G --context 128k
  cachalot plan DIR --disk-rate 3.5              a disk that is not measured: 3.5 GB/s

The kernels and the disk are measured while you wait, a few seconds. Files of which only the headers have arrived can be \
planned for; their disk is not measured. A range is what the slowest and the fastest turn of the disk would give.";

/// Show what fits where, how fast it will run, and what limits it. Nothing is loaded.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct PlanArgs {
    /// Directory of a checkpoint
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub directory: PathBuf,

    #[command(flatten)]
    pub memory: MemoryArgs,

    /// Another directory with shards of the model, on another disk perhaps (repeatable)
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub also: Vec<PathBuf>,

    /// Threads that compute; all cores if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Rate of the disk in GB/s, instead of measuring it
    #[arg(long, value_name = "GB/S", value_parser = positive)]
    pub disk_rate: Option<f64>,

    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|rate| *rate > 0.0 && *rate < 1e6).ok_or_else(|| "must be a rate above 0".to_owned())
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    memory: MemoryPlan,
    rates: Rates,
    disk: Option<Probe>,
    forecast: Forecast,
}

/// Prints the plan.
///
/// # Errors
/// If the checkpoint is not sound, or the model cannot run in the memory there is.
pub fn plan(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let checkpoint = Arc::new(open::headers(&args.directory, &args.also)?);
    let (inspection, architecture) = (Inspection::of(&checkpoint), checkpoint.architecture());
    let trunk = architecture.trunk();
    let layout = ExpertLayout::new(Arc::clone(&checkpoint), trunk.num_hidden_layers, trunk.n_routed_experts)?;
    let layers = LayerLayout::new(Arc::clone(&checkpoint), trunk.num_hidden_layers)?;
    let sizes = sizes(&checkpoint, &inspection, &layout, &layers)?;
    let memory = MemoryPlan::new(&sizes, &args.memory.into(), Available::now())?;

    let threads = args.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
    let mut rates = cachalot_bench::rates(trunk, &inspection, architecture.fp8_block(), threads, memory.chunk)?;
    let disk = if args.disk_rate.is_some() { None } else { disk::measure(&checkpoint, &layout) };
    rates.disk = args.disk_rate.map(|rate| [rate * 1e9; 2]).or_else(|| disk.as_ref().and_then(Probe::range));
    let forecast = Forecast::new(&inspection, &memory, &rates, Late::of(architecture));
    let report = Report { memory, rates, disk, forecast };
    if args.json {
        output::print_json(&report)?
    } else {
        output::print(&report.text(&inspection))?
    }
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn text(&self, inspection: &Inspection) -> String {
        let Self { memory, rates, disk, forecast } = self;
        let mut text = format!("{}: {}\n\nmemory\n{memory}\n\n", inspection.location, inspection.model_type);
        // Writing to a string cannot fail.
        let mut line = |words: std::fmt::Arguments| {
            let _ = writeln!(text, "{words}");
        };
        line(format_args!(
            "this machine\n  weights through the kernels: {:.1} GB/s FP4, {:.1} FP8, {:.1} BF16; prefill {:.0} Gop/s",
            rates.fp4 / 1e9,
            rates.fp8 / 1e9,
            rates.bf16 / 1e9,
            rates.operations / 1e9
        ));
        let in_memory = memory.experts_fit && memory.streamed_layers.is_empty();
        let needed = if in_memory { "; not needed once the experts have been read" } else { "" };
        match (disk, rates.disk) {
            (Some(disk), Some([least, most])) => line(format_args!(
                "  disk: {:.2} to {:.2} GB/s in reads of {:.1} MB ({}){needed}",
                least / 1e9,
                most / 1e9,
                disk.read_bytes as f64 / 1e6,
                disk.method
            )),
            (None, Some([rate, _])) => line(format_args!("  disk: {:.2} GB/s, as given{needed}", rate / 1e9)),
            _ => line(format_args!(
                "  disk: not measured, the data is not here; --disk-rate says how fast it is{needed}"
            )),
        }
        if let Some([_, _, ..]) = disk.as_ref().map(Probe::devices) {
            for device in disk.iter().flat_map(Probe::devices) {
                let (rate, percent) = (device.bytes_per_second / 1e9, device.share * 100.0);
                line(format_args!("    of several, {rate:.2} GB/s from one with {percent:.0} % of the experts"));
            }
        }
        if let Some(fallback) = disk.as_ref().and_then(Probe::fallback) {
            line(format_args!("  {fallback}"));
        }
        let measured = rates.disk.is_some() || in_memory;
        let bound = |bound: Bound| match bound {
            Bound::Disk => "bound by the disk",
            Bound::Memory => "bound by memory",
            Bound::Arithmetic => "bound by arithmetic",
        };
        let assumed = if measured { "" } else { " if the disk were infinitely fast" };
        line(format_args!("\nspeed{assumed}"));
        line(format_args!(
            "  decode: {} tokens/s, {} ({:.0} % of a token's experts are in memory if all are equally likely)",
            range(forecast.tokens_per_s),
            bound(forecast.bound),
            forecast.hit_rate * 100.0
        ));
        for prompt in &forecast.prompts {
            let (warm, cold) = (range(prompt.seconds), range(prompt.cold_seconds));
            line(format_args!(
                "  first token of a prompt of {}: {warm} s, {}",
                tokens(prompt.tokens),
                bound(prompt.bound)
            ));
            if cold != warm {
                line(format_args!("    the first after a start: {cold} s, {}", bound(prompt.cold_bound)));
            }
        }
        text
    }
}

/// Two numbers, or one if they are nearly the same.
fn range([least, most]: [f64; 2]) -> String {
    let number = |value: f64| if value < 10.0 { format!("{value:.2}") } else { format!("{value:.0}") };
    if most < least * 1.05 { number(least) } else { format!("{} to {}", number(least), number(most)) }
}
