//! What can be wrong with a configuration, each as one line.

use std::path::PathBuf;

use relabel_config::{Invalid, Kind};

use super::Origin;

/// Why there is no configuration. Each message is one line and says what to change.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{origin}: not a YAML file of keys and values: {message}")]
    Syntax { origin: Origin, message: String },
    #[error("{origin}: unknown key {key} (its value: {value}); {}", advice(origin, *nearest))]
    UnknownKey { key: String, value: String, origin: Origin, nearest: Option<&'static str> },
    #[error("{origin}: {key} is {value}, but it takes {kind}")]
    Value { key: String, value: String, origin: Origin, kind: Kind },
    #[error("{origin}: {key} is {value}, but it is a section of keys such as {example}")]
    Section { key: String, value: String, origin: Origin, example: &'static str },
    #[error("flag {flag} has no value; it takes {takes}")]
    NoValue { flag: String, takes: String },
    #[error("flag {flag}: its value is not Unicode: {value}")]
    NotUnicode { flag: String, value: String },
    #[error("{invalid}{from}")]
    Invalid { invalid: Invalid, from: String },
    #[error("cannot put the layers of the configuration together: {source}")]
    Merge { source: ::config::ConfigError },
    #[error("cannot write the configuration as YAML: {source}")]
    Write { source: serde_yaml_ng::Error },
}

/// What to write instead of an unknown key, spelled as the place where it stands spells keys.
fn advice(origin: &Origin, nearest: Option<&str>) -> String {
    let Some(key) = nearest else {
        return "coordinator --help lists the keys".to_owned();
    };
    match origin {
        Origin::Flag(_) => format!("did you mean --{key}?"),
        Origin::Environment(_) => format!("did you mean {}?", super::layer::variable(key)),
        Origin::BuiltIn | Origin::Run(_) | Origin::File(_) => format!("did you mean {key}?"),
    }
}
