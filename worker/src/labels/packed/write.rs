//! Writing a store: records as they come, then the index, then the head, then the name.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::f16;

use super::{DIGEST, HEAD, Layout, MAGIC, Precision, VERSION, digest, sum};
use crate::labels::LabelMap;

/// Why a map cannot go into a store, or the store not onto the disk. The messages follow a file name: that of
/// the map, and for [`Packing::Write`] that of the store.
#[derive(Debug, thiserror::Error)]
pub enum Packing {
    #[error(
        "it has {found:?} classes, rows and columns, but the maps before it {wanted:?}; a store holds maps of one size"
    )]
    Shape { found: [usize; 3], wanted: [usize; 3] },
    #[error("class id {0} is more than a store can hold, which is 65535")]
    ClassId(u32),
    #[error("logit {0} is more than float16 can hold; use --full, which keeps float32")]
    Overflow(f32),
    #[error("it cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// A store in the making. Nothing stands at its path until [`Packer::finish`], and what was made is removed
/// where that is never called.
pub struct Packer {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    precision: Precision,
    layout: Option<Layout>,
    /// One more than the largest class id.
    classes: u32,
    names: Vec<u8>,
    ends: Vec<u64>,
    sums: Vec<u64>,
    rounding: f32,
    finished: bool,
}

impl Packer {
    /// Begins a store that is to stand at `path`.
    pub fn create(path: &Path, precision: Precision) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
        file.write_all(&[0; HEAD])?;
        Ok(Self {
            path: path.to_owned(),
            temporary,
            file,
            precision,
            layout: None,
            classes: 0,
            names: Vec::new(),
            ends: Vec::new(),
            sums: Vec::new(),
            rounding: 0.0,
            finished: false,
        })
    }

    /// Adds a map. Keys must come in the order of their bytes, none twice.
    pub fn push(&mut self, key: &str, map: &LabelMap) -> Result<(), Packing> {
        debug_assert!(self.last_key() < key.as_bytes());
        let LabelMap { k, height, width, .. } = *map;
        let precision = self.precision;
        let layout = *self.layout.get_or_insert(Layout { precision, k, height, width });
        let (found, wanted) = ([k, height, width], [layout.k, layout.height, layout.width]);
        if found != wanted {
            return Err(Packing::Shape { found, wanted });
        }
        let mut record = Vec::with_capacity(layout.record());
        for &logit in &map.logits {
            match precision {
                Precision::Full => record.extend(logit.to_le_bytes()),
                Precision::Half => {
                    let half = f16::from_f32(logit);
                    if !half.is_finite() {
                        return Err(Packing::Overflow(logit));
                    }
                    self.rounding = self.rounding.max((half.to_f32() - logit).abs());
                    record.extend(half.to_le_bytes());
                }
            }
        }
        for &class in &map.classes {
            record.extend(u16::try_from(class).map_err(|_| Packing::ClassId(class))?.to_le_bytes());
            self.classes = self.classes.max(class + 1);
        }
        record.resize(layout.record(), 0);
        self.file.write_all(&record)?;
        self.sums.push(sum(&record));
        self.names.extend(key.as_bytes());
        self.ends.push(self.names.len() as u64);
        Ok(())
    }

    fn last_key(&self) -> &[u8] {
        let start = self.ends.len().checked_sub(2).map_or(0, |before| self.ends[before] as usize);
        &self.names[start..]
    }

    /// Maps so far.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The most that float16 has moved a logit.
    pub fn rounding(&self) -> f32 {
        self.rounding
    }

    /// Writes index and head, syncs, and puts the store at its path, in place of what stood there.
    pub fn finish(mut self) -> io::Result<()> {
        // A store without maps has no size; any will do.
        let layout = self.layout.unwrap_or(Layout { precision: self.precision, k: 1, height: 1, width: 1 });
        let mut index: Vec<u8> = Vec::with_capacity(16 * self.ends.len() + self.names.len());
        index.extend(self.sums.iter().flat_map(|sum| sum.to_le_bytes()));
        index.extend(self.ends.iter().flat_map(|end| end.to_le_bytes()));
        index.extend(&self.names);
        self.file.write_all(&index)?;

        let mut head = [0; HEAD];
        head[..8].copy_from_slice(MAGIC);
        let numbers = [
            VERSION,
            layout.precision.size() as u32,
            layout.k as u32,
            layout.height as u32,
            layout.width as u32,
            self.classes,
        ];
        for (place, number) in head[8..32].chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        head[32..40].copy_from_slice(&(self.ends.len() as u64).to_le_bytes());
        head[40..48].copy_from_slice(&(self.names.len() as u64).to_le_bytes());
        let digest = digest(&head[..DIGEST.start], &index);
        head[DIGEST].copy_from_slice(digest.as_bytes());
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&head)?;
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        std::fs::rename(&self.temporary, &self.path)?;
        self.finished = true;
        // A rename is durable only once the folder is.
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Packer {
    fn drop(&mut self) {
        if !self.finished {
            // Something else has failed already, and that is the error worth telling.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}
