//! What the maps of a folder were made with, in its `label.json`: so that a run that is carried on, or shared by
//! several processes, ends with one sort of maps.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use relabel_config::{LabelOptions, Precision};
use serde::{Deserialize, Serialize};

use super::annotator::{Annotator, Arch};
use crate::checkpoint::temporary::Temporary;
use crate::leases::content_hash;

const NAME: &str = "label.json";
const VERSION: u32 = 1;

/// What label maps are a function of, apart from the images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Recipe {
    /// Grows when the same arguments come to give other maps.
    version: u32,
    /// Name of the network; none for a script.
    arch: Option<String>,
    /// BLAKE3 of the weights, or of the script.
    weights: String,
    /// BLAKE3 of the fully connected layer's file.
    head: Option<String>,
    size: u32,
    top_k: usize,
    dtype: String,
    /// What the network computed in; none for float32.
    precision: Option<String>,
}

impl Recipe {
    /// # Errors
    /// A file of the annotator that can no longer be read.
    pub(super) fn new(arch: &Arch, options: &LabelOptions, annotator: &Annotator, size: u32) -> Result<Self> {
        let (arch, weights) = match arch {
            Arch::Network(name) => (Some(name.clone()), options.weights.as_deref()),
            Arch::Script(file) => (None, Some(file.as_path())),
        };
        Ok(Self {
            version: VERSION,
            arch,
            weights: weights.map(content_hash).transpose()?.unwrap_or_default(),
            head: options.head.as_deref().map(content_hash).transpose()?,
            size,
            top_k: annotator.top_k(),
            precision: (options.precision != Precision::Fp32).then(|| options.precision.name().to_owned()),
            dtype: if options.half { "float16" } else { "float32" }.to_owned(),
        })
    }

    /// A hash over all of it, in hexadecimal: equal exactly if the maps will be of one sort.
    ///
    /// # Errors
    /// None that can be expected: it is plain text and numbers.
    pub(super) fn hash(&self) -> Result<String> {
        let text = serde_json::to_string(self).context("the options cannot be written")?;
        Ok(blake3::hash(text.as_bytes()).to_hex().to_string())
    }

    /// Makes `out` the folder of this recipe's maps.
    ///
    /// # Errors
    /// It holds maps of another recipe, or something else altogether.
    pub(super) fn claim(&self, out: &Path) -> Result<()> {
        let (path, shown) = (out.join(NAME), out.display());
        if !path.exists() {
            let mut entries = std::fs::read_dir(out).with_context(|| format!("{shown} cannot be listed"))?;
            let taken = entries.any(|entry| {
                entry.is_ok_and(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
            });
            // Another process of the same labelling may have claimed it since.
            ensure!(
                !taken || path.exists(),
                "{shown} is not empty and was not made by `worker label`; name another --out"
            );
            let text = serde_json::to_string_pretty(self)? + "\n";
            Temporary::write(&path, |file| std::io::Write::write_all(file, text.as_bytes()))
                .and_then(|temporary| temporary.rename(&path))
                .with_context(|| format!("{} cannot be written", path.display()))?;
        }
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let found: serde_json::Value =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let wanted = serde_json::to_value(self)?;
        for (key, wanted) in wanted.as_object().into_iter().flatten() {
            let found = found.get(key).unwrap_or(&serde_json::Value::Null);
            ensure!(
                found == wanted,
                "{shown} holds label maps made with {key} {found}, not {wanted}; name another --out"
            );
        }
        Ok(())
    }
}
