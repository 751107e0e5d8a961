#![allow(clippy::unwrap_used)]

use super::*;
use crate::metrics::{EpochPoint, StepPoint};
use crate::view::StepDone;

fn step(global_step: u64) -> News {
    let point = StepPoint {
        epoch: 0,
        step: global_step,
        global_step,
        loss: 1.5,
        lr: 0.25,
        images_per_second: 10.0,
        data_wait: 0.0,
        skipped: 0,
        loss_scale: None,
        time: 1.0,
    };
    let done =
        StepDone { epoch: 0, done: 1, steps: 2, loss: 1.5, lr: 0.25, images_per_second: 10.0, left: None };
    News::Step { done, point: Some(point) }
}

fn epoch(steps: Histogram) -> News {
    let point = EpochPoint {
        epoch: 0,
        train_loss: 1.0,
        skipped: 0,
        val_loss: 2.0,
        top1: 50.0,
        top5: 90.0,
        best_top1: 50.0,
        seconds: 3.0,
    };
    News::Epoch { point, best_epoch: 0, steps, global_step: 9 }
}

/// The events of all files in a run's folder, in the order of their names.
fn events(run_dir: &Path) -> Vec<proto::Event> {
    let mut files: Vec<_> =
        std::fs::read_dir(run_dir.join(FOLDER)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut events = Vec::new();
    for file in files {
        let bytes = std::fs::read(file).unwrap();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let (whole, after) = rest.split_at(length + 16);
            let data = &whole[12..12 + length];
            assert_eq!(record::framed(data), whole);
            events.push(proto::Event::decode(data).unwrap());
            rest = after;
        }
    }
    events
}

fn values(events: &[proto::Event], tag: &str) -> Vec<(i64, value::Value)> {
    let of = |event: &proto::Event| match &event.what {
        Some(What::Summary(summary)) => {
            summary.value.iter().map(|value| (event.step, value.clone())).collect()
        }
        _ => Vec::new(),
    };
    let all = events.iter().flat_map(of);
    all.filter(|(_, value)| value.tag == tag).map(|(step, value)| (step, value.value.unwrap())).collect()
}

#[test]
fn a_file_says_from_which_step_on_others_are_void() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = EventWriter::create(dir.path(), 0, "a: 1\n").unwrap();
    (0..3).for_each(|n| writer.record(&step(n)).unwrap());
    let mut again = EventWriter::create(dir.path(), 2, "a: 1\n").unwrap();
    again.record(&step(2)).unwrap();
    let events = events(dir.path());
    let versions = events
        .iter()
        .filter(|event| matches!(&event.what, Some(What::FileVersion(v)) if v == "brain.Event:2"));
    assert_eq!(versions.count(), 2);
    let starts = events.iter().filter(|event| matches!(event.what, Some(What::SessionLog(_))));
    assert_eq!(starts.map(|event| event.step).collect::<Vec<_>>(), [0, 2]);
    let losses = values(&events, "train/loss");
    assert_eq!(losses.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [0, 1, 2, 2]);
    assert_eq!(losses[0].1, value::Value::SimpleValue(1.5));
}

#[test]
fn an_epoch_has_its_scalars_its_steps_lengths_and_the_pictures_that_are_whole() {
    let dir = tempfile::tempdir().unwrap();
    let pictures = dir.path().join(PICTURES);
    std::fs::create_dir(&pictures).unwrap();
    let png = [&b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"[..], &[0, 0, 1, 4, 0, 0, 0, 7], b"..."].concat();
    std::fs::write(pictures.join("e0000-00-cat+one.png"), &png).unwrap();
    std::fs::write(pictures.join("e0000-01-cat+two.png"), "no picture").unwrap();
    std::fs::write(pictures.join("e0001-00-cat+one.png"), &png).unwrap();
    let mut steps = Histogram::default();
    [0.2, 0.2, 0.3, 1000.0].into_iter().for_each(|seconds| steps.add(seconds));

    let mut writer = EventWriter::create(dir.path(), 0, "").unwrap();
    // Told twice, as when a validation is done again, it has the picture once.
    writer.record(&epoch(steps.clone())).unwrap();
    writer.record(&epoch(Histogram::default())).unwrap();
    let events = events(dir.path());
    assert_eq!(values(&events, "validation/top1"), vec![(9, value::Value::SimpleValue(50.0)); 2]);
    let images = values(&events, "label_map/00 cat/one");
    let [(9, value::Value::Image(image))] = images.as_slice() else { panic!("{images:?}") };
    assert_eq!((image.width, image.height, &image.encoded_image_string), (260, 7, &png));
    assert!(values(&events, "label_map/01 cat/two").is_empty());
    let lengths = values(&events, "time/step_seconds");
    let [(9, value::Value::Histo(histo))] = lengths.as_slice() else { panic!("{lengths:?}") };
    assert_eq!((histo.num, histo.min, histo.max), (4.0, 0.2, 1000.0));
    assert_eq!(histo.bucket.iter().sum::<f64>(), 4.0);
    assert_eq!(histo.bucket.len(), histo.bucket_limit.len());
    assert_eq!((histo.bucket_limit[0], histo.bucket[0]), (0.2, 2.0));
    assert!(histo.bucket_limit.is_sorted() && histo.bucket_limit.last() == Some(&f64::MAX));
}

#[test]
fn the_options_are_a_text() {
    let dir = tempfile::tempdir().unwrap();
    EventWriter::create(dir.path(), 0, "optim:\n  epochs: 3\n").unwrap();
    let texts = values(&events(dir.path()), "options");
    let [(0, value::Value::Tensor(tensor))] = texts.as_slice() else { panic!("{texts:?}") };
    assert_eq!(tensor.string_val, [b"    optim:\n      epochs: 3\n".to_vec()]);
}
