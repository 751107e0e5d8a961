#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::*;
use crate::pt::pickle::{Dtype, Value};
use crate::pt::{self, Format, PtError, PtFile};

#[derive(serde::Deserialize)]
struct Small {
    shape: Vec<u64>,
    values: Vec<f32>,
    half: Vec<f32>,
    bf16: Vec<f32>,
}

fn data(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/labels/testdata").join(name)).unwrap()
}

fn small() -> Small {
    serde_json::from_slice(&data("small.json")).unwrap()
}

/// Saved in `format`, a map `[k, 2, 2]` whose logits count up and whose cells name classes 0, 1, ...
fn map(k: usize) -> LabelMap {
    let logits = (0..k * 4).map(|i| i as f32 + 0.5).collect();
    LabelMap { k, height: 2, width: 2, logits, classes: (0..k as u32).flat_map(|c| [c; 4]).collect() }
}

/// A float32 file with these values.
fn tensor(shape: &[u64], values: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    pt::write_tensor(shape, Dtype::F32, &data).unwrap()
}

#[test]
fn both_forms_all_dtypes_and_any_strides_are_read() {
    let small = small();
    for (name, format, dtype, wanted) in [
        ("zip_f32.pt", Format::Zip, Dtype::F32, &small.values),
        ("zip_f16.pt", Format::Zip, Dtype::F16, &small.half),
        ("zip_f64.pt", Format::Zip, Dtype::F64, &small.values),
        ("zip_view.pt", Format::Zip, Dtype::F32, &small.values),
        ("zip_proto4.pt", Format::Zip, Dtype::F32, &small.values),
        ("legacy_f32.pt", Format::Legacy, Dtype::F32, &small.values),
        ("legacy_f16.pt", Format::Legacy, Dtype::F16, &small.half),
        ("legacy_bf16.pt", Format::Legacy, Dtype::BF16, &small.bf16),
        ("legacy_view.pt", Format::Legacy, Dtype::F32, &small.values),
    ] {
        let stored = LabelMap::parse_stored(data(name), Some(50)).unwrap();
        assert_eq!((stored.format, stored.dtype), (format, dtype), "{name}");
        let LabelMap { k, height, width, logits, classes } = stored.map;
        assert_eq!([2, k as u64, height as u64, width as u64], *small.shape, "{name}");
        let (wanted_logits, wanted_ids) = wanted.split_at(k * height * width);
        assert_eq!(logits, wanted_logits, "{name}");
        assert_eq!(classes, wanted_ids.iter().map(|&v| v as u32).collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn whole_checkpoints_are_read() {
    for name in ["checkpoint.pth", "checkpoint_legacy.pth"] {
        let file = PtFile::parse(data(name)).unwrap();
        let root = file.root();
        assert_eq!(root.get("epoch"), Some(&Value::Int(3)));
        assert_eq!(root.get("arch"), Some(&Value::Str("resnet18".into())));
        assert_eq!(root.get("size"), Some(&Value::Tuple(vec![Value::Int(2), Value::Int(3)])));
        let flags = vec![Value::Bool(true), Value::None, Value::Int(-7), Value::Int(1 << 40)];
        assert_eq!(root.get("flags"), Some(&Value::List(flags)));
        let Some(Value::Tensor(tied)) = root.get("tied") else { panic!("{root:?}") };
        assert_eq!(file.floats(tied).unwrap(), [0.0, 1.0, 2.0, 3.0]);
        let Some(Value::Dict(state)) = root.get("state_dict") else { panic!("{root:?}") };
        assert_eq!(state.len(), 7);
        let Some(Value::Tensor(count)) = root.get("state_dict").unwrap().get("1.num_batches_tracked") else {
            panic!("{state:?}")
        };
        assert_eq!(count.storage.dtype, Dtype::I64);
        assert_eq!(file.contiguous(count).unwrap(), [0; 8]);
    }
}

#[test]
fn what_is_written_is_read_back_the_same() {
    let map = map(3);
    for dtype in [Dtype::F32, Dtype::F16] {
        let bytes = map.to_pt(dtype).unwrap();
        let stored = LabelMap::parse_stored(bytes.clone(), Some(3)).unwrap();
        assert_eq!(stored, Stored { map: map.clone(), dtype, format: Format::Zip });
        assert_eq!(bytes, map.to_pt(dtype).unwrap());
    }
    let wide = LabelMap { k: 1, height: 1, width: 1, logits: vec![1.0], classes: vec![2049] };
    assert!(matches!(wide.to_pt(Dtype::F16), Err(MapError::Imprecise { .. })));
}

/// The message for these bytes, as a loader would print it.
fn refusal(bytes: Vec<u8>, classes: u32) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("n01.pt");
    std::fs::write(&path, bytes).unwrap();
    let message = read_map(&path, classes).unwrap_err().to_string();
    assert!(message.contains("n01.pt") && !message.contains('\n'), "{message}");
    message
}

#[test]
fn every_bad_map_is_one_line_that_says_what_is_wrong() {
    let good = map(2);
    let with = |i: usize, v: f32| {
        let mut values = [good.logits.clone(), good.classes.iter().map(|&c| c as f32).collect()].concat();
        values[i] = v;
        tensor(&[2, 2, 2, 2], &values)
    };
    for (bytes, classes, wanted) in [
        (Vec::new(), 10, "empty"),
        (b"GIF89a".to_vec(), 10, "not a file that torch.save writes"),
        (data("evil_zip.pt"), 10, "posix.system"),
        (data("evil_legacy.pt"), 10, "posix.system"),
        (data("checkpoint.pth"), 10, "a dict; wanted a tensor"),
        (tensor(&[2, 2, 2], &[0.0; 8]), 10, "[2, 2, 2]; wanted [2, k, height, width]"),
        (tensor(&[3, 1, 2, 2], &[0.0; 12]), 10, "[3, 1, 2, 2]"),
        (tensor(&[2, 0, 2, 2], &[]), 10, "[2, 0, 2, 2]"),
        (with(11, 10.0), 10, "class id 10 in row 1, column 1; wanted a whole number from 0 to 9"),
        (with(8, -1.0), 10, "class id -1 in row 0, column 0"),
        (with(9, 0.5), 10, "class id 0.5"),
        (with(9, f32::NAN), 10, "class id NaN"),
        (with(2, f32::NAN), 10, "logit NaN in row 1, column 0"),
        (with(3, f32::INFINITY), 10, "logit inf"),
        (data("zip_f32.pt"), 10, "the number of classes is wrong"),
        (data("legacy_bf16.pt"), 1000, "bfloat16 cannot hold class ids up to 999"),
        (data("zip_f16.pt"), 2050, "float16 cannot hold"),
    ] {
        let message = refusal(bytes, classes);
        assert!(message.contains(wanted), "{message:?} lacks {wanted:?}");
    }
}

#[test]
fn truncated_and_damaged_files_are_errors() {
    for name in ["zip_f32.pt", "legacy_f32.pt", "zip_view.pt"] {
        let whole = data(name);
        for end in 0..whole.len() {
            assert!(LabelMap::parse(whole[..end].to_vec(), 50).is_err(), "{name} cut at {end}");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            let _ = LabelMap::parse(bytes, 50);
        }
    }
    // The zip form has checksums: a changed logit is noticed.
    let mut bytes = data("zip_f32.pt");
    let first = small().values[0].to_le_bytes();
    let at = bytes.windows(4).position(|w| w == first).unwrap();
    bytes[at] ^= 1;
    let message = refusal(bytes, 50);
    assert!(message.contains("damaged"), "{message}");
}

#[test]
fn a_tensor_outside_its_storage_is_refused() {
    let file = PtFile::parse(tensor(&[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0])).unwrap();
    let Value::Tensor(good) = file.root() else { panic!() };
    let read = |offset: u64, shape: &[u64], strides: &[u64]| {
        let mut tensor = (**good).clone();
        (tensor.offset, tensor.shape, tensor.strides) = (offset, shape.into(), strides.into());
        file.floats(&tensor)
    };
    assert_eq!(read(1, &[2, 2], &[1, 3]).unwrap(), [1.0, 4.0, 2.0, 5.0]);
    assert_eq!(read(5, &[3], &[0]).unwrap(), [5.0; 3]);
    assert_eq!(read(2, &[1, 2], &[u64::MAX, 1]).unwrap(), [2.0, 3.0]);
    assert_eq!(read(0, &[0, u64::MAX], &[1, 1]).unwrap(), [0.0; 0]);
    for (offset, shape, strides) in [
        (1, &[2, 3][..], &[3, 1][..]),
        (6, &[1], &[1]),
        (u64::MAX, &[2], &[1]),
        (0, &[2], &[u64::MAX]),
        (0, &[u64::MAX, u64::MAX], &[1, 1]),
        (0, &[1 << 40], &[0]),
    ] {
        assert!(matches!(read(offset, shape, strides), Err(PtError::Bounds { .. })), "{shape:?} {strides:?}");
    }
}

#[test]
fn label_maps_are_found_by_their_key() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("n01")).unwrap();
    std::fs::write(folder.path().join("n01/a.b.pt"), map(2).to_pt(Dtype::F32).unwrap()).unwrap();
    let keys: Keys = Arc::new(|sample| ["n01/a.b", "n01/absent"][sample as usize].to_owned());
    let targets = LabelMaps::new(folder.path().into(), 10, Axes::Hw, keys.clone()).unwrap();
    assert_eq!(targets.classes(), 10);
    targets.check([0]).unwrap();
    let mut out = [0.0; 10];
    let image = ImageSize { width: 100, height: 50 };
    targets.write(0, image, CropBox { top: 0, left: 0, height: 25, width: 50 }, &mut out).unwrap();
    assert!((out.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    assert!(out[1] > out[0] && out[0] > out[2], "{out:?}");

    targets.check_present(1).unwrap();
    for error in [targets.check([0, 1]), targets.check_present(2)] {
        let message = error.unwrap_err().to_string();
        assert!(message.contains("absent.pt is missing for image n01/absent"), "{message}");
    }
    let message =
        LabelMaps::new(folder.path().join("nowhere"), 10, Axes::Hw, keys).err().unwrap().to_string();
    assert!(message.contains("nowhere does not exist"), "{message}");
}

#[test]
fn of_many_missing_maps_the_first_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let key = |sample: u32| format!("c{}/{sample}", sample / 1000);
    for sample in (0..10_000).filter(|sample| ![4_321, 5_000, 9_999].contains(sample)) {
        let path = folder.path().join(key(sample) + ".pt");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, []).unwrap();
    }
    let maps = LabelMaps::new(folder.path().into(), 10, Axes::Hw, Arc::new(key)).unwrap();
    maps.check_present(4_321).unwrap();
    let message = maps.check_present(10_000).unwrap_err().to_string();
    assert!(message.contains("c4/4321.pt is missing"), "{message}");
}

#[test]
fn single_labels_are_one_hot_and_checked() {
    let targets = SingleLabel::new(3, Arc::new(|sample| sample + 1));
    let image = ImageSize { width: 8, height: 8 };
    let crop = CropBox { top: 0, left: 0, height: 8, width: 8 };
    let mut out = [7.0; 3];
    targets.write(1, image, crop, &mut out).unwrap();
    assert_eq!(out, [0.0, 0.0, 1.0]);
    let message = targets.write(2, image, crop, &mut out).unwrap_err().to_string();
    assert!(message.contains("class 3, but there are 3 classes"), "{message}");
}
