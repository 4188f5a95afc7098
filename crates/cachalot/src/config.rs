//! Flags of `cachalot serve` from the environment and from a TOML file, under the names they have on the command line.
//!
//! They become flags before the ones that were typed. What is said of a flag in one place replaces what another place says
//! of it, switches that are off and lists included: what was typed wins over the environment, and that over the file.
//! Refuses names that are no flags, and values that no flag takes, naming the file and the key, or the variable.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::builder::Resettable;
use clap::parser::ValueSource;
use clap::{ArgAction, Command, CommandFactory};

use crate::cli::Cli;

/// What environment variables begin with.
const PREFIX: &str = "CACHALOT_";
/// The flag that names the file.
const CONFIG: &str = "--config";

/// What one place says of one flag.
struct Setting {
    /// The flag's name.
    name: String,
    /// The flag as it would be typed, once for each of its values; not at all for a switch that is off.
    flags: Vec<String>,
}

/// `arguments` with what the environment and the file say, if they ask for the server.
///
/// # Errors
/// If the environment or the file says what cannot be meant, or the file cannot be read.
pub fn expand(arguments: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    if arguments.get(1).is_none_or(|command| command != "serve") {
        return Ok(arguments);
    }
    // The environment is read here, not by clap, which would not name the variable.
    let cli =
        Cli::command().mut_subcommand("serve", |serve| serve.mut_args(|argument| argument.env(Resettable::Reset)));
    let Some(serve) = cli.find_subcommand("serve") else { return Ok(arguments) };
    // What is wrong with the typed ones is told by whoever reads them all.
    let Ok(typed) = cli.clone().try_get_matches_from(&arguments) else { return Ok(arguments) };
    let Some(typed) = typed.subcommand_matches("serve") else { return Ok(arguments) };
    let is_typed = |name: &str| {
        let argument = serve.get_arguments().find(|argument| argument.get_long() == Some(name));
        argument.and_then(|argument| typed.value_source(argument.get_id().as_str())) == Some(ValueSource::CommandLine)
    };
    let environment = environment(&cli, serve)?;
    let mut settings = Vec::new();
    if let Some(path) = config_path(&arguments) {
        settings = file(&cli, serve, &path)?;
    }
    settings.retain(|setting| environment.iter().all(|later| later.name != setting.name));
    settings.extend(environment);
    settings.retain(|setting| !is_typed(&setting.name));
    let mut expanded: Vec<OsString> = arguments[..2].to_vec();
    expanded.extend(settings.into_iter().flat_map(|setting| setting.flags).map(OsString::from));
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

/// How a flag takes values; `None` if there is no such flag, or none that can be set elsewhere.
fn action<'c>(serve: &'c Command, name: &str) -> Option<&'c ArgAction> {
    let found = serve.get_arguments().find(|argument| argument.get_long() == Some(name));
    found.filter(|_| name != "config").map(clap::Arg::get_action)
}

/// What the environment says. A variable that only looks like one of ours is refused: a server whose key was misspelt is open.
fn environment(cli: &Command, serve: &Command) -> anyhow::Result<Vec<Setting>> {
    let others: Vec<_> =
        cli.get_subcommands().flat_map(Command::get_arguments).filter_map(clap::Arg::get_env).collect();
    let mut settings = Vec::new();
    for (variable, value) in std::env::vars_os() {
        let Some(rest) = variable.to_str().and_then(|variable| variable.strip_prefix(PREFIX)) else { continue };
        let name = rest.replace('_', "-").to_ascii_lowercase();
        let place = format!("{PREFIX}{rest}");
        let Some(action) = action(serve, &name).filter(|_| rest == rest.to_ascii_uppercase()) else {
            if rest == "CONFIG" || others.contains(&variable.as_os_str()) {
                continue;
            }
            bail!("{place}: there is no such setting; `cachalot serve --help` lists the flags");
        };
        if value.is_empty() {
            continue;
        }
        let Some(value) = value.to_str() else { bail!("{place} is not UTF-8") };
        let flags = match action {
            ArgAction::SetTrue => match value {
                "1" | "true" => vec![format!("--{name}")],
                "0" | "false" => Vec::new(),
                _ => bail!("{place} is {value:?}; it must be true or false"),
            },
            ArgAction::Append => value.split(',').map(|value| format!("--{name}={}", value.trim())).collect(),
            _ => vec![format!("--{name}={value}")],
        };
        settings.push(Setting { name, flags }.tried(cli, &place)?);
    }
    Ok(settings)
}

/// What the file says.
fn file(cli: &Command, serve: &Command, path: &Path) -> anyhow::Result<Vec<Setting>> {
    let place = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {place}"))?;
    let table: toml::Table = text.parse().with_context(|| format!("{place} is not TOML"))?;
    let mut settings = Vec::new();
    for (key, value) in &table {
        let name = key.replace('_', "-");
        let Some(action) = action(serve, &name) else {
            bail!("{place}: there is no setting {key:?}; `cachalot serve --help` lists the flags");
        };
        let place = format!("{place}: {key}");
        let flag = |value| Ok(format!("--{name}={}", plain(value).with_context(|| place.clone())?));
        let flags = match (action, value) {
            (ArgAction::SetTrue, toml::Value::Boolean(on)) => on.then(|| format!("--{name}")).into_iter().collect(),
            (ArgAction::SetTrue, _) => bail!("{place} must be true or false"),
            (ArgAction::Append, toml::Value::Array(values)) => {
                values.iter().map(flag).collect::<anyhow::Result<_>>()?
            }
            (_, value) => vec![flag(value)?],
        };
        settings.push(Setting { name, flags }.tried(cli, &place)?);
    }
    Ok(settings)
}

impl Setting {
    /// The setting, if the flag takes it; otherwise an error that does not look as if it had been typed.
    fn tried(self, cli: &Command, place: &str) -> anyhow::Result<Self> {
        let trial = ["cachalot", "serve"].into_iter().chain(self.flags.iter().map(String::as_str));
        if let Err(error) = cli.clone().try_get_matches_from(trial) {
            let error = error.to_string();
            bail!("{place}: {}", error.trim_start_matches("error: ").lines().next().unwrap_or_default());
        }
        Ok(self)
    }
}

fn plain(value: &toml::Value) -> anyhow::Result<String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        _ => bail!("must be a text, a number or a list of these"),
    }
}
