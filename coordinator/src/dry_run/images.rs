//! How many images a data set holds, by names alone: those that the worker's index takes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Between two lines that say how far the counting is.
const BETWEEN_LINES: Duration = Duration::from_secs(2);

/// What is in a split's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    pub classes: u64,
    pub images: u64,
}

/// Counts the images of the class folders in `dir`; None where there is no such folder, or tar files in it, which only
/// workers look into. `tell` is called now and then with a line of how far it is.
pub(super) fn count(dir: &Path, tell: &dyn Fn(String)) -> io::Result<Option<Count>> {
    let folders = match folders(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        folders => folders?,
    };
    if folders.is_empty() && holds_tar_files(dir)? {
        return Ok(None);
    }
    let mut told = Instant::now();
    let began = Instant::now();
    let mut images = 0;
    for (done, folder) in folders.iter().enumerate() {
        for entry in fs::read_dir(folder)? {
            images += u64::from(is_image(&entry?)?);
        }
        if told.elapsed() > BETWEEN_LINES {
            told = Instant::now();
            let left = began.elapsed().as_secs_f64() / (done + 1) as f64 * (folders.len() - done - 1) as f64;
            tell(format!(
                "counted {} of {} folders of {}, {left:.0} s left",
                done + 1,
                folders.len(),
                dir.display()
            ));
        }
    }
    Ok(Some(Count { classes: folders.len() as u64, images }))
}

fn folders(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") && entry.path().is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

fn holds_tar_files(dir: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if Path::new(&name).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("tar")) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A file with an image's ending that is not hidden; a link counts as a file.
fn is_image(entry: &fs::DirEntry) -> io::Result<bool> {
    let name = entry.file_name();
    let ending = Path::new(&name).extension().map(|ending| ending.to_ascii_lowercase());
    let named = ending.is_some_and(|ending| ["jpeg", "jpg", "png"].iter().any(|known| ending == *known));
    Ok(named && !name.as_encoded_bytes().starts_with(b".") && !entry.file_type()?.is_dir())
}
