//! Localized multi-label targets: label maps read from disk and pooled over a training crop.
//!
//! A training image's map stands at `<relabel.path>/<class folder>/<image stem>.pt`, or under that name in the
//! one file that [`pack`] makes of such a folder. On the way of a sample: [`crate::pt`] reads the
//! file, [`LabelMap`] is its checked content, or [`packed`] finds it in the store; [`pool`] makes the
//! crop's target of it, [`derived`] changes that as options ask. Knows nothing of libtorch, and runs no code
//! that a file brings along.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use relabel_config::Axes;

use crate::data::{CropBox, ImageSize};

pub mod derived;
pub mod inspect;
mod label_map;
pub mod pack;
pub mod packed;
mod parallel;
pub mod pool;
mod presence;

pub use label_map::{LabelMap, MapError, Stored};
pub(crate) use parallel::map_in_order;

use packed::{Packed, PackedError};

/// What a training crop is taught: a distribution over the classes for one sample and one crop of it.
///
/// Implementations are shared by all loader threads.
pub trait Targets: Send + Sync {
    /// Number of classes, the length of every target.
    fn classes(&self) -> usize;

    /// Writes the target of `sample` (its position in the split's index) for `crop`, a box in pixels of
    /// the decoded image of size `image`, into `out`: `classes()` values that are not negative and sum to 1.
    fn write(&self, sample: u32, image: ImageSize, crop: CropBox, out: &mut [f32]) -> Result<(), LabelError>;
}

/// Why a target could not be made; every variant names the file, and its message is one whole line.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    #[error(
        "relabel.path {path} does not exist; set it to the folder that holds <class>/<image>.pt, or to a file \
         that `worker pack` made of it"
    )]
    NoMaps { path: PathBuf },
    #[error(
        "label map {path} is missing for image {key}; generate it with `worker label`, or check relabel.path"
    )]
    Missing { path: PathBuf, key: String },
    #[error("label map {path} cannot be read: {why}")]
    Read { path: PathBuf, why: io::Error },
    #[error("label map {path}: {why}")]
    Map { path: PathBuf, why: Box<MapError> },
    #[error("packed label maps {path}: {why}")]
    Packed { path: PathBuf, why: Box<PackedError> },
    #[error("sample {sample} is of class {class}, but there are {classes} classes; check model.num_classes")]
    Class { sample: u32, class: u32, classes: usize },
}

/// Reads the label map at `path`, whose class ids must be under `classes`.
pub fn read_map(path: &Path, classes: u32) -> Result<LabelMap, LabelError> {
    let bytes = std::fs::read(path).map_err(|why| LabelError::Read { path: path.into(), why })?;
    LabelMap::parse(bytes, classes).map_err(|why| LabelError::Map { path: path.into(), why: Box::new(why) })
}

/// Names the image of a sample: `<class folder>/<image stem>`.
pub type Keys = Arc<dyn Fn(u32) -> String + Send + Sync>;

/// Targets from label maps, looked up anew for each sample: what the page cache does not hold comes from
/// the disk, about 9 KB an image from `.pt` files and half of that from a packed store.
pub struct LabelMaps {
    source: Source,
    classes: u32,
    axes: Axes,
    keys: Keys,
}

/// Where label maps are kept.
enum Source {
    /// A folder of `<class>/<stem>.pt`.
    Folder(PathBuf),
    Packed(Packed),
}

impl LabelMaps {
    /// Maps in the folder or packed store `path`, whose class ids must be under `classes`; `axes` says how a
    /// crop's box is read into them. Fails where there is neither, or the store is not whole.
    pub fn new(path: PathBuf, classes: u32, axes: Axes, keys: Keys) -> Result<Self, LabelError> {
        let source = if path.is_dir() {
            Source::Folder(path)
        } else if path.exists() {
            let failed = |why| LabelError::Packed { path: path.clone(), why: Box::new(why) };
            let packed = Packed::open(&path).map_err(failed)?;
            if packed.classes() > classes {
                return Err(failed(PackedError::Classes { found: packed.classes(), classes }));
            }
            Source::Packed(packed)
        } else {
            return Err(LabelError::NoMaps { path });
        };
        Ok(Self { source, classes, axes, keys })
    }

    /// Checks that each of samples `0..samples` has a map, without reading it: folders are listed.
    ///
    /// # Errors
    /// The first that has none.
    pub fn check_present(&self, samples: u32) -> Result<(), LabelError> {
        match &self.source {
            Source::Folder(root) => presence::check(root, samples, &self.keys),
            Source::Packed(_) => self.check(0..samples),
        }
    }

    /// Reads the maps of these samples, so that a wrong folder, shape or number of classes is an error before
    /// training starts.
    pub fn check(&self, samples: impl IntoIterator<Item = u32>) -> Result<(), LabelError> {
        samples.into_iter().try_for_each(|sample| self.read(sample).map(drop))
    }

    /// The map of one sample.
    pub fn read(&self, sample: u32) -> Result<LabelMap, LabelError> {
        let key = (self.keys)(sample);
        match &self.source {
            Source::Packed(packed) => packed
                .get(&key)
                .map_err(|why| LabelError::Packed { path: packed.path().into(), why: Box::new(why) }),
            Source::Folder(root) => {
                let path = map_path(root, &key);
                read_map(&path, self.classes).map_err(|error| match error {
                    LabelError::Read { path, why } if why.kind() == io::ErrorKind::NotFound => {
                        LabelError::Missing { path, key }
                    }
                    other => other,
                })
            }
        }
    }
}

/// Where the map of the image called `key` stands under `root`.
pub fn map_path(root: &Path, key: &str) -> PathBuf {
    // The stem may hold dots, so the extension is appended, not replaced.
    root.join(format!("{key}.pt"))
}

impl Targets for LabelMaps {
    fn classes(&self) -> usize {
        self.classes as usize
    }

    fn write(&self, sample: u32, image: ImageSize, crop: CropBox, out: &mut [f32]) -> Result<(), LabelError> {
        pool::pool(&self.read(sample)?, pool::UnitBox::of(image, crop), self.axes, out);
        Ok(())
    }
}

/// Targets that name only the class of the image's folder, whatever the crop shows: training without ReLabel.
pub struct SingleLabel {
    classes: usize,
    class_of: Arc<dyn Fn(u32) -> u32 + Send + Sync>,
}

impl SingleLabel {
    /// `class_of` is the class of each sample, under `classes`.
    pub fn new(classes: u32, class_of: Arc<dyn Fn(u32) -> u32 + Send + Sync>) -> Self {
        Self { classes: classes as usize, class_of }
    }
}

impl Targets for SingleLabel {
    fn classes(&self) -> usize {
        self.classes
    }

    fn write(&self, sample: u32, _: ImageSize, _: CropBox, out: &mut [f32]) -> Result<(), LabelError> {
        let class = (self.class_of)(sample);
        out.fill(0.0);
        match out.get_mut(class as usize) {
            Some(one) => *one = 1.0,
            None => return Err(LabelError::Class { sample, class, classes: self.classes }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
