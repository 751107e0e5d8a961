//! Facts that outlive the coordinator: appended to `<run-dir>/journal.jsonl`, one a line, checksummed, and on
//! the disk before [`Journal::append`] returns, so that what was acted on is known again after a crash. One
//! coordinator holds a run directory at a time, by a lock that the kernel drops with the process.
//!
//! A line is `<crc32 of the JSON, 8 hex digits> <JSON>\n`. What a fact is, the caller says: this module knows
//! bytes and disks, and decides nothing.

#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The journal's name in the run directory.
pub const JOURNAL: &str = "journal.jsonl";
const LOCK: &str = "lock";

/// Why the journal cannot be read or written. Each message is one line and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("cannot {operation} {}: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "run directory {} is in use by another coordinator (pid {holder}): stop that one, or name another --run-dir",
        dir.display()
    )]
    Locked { dir: PathBuf, holder: String },
    #[error(
        "{} line {line} is damaged and lines follow it: the run's history cannot be trusted; restore the file from a \
         copy, or start over with another --run-dir",
        path.display()
    )]
    Damaged { path: PathBuf, line: usize },
    #[error(
        "{} line {line} is whole but not a fact that this version knows: {source}; resume with the version that wrote it",
        path.display()
    )]
    Unknown { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("cannot put a fact into words for {}: {source}", path.display())]
    Encode { path: PathBuf, source: serde_json::Error },
    #[error("{} can no longer be written since an earlier write failed: restart the coordinator", path.display())]
    Broken { path: PathBuf },
}

/// The journal of one run directory, locked for as long as it lives.
#[derive(Debug)]
pub struct Journal<F> {
    file: File,
    path: PathBuf,
    /// Bytes of whole lines, all of them synced.
    length: u64,
    /// A failed write could not be undone, or a failed sync left unknown what is on the disk.
    broken: bool,
    _lock: Flock<File>,
    _facts: PhantomData<fn(&F)>,
}

impl<F: Serialize + DeserializeOwned> Journal<F> {
    /// Opens the journal in `dir`, which is created where it is missing, and returns the facts in it from the
    /// oldest. A torn last line, which is what a crash in the middle of an append leaves, is cut off with a
    /// warning: nobody was told that it was written.
    ///
    /// # Errors
    /// Another coordinator holds `dir`, a line before the last is damaged, a fact is unknown, or the disk refuses.
    pub fn open(dir: &Path) -> Result<(Self, Vec<F>), JournalError> {
        std::fs::create_dir_all(dir).map_err(failed("create", dir))?;
        let lock = lock(dir)?;
        let path = dir.join(JOURNAL);
        let existed = path.exists();
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(failed("open", &path))?;
        if !existed {
            // The file's name is on the disk only with its folder.
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))?;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed("read", &path))?;
        let (facts, whole) = read(&path, &bytes)?;
        if whole < bytes.len() {
            tracing::warn!(
                "{}: the last line was torn by a crash; cutting {} bytes of it, {} facts remain",
                path.display(),
                bytes.len() - whole,
                facts.len()
            );
            file.set_len(whole as u64)
                .and_then(|()| file.sync_all())
                .map_err(failed("cut the torn last line of", &path))?;
        }
        let length = whole as u64;
        Ok((Self { file, path, length, broken: false, _lock: lock, _facts: PhantomData }, facts))
    }

    /// Appends `fact` and returns when it is on the disk. It blocks for as long as the disk takes.
    ///
    /// # Errors
    /// The disk refused: the fact counts as not written, and what was written of it is taken back. Where that too
    /// fails, every later call fails.
    pub fn append(&mut self, fact: &F) -> Result<(), JournalError> {
        if self.broken {
            return Err(JournalError::Broken { path: self.path.clone() });
        }
        let json = serde_json::to_string(fact)
            .map_err(|source| JournalError::Encode { path: self.path.clone(), source })?;
        let line = format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()));
        if let Err(source) = self.file.write_all(line.as_bytes()) {
            // Half a line in the middle would be damage to whoever reads the journal next.
            self.broken = self.file.set_len(self.length).is_err();
            return Err(failed("append to", &self.path)(source));
        }
        if let Err(source) = self.file.sync_data() {
            // After a failed sync the kernel may have dropped the pages: nothing that follows could be trusted.
            self.broken = true;
            return Err(failed("sync", &self.path)(source));
        }
        self.length += line.len() as u64;
        Ok(())
    }
}

/// The facts in the journal of `dir`, whoever holds it: nothing is locked, cut or written. A torn last line is left
/// out.
///
/// # Errors
/// As [`Journal::open`].
pub fn peek<F: DeserializeOwned>(dir: &Path) -> Result<Vec<F>, JournalError> {
    let path = dir.join(JOURNAL);
    let bytes = std::fs::read(&path).map_err(failed("read", &path))?;
    read(&path, &bytes).map(|(facts, _)| facts)
}

/// The journal of `dir` as it is on the disk, whoever holds it, up to the end of its last whole line; nothing where there
/// is none.
///
/// # Errors
/// The disk refuses.
pub fn whole_lines(dir: &Path) -> Result<Vec<u8>, JournalError> {
    let path = dir.join(JOURNAL);
    let mut bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        read => read.map_err(failed("read", &path))?,
    };
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    bytes.truncate(end);
    Ok(bytes)
}

/// Whether a coordinator on this host holds `dir`, as the kernel lists its locks. On another host it cannot be told.
pub fn is_held(dir: &Path) -> bool {
    let Ok(lock) = std::fs::metadata(dir.join(LOCK)) else { return false };
    let inode = format!(":{}", std::os::unix::fs::MetadataExt::ino(&lock));
    // `1: FLOCK  ADVISORY  WRITE 4711 08:01:1234567 0 EOF`
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    locks.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.contains(&"FLOCK") && words.iter().any(|word| word.ends_with(&inode))
    })
}

/// The facts in the `bytes` of the journal at `path`, and how many of the bytes are whole lines: all but a torn last line.
///
/// # Errors
/// As [`Journal::open`].
pub fn read<F: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<(Vec<F>, usize), JournalError> {
    let mut facts = Vec::new();
    let mut whole = 0;
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let Some(json) = checked(line) else {
            if whole + line.len() == bytes.len() {
                break;
            }
            return Err(JournalError::Damaged { path: path.to_owned(), line: index + 1 });
        };
        facts.push(serde_json::from_slice(json).map_err(|source| JournalError::Unknown {
            path: path.to_owned(),
            line: index + 1,
            source,
        })?);
        whole += line.len();
    }
    Ok((facts, whole))
}

/// The JSON of a line, if the line is whole and its checksum is right.
fn checked(line: &[u8]) -> Option<&[u8]> {
    let (sum, json) = line.strip_suffix(b"\n")?.split_at_checked(9)?;
    let sum = std::str::from_utf8(sum).ok()?.strip_suffix(' ')?;
    (sum == format!("{:08x}", crc32fast::hash(json))).then_some(json)
}

/// Takes the lock of `dir` and writes this process's id into it, for the message of whoever comes second.
fn lock(dir: &Path) -> Result<Flock<File>, JournalError> {
    let path = dir.join(LOCK);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed("open", &path))?;
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            // The id is a courtesy: without it the message is still right.
            let _ = file.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "unknown".to_owned(),
                pid => pid.to_owned(),
            };
            return Err(JournalError::Locked { dir: dir.to_owned(), holder });
        }
        Err((_, errno)) => return Err(failed("lock", &path)(errno.into())),
    };
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .map_err(failed("write", &path))?;
    Ok(lock)
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { operation, path, source }
}
