//! `cachalot forward`: logits and internal choices of token ids, as a safetensors file. A stable contract: programs
//! that compare engines read it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use cachalot_engine::forward::{ForwardMode, ForwardReport};
use clap::Args;

use crate::cli::EngineArgs;
use crate::open::{self, Defaults};
use crate::terminal::Bar;

/// Most bytes of a list of ids: a million ids and the blanks between them.
const MAX_IDS_BYTES: u64 = 64 << 20;

const AFTER: &str = "\
The file holds, for T ids:
  logits           [T, V] f32
  experts          [L, T, K] i32, descending by weight
  expert_weights   [L, T, K] f32, normalised and scaled
  engram_rows      [E, T, columns] i64, offsets included (models with Engram)
  index_selection  [sources, T, index_topk] i32, ascending, then -1 (models with index sources)
  streams          [L + 1, T, S, D] f32, entering each layer, then after the last (with --streams)

Example:
  echo '[0, 17, 42]' > ids.json
  cachalot forward --model DIR --ids ids.json --out out.safetensors --mode chunk=64";

/// Compute logits and internal choices of token ids, for whoever checks the engine. All positions, all layers: nothing
/// is skipped or approximated, and every mode gives the same bits.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct ForwardArgs {
    /// Directory of a checkpoint
    #[arg(long, short, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub model: PathBuf,

    /// File with a JSON list of token ids
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub ids: PathBuf,

    /// File to write (safetensors)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub out: PathBuf,

    /// Write the residual streams too
    #[arg(long)]
    pub streams: bool,

    /// How positions are computed: prefill, decode or chunk=N
    #[arg(long, default_value = "prefill")]
    pub mode: ForwardMode,

    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Computes and writes the report.
///
/// # Errors
/// If the ids cannot be read or do not fit the model, or the file cannot be written.
pub fn forward(args: &ForwardArgs) -> anyhow::Result<ExitCode> {
    let ids = read_ids(&args.ids)?;
    let engine = open::directory(&args.model, &args.engine, Defaults::REFERENCE)?;
    engine.tokenizer().check_ids(&ids).with_context(|| args.ids.display().to_string())?;
    if ids.len() > engine.context() {
        bail!("{} holds {} ids, but the context holds {}", args.ids.display(), ids.len(), engine.context());
    }
    let mut bar = Bar::tokens("forward");
    let progress = &mut |done| bar.set(done as u64, ids.len() as u64);
    let report = ForwardReport::run(engine.model(), &ids, args.mode, args.streams, progress);
    bar.clear();
    report?.write(&args.out)?;
    Ok(ExitCode::SUCCESS)
}

fn read_ids(path: &Path) -> anyhow::Result<Vec<u32>> {
    let cannot_read = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(cannot_read)?;
    let mut text = Vec::new();
    file.take(MAX_IDS_BYTES + 1).read_to_end(&mut text).with_context(cannot_read)?;
    if text.len() as u64 > MAX_IDS_BYTES {
        bail!("{} has more than {MAX_IDS_BYTES} bytes", path.display());
    }
    let ids: Vec<u32> =
        serde_json::from_slice(&text).with_context(|| format!("{} is not a JSON list of token ids", path.display()))?;
    if ids.is_empty() {
        bail!("{} holds no token ids", path.display());
    }
    Ok(ids)
}
