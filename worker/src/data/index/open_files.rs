//! Room for shards among the files that a process may have open.

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::super::DataError;

/// Files that a worker has open besides: sockets to its peers, logs, checkpoints, libraries, devices.
const OTHERS: u64 = 256;

/// Raises the soft limit by `shards`, as far as the hard one allows: what is left for everything else stays as it was.
///
/// # Errors
/// A hard limit that leaves too little for the shards of the split in `dir` alone.
pub(super) fn make_room(dir: &Path, shards: usize) -> Result<(), DataError> {
    let (soft, hard) = limits();
    let raised = soft.saturating_add(shards as u64).min(hard);
    // Where raising fails the old limit stands, and is what counts below.
    let limit = match raised > soft && setrlimit(Resource::RLIMIT_NOFILE, raised, hard).is_ok() {
        true => raised,
        false => soft,
    };
    match (shards as u64).saturating_add(OTHERS) > limit {
        true => Err(too_many(dir, shards, limit)),
        false => Ok(()),
    }
}

/// What to tell of a shard, one of `shards`, that could not be opened: `source` itself, unless it is that no more files
/// may be open, as when splits before this one have taken what there was.
pub(super) fn refused(dir: &Path, shards: usize, path: &Path, source: io::Error) -> DataError {
    match source.raw_os_error() == Some(Errno::EMFILE as i32) {
        true => too_many(dir, shards, limits().0),
        false => DataError::OpenShard { path: path.to_path_buf(), source },
    }
}

fn too_many(dir: &Path, shards: usize, limit: u64) -> DataError {
    DataError::TooManyShards { path: dir.to_path_buf(), shards, limit }
}

/// The soft and the hard limit; what Linux begins with where they cannot be asked for.
fn limits() -> (u64, u64) {
    getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024))
}
