//! Lists what a split folder holds: class folders, which are listed on several threads, or tar files, which `shards`
//! looks into.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::super::DataError;
use super::{ClassListing, Listing, Origin, shards};
use crate::labels::map_in_order;

/// Listing folders waits for the file system, over a network above all, and hardly computes, so the
/// number does not depend on the cores.
const THREADS: usize = 16;

/// Endings of images, in any case.
pub(crate) const EXTENSIONS: [&str; 3] = ["jpeg", "jpg", "png"];

/// Endings of compressed tar files, in any case.
const COMPRESSED: [&str; 8] =
    [".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4"];

/// The names in a split folder that matter, sorted.
struct Names {
    folders: Vec<String>,
    /// Tar files; if there are any, or no folders, compressed ones too, so that they are refused by their name.
    shards: Vec<String>,
}

/// Lists all images of the split in `dir`, sorted.
pub(super) fn scan(dir: &Path) -> Result<Listing, DataError> {
    let modified = fs::metadata(dir).and_then(|folder| folder.modified());
    let modified = modified.map_err(|source| list_error(dir, source))?;
    let Names { folders, shards } = names(dir)?;
    match (folders.first(), shards.first()) {
        (None, None) => Err(DataError::NoClasses { path: dir.to_path_buf() }),
        (Some(folder), Some(shard)) => {
            let (folder, shard) = (folder.clone(), shard.clone());
            Err(DataError::FoldersAndShards { path: dir.to_path_buf(), folder, shard })
        }
        (None, Some(_)) => shards::scan(dir, modified, shards),
        (Some(_), None) => {
            let listed = map_in_order(&folders, THREADS, |name| list_class(&dir.join(name), name));
            // Of several faults the first in order is told.
            let listed = listed.into_iter().collect::<Result<Vec<_>, _>>()?;
            let (classes, times): (Vec<_>, Vec<_>) = listed.into_iter().unzip();
            Ok(Listing { modified, classes, origin: Origin::Folders(times) })
        }
    }
}

/// Whether the split in `dir` is made of tar files.
///
/// # Errors
/// A folder that cannot be listed.
pub(crate) fn holds_shards(dir: &Path) -> Result<bool, DataError> {
    Ok(!names(dir)?.shards.is_empty())
}

fn names(dir: &Path) -> Result<Names, DataError> {
    let failed = |source| list_error(dir, source);
    let (mut folders, mut shards, mut compressed) = (Vec::new(), Vec::new(), Vec::new());
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let text = || entry.file_name().into_string().map_err(|_| DataError::FileName { path: entry.path() });
        if is_dir(&entry).map_err(failed)? {
            folders.push(text()?);
            continue;
        }
        let lower = name.to_string_lossy().to_ascii_lowercase();
        if lower.ends_with(".tar") {
            shards.push(text()?);
        } else if COMPRESSED.iter().any(|ending| lower.ends_with(ending)) {
            compressed.push(text()?);
        }
    }
    // Archives that class folders were unpacked from may lie beside them.
    if folders.is_empty() || !shards.is_empty() {
        shards.append(&mut compressed);
    }
    folders.sort_unstable();
    shards.sort_unstable();
    Ok(Names { folders, shards })
}

fn list_class(path: &Path, class: &str) -> Result<(ClassListing, SystemTime), DataError> {
    let failed = |source| list_error(path, source);
    let modified = fs::metadata(path).and_then(|folder| folder.modified()).map_err(failed)?;
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        // A link is taken for a file: following each of a million would cost more than the listing.
        if name.as_encoded_bytes().starts_with(b".") || entry.file_type().map_err(failed)?.is_dir() {
            continue;
        }
        let extension = Path::new(&name).extension().map(|extension| extension.to_ascii_lowercase());
        if extension.is_some_and(|extension| EXTENSIONS.iter().any(|wanted| extension == *wanted)) {
            files.push(name.into_string().map_err(|_| DataError::FileName { path: entry.path() })?);
        }
    }
    if files.is_empty() {
        return Err(DataError::EmptyClass { path: path.to_path_buf() });
    }
    files.sort_unstable();
    let listing = ClassListing::new(class.to_owned(), files.iter().map(String::as_str));
    let listing = listing.ok_or_else(|| DataError::TooManyImages { path: path.to_path_buf() })?;
    Ok((listing, modified))
}

fn is_dir(entry: &fs::DirEntry) -> io::Result<bool> {
    let kind = entry.file_type()?;
    // A class folder may be a link to one; a link to nowhere is not a class folder.
    Ok(kind.is_dir() || kind.is_symlink() && fs::metadata(entry.path()).is_ok_and(|target| target.is_dir()))
}

fn list_error(path: &Path, source: io::Error) -> DataError {
    DataError::List { path: path.to_path_buf(), source }
}
