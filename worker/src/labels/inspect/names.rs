//! The classes' number, and their names where a file has them.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Most classes that are taken.
const MAX: u32 = 1 << 24;

/// How many classes there are and what they are called.
pub(super) struct Classes {
    len: u32,
    /// By class id; empty where only the number is known.
    names: Vec<String>,
}

impl Classes {
    /// `text` is a number, or a file: JSON `{"0": ["n01440764", "tench"], ...}` or `["tench", ...]`, or plain
    /// text of a name a line.
    pub(super) fn parse(text: &str) -> Result<Self> {
        if let Ok(len) = text.parse::<u32>() {
            ensure!((1..=MAX).contains(&len), "--classes {len}; wanted 1 to {MAX}");
            return Ok(Self { len, names: Vec::new() });
        }
        let shown = || format!("--classes {text}");
        let content = std::fs::read_to_string(text).with_context(shown)?;
        let names = match serde_json::from_str::<Value>(&content) {
            Ok(value) => from_json(&value).with_context(shown)?,
            Err(_) => content.lines().map(|line| line.trim().to_owned()).collect(),
        };
        ensure!(!names.is_empty(), "--classes {text}: it names no class");
        Ok(Self { len: u32::try_from(names.len()).with_context(shown)?, names })
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// The name of a class, where it has one.
    pub(super) fn name(&self, class: usize) -> Option<&str> {
        self.names.get(class).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Id and name, `most` characters at most.
    pub(super) fn label(&self, class: usize, most: usize) -> String {
        let label = self.name(class).map_or_else(|| class.to_string(), |name| format!("{class} {name}"));
        shorten(&label, most)
    }
}

/// `text` cut to `most` characters.
pub(super) fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let kept: String = text.chars().take(most.saturating_sub(2)).collect();
    format!("{}..", kept.trim_end())
}

fn from_json(value: &Value) -> Result<Vec<String>> {
    // A class index names its WordNet id and its name, others only the name.
    let name = |entry: &Value| match entry {
        Value::String(name) => Some(name.clone()),
        Value::Array(parts) => parts.last().and_then(Value::as_str).map(str::to_owned),
        _ => None,
    };
    let wrong = "wanted {\"0\": [\"n01440764\", \"tench\"], ...} or [\"tench\", ...]";
    match value {
        Value::Array(entries) => entries.iter().map(|entry| name(entry).context(wrong)).collect(),
        Value::Object(entries) => {
            let mut names = vec![String::new(); entries.len()];
            for (class, entry) in entries {
                let place = class.parse().ok().and_then(|class: usize| names.get_mut(class));
                *place.with_context(|| format!("class {class:?} is not 0 to {}", entries.len() - 1))? =
                    name(entry).context(wrong)?;
            }
            Ok(names)
        }
        _ => bail!(wrong),
    }
}
