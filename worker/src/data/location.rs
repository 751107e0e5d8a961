//! Where the bytes of an image are, and how they are read: a file of its own, or a part of a tar file.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// What tells that a shard is still the one that was indexed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// In bytes.
    pub size: u64,
    pub modified: SystemTime,
}

impl Stamp {
    /// # Errors
    /// Metadata of something that is no file, or without a time.
    pub fn of(metadata: &fs::Metadata) -> io::Result<Self> {
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        Ok(Self { size: metadata.len(), modified: metadata.modified()? })
    }
}

/// A tar file, open for as long as a split is in use: all threads read from the one descriptor, each at its own
/// place.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    file: File,
    stamp: Stamp,
}

impl Shard {
    /// # Errors
    /// A file that cannot be opened, or that is none.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::open(&path)?;
        let stamp = Stamp::of(&file.metadata()?)?;
        Ok(Self { path, file, stamp })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// As it was when it was opened.
    pub(super) fn stamp(&self) -> Stamp {
        self.stamp
    }
}

/// Two are the same if they stand for the same bytes, as far as path, size and time can tell.
impl PartialEq for Shard {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path && self.stamp == other.stamp
    }
}

impl Eq for Shard {}

/// The bytes of one image. Shown, it names the file, and in a shard the member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// All of a file.
    File(PathBuf),
    /// A member of a shard.
    Part {
        shard: Arc<Shard>,
        member: String,
        /// Of its content, in bytes from the beginning of the shard.
        start: u64,
        /// In bytes.
        length: u32,
    },
}

impl Location {
    /// Reads all of it into `bytes`, in place of what was there; after an error that is nothing of use.
    ///
    /// # Errors
    /// A file that cannot be opened or read, or a shard that has become shorter.
    pub fn read(&self, bytes: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::File(path) => {
                bytes.clear();
                File::open(path)?.read_to_end(bytes)?;
                Ok(())
            }
            Self::Part { shard, start, length, .. } => {
                // Only what it has grown by is cleared first; the index has seen that the shard is long enough.
                bytes.resize(*length as usize, 0);
                shard.file.read_exact_at(bytes, *start)
            }
        }
    }

    /// Has the system begin to read it, if it is part of a shard. What goes wrong shows when it is read.
    pub(super) fn read_ahead(&self) {
        let Self::Part { shard, start, length, .. } = self else { return };
        let Ok(start) = i64::try_from(*start) else { return };
        if let Err(error) =
            posix_fadvise(&shard.file, start, i64::from(*length), PosixFadviseAdvice::POSIX_FADV_WILLNEED)
        {
            tracing::debug!("{self} is not read ahead: {error}");
        }
    }

    /// Whether the folder that a file is in can still be seen. A shard is open, and so cannot go.
    pub(super) fn has_its_folder(&self) -> bool {
        match self {
            Self::File(path) => path.parent().is_some_and(Path::is_dir),
            Self::Part { .. } => true,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Part { shard, member, .. } => write!(f, "{}, member {member}", shard.path.display()),
        }
    }
}
