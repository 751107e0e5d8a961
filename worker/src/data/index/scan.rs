//! Lists the class folders of a split on several threads.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::super::DataError;
use super::{ClassListing, Listing};

/// Listing folders waits for the file system, over a network above all, and hardly computes, so the
/// number does not depend on the cores.
const THREADS: usize = 16;

/// Endings of images, in any case.
pub(crate) const EXTENSIONS: [&str; 3] = ["jpeg", "jpg", "png"];

/// Lists all images of all class folders of `dir`, sorted.
pub(super) fn scan(dir: &Path) -> Result<Listing, DataError> {
    let failed = |source| list_error(dir, source);
    let modified = fs::metadata(dir).and_then(|folder| folder.modified()).map_err(failed)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") || !is_dir(&entry).map_err(failed)? {
            continue;
        }
        names.push(name.into_string().map_err(|_| DataError::FileName { path: entry.path() })?);
    }
    if names.is_empty() {
        return Err(DataError::NoClasses { path: dir.to_path_buf() });
    }
    names.sort_unstable();

    let next = AtomicUsize::new(0);
    let list_some = || {
        let mut listed = Vec::new();
        loop {
            let class = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = names.get(class) else { return listed };
            listed.push((class, list_class(&dir.join(name), name)));
        }
    };
    let mut listed = thread::scope(|scope| {
        // The scanning goes on here with as many threads as could be started.
        let started: Vec<_> = (1..THREADS.min(names.len()))
            .map_while(|_| thread::Builder::new().spawn_scoped(scope, list_some).ok())
            .collect();
        let mut listed = list_some();
        for thread in started {
            match thread.join() {
                Ok(more) => listed.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        listed
    });
    // By class, so that of several faults the first in order is told.
    listed.sort_unstable_by_key(|(class, _)| *class);
    let classes = listed.into_iter().map(|(_, listing)| listing).collect::<Result<_, _>>()?;
    Ok(Listing { modified, classes })
}

fn list_class(path: &Path, class: &str) -> Result<ClassListing, DataError> {
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
    let names = files.concat();
    if u32::try_from(names.len()).is_err() {
        return Err(DataError::TooManyImages { path: path.to_path_buf() });
    }
    let mut end = 0;
    let ends = files.iter().map(|name| {
        end += name.len() as u32;
        end
    });
    Ok(ClassListing { name: class.to_owned(), modified, ends: ends.collect(), names })
}

fn is_dir(entry: &fs::DirEntry) -> io::Result<bool> {
    let kind = entry.file_type()?;
    // A class folder may be a link to one; a link to nowhere is not a class folder.
    Ok(kind.is_dir() || kind.is_symlink() && fs::metadata(entry.path()).is_ok_and(|target| target.is_dir()))
}

fn list_error(path: &Path, source: io::Error) -> DataError {
    DataError::List { path: path.to_path_buf(), source }
}
