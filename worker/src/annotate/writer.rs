//! Puts finished maps on the disk on a thread of its own, while the next batch is computed.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};

use crate::labels::{LabelMap, map_path};
use crate::pt::pickle::Dtype;

/// Maps that may wait: a network that is faster than the disk is held up rather than filling the memory.
const WAITING: usize = 1024;

/// The writing thread's end that takes maps.
pub(super) struct Writer {
    maps: SyncSender<(String, LabelMap)>,
    thread: JoinHandle<Result<()>>,
}

impl Writer {
    /// Starts a thread that writes `<root>/<key>.pt`, float16 with `half`, else float32. Class folders must exist.
    pub(super) fn start(root: &Path, half: bool) -> Result<Self> {
        let (maps, waiting) = sync_channel(WAITING);
        let root = root.to_owned();
        let dtype = if half { Dtype::F16 } else { Dtype::F32 };
        let thread = thread::Builder::new()
            .name("writer".into())
            .spawn(move || write_all(&root, dtype, &waiting))
            .context("cannot start the thread that writes label maps")?;
        Ok(Self { maps, thread })
    }

    /// Hands a map over; false where the thread has failed.
    pub(super) fn send(&self, key: String, map: LabelMap) -> bool {
        self.maps.send((key, map)).is_ok()
    }

    /// Whether it makes no sense to go on.
    pub(super) fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until everything is written, or says what could not be.
    pub(super) fn finish(self) -> Result<()> {
        drop(self.maps);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn write_all(root: &Path, dtype: Dtype, maps: &Receiver<(String, LabelMap)>) -> Result<()> {
    for (key, map) in maps {
        let path = map_path(root, &key);
        let shown = || format!("label map {}", path.display());
        let bytes = map.to_pt(dtype).with_context(shown)?;
        // A name never stands for half a map. Not synced, which would take longer than the labelling: a map that a
        // power failure tore is found by its checksums and made again. One hidden name a map, which
        // the next start writes over, so that a kill leaves nothing behind.
        let temporary = temporary(&path);
        std::fs::write(&temporary, bytes)
            .and_then(|()| rename(&temporary, &path))
            .with_context(|| format!("{} cannot be written", shown()))?;
    }
    Ok(())
}

/// Gives a finished map its name. Where a worker that was given up for silence wakes up again, two may make the same
/// map at once, and the other one's rename has taken the file along: then the map is there.
fn rename(temporary: &Path, path: &Path) -> std::io::Result<()> {
    match std::fs::rename(temporary, path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.is_file() => Ok(()),
        renamed => renamed,
    }
}

fn temporary(path: &Path) -> PathBuf {
    path.with_file_name(format!(".{}.tmp", path.file_name().unwrap_or_default().to_string_lossy()))
}
