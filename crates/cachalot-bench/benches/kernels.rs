//! `cargo bench -p cachalot-bench [-- NAME=VALUE ...]` with `threads`, `rounds`, `mebibytes`, `isa`, `shape`, `json`.

use cachalot_bench::{Options, kernels};

fn main() -> Result<(), String> {
    let mut options = Options::default();
    let mut json = false;
    // cargo itself adds `--bench`.
    for argument in std::env::args().skip(1).filter(|argument| argument != "--bench") {
        let (name, value) = argument.split_once('=').unwrap_or((&argument, ""));
        let number = || value.parse::<usize>().map_err(|_| format!("{name} needs a number, not {value:?}"));
        match name {
            "threads" => options.threads = number()?,
            "rounds" => options.rounds = number()?,
            "mebibytes" => options.mebibytes = number()?,
            "batch" => options.batch = number()?,
            "isa" => options.isas.push(value.to_owned()),
            "shape" => {
                options.shapes.retain(|shape| shape.name.contains(value));
                options.attention.retain(|task| task.name.contains(value));
            }
            "json" => json = true,
            _ => return Err(format!("unknown argument {argument:?}")),
        }
    }
    let report = kernels(&options).map_err(|error| error.to_string())?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?);
    } else {
        println!("{report}");
    }
    Ok(())
}
