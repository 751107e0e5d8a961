//! Files of `torch.save`: the zip archives of torch 1.6 and later, and the legacy form before it.
//!
//! The pickle inside is read by [`pickle`], which runs nothing. Storages stay where they are in the
//! file's bytes; a tensor is copied out when it is asked for. [`write()`] writes the zip form. Knows nothing
//! of libtorch, nor of what the tensors are for: label maps and weights alike stand in such files.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use zip::{CompressionMethod, ZipArchive};

pub mod pickle;
#[cfg(test)]
mod tests;
mod write;

use pickle::{Dtype, PickleError, StorageRef, TensorRef, Value};
pub use write::{write, write_tensor};

/// Largest pickle that is read; that of a ResNet-152 checkpoint with its optimizer has under 1 MB.
const MAX_PICKLE: u64 = 64 << 20;
/// A tensor may have this many elements though its storage has fewer, as an expanded one does.
const MAX_EXPANDED: u64 = 1 << 20;
/// The first pickle of a legacy file is this number.
const LEGACY_MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const LEGACY_PROTOCOL: i128 = 1001;

/// Why a file of `torch.save` was refused. The messages start in the middle of a sentence whose subject
/// is the file.
#[derive(Debug, thiserror::Error)]
pub enum PtError {
    #[error("the file is empty")]
    Empty,
    #[error("it is not a file that torch.save writes")]
    NotTorch,
    #[error("the file is truncated or damaged ({0})")]
    Damaged(String),
    #[error("the file holds big-endian numbers; save it again on a little-endian machine")]
    BigEndian,
    #[error("entry {0} is compressed, which torch.save never does; save it again with torch.save")]
    Compressed(String),
    #[error(transparent)]
    Pickle(#[from] PickleError),
    #[error("a tensor of shape {shape:?} does not fit its storage of {numel} elements")]
    Bounds { shape: Vec<u64>, numel: u64 },
    #[error("a tensor holds {0}; wanted float32, float16, bfloat16 or float64")]
    NotFloat(Dtype),
}

/// The two forms that torch.save has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An uncompressed zip archive, since torch 1.6.
    Zip,
    /// Pickles one after the other, then the storages.
    Legacy,
}

/// A parsed file: its object, and where its storages stand.
#[derive(Debug)]
pub struct PtFile {
    bytes: Vec<u8>,
    root: Value,
    format: Format,
    storages: BTreeMap<Arc<str>, Range<usize>>,
}

impl PtFile {
    /// Parses a whole file. Storages must be as long as the pickle says; checksums are verified.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, PtError> {
        match bytes.as_slice() {
            [] => Err(PtError::Empty),
            [b'P', b'K', 3, 4, ..] => Self::parse_zip(bytes),
            [0x80, 2..=5, ..] => Self::parse_legacy(bytes),
            _ => Err(PtError::NotTorch),
        }
    }

    /// The object that was saved.
    pub fn root(&self) -> &Value {
        &self.root
    }

    /// The form that the file has.
    pub fn format(&self) -> Format {
        self.format
    }

    fn parse_zip(bytes: Vec<u8>) -> Result<Self, PtError> {
        let mut archive = ZipArchive::new(Cursor::new(bytes.as_slice())).map_err(damaged)?;
        // Every entry stands in one folder, whose name is that of the file when it was saved.
        let folder = archive.file_names().find_map(|name| name.strip_suffix("/data.pkl"));
        let folder = folder.ok_or(PtError::NotTorch)?.to_owned();
        if let Some(index) = archive.index_for_name(&format!("{folder}/byteorder")) {
            let mut order = Vec::new();
            archive.by_index(index).map_err(damaged)?.take(8).read_to_end(&mut order).map_err(damaged)?;
            if order == b"big" {
                return Err(PtError::BigEndian);
            }
        }
        let program = stored(&mut archive, &bytes, &format!("{folder}/data.pkl"))?;
        if program.len() as u64 > MAX_PICKLE {
            return Err(PickleError::TooLarge.into());
        }
        let pickle = pickle::read(&bytes[program])?;
        let mut storages = BTreeMap::new();
        let mut left = bytes.len();
        for storage in &pickle.storages {
            if storages.contains_key(&storage.key) {
                continue;
            }
            let range = stored(&mut archive, &bytes, &format!("{folder}/data/{}", storage.key))?;
            // Each is read for its checksum, so that many names for the same bytes would take for ever.
            left = left.checked_sub(range.len()).ok_or_else(|| damaged("its entries overlap"))?;
            storages.insert(storage.key.clone(), check_len(storage, range)?);
        }
        Ok(Self { root: pickle.value, format: Format::Zip, storages, bytes })
    }

    /// Five pickles (magic number, protocol, system, the object, keys of the storages in their order in
    /// the file), then for each key its number of elements as i64 and the elements.
    fn parse_legacy(bytes: Vec<u8>) -> Result<Self, PtError> {
        let mut at = 0;
        let mut next = || -> Result<pickle::Pickle, PtError> {
            let pickle = pickle::read(&bytes[at..])?;
            at += pickle.len;
            Ok(pickle)
        };
        if next()?.value != Value::Int(LEGACY_MAGIC) || next()?.value != Value::Int(LEGACY_PROTOCOL) {
            return Err(PtError::NotTorch);
        }
        if next()?.value.get("little_endian") == Some(&Value::Bool(false)) {
            return Err(PtError::BigEndian);
        }
        let pickle = next()?;
        let Value::List(keys) = next()?.value else {
            return Err(damaged("its list of storages is missing"));
        };
        // The first mention of each.
        let mentioned: BTreeMap<_, _> =
            pickle.storages.iter().rev().map(|storage| (storage.key.clone(), storage)).collect();
        let mut storages = BTreeMap::new();
        for key in keys {
            let Value::Str(key) = key else { return Err(damaged("a storage's key is no string")) };
            let storage =
                mentioned.get(&key).ok_or_else(|| damaged("it lists a storage that nothing uses"))?;
            let header = bytes.get(at..at + 8).ok_or_else(|| damaged("it ends before its storages"))?;
            let numel = header.iter().rev().fold(0_u64, |n, &b| n << 8 | u64::from(b));
            let len = usize::try_from(numel).ok().and_then(|n| n.checked_mul(storage.dtype.size()));
            let end = len.and_then(|len| (at + 8).checked_add(len)).filter(|&end| end <= bytes.len());
            let end = end.ok_or_else(|| damaged("it ends inside a storage"))?;
            storages.insert(key, check_len(storage, at + 8..end)?);
            at = end;
        }
        Ok(Self { root: pickle.value, format: Format::Legacy, storages, bytes })
    }

    /// The elements of `tensor` in row-major order, whatever its strides, as little-endian bytes of its
    /// dtype.
    pub fn contiguous(&self, tensor: &TensorRef) -> Result<Vec<u8>, PtError> {
        let bounds = || PtError::Bounds { shape: tensor.shape.clone(), numel: tensor.storage.numel };
        let size = tensor.storage.dtype.size();
        let range = self.storages.get(&tensor.storage.key).ok_or_else(bounds)?;
        let storage = &self.bytes[range.clone()];
        let available = (storage.len() / size) as u64;
        let count = tensor.shape.iter().try_fold(1_u64, |n, &side| n.checked_mul(side)).ok_or_else(bounds)?;
        if count == 0 {
            return Ok(Vec::new());
        }
        let first = tensor.offset.checked_add(tensor.storage.start).ok_or_else(bounds)?;
        // The largest index that the strides reach; below it all are inside the storage.
        let mut last = Some(first);
        for (&side, &stride) in tensor.shape.iter().zip(&tensor.strides) {
            last = last.and_then(|last| last.checked_add((side - 1).checked_mul(stride)?));
        }
        if last.is_none_or(|last| last >= available) || count > available.max(MAX_EXPANDED) {
            return Err(bounds());
        }
        let (first, count) = (first as usize, count as usize);
        if row_major(&tensor.shape, &tensor.strides) {
            return Ok(storage[first * size..(first + count) * size].to_vec());
        }
        let mut out = Vec::with_capacity(count * size);
        let mut index = vec![0_u64; tensor.shape.len()];
        let mut at = first;
        for _ in 0..count {
            out.extend_from_slice(&storage[at * size..(at + 1) * size]);
            for dim in (0..index.len()).rev() {
                index[dim] += 1;
                at = at.wrapping_add(tensor.strides[dim] as usize);
                if index[dim] < tensor.shape[dim] {
                    break;
                }
                at = at.wrapping_sub(tensor.shape[dim].wrapping_mul(tensor.strides[dim]) as usize);
                index[dim] = 0;
            }
        }
        Ok(out)
    }

    /// The elements of a floating-point tensor in row-major order, converted to f32.
    pub fn floats(&self, tensor: &TensorRef) -> Result<Vec<f32>, PtError> {
        let dtype = tensor.storage.dtype;
        if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64) {
            return Err(PtError::NotFloat(dtype));
        }
        let bytes = self.contiguous(tensor)?;
        let (twos, fours, eights) = (bytes.as_chunks().0, bytes.as_chunks().0, bytes.as_chunks().0);
        Ok(match dtype {
            Dtype::F16 => twos.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => twos.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
            Dtype::F64 => eights.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
            _ => fours.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        })
    }
}

fn damaged(why: impl std::fmt::Display) -> PtError {
    PtError::Damaged(why.to_string())
}

/// Where the entry `name` stands in `bytes`, its checksum verified.
fn stored(
    archive: &mut ZipArchive<Cursor<&[u8]>>,
    bytes: &[u8],
    name: &str,
) -> Result<Range<usize>, PtError> {
    let mut entry = archive.by_name(name).map_err(|e| damaged(format!("entry {name}: {e}")))?;
    if entry.compression() != CompressionMethod::Stored {
        return Err(PtError::Compressed(name.to_owned()));
    }
    let len = std::io::copy(&mut entry, &mut std::io::sink());
    let len = len.map_err(|e| damaged(format!("entry {name}: {e}")))?;
    let start = entry.data_start() as usize;
    let end = usize::try_from(len).ok().and_then(|len| start.checked_add(len));
    let end = end.filter(|&end| end <= bytes.len() && len == entry.size());
    Ok(start..end.ok_or_else(|| damaged(format!("entry {name} is cut short")))?)
}

/// A storage must have the elements that the pickle claims.
fn check_len(storage: &StorageRef, range: Range<usize>) -> Result<Range<usize>, PtError> {
    let wanted = storage.numel.checked_mul(storage.dtype.size() as u64);
    if storage.start == 0 && wanted.is_none_or(|wanted| wanted > range.len() as u64) {
        return Err(damaged(format!("storage {} is shorter than its tensors", storage.key)));
    }
    Ok(range)
}

fn row_major(shape: &[u64], strides: &[u64]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&side, &stride)| {
        let matches = side == 1 || stride == expected;
        expected *= side;
        matches
    })
}
