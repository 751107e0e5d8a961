//! What can go wrong between the disk and a batch. Every message is one line that names the file.

use std::io;
use std::path::PathBuf;

use super::location::Location;
use crate::labels::LabelError;

/// Why a data set, an image of it or a batch could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("data folder {} does not exist: set data.data_path to the folder that holds train/ and val/", path.display())]
    MissingFolder { path: PathBuf },
    #[error("cannot list folder {}: {source}", path.display())]
    List { path: PathBuf, source: io::Error },
    #[error("data folder {} holds no class folders: expected one folder a class with JPEG files in it, or tar files of them", path.display())]
    NoClasses { path: PathBuf },
    #[error("class folder {} holds no .jpeg, .jpg or .png file: fill or remove it", path.display())]
    EmptyClass { path: PathBuf },
    #[error("{} is not a UTF-8 name: rename it", path.display())]
    FileName { path: PathBuf },
    #[error("data folder {} holds more images than an index can number (4 GiB of names): split it", path.display())]
    TooManyImages { path: PathBuf },
    #[error(
        "data folder {} holds class folders ({folder}) and tar files ({shard}): keep one of the two there",
        path.display()
    )]
    FoldersAndShards { path: PathBuf, folder: String, shard: String },
    #[error("cannot open shard {}: {source}", path.display())]
    OpenShard { path: PathBuf, source: io::Error },
    #[error(
        "the {shards} shards in data folder {} cannot all be kept open where a process may have {limit} files open: \
         raise `ulimit -n`, or make fewer and larger shards", path.display()
    )]
    TooManyShards { path: PathBuf, shards: usize, limit: u64 },
    #[error("shard {}: {source}", path.display())]
    Shard { path: PathBuf, source: ShardError },
    /// `first` and `second` name shard and member.
    #[error(
        "{first} and {second} are both image {key}: a class may hold a name once, whatever its ending; rename one"
    )]
    Twice { key: String, first: String, second: String },
    /// An image that could not be read; `advice` says what its user can do.
    #[error("cannot use image {image}: {source}; {advice}")]
    Image { image: Location, source: ImageError, advice: &'static str },
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

/// Why a tar file cannot be used as a shard; its path stands in [`DataError::Shard`]. `at` are bytes from its beginning.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
    #[error("it is compressed ({0}): images are read out of its middle, so unpack it to a plain tar file")]
    Compressed(&'static str),
    #[error("it is damaged or not a tar file, from byte {at} on: {source}")]
    Damaged { at: u64, source: io::Error },
    #[error("its {size} bytes end without the zeros that a tar file ends with: it is truncated")]
    NoEnd { size: u64 },
    #[error("there is something at byte {at}, after its end: make one archive of what was put together")]
    AfterEnd { at: u64 },
    #[error("member {member} of {length} bytes reaches beyond the end of its {size} bytes: it is truncated")]
    BeyondEnd { member: String, length: u64, size: u64 },
    #[error("member {member} is sparse: make the archive without --sparse")]
    Sparse { member: String },
    #[error("member {member} is a link or a special file: make the archive with --dereference")]
    NotAFile { member: String },
    #[error("member {member} is no relative path within the archive: it begins with / or has .. in it")]
    Outside { member: String },
    #[error("member {member} is not a UTF-8 name: rename it")]
    NotUtf8 { member: String },
    #[error("member {member} of {length} bytes is larger than an image may be (4 GiB)")]
    TooLarge { member: String, length: u64 },
    #[error("member {member} is there twice")]
    MemberTwice { member: String },
    #[error("member {member} does not hold the name of a class: it must be one line of text without /")]
    ClassName { member: String },
    #[error("image {member} has no .cls of the same name in this shard, as images of this data set have")]
    NoClassFile { member: String },
    #[error("member {member} has no .jpeg, .jpg or .png image of the same name in this shard")]
    NoImage { member: String },
    #[error("image {member} has no class: expected a .cls of the same name, or a class folder around it")]
    NoClass { member: String },
    #[error("it holds no .jpeg, .jpg or .png file: remove it")]
    Empty,
    #[error("it was changed while it was being indexed: start again when it is complete")]
    Changed,
}

/// Why one image file could not be turned into pixels; where it is stands in [`DataError::Image`].
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
