//! ReaL: ImageNet's validation set labelled again, with every class that a picture shows (Beyer et al. 2020,
//! "Are we done with ImageNet?"). A first answer among them is right; a picture without any is not counted.

use std::path::{Path, PathBuf};

use relabel_core::evaluation::counts::RealCounts;

use super::sets::IMAGENET_VAL;

/// Why the labels cannot be used. One line.
#[derive(Debug, thiserror::Error)]
pub enum RealError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: not ReaL's labels, a JSON list of a list of class ids for each image ({reason})", path.display())]
    Format { path: PathBuf, reason: String },
    #[error("{file}: no number in 1..={images} after ILSVRC2012_val_, so ReaL's labels say nothing of it")]
    NoSuchImage { file: String, images: usize },
}

/// `real.json`: entry i holds the class ids of ILSVRC2012_val_{i+1:08}.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Real {
    labels: Vec<Vec<u32>>,
}

impl Real {
    /// # Errors
    /// An unreadable file, or something else in it.
    pub fn read(path: &Path) -> Result<Self, RealError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| RealError::Read { path: path.to_path_buf(), source })?;
        Self::parse(&text).map_err(|reason| RealError::Format { path: path.to_path_buf(), reason })
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map(|labels| Self { labels }).map_err(|error| error.to_string())
    }

    /// Judges `answer`, the class id that was scored first for the image `file`.
    ///
    /// # Errors
    /// A file that is not named as one of the labelled images.
    pub fn add(&self, counts: &mut RealCounts, file: &str, answer: u32) -> Result<(), RealError> {
        let labels = image_number(file).and_then(|number| self.labels.get(number.checked_sub(1)?));
        let Some(labels) = labels else {
            return Err(RealError::NoSuchImage { file: file.to_owned(), images: self.labels.len() });
        };
        if !labels.is_empty() {
            counts.images += 1;
            counts.right += u64::from(labels.contains(&answer));
        }
        Ok(())
    }
}

/// The number in `ILSVRC2012_val_00000001.JPEG`.
fn image_number(file: &str) -> Option<usize> {
    let rest = file.strip_prefix(IMAGENET_VAL)?;
    rest.split('.').next()?.parse().ok()
}
