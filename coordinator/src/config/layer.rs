//! One layer of the configuration: dotted keys with values that are already of their key's type, and the place
//! that each was read from.

use std::collections::BTreeMap;

use ::config::{FileFormat, Map, Source, Value as Raw, ValueKind};
use relabel_config::{Config, IGNORED, Kind, Setting, Value, nearest, schema};

use super::{ConfigError, Origin};

/// What the names of environment variables that set a key begin with.
const PREFIX: &str = "RELABEL__";

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
    pub(super) fn from_yaml(text: &str, origin: &Origin) -> Result<Self, ConfigError> {
        let table = ::config::File::from_str(text, FileFormat::Yaml).collect().map_err(|error| {
            // The parser's messages have the line and column, and sometimes several lines.
            let message = match error {
                ::config::ConfigError::FileParse { cause, .. } => cause.to_string(),
                other => other.to_string(),
            };
            let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
            ConfigError::Syntax { origin: origin.clone(), message }
        })?;
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
            layer.take_text(&key, &text, &Origin::Environment(name))?;
        }
        Ok(layer)
    }

    /// The layer of dotted flags, given as key and value.
    pub(super) fn from_flags(flags: &[(String, String)]) -> Result<Self, ConfigError> {
        let mut layer = Self::default();
        for (key, text) in flags {
            layer.take_text(key, text, &Origin::Flag(format!("--{key}")))?;
        }
        Ok(layer)
    }

    fn take_table(
        &mut self,
        section: &str,
        table: &Map<String, Raw>,
        origin: &Origin,
    ) -> Result<(), ConfigError> {
        // In the order of their names, so that of two errors it is always the same that is reported.
        for (name, raw) in table.iter().collect::<BTreeMap<_, _>>() {
            let key = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
            let is_key = setting(&key).is_some() || IGNORED.iter().any(|(ignored, _)| *ignored == key);
            match (&raw.kind, inside(&key)) {
                (ValueKind::Table(table), Some(_)) => self.take_table(&key, table, origin)?,
                // A heading with nothing below it.
                (ValueKind::Nil, Some(_)) => {}
                (ValueKind::Table(_), None) if is_key => {
                    return Err(wrong(&key, "a section".to_owned(), origin));
                }
                (ValueKind::Array(_), None) if is_key => {
                    return Err(wrong(&key, "a list".to_owned(), origin));
                }
                (ValueKind::Nil, _) => self.take_text(&key, "", origin)?,
                (kind, _) => self.take_text(&key, &shown(kind), origin)?,
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
        let (key, value, origin) = (key.to_owned(), quoted(text), origin.clone());
        match inside(&key) {
            Some(example) => Err(ConfigError::Section { key, value, origin, example }),
            None => Err(ConfigError::UnknownKey { nearest: nearest(&key), key, value, origin }),
        }
    }
}

/// `value` was found for `key`, which takes something else.
fn wrong(key: &str, value: String, origin: &Origin) -> ConfigError {
    let kind = setting(key).map_or(Kind::Text, |setting| setting.kind);
    ConfigError::Value { key: key.to_owned(), value, origin: origin.clone(), kind }
}

/// A value of a YAML file as a person wrote it, or nearly.
fn shown(kind: &ValueKind) -> String {
    match kind {
        ValueKind::Table(_) => "a section".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
        scalar => scalar.to_string(),
    }
}

/// `text` for a message: on one line, not endless, and visible where it is empty or has blanks.
fn quoted(text: &str) -> String {
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
