#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use relabel_config::OnError;

use std::ops::Range;

use super::*;
use crate::data::augment::{Augment, FinishOn, Resize};
use crate::data::cutmix::CutMix;
use crate::data::index::Split;
use crate::data::loader::{Batch, TrainLoader, TrainPlan};
use crate::labels::SingleLabel;
use crate::model::image_batch;

/// 13 samples of all kinds of file, of which one cannot be read.
pub(in crate::train) fn data() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/data/testdata");
    fs::create_dir(root.path().join("n0")).unwrap();
    let kinds = ["rgb.jpg", "grey.jpg", "cmyk.jpg", "palette.png", "progressive.jpg"];
    for sample in 0..13 {
        let file = root.path().join(format!("n0/{sample:02}.JPEG"));
        fs::copy(testdata.join(kinds[sample % 5]), file).unwrap();
    }
    fs::write(root.path().join("n0/05.JPEG"), b"no image").unwrap();
    root
}

/// A side that is no whole number of the host's blocks.
pub(in crate::train) const SIDE: u32 = 37;

pub(in crate::train) const JITTERED: Augment = Augment {
    image_size: SIDE,
    min_area: 0.08,
    color_jitter: 0.4,
    lighting: 0.1,
    resize: Resize::Fast,
    finish: FinishOn::Host,
};

/// Of an epoch of three steps.
pub(in crate::train) fn plan(root: &Path, augment: Augment, prob: f64, slice: Range<u32>) -> TrainPlan {
    TrainPlan {
        split: Arc::new(Split::open(root, None).unwrap()),
        targets: Arc::new(SingleLabel::new(1, Arc::new(|_| 0))),
        augment,
        cutmix: CutMix { prob, beta: 1.0, until: 100 },
        seed: 11,
        shuffle_buffer: 0,
        epoch: 2,
        global_batch: 6,
        first_step: 0,
        slice,
        on_error: OnError::Skip,
        threads: 2,
        prefetch: 2,
    }
}

fn load(root: &Path, augment: Augment, prob: f64, slice: Range<u32>) -> Vec<Batch> {
    TrainLoader::start(plan(root, augment, prob, slice)).unwrap().map(Result::unwrap).collect()
}

/// Checks that the device makes of each batch what the loader does.
fn assert_same(root: &Path, augment: Augment, prob: f64, slice: Range<u32>) {
    let on_host = load(root, augment.clone(), prob, slice.clone());
    let on_device = load(root, Augment { finish: FinishOn::Device, ..augment }, prob, slice);
    for (host, device) in on_host.iter().zip(&on_device) {
        assert!(host.unfinished.is_none() && device.images.is_empty());
        assert_eq!((&host.sample_ids, &host.targets), (&device.sample_ids, &device.targets));
        let (n, side) = (host.sample_ids.len(), i64::from(SIDE));
        let expected = image_batch(&host.images, n as i64, side).unwrap();
        let unfinished = device.unfinished.as_ref().unwrap();
        let found = finish(unfinished, n, side, Device::Cpu).unwrap();
        assert!(torch::is_channels_last(&found));
        assert!(found == expected, "{n} images");
    }
}

#[test]
fn the_device_finishes_images_to_the_bit_as_the_loader_does() {
    let root = data();
    for prob in [0.0, 1.0] {
        for slice in [0..6, 2..5, 0..1, 0..0] {
            assert_same(root.path(), JITTERED, prob, slice);
        }
    }
    assert_same(root.path(), Augment { color_jitter: 0.0, ..JITTERED }, 1.0, 0..6);
    assert_same(root.path(), Augment { lighting: 0.0, ..JITTERED }, 0.0, 0..6);
}

#[test]
fn a_mean_between_two_numbers_is_rounded_up() {
    let luma = |values: &[f32]| Tensor::from_slice(values).view([1, 1, 1, values.len() as i64]);
    for (values, mean) in [(&[10.0, 11.0][..], 11.0), (&[10.0, 10.0, 11.0], 10.0), (&[254.0, 255.0], 255.0)] {
        assert_eq!(rounded_mean(&luma(values)).unwrap().double_value(&[0, 0, 0, 0]), mean);
    }
}
