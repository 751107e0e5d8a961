//! The layouts of evaluation sets, found by looking at the folders:
//!
//! ```text
//! <dir>/val/<class>/<image>                    ImageNet; training folders in <dir>/train name the classes
//! <dir>/<class>/<image>                        the same without val/; ImageNetV2 with 0 to 999; ImageNet-A, -O, -R
//! <dir>/val/*.tar, <dir>/*.tar                 either as shards
//! <dir>/<corruption>/<severity>/<class>/<image>      ImageNet-C, severities 1 to 5
//! <dir>/<group>/<corruption>/<severity>/<class>/...  all of ImageNet-C as it unpacks: noise, blur, weather, ...
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::classes::{Classes, ClassesError, class_ids, folders};
use crate::data::DataError;
use crate::data::index::Split;

/// Why a set cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    #[error("cannot list folder {}: {source}", path.display())]
    List { path: PathBuf, source: std::io::Error },
    #[error("{}: a folder of severities 1 to 5, among corruptions, but {found} stands in it", path.display())]
    NotASeverity { path: PathBuf, found: String },
    #[error(transparent)]
    Classes(#[from] ClassesError),
    #[error(transparent)]
    Data(#[from] DataError),
}

/// Where the images of a set are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// A folder of class folders.
    Plain(PathBuf),
    /// ImageNet-C's.
    Corrupted(Vec<Corruption>),
}

/// One sort of damage, at one or more severities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    /// Such as `gaussian_noise`.
    pub name: String,
    /// Severity and its folder of class folders, mildest first.
    pub severities: Vec<(u32, PathBuf)>,
}

/// Finds out the layout of `dir`.
///
/// # Errors
/// A folder that cannot be listed, or one that is neither a corruption nor a class where the others are.
pub fn layout(dir: &Path) -> Result<Layout, SetError> {
    let val = dir.join("val");
    if val.is_dir() {
        return Ok(Layout::Plain(val));
    }
    let Some(first) = list(dir)?.into_iter().next() else {
        // Indexing it says what is missing.
        return Ok(Layout::Plain(dir.to_path_buf()));
    };
    let first = dir.join(first);
    let corruptions = if holds_severities(&first)? {
        corruptions(dir)?
    } else {
        match list(&first)?.into_iter().next() {
            Some(inner) if holds_severities(&first.join(&inner))? => {
                let mut all = Vec::new();
                for group in list(dir)? {
                    all.extend(corruptions(&dir.join(group))?);
                }
                all.sort_by(|a, b| a.name.cmp(&b.name));
                all
            }
            _ => return Ok(Layout::Plain(dir.to_path_buf())),
        }
    };
    Ok(Layout::Corrupted(corruptions))
}

/// Whether `dir` holds folders named 1 to 5 and nothing else, with folders in the first.
fn holds_severities(dir: &Path) -> Result<bool, SetError> {
    let inside = list(dir)?;
    let Some(first) = inside.first() else { return Ok(false) };
    Ok(inside.iter().all(|name| severity(name).is_some()) && !list(&dir.join(first))?.is_empty())
}

fn severity(name: &str) -> Option<u32> {
    name.parse().ok().filter(|severity| (1..=5).contains(severity))
}

fn corruptions(dir: &Path) -> Result<Vec<Corruption>, SetError> {
    let mut found = Vec::new();
    for name in list(dir)? {
        let path = dir.join(&name);
        let mut severities = Vec::new();
        for inner in list(&path)? {
            match severity(&inner) {
                Some(severity) => severities.push((severity, path.join(inner))),
                None => return Err(SetError::NotASeverity { path, found: inner }),
            }
        }
        found.push(Corruption { name, severities });
    }
    Ok(found)
}

fn list(dir: &Path) -> Result<Vec<String>, SetError> {
    folders(dir).map_err(|source| SetError::List { path: dir.to_path_buf(), source })
}

/// A folder of class folders, and what they mean to the network.
#[derive(Debug, Clone)]
pub struct EvalSet {
    pub path: PathBuf,
    pub split: Arc<Split>,
    /// The output of the network that each class folder means, by the folder's position.
    pub class_ids: Arc<[u32]>,
    /// Whether the set has only some of the network's classes, so that only those are answers.
    pub subset: bool,
}

impl EvalSet {
    /// Indexes `path`, for a network of `outputs` outputs that are `known`, or else the set's own folders.
    ///
    /// # Errors
    /// A folder without classes or images, or classes that the network does not know.
    pub fn open(path: &Path, known: Option<&Classes>, outputs: usize) -> Result<Self, SetError> {
        let split = Arc::new(Split::open(path, None)?);
        let class_ids: Arc<[u32]> = class_ids(path, split.classes(), known, outputs)?.into();
        let subset = class_ids.len() < known.map_or(outputs, Classes::len);
        Ok(Self { path: path.to_path_buf(), split, class_ids, subset })
    }

    /// Whether the files are those of ImageNet's validation set, which ReaL and the multi-labels are about.
    pub fn is_imagenet_val(&self) -> bool {
        (0..self.split.len() as u32).all(|sample| self.split.file_name(sample).starts_with(IMAGENET_VAL))
    }
}

/// What the files of ImageNet's validation set are called, before their number from 1.
pub const IMAGENET_VAL: &str = "ILSVRC2012_val_";
