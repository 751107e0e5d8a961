//! The packed store. The first byte of an input says which checksums are made right before it is opened: a
//! mutation would never get past them otherwise.

use twox_hash::XxHash3_64;
use worker::labels::packed::{Packed, PackedError};

use crate::{Target, scratch, split};

pub const TARGET: Target = Target { name: "packed", run, seeds: &[], amplification: 64 };

/// The bits of the first byte: the checksum of head and index, and those of the records.
pub const HEAD_AND_INDEX: u8 = 1;
pub const RECORDS: u8 = 2;

/// Length of the head; its checksum ends it.
const HEAD: usize = 96;
const DIGEST: std::ops::Range<usize> = 64..96;

fn run(input: &[u8]) {
    let ([mends], bytes) = split::<1>(input);
    let mut bytes = bytes.to_vec();
    if mends & RECORDS != 0 {
        mend_records(&mut bytes);
    }
    if mends & HEAD_AND_INDEX != 0 {
        mend_head(&mut bytes);
    }
    let folder = scratch().expect("a folder for the store");
    let path = folder.path().join("maps");
    std::fs::write(&path, &bytes).expect("a file for the store");
    let Ok(store) = Packed::open(&path) else { return };

    assert_eq!(store.file_len(), bytes.len() as u64);
    let names: Vec<String> = store.names().collect();
    assert_eq!(names.len(), store.len());
    assert_eq!(names.is_empty(), store.is_empty());
    assert!(matches!(store.get("no/such map"), Err(PackedError::Missing { .. })));
    for (position, name) in names.iter().enumerate() {
        // Names that are no text by themselves are shown with marks in their place, and not found by those.
        let found = store.get(name);
        let Ok(map) = store.map(position) else {
            assert!(found.is_err());
            continue;
        };
        assert_eq!(map.logits.len(), map.k * map.height * map.width);
        assert!(map.logits.iter().all(|logit| logit.is_finite()));
        assert!(map.classes.iter().all(|class| *class < store.classes()));
        if let Ok(found) = found {
            assert_eq!(found, map);
        }
    }
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    Some(bytes.get(at..at + length)?.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
}

/// Bytes of a record and number of records, as the head has them.
fn layout(bytes: &[u8]) -> Option<(usize, usize)> {
    let values = [16, 20, 24].into_iter().try_fold(1_u64, |n, at| n.checked_mul(number(bytes, at, 4)?))?;
    let record = values.checked_mul(number(bytes, 12, 4)?.checked_add(2)?)?.checked_next_multiple_of(8)?;
    let records = usize::try_from(number(bytes, 32, 8)?).ok()?;
    let record = usize::try_from(record).ok()?;
    // The index begins within the file.
    record.checked_mul(records).filter(|length| HEAD + length <= bytes.len()).map(|_| (record, records))
}

fn mend_head(bytes: &mut [u8]) {
    let Some((record, records)) = layout(bytes) else { return };
    let mut hasher = blake3::Hasher::new();
    hasher.update(&bytes[..DIGEST.start]).update(&bytes[HEAD + record * records..]);
    bytes[DIGEST].copy_from_slice(hasher.finalize().as_bytes());
}

fn mend_records(bytes: &mut [u8]) {
    let Some((record, records)) = layout(bytes).filter(|(record, _)| *record > 0) else { return };
    let (head, index) = bytes.split_at_mut(HEAD + record * records);
    let sums = head[HEAD..].chunks_exact(record).map(XxHash3_64::oneshot);
    for (place, sum) in index.chunks_exact_mut(8).zip(sums) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Where a seed or a sum is of another version of the format, no mutation is ever read as a map.
    #[test]
    fn seeds_are_read_and_sums_made_right() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus/packed");
        for (name, maps) in [("seed-empty", 0), ("seed-full", 1), ("seed-half", 1)] {
            let input = std::fs::read(corpus.join(name)).unwrap();
            let ([_], bytes) = split::<1>(&input);
            let folder = scratch().unwrap();
            let path = folder.path().join("maps");
            std::fs::write(&path, bytes).unwrap();
            let store = Packed::open(&path).unwrap();
            assert!(store.len() >= maps, "{name}");
            assert!((0..store.len()).all(|position| store.map(position).is_ok()), "{name}");

            let (record, records) = layout(bytes).unwrap();
            let mut mended = bytes.to_vec();
            mended[HEAD + record * records..][..records * 8].fill(0);
            mended[DIGEST].fill(0);
            mend_records(&mut mended);
            mend_head(&mut mended);
            assert_eq!(mended, bytes, "{name}");
        }
    }
}
