//! One layer of the configuration: dotted keys with values that are already of their key's type, and the place
//! that each was read from.

use std::collections::BTreeMap;

use ::config::{Map, Source, Value as Raw, ValueKind};
use relabel_config::{Config, IGNORED, Kind, Setting, Value, nearest, schema};
use serde_yaml_ng::{Mapping, Value as Yaml};

use super::{ConfigError, Origin};

/// What the names of environment variables that set a key begin with.
const PREFIX: &str = "RELABEL__";

/// Most brackets and braces that open in a YAML file: the time that the parser takes grows with the square of how
/// many are open at once, and these it does in a hundredth of a second.
const MAX_BRACKETS: usize = 1000;

/// The values of one layer by dotted key.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    pub(super) values: BTreeMap<String, (Value, Origin)>,
    /// Sentences about keys that were read and have no effect.
    pub(super) notes: Vec<String>,
}

/// The environment variable that sets `key`.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_ascii_uppercase().replace('.', "__"))
}

/// The row of `key`, if there is such a key.
pub(super) fn setting(key: &str) -> Option<&'static Setting> {
    schema().iter().find(|setting| setting.key == key)
}

/// The first key inside the section `name`, if `name` is a section.
fn inside(name: &str) -> Option<&'static str> {
    let keys = schema().iter().map(|s| s.key).chain(IGNORED.iter().map(|(key, _)| *key));
    keys.into_iter().find(|key| key.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

impl Layer {
    /// The layer of a YAML document; dotted keys are accepted as well as sections.
    ///
    /// The parser bounds how deep a document nests and how often it repeats what it has an anchor for, so that the
    /// work and the memory are in proportion to its length.
    pub(super) fn from_yaml(text: &str, origin: &Origin) -> Result<Self, ConfigError> {
        let syntax = |message: &str| ConfigError::Syntax {
            origin: origin.clone(),
            message: message.split_whitespace().collect::<Vec<_>>().join(" "),
        };
        if text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count() > MAX_BRACKETS {
            return Err(syntax(&format!("more than {MAX_BRACKETS} brackets open in it")));
        }
        // The parser's messages have the line and column, and sometimes several lines.
        let table = match serde_yaml_ng::from_str(text).map_err(|error| syntax(&error.to_string()))? {
            Yaml::Mapping(table) => table,
            // A file of comments.
            Yaml::Null => Mapping::new(),
            other => return Err(syntax(&format!("it is {}", quoted(&shown(&other))))),
        };
        let mut layer = Self::default();
        layer.take_table("", &table, origin)?;
        Ok(layer)
    }

    /// The layer of a whole configuration.
    pub(super) fn of(config: &Config, origin: &Origin) -> Self {
        let value = |setting: &Setting| (setting.key.to_owned(), ((setting.get)(config), origin.clone()));
        Self { values: schema().iter().map(value).collect(), notes: Vec::new() }
    }

    /// The layer of the environment variables that begin with `RELABEL__`.
    pub(super) fn from_environment(env: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let mut layer = Self::default();
        let ours: BTreeMap<String, String> = env.filter(|(name, _)| name.starts_with(PREFIX)).collect();
        for (name, text) in ours {
            let key = name[PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
            layer.take_text(&key, &text, &Origin::Environment(quoted(&name)))?;
        }
        Ok(layer)
    }

    /// The layer of dotted flags, given as key and value.
    pub(super) fn from_flags(flags: &[(String, String)]) -> Result<Self, ConfigError> {
        let mut layer = Self::default();
        for (key, text) in flags {
            layer.take_text(key, text, &Origin::Flag(quoted(&format!("--{key}"))))?;
        }
        Ok(layer)
    }

    fn take_table(&mut self, section: &str, table: &Mapping, origin: &Origin) -> Result<(), ConfigError> {
        // In the order of their names, so that of two errors it is always the same that is reported.
        for (name, raw) in table.iter().map(|(name, raw)| (shown(name), raw)).collect::<BTreeMap<_, _>>() {
            let key = if section.is_empty() { name } else { format!("{section}.{name}") };
            let is_key = setting(&key).is_some() || IGNORED.iter().any(|(ignored, _)| *ignored == key);
            match (raw, inside(&key)) {
                (Yaml::Mapping(table), Some(_)) => self.take_table(&key, table, origin)?,
                // A heading with nothing below it.
                (Yaml::Null, Some(_)) => {}
                (Yaml::Mapping(_) | Yaml::Sequence(_) | Yaml::Tagged(_), None) if is_key => {
                    return Err(wrong(&key, shown(raw), origin));
                }
                (raw, _) => self.take_text(&key, &shown(raw), origin)?,
            }
        }
        Ok(())
    }

    fn take_text(&mut self, key: &str, text: &str, origin: &Origin) -> Result<(), ConfigError> {
        if let Some(setting) = setting(key) {
            let value = setting.kind.parse(text).ok_or_else(|| wrong(key, quoted(text), origin))?;
            self.values.insert(key.to_owned(), (value, origin.clone()));
            return Ok(());
        }
        if let Some((_, reason)) = IGNORED.iter().find(|(ignored, _)| *ignored == key) {
            self.notes.push(format!("{origin}: {key} has no effect: {reason}"));
            return Ok(());
        }
        let (nearest, example) = (nearest(key), inside(key));
        let (key, value, origin) = (quoted(key), quoted(text), origin.clone());
        match example {
            Some(example) => Err(ConfigError::Section { key, value, origin, example }),
            None => Err(ConfigError::UnknownKey { nearest, key, value, origin }),
        }
    }
}

/// `value` was found for `key`, which takes something else.
fn wrong(key: &str, value: String, origin: &Origin) -> ConfigError {
    let kind = setting(key).map_or(Kind::Text, |setting| setting.kind);
    ConfigError::Value { key: key.to_owned(), value, origin: origin.clone(), kind }
}

/// A value of a YAML file as a person wrote it, or nearly; nothing where it is null.
fn shown(value: &Yaml) -> String {
    match value {
        Yaml::Null => String::new(),
        Yaml::Bool(v) => v.to_string(),
        Yaml::Number(v) => v.to_string(),
        Yaml::String(v) => v.clone(),
        Yaml::Mapping(_) => "a section".to_owned(),
        Yaml::Sequence(_) => "a list".to_owned(),
        Yaml::Tagged(tagged) => format!("of the type {}", tagged.tag),
    }
}

/// `text` for a message: on one line, not endless, and visible where it is empty or has blanks.
pub(super) fn quoted(text: &str) -> String {
    let mut line: String = text.chars().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().count() > 80 {
        line.push_str("...");
    }
    if line.is_empty() || line.contains(char::is_whitespace) { format!("'{line}'") } else { line }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Raw>, ::config::ConfigError> {
        let raw = |value: &Value| match value {
            Value::None => ValueKind::Nil,
            Value::Flag(v) => ValueKind::Boolean(*v),
            Value::Whole(v) => ValueKind::I64(*v),
            Value::Real(v) => ValueKind::Float(*v),
            Value::Text(v) => ValueKind::String(v.clone()),
        };
        let entry = |(key, (value, origin)): (&String, &(Value, Origin))| {
            (key.clone(), Raw::new(Some(&origin.to_string()), raw(value)))
        };
        Ok(self.values.iter().map(entry).collect())
    }
}
