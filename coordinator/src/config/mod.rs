//! The configuration of a run from its layers, each laid over the one before: the built-in base.yaml, what a
//! resumed run began with, a YAML file, the environment (`RELABEL__OPTIM__LR__INIT=0.1`: sections apart by two underscores), and
//! dotted flags (`--optim.lr.init 0.1`). Every value is checked where it is read, so that an error names the
//! file, variable or flag to change, even when another layer would have hidden the value.
//!
//! What the keys are and what they take is the `relabel-config` crate; this module may only read.

mod error;
mod flags;
mod layer;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

pub use error::ConfigError;
pub(crate) use flags::{ConfigFile, help};
pub use flags::{Split, split_dotted};
use layer::Layer;
use relabel_config::Config;

/// The first layer. A test holds it equal to `Config::default()`.
const BASE: &str = include_str!("../../../configs/base.yaml");

/// Longest configuration file that is read, in bytes; one that names every key has 2,000.
const MAX_FILE: u64 = 1 << 18;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    BuiltIn,
    /// The folder of the run that is resumed.
    Run(PathBuf),
    File(PathBuf),
    /// The variable's name.
    Environment(String),
    /// The flag with its dashes.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::BuiltIn => f.write_str("built-in base.yaml"),
            Origin::Run(path) => write!(f, "the run in {}", path.display()),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Environment(name) => write!(f, "environment variable {name}"),
            Origin::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// A valid configuration and where it came from.
#[derive(Debug)]
pub struct Resolved {
    pub config: Config,
    /// By dotted key; every key is there.
    pub origins: BTreeMap<String, Origin>,
    /// Sentences to warn with: keys of the reference that were read and have no effect here.
    pub notes: Vec<String>,
}

impl Resolved {
    /// The whole configuration as YAML that `--config` reads back.
    ///
    /// # Errors
    /// When it cannot be written as YAML, which no valid configuration causes.
    pub fn to_yaml(&self) -> Result<String, ConfigError> {
        serde_yaml_ng::to_string(&self.config).map_err(|source| ConfigError::Write { source })
    }
}

/// The process's environment as [`load`] takes it. Variables that are not Unicode come with replacement
/// characters, so that a wrong value of ours is refused rather than overlooked.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
}

/// Lays the layers over each other and checks the whole. `began` is the folder of the run that is resumed and
/// what it began with; `file` is the YAML file of `--config`; of `env` only
/// names that begin with `RELABEL__` count; `overrides` are dotted keys without dashes, the last of a key wins.
///
/// # Errors
/// One line that names what to change: an unreadable or malformed file, an unknown key, a value of a wrong
/// type or out of range, and keys that contradict each other.
pub fn load(
    began: Option<(&Path, &Config)>,
    file: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
    overrides: &[(String, String)],
) -> Result<Resolved, ConfigError> {
    let resolved = merge(began, file, env, overrides)?;
    relabel_config::validate(&resolved.config).map_err(|invalid| {
        let origins = invalid.keys.iter().filter_map(|key| {
            let origin = resolved.origins.get(*key)?;
            // A default is nowhere to be changed: only what somebody wrote is worth naming.
            (*origin != Origin::BuiltIn).then(|| format!("{key} from {origin}"))
        });
        let from = origins.collect::<Vec<_>>().join("; ");
        ConfigError::Invalid { invalid, from: if from.is_empty() { from } else { format!(" [{from}]") } }
    })?;
    Ok(resolved)
}

/// The text of a configuration file.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if read as u64 > MAX_FILE {
        return Err(io::Error::other(format!(
            "it is longer than the {MAX_FILE} bytes that a configuration may have"
        )));
    }
    Ok(text)
}

/// [`load`] without the check of the whole.
///
/// # Errors
/// As [`load`], of each value by itself.
pub(crate) fn merge(
    began: Option<(&Path, &Config)>,
    file: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
    overrides: &[(String, String)],
) -> Result<Resolved, ConfigError> {
    let mut layers = vec![Layer::from_yaml(BASE, &Origin::BuiltIn)?];
    if let Some((path, config)) = began {
        layers.push(Layer::of(config, &Origin::Run(path.to_owned())));
    }
    if let Some(path) = file {
        let text = read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        layers.push(Layer::from_yaml(&text, &Origin::File(path.to_owned()))?);
    }
    layers.push(Layer::from_environment(env)?);
    layers.push(Layer::from_flags(overrides)?);

    let mut origins = BTreeMap::new();
    let mut notes = Vec::new();
    let mut builder = ::config::Config::builder();
    for layer in layers {
        origins.extend(layer.values.iter().map(|(key, (_, origin))| (key.clone(), origin.clone())));
        notes.extend(layer.notes.iter().cloned());
        builder = builder.add_source(layer);
    }
    let config = builder.build().and_then(::config::Config::try_deserialize);
    Ok(Resolved { config: config.map_err(|source| ConfigError::Merge { source })?, origins, notes })
}
