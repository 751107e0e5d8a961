#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use relabel_config::Axes;

use super::*;
use crate::data::{CropBox, ImageSize};
use crate::labels::{Keys, LabelMaps, Targets};
use crate::pt::pickle::Dtype;

const KEYS: [&str; 4] = ["n01/a", "n01/a.b", "n01/aa", "n02/A"];

/// A map `[3, 4, 5]` with distinct classes in each cell.
fn map(seed: u64) -> LabelMap {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (k, height, width) = (3, 4, 5);
    let first = rng.random_range(0..20);
    let logits = (0..k * height * width).map(|_| rng.random_range(-3.0..18.0)).collect();
    let classes = (0..k * height * width).map(|i| first + (i % 7 + i / 20 * 6) as u32).collect();
    LabelMap { k, height, width, logits, classes }
}

fn pack(path: &Path, precision: Precision) {
    let mut packer = Packer::create(path, precision).unwrap();
    for (seed, key) in (0..).zip(KEYS) {
        packer.push(key, &map(seed)).unwrap();
    }
    assert_eq!(packer.len(), KEYS.len());
    packer.finish().unwrap();
}

#[test]
fn what_is_packed_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    for precision in [Precision::Half, Precision::Full] {
        pack(&path, precision);
        let packed = Packed::open(&path).unwrap();
        let largest = (0..4).flat_map(|seed| map(seed).classes).max().unwrap();
        assert_eq!((packed.len(), packed.classes()), (4, largest + 1));
        assert_eq!(packed.layout(), Layout { precision, k: 3, height: 4, width: 5 });
        assert_eq!(packed.names().collect::<Vec<_>>(), KEYS);
        for (seed, key) in (0..).zip(KEYS) {
            let mut wanted = map(seed);
            if precision == Precision::Half {
                wanted.logits.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
            }
            assert_eq!(packed.get(key).unwrap(), wanted, "{key}");
        }
        for absent in ["", "n00/z", "n01/a.", "n02/AA", "n03"] {
            assert!(matches!(packed.get(absent), Err(PackedError::Missing { key }) if key == absent));
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no other file is left");
}

/// Whether every map of a store at `path` is read as it was packed.
fn whole(path: &Path) -> bool {
    let Ok(packed) = Packed::open(path) else { return false };
    KEYS.iter().all(|key| packed.get(key).is_ok())
}

#[test]
fn any_damage_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    pack(&path, Precision::Half);
    let bytes = std::fs::read(&path).unwrap();
    assert!(whole(&path));
    let other = folder.path().join("damaged");
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80] {
            let mut damaged = bytes.clone();
            damaged[at] ^= flip;
            std::fs::write(&other, &damaged).unwrap();
            assert!(!whole(&other), "byte {at} of {} changed", bytes.len());
        }
    }
    for end in 0..bytes.len() {
        std::fs::write(&other, &bytes[..end]).unwrap();
        assert!(Packed::open(&other).is_err(), "cut at {end}");
    }
    std::fs::write(&other, [&bytes[..], &[0]].concat()).unwrap();
    assert!(matches!(Packed::open(&other), Err(PackedError::TooLong { extra: 1 })));
}

/// The bytes of a store with all of its sums made anew.
fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
    let maps = KEYS.len();
    let record = Layout { precision: Precision::Half, k: 3, height: 4, width: 5 }.record();
    let index = HEAD + maps * record;
    for map in 0..maps {
        let start = HEAD + map * record;
        let sum = sum(&bytes[start..start + record]);
        bytes[index + map * 8..][..8].copy_from_slice(&sum.to_le_bytes());
    }
    let digest = digest(&bytes[..DIGEST.start], &bytes[index..]);
    bytes[DIGEST].copy_from_slice(digest.as_bytes());
    bytes
}

#[test]
fn a_map_that_cannot_be_is_refused_whatever_its_sum() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    pack(&path, Precision::Half);
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(summed(bytes.clone()), bytes);
    // In the first map: its first and last logit, and its first and last class.
    let values = 3 * 4 * 5;
    for (at, value) in [
        (0, f16::NAN.to_bits()),
        (values - 1, f16::NEG_INFINITY.to_bits()),
        (values, u16::MAX),
        (2 * values - 1, u16::MAX),
    ] {
        let mut wrong = bytes.clone();
        wrong[HEAD + at * 2..][..2].copy_from_slice(&value.to_le_bytes());
        std::fs::write(&path, summed(wrong)).unwrap();
        let packed = Packed::open(&path).unwrap();
        assert!(matches!(packed.get(KEYS[0]), Err(PackedError::Record { .. })), "value {at}");
        assert!(packed.get(KEYS[1]).is_ok());
    }
}

#[test]
fn every_refusal_says_what_is_wrong_on_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    pack(&path, Precision::Half);
    let bytes = std::fs::read(&path).unwrap();
    let with = |at: usize, new: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    let other = folder.path().join("other");
    for (bytes, wanted) in [
        (Vec::new(), "no packed store"),
        (map(0).to_pt(Dtype::F32).unwrap(), "no packed store"),
        (b"relabelp".to_vec(), "truncated: 8 bytes instead of 96"),
        (with(8, &[9]), "version 9"),
        (with(12, &[3]), "element type"),
        (with(16, &[0; 4]), "map size"),
        (with(32, &[255; 8]), "number of maps"),
        (with(32, &[5]), "truncated"),
        (with(28, &[1]), "checksum"),
        (bytes[..bytes.len() - 1].to_vec(), "truncated"),
    ] {
        std::fs::write(&other, bytes).unwrap();
        let message = Packed::open(&other).err().unwrap().to_string();
        assert!(message.contains(wanted) && !message.contains('\n'), "{message:?} lacks {wanted:?}");
    }
    let missing = Packed::open(&folder.path().join("nowhere")).err().unwrap().to_string();
    assert!(missing.contains("cannot be opened"), "{missing}");

    std::fs::write(&other, with(HEAD + 1, &[0x55])).unwrap();
    let message = Packed::open(&other).unwrap().get("n01/a").unwrap_err().to_string();
    assert!(message.contains("the map of n01/a in it is damaged"), "{message}");
}

#[test]
fn what_does_not_fit_is_not_packed_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    pack(&path, Precision::Full);
    let before = std::fs::read(&path).unwrap();
    let refusal = |precision, change: fn(&mut LabelMap)| {
        let mut packer = Packer::create(&path, precision).unwrap();
        packer.push("a", &map(0)).unwrap();
        let mut map = map(1);
        change(&mut map);
        packer.push("b", &map).unwrap_err().to_string()
    };
    let transpose = |map: &mut LabelMap| (map.height, map.width) = (map.width, map.height);
    assert!(refusal(Precision::Half, transpose).contains("[3, 5, 4]"));
    assert!(refusal(Precision::Full, |map| map.classes[3] = 65536).contains("65536"));
    assert!(refusal(Precision::Half, |map| map.logits[0] = 7e4).contains("--full"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no half store is left");
    assert_eq!(std::fs::read(&path).unwrap(), before, "the old store stands");
}

#[test]
fn a_store_teaches_what_its_folder_does() {
    let folder = tempfile::tempdir().unwrap();
    let (maps, store) = (folder.path().join("maps"), folder.path().join("store"));
    let keys: Keys = Arc::new(|sample| KEYS[sample as usize].to_owned());
    let image = ImageSize { width: 90, height: 70 };
    let crop = CropBox { top: 11, left: 3, height: 40, width: 61 };
    let target = |path: &Path, sample: u32| {
        let maps = LabelMaps::new(path.into(), 60, Axes::Reference, keys.clone()).unwrap();
        let mut out = vec![0.0; 60];
        maps.write(sample, image, crop, &mut out).unwrap();
        out
    };
    // How far f16 moves a target: a logit under 32 by 2^-7 at most, and so a mass of softmax by a share of that.
    for (dtype, precision, tolerance) in [
        (Dtype::F16, Precision::Half, 0.0),
        (Dtype::F32, Precision::Full, 0.0),
        (Dtype::F32, Precision::Half, 0.008),
    ] {
        for (seed, key) in (0..).zip(KEYS) {
            let path = crate::labels::map_path(&maps, key);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, map(seed).to_pt(dtype).unwrap()).unwrap();
        }
        let keys: Vec<String> = KEYS.map(str::to_owned).into();
        let rounding = crate::labels::pack::write(&maps, &keys, &store, precision, 3).unwrap();
        assert_eq!(rounding > 0.0, tolerance > 0.0, "{dtype} as {precision:?} moved logits by {rounding}");
        for sample in 0..4 {
            let (a, b) = (target(&maps, sample), target(&store, sample));
            let apart = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart <= tolerance, "{dtype} as {precision:?}: {apart}");
        }
    }

    let of =
        |classes| LabelMaps::new(store.clone(), classes, Axes::Hw, keys.clone()).err().unwrap().to_string();
    assert!(
        of(20).contains("store: it names classes up to") && of(20).contains("but there are 20"),
        "{}",
        of(20)
    );
    std::fs::write(&store, b"something else").unwrap();
    assert!(of(60).contains("no packed store"), "{}", of(60));
}
