//! `cachalot synth`: a checkpoint with the true shapes and random weights.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;

use cachalot_synth::{DEFAULT_SKEW, Options, Preset, Shrink, SynthError};
use clap::Args;

use crate::terminal::Bar;
use crate::{interrupt, output};

const AFTER: &str = "\
Examples:
  cachalot synth v4-flash --layers 4 DIR                  four layers: ratios 0, 4, 128, 4
  cachalot synth v4.1-flash --layers 6 --experts 64 --engram-rows 1000000 DIR
  cachalot synth v4-pro --headers-only DIR                for inspect and plan at full size; takes next to no space

Presets: v4-flash, v4-pro, v4.1-flash (as released), and 1t-a37b and lite-200b, two shapes of V4's architecture that were \
never released. With fewer layers, as many kinds of them are kept as fit, and draft module and image path are left out. \
The model says nothing sensible: it is for measuring.";

/// Write a checkpoint with the true shapes and random weights, for measuring where the real one cannot be had.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct SynthArgs {
    /// The model to imitate
    #[arg(value_name = "PRESET", value_parser = Preset::ALL.map(Preset::name))]
    pub preset: String,

    /// Directory to write into; made if it is not there, else it must be empty
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub directory: PathBuf,

    /// Layers to keep
    #[arg(long, value_name = "N")]
    pub layers: Option<u64>,

    /// Routed experts of a layer
    #[arg(long, value_name = "N")]
    pub experts: Option<u64>,

    /// Rows of each Engram table
    #[arg(long, value_name = "N")]
    pub engram_rows: Option<u64>,

    /// Chooses the weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,

    /// How uneven routing is: the expert of rank r is chosen in proportion to r^-X; 0 is even
    #[arg(long, value_name = "X", default_value_t = DEFAULT_SKEW, value_parser = skew)]
    pub skew: f64,

    /// Write true headers over files whose data takes no space and reads as zeros
    #[arg(long)]
    pub headers_only: bool,
}

fn skew(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=4.0).contains(&value) { Ok(value) } else { Err("must be between 0 and 4".to_owned()) }
}

/// Writes the checkpoint.
///
/// # Errors
/// If there is no such model, or it cannot be written; nothing is left behind then.
pub fn synth(args: &SynthArgs) -> anyhow::Result<ExitCode> {
    let shrink = Shrink { layers: args.layers, experts: args.experts, engram_rows: args.engram_rows };
    let config = Preset::from_name(&args.preset)?.config(&shrink)?;
    let options = Options { seed: args.seed, skew: args.skew, headers_only: args.headers_only, ..Options::default() };
    let bar = Mutex::new(Bar::bytes("writing"));
    interrupt::listen();
    let show = |done, total| {
        if let Ok(mut bar) = bar.try_lock() {
            bar.set(done, total);
        }
        !interrupt::pressed()
    };
    let written = cachalot_synth::synth(config, &args.directory, &options, &show);
    if let Ok(bar) = bar.lock() {
        bar.clear();
    }
    let written = match written {
        Err(error @ SynthError::Stopped) => {
            eprintln!("{error}");
            return Ok(ExitCode::from(interrupt::EXIT_CODE));
        }
        written => written?,
    };
    let what = if args.headers_only { " of headers" } else { "" };
    output::print(&format!(
        "{}: {} tensors of {:.1} GB in {} shards{what}\n",
        args.directory.display(),
        written.tensors,
        written.bytes as f64 / 1e9,
        written.shards
    ))?;
    Ok(ExitCode::SUCCESS)
}
