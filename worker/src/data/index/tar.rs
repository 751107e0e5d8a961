//! Where the members of a tar file are, from header to header as the `tar` crate finds them; contents are passed over.
//! What cannot be relied on is refused, so that no image is left out unseen: another format, damage, an archive that
//! ends early or goes on after its end.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use ::tar::{Archive, Entry};

use super::super::ShardError;

const BLOCK: u64 = 512;

/// How files begin that are often taken for tar files.
const COMPRESSED: [(&[u8], &str); 4] = [
    (&[0x1F, 0x8B], "gzip"),
    (&[0x28, 0xB5, 0x2F, 0xFD], "zstd"),
    (&[0xFD, b'7', b'z', b'X', b'Z', 0], "xz"),
    (b"BZh", "bzip2"),
];

/// One entry of an archive that is no folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// As the archive has it.
    pub path: String,
    /// Of its content, in bytes from the beginning of the archive.
    pub start: u64,
    /// In bytes; `start + length` is within the archive.
    pub length: u64,
    /// False of links, devices and whatever else has no content of its own.
    pub is_file: bool,
}

/// Shows `visit` each member of the archive of `size` bytes, with its content to be read, if at all, before it returns.
///
/// # Errors
/// See [`ShardError`]: what makes the archive one that cannot be relied on; or the error of `visit`.
pub(super) fn walk(
    file: &File,
    size: u64,
    mut visit: impl FnMut(Member, &mut dyn Read) -> Result<(), ShardError>,
) -> Result<(), ShardError> {
    refuse_compressed(file)?;
    // Of the member before, with what fills its last block.
    let mut end = 0;
    let mut archive = Archive::new(file);
    for entry in archive.entries_with_seek().map_err(ShardError::Read)? {
        let mut entry = entry.map_err(|source| ShardError::Damaged { at: end, source })?;
        let path = entry.path_bytes().into_owned();
        let shown = || String::from_utf8_lossy(&path).into_owned();
        if is_sparse(&mut entry).map_err(|source| ShardError::Damaged { at: end, source })? {
            return Err(ShardError::Sparse { member: shown() });
        }
        let (start, length) = (entry.raw_file_position(), entry.size());
        let after = start.checked_add(length).filter(|after| *after <= size);
        let after = after.ok_or_else(|| ShardError::BeyondEnd { member: shown(), length, size })?;
        end = after.next_multiple_of(BLOCK);
        let kind = entry.header().entry_type();
        // In the oldest format a folder is a file whose name ends so.
        if kind.is_dir() || kind.is_pax_global_extensions() || path.ends_with(b"/") {
            continue;
        }
        let is_file = kind.is_file() || kind.is_contiguous();
        let path = String::from_utf8(path).map_err(|error| ShardError::NotUtf8 {
            member: String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })?;
        visit(Member { path, start, length, is_file }, &mut entry)?;
    }
    check_end(file, end, size)
}

fn refuse_compressed(file: &File) -> Result<(), ShardError> {
    let mut beginning = Vec::new();
    let longest = COMPRESSED.iter().map(|(magic, _)| magic.len()).max().unwrap_or(0);
    let mut reader = file;
    reader.take(longest as u64).read_to_end(&mut beginning).map_err(ShardError::Read)?;
    io::Seek::rewind(&mut reader).map_err(ShardError::Read)?;
    match COMPRESSED.iter().find(|(magic, _)| beginning.starts_with(magic)) {
        Some((_, format)) => Err(ShardError::Compressed(format)),
        None => Ok(()),
    }
}

/// Whether the content is not as it stands in the archive, but has holes left out.
///
/// # Errors
/// Pax records that are malformed: what else they say would have been overlooked.
fn is_sparse(entry: &mut Entry<'_, &File>) -> io::Result<bool> {
    let mut sparse = entry.header().entry_type().is_gnu_sparse();
    for record in entry.pax_extensions()?.into_iter().flatten() {
        sparse |= record?.key_bytes().starts_with(b"GNU.sparse.");
    }
    Ok(sparse)
}

/// Refuses an archive without zeros from `end` on, or with anything else there: members of it would be left out.
fn check_end(file: &File, end: u64, size: u64) -> Result<(), ShardError> {
    if size.saturating_sub(end) < BLOCK {
        return Err(ShardError::NoEnd { size });
    }
    let mut block = [0; 4096];
    let mut at = end;
    while at < size {
        let length = (size - at).min(block.len() as u64) as usize;
        file.read_exact_at(&mut block[..length], at).map_err(ShardError::Read)?;
        if let Some(place) = block[..length].iter().position(|byte| *byte != 0) {
            return Err(ShardError::AfterEnd { at: at + place as u64 });
        }
        at += length as u64;
    }
    Ok(())
}
