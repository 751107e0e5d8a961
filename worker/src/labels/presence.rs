//! Whether every image has a label map, found by listing folders: a run should say so before its first
//! step, not when it comes to the image, and opening a million files would take too long.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Keys, LabelError};

/// Listing waits for the file system and hardly computes, so the number does not depend on the cores.
const THREADS: usize = 16;

/// Samples that one thread looks up at a time; they stand in the index by class.
const CHUNK: u32 = 4096;

/// Checks that each of samples `0..samples` has its map under `root`.
///
/// # Errors
/// The first sample, in order, whose map is missing, or a folder that cannot be listed.
pub(super) fn check(root: &Path, samples: u32, keys: &Keys) -> Result<(), LabelError> {
    let next = AtomicU32::new(0);
    let first: Mutex<Option<(u32, LabelError)>> = Mutex::new(None);
    let work = || {
        loop {
            let start = next.fetch_add(CHUNK, Ordering::Relaxed);
            if start >= samples {
                return;
            }
            let Err((sample, error)) = check_some(root, start..samples.min(start + CHUNK), keys) else {
                continue;
            };
            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
            if first.as_ref().is_none_or(|(before, _)| sample < *before) {
                *first = Some((sample, error));
            }
        }
    };
    std::thread::scope(|scope| {
        // It goes on here with as many threads as could be started.
        for _ in 1..THREADS.min((samples / CHUNK + 1) as usize) {
            if std::thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

fn check_some(root: &Path, samples: Range<u32>, keys: &Keys) -> Result<(), (u32, LabelError)> {
    let mut listed: Option<(String, HashSet<OsString>)> = None;
    for sample in samples {
        let key = keys(sample);
        let (folder, stem) = key.rsplit_once('/').unwrap_or(("", &key));
        let names = match &mut listed {
            Some((name, names)) if name == folder => names,
            _ => {
                let path = root.join(folder);
                let names = list(&path).map_err(|why| (sample, LabelError::Read { path, why }))?;
                &mut listed.insert((folder.to_owned(), names)).1
            }
        };
        if !names.contains(&OsString::from(format!("{stem}.pt"))) {
            return Err((sample, LabelError::Missing { path: root.join(format!("{key}.pt")), key }));
        }
    }
    Ok(())
}

/// The names in a folder; none in one that is not there.
fn list(path: &Path) -> io::Result<HashSet<OsString>> {
    match std::fs::read_dir(path) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.file_name())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(HashSet::new()),
        Err(error) => Err(error),
    }
}
