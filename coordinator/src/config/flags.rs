//! The command line's part of the configuration: dotted flags are taken out before clap sees the rest, because
//! their names are data (the schema) and not code.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

use relabel_config::{Config, Kind, schema};

use super::ConfigError;
use super::layer::{quoted, setting};

/// The flag that names the configuration file, for clap to flatten into a command.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ConfigFile {
    /// YAML file laid over the built-in defaults
    #[arg(long, visible_alias = "config-file-path", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// Short for `--compute.micro_batch -1`.
const AUTO_BATCH: &str = "--auto-batch";

/// Overrides as (dotted key, value), and what is left of the command line.
pub type Split = (Vec<(String, String)>, Vec<OsString>);

/// Takes every `--section.key VALUE` and `--section.key=VALUE`, and `--auto-batch`, out of `args` (with or without the
/// program's name in front), and leaves the rest for clap in its order. A key of True or False may stand alone: it
/// means True. What follows a bare `--` is left alone.
///
/// # Errors
/// A dotted flag without a value, or with one that is not Unicode. Whether its key exists is [`super::load`]'s to
/// say.
pub fn split_dotted(args: impl IntoIterator<Item = OsString>) -> Result<Split, ConfigError> {
    let mut overrides = Vec::new();
    let mut rest = Vec::new();
    let mut args = args.into_iter().peekable();
    while let Some(arg) = args.next() {
        if arg == "--" {
            rest.push(arg);
            rest.extend(args);
            break;
        }
        let shown = arg.to_string_lossy();
        if arg == AUTO_BATCH {
            overrides.push(("compute.micro_batch".to_owned(), "-1".to_owned()));
            continue;
        }
        let Some((key, inline)) = dotted(&shown) else {
            rest.push(arg);
            continue;
        };
        let flag = quoted(&format!("--{key}"));
        let not_unicode =
            |value: String| ConfigError::NotUnicode { flag: flag.clone(), value: quoted(&value) };
        if arg.to_str().is_none() {
            return Err(not_unicode(shown.into_owned()));
        }
        let value = match inline {
            Some(value) => value.to_owned(),
            None => match args.next_if(|next| is_value(&next.to_string_lossy())) {
                Some(next) => {
                    next.into_string().map_err(|next| not_unicode(next.to_string_lossy().into_owned()))?
                }
                None => match setting(key).map(|setting| setting.kind) {
                    Some(Kind::Flag) => "True".to_owned(),
                    kind => {
                        let takes = kind.map_or("a value".to_owned(), |kind| kind.to_string());
                        return Err(ConfigError::NoValue { flag, takes });
                    }
                },
            },
        };
        overrides.push((key.to_owned(), value));
    }
    Ok((overrides, rest))
}

/// The key of a dotted flag, and its value where that follows an equals sign.
fn dotted(arg: &str) -> Option<(&str, Option<&str>)> {
    let body = arg.strip_prefix("--")?;
    let (name, value) = match body.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (body, None),
    };
    name.contains('.').then_some((name, value))
}

/// Whether the argument after a dotted flag is its value: anything but a flag. Negative numbers are values.
fn is_value(arg: &str) -> bool {
    let number = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    arg.strip_prefix('-').is_none_or(|rest| rest.is_empty() || number(rest))
}

/// The part of `--help` that lists every dotted flag with what it takes and its default.
pub(crate) fn help() -> String {
    let defaults = Config::default();
    let mut text = String::from(
        "Options of the run, each as a flag (--optim.lr.init 0.1), as a key of the --config file, or as an\n\
         environment variable (RELABEL__OPTIM__LR__INIT=0.1); flags win over the environment, which wins over\n\
         the file, which wins over the defaults:\n",
    );
    let mut section = "";
    for setting in schema() {
        let of = setting.key.split('.').next().unwrap_or_default();
        if of != section {
            section = of;
            let _ = writeln!(text, "\n{section}:");
        }
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  --{} [default: {}]", setting.key, (setting.get)(&defaults));
        wrap(
            &mut text,
            &match setting.kind {
                Kind::Text => setting.help.to_owned(),
                kind => format!("{}: {kind}", setting.help),
            },
        );
    }
    text
}

/// Adds `words` in indented lines of a readable length.
fn wrap(text: &mut String, words: &str) {
    const INDENT: &str = "      ";
    let mut length = usize::MAX;
    for word in words.split(' ') {
        if length.saturating_add(1 + word.len()) > 110 {
            if length != usize::MAX {
                text.push('\n');
            }
            text.push_str(INDENT);
            length = INDENT.len() + word.len();
        } else {
            text.push(' ');
            length += 1 + word.len();
        }
        text.push_str(word);
    }
    text.push('\n');
}
