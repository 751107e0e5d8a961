//! A file that has its name only once it is whole.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// A file under a name of its own, removed unless it is renamed.
pub(crate) struct Temporary {
    path: Option<PathBuf>,
}

impl Temporary {
    /// Writes and syncs a file beside `target`.
    pub(crate) fn write(target: &Path, body: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<Self> {
        let path = beside(target);
        let mut file = File::create(&path)?;
        let temporary = Self { path: Some(path) };
        body(&mut file)?;
        file.sync_all()?;
        Ok(temporary)
    }

    /// Another name beside `target` for what `file` names.
    pub(crate) fn link(file: &Path, target: &Path) -> io::Result<Self> {
        let path = beside(target);
        std::fs::hard_link(file, &path)?;
        Ok(Self { path: Some(path) })
    }

    /// Gives the file its name, in place of what had it.
    pub(crate) fn rename(mut self, target: &Path) -> io::Result<()> {
        if let Some(path) = &self.path {
            std::fs::rename(path, target)?;
            self.path = None;
        }
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // The write has failed already, and that is the error worth telling.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A hidden name in the folder of `target`, of this process alone.
fn beside(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
}
