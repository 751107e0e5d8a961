//! The classes' number, and their names where a file has them.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::eval::classes;

/// Most classes that are taken.
const MAX: u32 = 1 << 24;

/// How many classes there are and what they are called.
pub(super) struct Classes {
    len: u32,
    /// None where only the number is known.
    names: Option<classes::Classes>,
}

impl Classes {
    /// `text` is a number, or a file or folder as [`classes::Classes::read`] takes it.
    pub(super) fn parse(text: &str) -> Result<Self> {
        if let Ok(len) = text.parse::<u32>() {
            ensure!((1..=MAX).contains(&len), "--classes {len}; wanted 1 to {MAX}");
            return Ok(Self { len, names: None });
        }
        let names = classes::Classes::read(Path::new(text)).context("--classes")?;
        Ok(Self { len: u32::try_from(names.len()).context("--classes")?, names: Some(names) })
    }

    /// `len` classes, of which the first have these names.
    pub(super) fn named(names: &[String], len: u32) -> Self {
        Self { len, names: Some(classes::Classes::from_folders(names.to_vec())) }
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// The name of a class, where it has one.
    pub(super) fn name(&self, class: usize) -> Option<String> {
        let names = self.names.as_ref()?;
        (class < names.len()).then(|| names.name(class))
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
