//! Which images a split holds and what they are numbered: sorted class folders give the class ids, and
//! the samples are sorted by class folder and file name. Only names; no file is opened.

mod cache;
mod scan;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub(crate) use scan::EXTENSIONS;

use super::DataError;

/// The index of one split, `<data_path>/train` or `<data_path>/val`. A sample's id is its position.
///
/// ImageNet's 1.28 million names take 32 MB: they stand in one string, with where each one ends.
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
}

impl Split {
    /// Indexes the folder `dir` of class folders. Files other than .jpeg, .jpg and .png (in any case) and
    /// everything hidden are left out.
    ///
    /// The index is kept in `cache_dir` and used again while `dir` is the same and neither it nor a class
    /// folder has been modified. A cache that is damaged or of another version is made anew; one that cannot
    /// be written is a warning.
    ///
    /// # Errors
    /// A missing or unreadable folder, no class folders, a class folder without images, a name that is not
    /// UTF-8.
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

    /// Path of a sample's file.
    pub fn path(&self, sample: u32) -> PathBuf {
        let class = &self.classes[self.class(sample) as usize];
        let mut path = self.dir.join(class);
        path.push(self.file_name(sample));
        path
    }

    /// `class/stem`, the file's name without its extension: what its label map is named after.
    pub fn key(&self, sample: u32) -> String {
        let class = &self.classes[self.class(sample) as usize];
        let name = self.file_name(sample);
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        format!("{class}/{stem}")
    }

    /// A hash of all class and file names in order: the same on two machines exactly if their sample ids
    /// mean the same.
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    fn name_range(&self, sample: u32) -> Range<usize> {
        let sample = sample as usize;
        let start = if sample == 0 { 0 } else { self.ends[sample - 1] };
        start as usize..self.ends[sample] as usize
    }
}

/// What a scan finds and the cache keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listing {
    modified: SystemTime,
    /// Sorted by name.
    classes: Vec<ClassListing>,
}

/// The images of one class folder, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ClassListing {
    name: String,
    modified: SystemTime,
    /// File names, one after the other.
    names: String,
    /// Where each name ends in `names`.
    ends: Vec<u32>,
}
