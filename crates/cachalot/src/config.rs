//! Flags of `cachalot serve` from the environment and from a TOML file, under the names they have on the command line.
//!
//! They become flags before the ones that were typed, the file's first, so that what was typed wins over the environment
//! and that over the file. Refuses names that are no flags, and values that no flag takes, naming the file.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{ArgAction, Command, CommandFactory, Parser};

use crate::cli::Cli;

/// What environment variables begin with.
const PREFIX: &str = "CACHALOT_";
/// The flag that names the file.
const CONFIG: &str = "--config";

/// `arguments` with what the environment and the file say, if they ask for the server.
///
/// # Errors
/// If the file cannot be read or says what cannot be meant.
pub fn expand(arguments: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    if arguments.get(1).is_none_or(|command| command != "serve") {
        return Ok(arguments);
    }
    let cli = Cli::command();
    let Some(serve) = cli.find_subcommand("serve") else { return Ok(arguments) };
    let mut flags = Vec::new();
    if let Some(path) = config_path(&arguments) {
        flags = file_flags(serve, &path)?;
    }
    flags.extend(environment_flags(serve)?);
    let mut expanded: Vec<OsString> = arguments[..2].to_vec();
    expanded.extend(flags.into_iter().map(OsString::from));
    expanded.extend_from_slice(&arguments[2..]);
    Ok(expanded)
}

fn config_path(arguments: &[OsString]) -> Option<PathBuf> {
    let mut path = std::env::var_os(format!("{PREFIX}CONFIG")).filter(|path| !path.is_empty());
    let mut rest = arguments.iter().skip(2);
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy();
        if text == CONFIG {
            path = rest.next().cloned();
        } else if let Some(value) = text.strip_prefix("--config=") {
            path = Some(value.into());
        }
    }
    path.map(PathBuf::from)
}

/// How a flag takes values; `None` if there is no such flag.
fn action<'c>(serve: &'c Command, name: &str) -> Option<&'c ArgAction> {
    let found = serve.get_arguments().find(|argument| argument.get_long() == Some(name));
    found.filter(|_| name != "config").map(clap::Arg::get_action)
}

fn environment_flags(serve: &Command) -> anyhow::Result<Vec<String>> {
    let mut flags = Vec::new();
    for argument in serve.get_arguments() {
        let Some(name) = argument.get_long().filter(|name| *name != "config") else { continue };
        let variable = format!("{PREFIX}{}", name.replace('-', "_").to_ascii_uppercase());
        let Some(value) = std::env::var_os(&variable).filter(|value| !value.is_empty()) else { continue };
        let Some(value) = value.to_str() else { bail!("{variable} is not UTF-8") };
        match argument.get_action() {
            ArgAction::SetTrue => match value {
                "1" | "true" => flags.push(format!("--{name}")),
                "0" | "false" => {}
                _ => bail!("{variable} is {value:?}; it must be true or false"),
            },
            ArgAction::Append => flags.extend(value.split(',').map(|value| format!("--{name}={}", value.trim()))),
            _ => flags.push(format!("--{name}={value}")),
        }
    }
    Ok(flags)
}

fn file_flags(serve: &Command, path: &Path) -> anyhow::Result<Vec<String>> {
    let place = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {place}"))?;
    let table: toml::Table = text.parse().with_context(|| format!("{place} is not TOML"))?;
    let mut flags = Vec::new();
    for (key, value) in &table {
        let name = key.replace('_', "-");
        let Some(action) = action(serve, &name) else {
            bail!("{place}: there is no setting {key:?}; `cachalot serve --help` lists the flags");
        };
        match (action, value) {
            (ArgAction::SetTrue, toml::Value::Boolean(on)) => flags.extend(on.then(|| format!("--{name}"))),
            (ArgAction::SetTrue, _) => bail!("{place}: {key} must be true or false"),
            (ArgAction::Append, toml::Value::Array(values)) => {
                for value in values {
                    flags.push(format!("--{name}={}", plain(value).with_context(|| format!("{place}: {key}"))?));
                }
            }
            (_, value) => flags.push(format!("--{name}={}", plain(value).with_context(|| format!("{place}: {key}"))?)),
        }
    }
    // What is wrong with the file should not look as if it had been typed.
    let trial = ["cachalot", "serve"].into_iter().map(str::to_owned).chain(flags.iter().cloned());
    if let Err(error) = Cli::try_parse_from(trial) {
        bail!("{place}: {}", error.to_string().trim_start_matches("error: ").lines().next().unwrap_or_default());
    }
    Ok(flags)
}

fn plain(value: &toml::Value) -> anyhow::Result<String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        _ => bail!("must be a text, a number or a list of these"),
    }
}
