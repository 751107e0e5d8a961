//! What can go wrong between the disk and a batch. Every message is one line that names the file.

use std::io;
use std::path::PathBuf;

use crate::labels::LabelError;

/// Why a data set, an image of it or a batch could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("data folder {} does not exist: set data.data_path to the folder that holds train/ and val/", path.display())]
    MissingFolder { path: PathBuf },
    #[error("cannot list folder {}: {source}", path.display())]
    List { path: PathBuf, source: io::Error },
    #[error("data folder {} holds no class folders: expected one folder a class with JPEG files in it", path.display())]
    NoClasses { path: PathBuf },
    #[error("class folder {} holds no .jpeg, .jpg or .png file: fill or remove it", path.display())]
    EmptyClass { path: PathBuf },
    #[error("{} is not a UTF-8 name: rename it", path.display())]
    FileName { path: PathBuf },
    #[error("data folder {} holds more images than an index can number (4 GiB of names): split it", path.display())]
    TooManyImages { path: PathBuf },
    /// An image that could not be read; `advice` says what its user can do.
    #[error("cannot use image {}: {source}; {advice}", path.display())]
    Image { path: PathBuf, source: ImageError, advice: &'static str },
    #[error(transparent)]
    Label(#[from] LabelError),
    /// A request that no data set could satisfy, as when a slice lies outside its global batch.
    #[error("cannot load batches: {reason}")]
    Plan { reason: String },
    #[error("cannot start a loader thread: {source}; lower compute.num_workers")]
    Thread { source: io::Error },
    /// A defect of this program, caught so that the consumer fails rather than waits for ever.
    #[error("loading {what} panicked: {message}; this is a bug, please report it with the file")]
    Panic { what: String, message: String },
}

/// Why one image file could not be turned into pixels; the path stands in [`DataError::Image`].
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("{0}")]
    Read(#[source] io::Error),
    #[error("the file is empty")]
    Empty,
    #[error("neither a JPEG nor a PNG (its first bytes are {0})")]
    NotAnImage(String),
    #[error("the JPEG is truncated")]
    Truncated,
    #[error("damaged JPEG ({0})")]
    Jpeg(String),
    #[error("damaged PNG ({0})")]
    Png(String),
    #[error(
        "{width} x {height} pixels are more than the limit of {}, or of {} along a side",
        super::MAX_PIXELS,
        super::MAX_SIDE
    )]
    TooLarge { width: u32, height: u32 },
    #[error("its {bytes} bytes cannot hold {width} x {height} pixels: it is truncated or damaged")]
    TooShort { bytes: usize, width: u32, height: u32 },
    #[error("cannot resize it ({0})")]
    Resize(String),
}

impl ImageError {
    /// Whether the fault lies in this one file, so that leaving it out is a choice. A failing disk or an
    /// exhausted process is not: skipping then would quietly train on a part of the data.
    pub fn is_of_the_file(&self) -> bool {
        match self {
            Self::Read(source) => {
                matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
            }
            Self::Resize(_) => false,
            _ => true,
        }
    }
}
