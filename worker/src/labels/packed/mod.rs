//! The packed store: the label maps of a whole data set in one memory-mapped file.
//!
//! Half the bytes of the float32 `.pt` files, and one open file instead of 1.28 million, mapped into memory. All
//! integers are little-endian.
//!
//! ```text
//!   0  magic "relabelp"          8  version                 12  bytes a logit: 2 (float16), 4 (float32)
//!  16  k  20  rows  24  columns  28  classes: largest id + 1
//!  32  number of maps (u64)      40  bytes of names (u64)   48  zeros
//!  64  BLAKE3 of the 64 bytes before and of the index
//!  96  a record a map: logits [k, rows, columns], class ids u16 [k, rows, columns], zeros up to 8 bytes
//!   .  the index: a sum a record (u64, its XXH3), where each name ends (u64), the names `<class>/<stem>`, sorted
//!      as bytes
//! ```
//!
//! Opening verifies length, head and index, which for ImageNet are 50 MB of 5.8 GB; a record is verified
//! against its sum each time that it is looked up. So nothing that is damaged is ever trained on, and a run
//! does not begin with reading everything.

mod mapped;
mod write;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use twox_hash::XxHash3_64;

use super::LabelMap;
use mapped::Mapped;
pub use write::{Packer, Packing};

const MAGIC: &[u8; 8] = b"relabelp";
const VERSION: u32 = 2;
const DIGEST: Range<usize> = 64..96;
/// Length of the head, and so where the first record is.
const HEAD: usize = 96;
/// Records begin at multiples of this, so that any of their numbers can be read in place.
const ALIGN: usize = 8;
/// Most cells along a side, and most classes a cell, as in `.pt` files.
const MAX_SIDE: u32 = 1024;

// Numbers are read in place, which takes a machine that has them in the order of the file.
const _: () = assert!(cfg!(target_endian = "little"));

/// Why a packed store cannot be read. The messages follow the name of the file.
#[derive(Debug, thiserror::Error)]
pub enum PackedError {
    #[error("it cannot be opened: {0}")]
    Open(#[source] io::Error),
    #[error("it is no packed store of label maps; `worker pack` makes one from a folder of .pt files")]
    Foreign,
    #[error("it is of version {0}, and this program reads {VERSION}; pack the label maps again")]
    Version(u32),
    #[error("it is truncated: {found} bytes instead of {wanted}; copy it or pack it again")]
    Truncated { found: u64, wanted: u64 },
    #[error("{extra} bytes follow its end; copy it or pack it again")]
    TooLong { extra: u64 },
    #[error("it is damaged ({0}); copy it or pack it again")]
    Damaged(&'static str),
    #[error("the map of {key} in it is damaged; copy it or pack it again")]
    Record { key: String },
    #[error("it has no map of {key}; generate it with `worker label`, and pack again")]
    Missing { key: String },
    #[error(
        "it names classes up to {}, but there are {classes}, so it is of another class list, or the \
         number of classes is wrong", found - 1
    )]
    Classes { found: u32, classes: u32 },
}

/// How logits are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// float16: 11 bits of precision, so a logit under 32 moves by 0.008 at most.
    Half,
    /// float32, as they are.
    Full,
}

impl Precision {
    /// Bytes of a logit.
    fn size(self) -> usize {
        match self {
            Self::Half => 2,
            Self::Full => 4,
        }
    }

    /// The name of the element type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Half => "float16",
            Self::Full => "float32",
        }
    }
}

/// What all maps of a store have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub precision: Precision,
    /// Classes kept a cell.
    pub k: usize,
    /// Rows of cells.
    pub height: usize,
    /// Columns of cells.
    pub width: usize,
}

impl Layout {
    /// Logits, and class ids, of one map.
    fn values(&self) -> usize {
        self.k * self.height * self.width
    }

    /// Bytes of a record.
    fn record(&self) -> usize {
        (self.values() * (self.precision.size() + 2)).next_multiple_of(ALIGN)
    }
}

/// An open store, shared by all threads.
pub struct Packed {
    path: PathBuf,
    bytes: Mapped,
    layout: Layout,
    classes: u32,
    maps: usize,
}

impl Packed {
    /// Maps the file and verifies its length, head and index.
    ///
    /// The file must not be changed in place while it is open; `worker pack` replaces it by a new one.
    pub fn open(path: &Path) -> Result<Self, PackedError> {
        let bytes = Mapped::open(path).map_err(PackedError::Open)?;
        let found = bytes.len() as u64;
        if !bytes.starts_with(MAGIC) {
            return Err(PackedError::Foreign);
        }
        if bytes.len() < HEAD {
            return Err(PackedError::Truncated { found, wanted: HEAD as u64 });
        }
        let u32_at = |at: usize| number(&bytes[at..at + 4]) as u32;
        let u64_at = |at: usize| number(&bytes[at..at + 8]);
        if u32_at(8) != VERSION {
            return Err(PackedError::Version(u32_at(8)));
        }
        let precision = match u32_at(12) {
            2 => Precision::Half,
            4 => Precision::Full,
            _ => return Err(PackedError::Damaged("its element type is unknown")),
        };
        let sides = [16, 20, 24].map(u32_at);
        if !sides.iter().all(|side| (1..=MAX_SIDE).contains(side)) {
            return Err(PackedError::Damaged("its map size is out of range"));
        }
        let [k, height, width] = sides.map(|side| side as usize);
        let layout = Layout { precision, k, height, width };
        let (maps, names) = (u64_at(32), u64_at(40));
        // Sums and ends take eight bytes each.
        let wanted = maps
            .checked_mul(layout.record() as u64 + 16)
            .and_then(|bytes| bytes.checked_add(names)?.checked_add(HEAD as u64))
            .ok_or(PackedError::Damaged("its number of maps is out of range"))?;
        if found < wanted {
            return Err(PackedError::Truncated { found, wanted });
        }
        if found > wanted {
            return Err(PackedError::TooLong { extra: found - wanted });
        }
        // It fits in this file, so in a usize.
        let packed = Self { path: path.into(), layout, classes: u32_at(28), maps: maps as usize, bytes };
        let digest = digest(&packed.bytes[..DIGEST.start], packed.index());
        if digest != packed.bytes[DIGEST] {
            return Err(PackedError::Damaged("its head or index does not match its checksum"));
        }
        packed.check_names()?;
        Ok(packed)
    }

    /// Names must lie within their text and be sorted: what a look-up relies on.
    fn check_names(&self) -> Result<(), PackedError> {
        let wrong = Err(PackedError::Damaged("its names are out of order"));
        let text = self.names_text();
        if std::str::from_utf8(text).is_err() {
            return wrong;
        }
        let mut start = 0;
        let mut last: &[u8] = b"";
        for &end in self.ends() {
            let name = usize::try_from(end).ok().and_then(|end| text.get(start..end));
            match name {
                Some(name) if name > last => (start, last) = (end as usize, name),
                _ => return wrong,
            }
        }
        if start == text.len() { Ok(()) } else { wrong }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// One more than the largest class id in it.
    pub fn classes(&self) -> u32 {
        self.classes
    }

    /// Number of maps.
    pub fn len(&self) -> usize {
        self.maps
    }

    pub fn is_empty(&self) -> bool {
        self.maps == 0
    }

    /// Bytes of the whole file.
    pub fn file_len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// BLAKE3 of head and index. The index has the sum of every record, so two stores with this in common
    /// hold the same.
    pub fn checksum(&self) -> blake3::Hash {
        let mut digest = [0; 32];
        digest.copy_from_slice(&self.bytes[DIGEST]);
        digest.into()
    }

    /// The names of all maps, `<class>/<stem>`, in order.
    pub fn names(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.maps).map(|map| String::from_utf8_lossy(self.name(map)).into_owned())
    }

    /// The map called `key`, its record verified.
    pub fn get(&self, key: &str) -> Result<LabelMap, PackedError> {
        let position = self.position(key).ok_or_else(|| PackedError::Missing { key: key.to_owned() })?;
        self.map(position)
    }

    /// The map at `position` in the order of names, its record verified.
    ///
    /// # Panics
    /// Beyond `len()`.
    pub fn map(&self, position: usize) -> Result<LabelMap, PackedError> {
        assert!(position < self.maps, "map {position} of {}", self.maps);
        let Layout { precision, k, height, width } = self.layout;
        let start = HEAD + position * self.layout.record();
        let record = &self.bytes[start..start + self.layout.record()];
        let (logits, rest) = record.split_at(self.layout.values() * precision.size());
        // Records begin at multiples of eight of a page, so these casts cannot fail.
        let logits: Vec<f32> = match precision {
            Precision::Half => {
                let bits: &[u16] = bytemuck::cast_slice(logits);
                bits.reinterpret_cast::<f16>().to_f32_vec()
            }
            Precision::Full => bytemuck::cast_slice(logits).to_vec(),
        };
        let classes: &[u16] = bytemuck::cast_slice(&rest[..self.layout.values() * 2]);
        let classes: Vec<u32> = classes.iter().copied().map(u32::from).collect();
        // Looked over without a branch each: this is done for each sample.
        let whole = sum(record) == self.sums()[position]
            && classes.iter().copied().fold(0, u32::max) < self.classes
            && logits.iter().fold(true, |all, logit| all & logit.is_finite());
        if whole {
            Ok(LabelMap { k, height, width, logits, classes })
        } else {
            Err(PackedError::Record { key: String::from_utf8_lossy(self.name(position)).into_owned() })
        }
    }

    fn position(&self, key: &str) -> Option<usize> {
        let (mut low, mut high) = (0, self.maps);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(middle).cmp(key.as_bytes()) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    fn name(&self, map: usize) -> &[u8] {
        let ends = self.ends();
        let start = if map == 0 { 0 } else { ends[map - 1] as usize };
        &self.names_text()[start..ends[map] as usize]
    }

    fn index(&self) -> &[u8] {
        &self.bytes[HEAD + self.maps * self.layout.record()..]
    }

    fn sums(&self) -> &[u64] {
        bytemuck::cast_slice(&self.index()[..self.maps * 8])
    }

    fn ends(&self) -> &[u64] {
        bytemuck::cast_slice(&self.index()[self.maps * 8..self.maps * 16])
    }

    fn names_text(&self) -> &[u8] {
        &self.index()[self.maps * 16..]
    }
}

/// Up to eight little-endian bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte))
}

/// What the index keeps of a record: XXH3, as it is taken for each sample and is against damage, not against forgers.
fn sum(record: &[u8]) -> u64 {
    XxHash3_64::oneshot(record)
}

fn digest(head: &[u8], index: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(head).update(index);
    hasher.finalize()
}

#[cfg(test)]
mod tests;
