//! Which images a split holds and what they are numbered: sorted class folders give the class ids, and
//! the samples are sorted by class folder and file name. Of folders only the names are read.
//!
//! A split of tar files is numbered as if it had been unpacked into class folders: `shards` says what its classes and
//! names are, and a sample is then read from its place in its shard. So all that is said of each being
//! consumed once an epoch, and of resuming, holds for both. The order is the same too, unless it is asked for one in
//! which shards are read one after the other.

mod cache;
mod open_files;
#[cfg(test)]
pub(in crate::data) mod packing;
mod scan;
mod shards;
#[cfg(test)]
mod shards_tests;
mod tar;
#[cfg(test)]
mod tar_tests;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

pub(crate) use scan::{EXTENSIONS, holds_shards};

use super::location::{Location, Shard, Stamp};
use super::order::{epoch_order, shard_order};
use super::{DataError, ShardError};
use crate::labels::map_in_order;

/// Opening files waits for the file system, so the number does not depend on the cores.
const OPENERS: usize = 16;

/// The index of one split, `<data_path>/train` or `<data_path>/val`. A sample's id is its position.
///
/// ImageNet's 1.28 million names take 32 MB: they stand in one string, with where each one ends. In shards each sample
/// takes 16 bytes more, and each shard a file that stays open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    dir: PathBuf,
    classes: Vec<String>,
    /// Id of the first sample of each class, and the number of samples at the end.
    firsts: Vec<u32>,
    /// All file names, one after the other.
    names: String,
    /// Where the name of each sample ends in `names`.
    ends: Vec<u32>,
    fingerprint: [u8; 32],
    /// None of folders.
    shards: Option<Shards>,
}

/// Where the samples of a split are that is made of tar files.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shards {
    scheme: Scheme,
    /// Shared by the clones of a split and by what is being read.
    files: Vec<Arc<Shard>>,
    /// Of each sample.
    parts: Vec<Part>,
}

impl Split {
    /// Indexes the folder `dir` of class folders, or of tar files. Files other than .jpeg, .jpg and .png (in any case)
    /// and everything hidden are left out.
    ///
    /// The index is kept in `cache_dir` and used again while `dir` is the same and neither it nor a class folder or
    /// shard has been modified. A cache that is damaged or of another version is made anew; one that cannot
    /// be written is a warning.
    ///
    /// # Errors
    /// A missing or unreadable folder, neither class folders nor tar files, or both; a class folder or shard without
    /// images, a name that is not UTF-8; shards that are damaged, hold what is not understood, or are too many to be
    /// open at once.
    pub fn open(dir: &Path, cache_dir: Option<&Path>) -> Result<Self, DataError> {
        let absolute = dir.canonicalize().map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => DataError::MissingFolder { path: dir.to_path_buf() },
            _ => DataError::List { path: dir.to_path_buf(), source },
        })?;
        let cache = cache_dir.map(|folder| cache::CacheFile::new(folder, &absolute));
        if let Some(listing) = cache.as_ref().and_then(cache::CacheFile::load) {
            return Self::new(dir, listing);
        }
        // Before the scan, so that what is modified meanwhile makes the cache stale.
        let now = SystemTime::now();
        let listing = scan::scan(dir)?;
        if let Some(cache) = cache {
            cache.store(&listing, now);
        }
        Self::new(dir, listing)
    }

    /// The split of a run that does not train: its classes, and no samples.
    pub fn without_samples(dir: &Path, classes: Vec<String>) -> Self {
        let mut split = Self {
            dir: dir.to_path_buf(),
            firsts: vec![0; classes.len() + 1],
            classes,
            names: String::new(),
            ends: Vec::new(),
            fingerprint: [0; 32],
            shards: None,
        };
        split.fingerprint = split.hash();
        split
    }

    fn new(dir: &Path, listing: Listing) -> Result<Self, DataError> {
        let too_many = || DataError::TooManyImages { path: dir.to_path_buf() };
        let mut split = Self {
            dir: dir.to_path_buf(),
            classes: Vec::with_capacity(listing.classes.len()),
            firsts: vec![0],
            names: String::with_capacity(listing.classes.iter().map(|class| class.names.len()).sum()),
            ends: Vec::with_capacity(listing.classes.iter().map(|class| class.ends.len()).sum()),
            fingerprint: [0; 32],
            shards: match listing.origin {
                Origin::Folders(_) => None,
                Origin::Shards { scheme, shards, parts } => {
                    Some(Shards { scheme, files: open_shards(dir, &shards)?, parts })
                }
            },
        };
        for class in listing.classes {
            let offset = u32::try_from(split.names.len()).map_err(|_| too_many())?;
            split.names.push_str(&class.names);
            u32::try_from(split.names.len()).map_err(|_| too_many())?;
            split.ends.extend(class.ends.iter().map(|end| offset + end));
            split.firsts.push(split.ends.len() as u32);
            split.classes.push(class.name);
        }
        split.fingerprint = split.hash();
        Ok(split)
    }

    /// Every part with its length before it, so that no two different indexes give the same bytes.
    fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("relabel 2025 dataset index v1");
        hasher.update(&(self.classes.len() as u64).to_le_bytes());
        for (name, first) in self.classes.iter().zip(&self.firsts) {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(&first.to_le_bytes());
        }
        hasher.update(&(self.ends.len() as u64).to_le_bytes());
        let mut block = Vec::with_capacity(1 << 16);
        for ends in self.ends.chunks(1 << 14) {
            block.clear();
            block.extend(ends.iter().flat_map(|end| end.to_le_bytes()));
            hasher.update(&block);
        }
        hasher.update(self.names.as_bytes());
        *hasher.finalize().as_bytes()
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Never true of a folder that was opened: every class has an image.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Names of the class folders; a class's id is its position.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Class id of a sample. Like all that follow it takes an id below `len()`, and panics beyond.
    pub fn class(&self, sample: u32) -> u32 {
        assert!((sample as usize) < self.len(), "sample {sample} of {}", self.len());
        self.firsts.partition_point(|&first| first <= sample) as u32 - 1
    }

    /// Name of a sample's file without its folder.
    pub fn file_name(&self, sample: u32) -> &str {
        &self.names[self.name_range(sample)]
    }

    /// Where a sample's bytes are.
    pub fn location(&self, sample: u32) -> Location {
        let class = &self.classes[self.class(sample) as usize];
        let name = self.file_name(sample);
        match &self.shards {
            None => {
                let mut path = self.dir.join(class);
                path.push(name);
                Location::File(path)
            }
            Some(Shards { scheme, files, parts }) => {
                let Part { shard, length, start } = parts[sample as usize];
                let member = scheme.member(class, name).into_owned();
                Location::Part { shard: Arc::clone(&files[shard as usize]), member, start, length }
            }
        }
    }

    /// `class/stem`, the file's name without its extension: what its label map is named after. The same for an image
    /// in a shard as for the file that it was packed from; folders before its name, other than the class, are no part
    /// of it.
    pub fn key(&self, sample: u32) -> String {
        let class = &self.classes[self.class(sample) as usize];
        format!("{class}/{}", stem(self.file_name(sample)))
    }

    /// Whether the split has tar files, and not folders.
    pub fn has_shards(&self) -> bool {
        self.shards.is_some()
    }

    /// Where a sample lies: which shard, and how many bytes from its beginning. None if the split has folders.
    pub(in crate::data) fn place(&self, sample: u32) -> Option<(u32, u64)> {
        let part = self.shards.as_ref()?.parts[sample as usize];
        Some((part.shard, part.start))
    }

    /// Ids of the samples in each shard, in the order in which they lie there; none if the split has folders.
    pub fn in_shards(&self) -> Option<Vec<Vec<u32>>> {
        let Shards { files, parts, .. } = self.shards.as_ref()?;
        let mut ids: Vec<u32> = (0..parts.len() as u32).collect();
        ids.sort_unstable_by_key(|id| self.place(*id));
        let mut shards = vec![Vec::new(); files.len()];
        ids.into_iter().for_each(|id| shards[parts[id as usize].shard as usize].push(id));
        Some(shards)
    }

    /// Which sample is trained on when: in shards by [`shard_order`], unless `buffer` is 0, and else by [`epoch_order`].
    pub fn order(&self, seed: u64, epoch: u32, buffer: u32) -> Vec<u32> {
        match self.in_shards().filter(|_| buffer > 0) {
            Some(shards) => shard_order(seed, epoch, shards, buffer as usize),
            None => epoch_order(seed, epoch, self.len()),
        }
    }

    /// Ids of the samples of a class.
    pub fn samples(&self, class: u32) -> Range<u32> {
        self.firsts[class as usize]..self.firsts[class as usize + 1]
    }

    /// A hash of all class and file names in order: the same on two machines exactly if their sample ids
    /// mean the same, though one may have folders and the other shards of them.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// As [`Self::fingerprint`], but the same only if the samples are packed in the same shards, which then give the
    /// same [`Self::order`] for any buffer.
    pub fn packing_fingerprint(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.fingerprint);
        for shard in self.in_shards().into_iter().flatten() {
            hasher.update(&(shard.len() as u64).to_le_bytes());
            for id in shard {
                hasher.update(&id.to_le_bytes());
            }
        }
        hasher.finalize().into()
    }

    fn name_range(&self, sample: u32) -> Range<usize> {
        let sample = sample as usize;
        let start = if sample == 0 { 0 } else { self.ends[sample - 1] };
        start as usize..self.ends[sample] as usize
    }
}

/// Opens the shards that a listing is of, as the files that they were then.
fn open_shards(dir: &Path, shards: &[ShardListing]) -> Result<Vec<Arc<Shard>>, DataError> {
    open_files::make_room(dir, shards.len())?;
    let opened = map_in_order(shards, OPENERS, |listed| {
        let path = dir.join(&listed.name);
        let shard = Shard::open(path.clone());
        let shard = shard.map_err(|source| open_files::refused(dir, shards.len(), &path, source))?;
        match shard.stamp() == listed.stamp {
            true => Ok(Arc::new(shard)),
            false => Err(DataError::Shard { path, source: ShardError::Changed }),
        }
    });
    opened.into_iter().collect()
}

/// A name or path without its extension.
fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

/// What a scan finds and the cache keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listing {
    /// When the split folder was.
    modified: SystemTime,
    /// In the order of their ids.
    classes: Vec<ClassListing>,
    origin: Origin,
}

/// The images of one class, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ClassListing {
    name: String,
    /// File names, one after the other.
    names: String,
    /// Where each name ends in `names`.
    ends: Vec<u32>,
}

impl ClassListing {
    /// None if the names take 4 GiB.
    fn new<'a>(name: String, files: impl Iterator<Item = &'a str>) -> Option<Self> {
        let (mut names, mut ends) = (String::new(), Vec::new());
        for file in files {
            names.push_str(file);
            ends.push(u32::try_from(names.len()).ok()?);
        }
        Some(Self { name, names, ends })
    }
}

/// What a listing is of.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    /// Class folders, and when each was modified, by class.
    Folders(Vec<SystemTime>),
    /// Tar files, sorted by name, and the part of each sample, by its id.
    Shards { scheme: Scheme, shards: Vec<ShardListing>, parts: Vec<Part> },
}

/// A shard as it was when it was scanned.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ShardListing {
    /// Of the file, within the split folder.
    name: String,
    stamp: Stamp,
}

/// Where an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    /// Place of its shard among all, from 0.
    shard: u32,
    /// In bytes; `start + length` is within the shard.
    length: u32,
    /// In bytes from the beginning of the shard.
    start: u64,
}

/// What says which class an image in a shard is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    /// The `.cls` member beside it.
    ClassFiles,
    /// The folder that it is in.
    ClassFolders,
}

impl Scheme {
    /// An image as messages name it: its path without the folders that mean nothing.
    fn member<'a>(self, class: &str, name: &'a str) -> Cow<'a, str> {
        match self {
            Self::ClassFiles => Cow::Borrowed(name),
            Self::ClassFolders => Cow::Owned(format!("{class}/{name}")),
        }
    }
}
