//! A listing kept in a file: valid while the folder's path and the modification times of it and of every
//! class folder are what they were, or the sizes and modification times of every shard. Only saves time: whatever is
//! wrong with it, the folders are listed again.
//!
//! Magic, version, blake3 hash of the rest; then path and time, class names and file counts, where each file
//! name ends, and the names; then what they are of, one of
//!
//! - 0 and the time of each class folder
//! - 1 for classes by `.cls` members or 2 by folders; names, sizes and times of the shards; shard, length and start of
//!   each sample
//!
//! Integers are little-endian, strings have their length before them.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::super::location::Stamp;
use super::{ClassListing, Listing, Origin, Part, Scheme, ShardListing};

const MAGIC: &[u8; 12] = b"relabelindex";
const VERSION: u32 = 2;
const HASH: usize = 32;
const HEADER: usize = MAGIC.len() + 4 + HASH;
/// Bytes of a sample's place in the shards.
const PART: usize = 16;

const FOLDERS: u8 = 0;
const CLASS_FILES: u8 = 1;
const CLASS_FOLDERS: u8 = 2;

/// File systems stamp with the time of a clock tick, some with whole seconds (FAT: two): a folder
/// or shard may change after it was listed and keep the time that it had. So nothing this young is kept.
const SETTLED: Duration = Duration::from_secs(3);

/// Where the listing of one split folder is kept.
pub(super) struct CacheFile {
    path: PathBuf,
    /// The split folder, canonical.
    dir: PathBuf,
}

impl CacheFile {
    /// The file in `folder` for the split folder `dir`, an absolute path.
    pub(super) fn new(folder: &Path, dir: &Path) -> Self {
        let hash = blake3::hash(dir.as_os_str().as_encoded_bytes()).to_hex();
        Self { path: folder.join(format!("index-{}.bin", &hash[..16])), dir: dir.to_path_buf() }
    }

    /// The listing that was kept, if it is whole and still true.
    pub(super) fn load(&self) -> Option<Listing> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!("cannot read the index cache {}: {error}", self.path.display());
                return None;
            }
        };
        let Some(listing) = parse(&bytes, &self.dir) else {
            let path = self.path.display();
            tracing::info!("the index cache {path} is damaged or of another version: making it anew");
            return None;
        };
        let unchanged = |path: &Path, modified: SystemTime| {
            fs::metadata(path).and_then(|folder| folder.modified()).is_ok_and(|now| now == modified)
        };
        let valid = unchanged(&self.dir, listing.modified)
            && match &listing.origin {
                Origin::Folders(times) => {
                    let folders = listing.classes.iter().map(|class| self.dir.join(&class.name));
                    folders.zip(times).all(|(folder, time)| unchanged(&folder, *time))
                }
                Origin::Shards { shards, .. } => shards.iter().all(|shard| {
                    let found = fs::metadata(self.dir.join(&shard.name)).and_then(|found| Stamp::of(&found));
                    found.is_ok_and(|found| found == shard.stamp)
                }),
            };
        valid.then_some(listing)
    }

    /// Keeps `listing`, whose scan began at `scanned`; a failure to is a warning.
    pub(super) fn store(&self, listing: &Listing, scanned: SystemTime) {
        let newest = match &listing.origin {
            Origin::Folders(times) => times.iter().max().copied(),
            Origin::Shards { shards, .. } => shards.iter().map(|shard| shard.stamp.modified).max(),
        };
        let newest = newest.map_or(listing.modified, |newest| newest.max(listing.modified));
        if scanned.duration_since(newest).is_ok_and(|age| age >= SETTLED)
            && let Err(error) = self.write(&serialize(listing, &self.dir))
        {
            tracing::warn!("cannot write the index cache {}: {error}", self.path.display());
        }
    }

    /// Under a name of its own first, so that a reader never sees half of it.
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        // Several hosts may share the folder, and processes in containers share ids.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let unique = format!("{}-{}.tmp", std::process::id(), since.as_nanos());
        let temporary = self.path.with_extension(unique);
        let written = fs::File::options()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .and_then(|mut file| file.write_all(bytes))
            .and_then(|()| fs::rename(&temporary, &self.path));
        if written.is_err() {
            // Best effort: the first error is the one to tell.
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

fn serialize(listing: &Listing, dir: &Path) -> Vec<u8> {
    let mut body = Vec::new();
    put_string(&mut body, dir.as_os_str().as_encoded_bytes());
    put_time(&mut body, listing.modified);
    body.extend((listing.classes.len() as u64).to_le_bytes());
    for class in &listing.classes {
        put_string(&mut body, class.name.as_bytes());
        body.extend((class.ends.len() as u64).to_le_bytes());
        body.extend(class.ends.iter().flat_map(|end| end.to_le_bytes()));
        put_string(&mut body, class.names.as_bytes());
    }
    match &listing.origin {
        Origin::Folders(times) => {
            body.push(FOLDERS);
            times.iter().for_each(|time| put_time(&mut body, *time));
        }
        Origin::Shards { scheme, shards, parts } => {
            body.push(match scheme {
                Scheme::ClassFiles => CLASS_FILES,
                Scheme::ClassFolders => CLASS_FOLDERS,
            });
            body.extend((shards.len() as u64).to_le_bytes());
            for ShardListing { name, stamp } in shards {
                put_string(&mut body, name.as_bytes());
                body.extend(stamp.size.to_le_bytes());
                put_time(&mut body, stamp.modified);
            }
            for Part { shard, length, start } in parts {
                body.extend(shard.to_le_bytes());
                body.extend(length.to_le_bytes());
                body.extend(start.to_le_bytes());
            }
        }
    }
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(blake3::hash(&body).as_bytes());
    bytes.extend(body);
    bytes
}

fn put_string(bytes: &mut Vec<u8>, string: &[u8]) {
    bytes.extend((string.len() as u64).to_le_bytes());
    bytes.extend(string);
}

/// Nanoseconds since 1970; times before it and after 2554 become those ends and never compare equal.
fn put_time(bytes: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    bytes.extend(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).to_le_bytes());
}

/// None for anything that `serialize` did not write for `dir`.
fn parse(bytes: &[u8], dir: &Path) -> Option<Listing> {
    let body = bytes.get(HEADER..)?;
    let (magic, rest) = bytes.split_at(MAGIC.len());
    let header_is_ours = magic == MAGIC && rest.starts_with(&VERSION.to_le_bytes());
    if !header_is_ours || rest[4..4 + HASH] != *blake3::hash(body).as_bytes() {
        return None;
    }
    let mut fields = Fields(body);
    if fields.string()? != dir.as_os_str().as_encoded_bytes() {
        return None;
    }
    let modified = fields.time()?;
    let count = fields.number()?;
    let classes = (0..count).map(|_| fields.class()).collect::<Option<Vec<_>>>()?;
    let origin = fields.origin(&classes)?;
    fields.0.is_empty().then_some(Listing { modified, classes, origin })
}

/// What is left to read of the body.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(length)
    }

    fn text(&mut self) -> Option<String> {
        Some(std::str::from_utf8(self.string()?).ok()?.to_owned())
    }

    fn time(&mut self) -> Option<SystemTime> {
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(self.number()?))
    }

    fn class(&mut self) -> Option<ClassListing> {
        let name = self.text()?;
        let count = self.number()?;
        let ends = self.take(count.checked_mul(4)?)?;
        let ends: Vec<u32> =
            ends.chunks_exact(4).map(|end| u32::from_le_bytes([end[0], end[1], end[2], end[3]])).collect();
        let names = self.text()?;
        // What slicing the names relies on.
        let whole = ends.last().is_some_and(|&end| end as usize == names.len())
            && ends.is_sorted()
            && ends.iter().all(|&end| names.is_char_boundary(end as usize));
        whole.then_some(ClassListing { name, names, ends })
    }

    fn origin(&mut self, classes: &[ClassListing]) -> Option<Origin> {
        let scheme = match self.take(1)? {
            [FOLDERS] => {
                return classes.iter().map(|_| self.time()).collect::<Option<Vec<_>>>().map(Origin::Folders);
            }
            [CLASS_FILES] => Scheme::ClassFiles,
            [CLASS_FOLDERS] => Scheme::ClassFolders,
            _ => return None,
        };
        let count = self.number()?;
        let shards = (0..count).map(|_| self.shard()).collect::<Option<Vec<_>>>()?;
        let samples: usize = classes.iter().map(|class| class.ends.len()).sum();
        let parts = self.take((samples as u64).checked_mul(PART as u64)?)?;
        let parts = parts.chunks_exact(PART).map(part).collect::<Option<Vec<_>>>()?;
        // What reading at these places relies on.
        let within = |part: &Part| {
            let shard = shards.get(part.shard as usize)?;
            let end = part.start.checked_add(u64::from(part.length))?;
            (end <= shard.stamp.size).then_some(())
        };
        parts.iter().all(|part| within(part).is_some()).then_some(())?;
        Some(Origin::Shards { scheme, shards, parts })
    }

    fn shard(&mut self) -> Option<ShardListing> {
        let name = self.text()?;
        let (size, modified) = (self.number()?, self.time()?);
        Some(ShardListing { name, stamp: Stamp { size, modified } })
    }
}

/// A sample's place, of [`PART`] bytes.
fn part(bytes: &[u8]) -> Option<Part> {
    Some(Part {
        shard: u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?),
        length: u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?),
        start: u64::from_le_bytes(bytes.get(8..)?.try_into().ok()?),
    })
}
