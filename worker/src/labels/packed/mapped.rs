//! A file's bytes, mapped into memory for reading.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::{Advice, Mmap};

/// The whole content of a file, as it was when it was opened.
pub(super) struct Mapped(Mmap);

impl Mapped {
    /// Maps the file at `path`, which may be empty.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
        }
        // SAFETY: memory of a mapped file changes if somebody writes into the file. Nobody does: the
        // packer writes under another name and renames, so an open store keeps the bytes that it had.
        let map = unsafe { Mmap::map(&file)? };
        // Crops come in random order, so what lies behind a map is not wanted next. Only advice.
        let _ = map.advise(Advice::Random);
        Ok(Self(map))
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
