#![allow(clippy::unwrap_used)]

use super::*;

fn step(epoch: u32, step: u64) -> StepPoint {
    let global_step = u64::from(epoch) * 35 + step;
    let done = global_step as f64 / 280.0;
    StepPoint {
        epoch,
        step,
        global_step,
        loss: 2.3 - 1.6 * done + 0.15 * (global_step as f64 * 1.7).sin(),
        lr: if epoch == 0 { 0.1 * step as f64 / 35.0 } else { 0.05 * (1.0 + (done * 3.1).cos()) },
        images_per_second: 162.0,
        data_wait: 0.001,
        skipped: 0,
        loss_scale: None,
        time: 1_700_000_000.5,
    }
}

fn epoch(epoch: u32) -> EpochPoint {
    let done = f64::from(epoch + 1) / 8.0;
    EpochPoint {
        epoch,
        train_loss: 2.3 - 1.6 * done,
        skipped: 0,
        val_loss: 2.2 - 1.3 * done,
        top1: 10.0 + 62.0 * done.sqrt(),
        top5: 50.0 + 45.0 * done.sqrt(),
        best_top1: 10.0 + 62.0 * done.sqrt(),
        seconds: 14.0,
    }
}

/// Records epochs `from` to `upto` from step `first` of the first on, each of 35 steps with a point every ten.
fn train(recorder: &mut Recorder, from: (u32, u64), upto: u32) {
    for e in from.0..upto {
        for s in (9..35).step_by(10).filter(|s| (e, *s) >= from) {
            recorder.record(Record::Step(step(e, s))).unwrap();
        }
        recorder.record(Record::Epoch(epoch(e))).unwrap();
    }
}

fn lines(dir: &Path) -> Vec<String> {
    std::fs::read_to_string(dir.join(METRICS)).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_line_is_an_object_that_names_its_kind() {
    let dir = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::open(dir.path(), None).unwrap();
    recorder.record(Record::Step(StepPoint { loss: 1.5, lr: 0.1, ..step(2, 9) })).unwrap();
    let point = EpochPoint {
        train_loss: 1.0,
        val_loss: f64::NAN,
        top1: 50.0,
        top5: 90.0,
        best_top1: 54.0,
        ..epoch(2)
    };
    recorder.record(Record::Epoch(point)).unwrap();
    assert_eq!(
        lines(dir.path()),
        [
            r#"{"kind":"step","epoch":2,"step":9,"global_step":79,"loss":1.5,"lr":0.1,"images_per_second":162.0,"data_wait":0.001,"skipped":0,"time":1700000000.5}"#,
            r#"{"kind":"epoch","epoch":2,"train_loss":1.0,"skipped":0,"val_loss":null,"top1":50.0,"top5":90.0,"best_top1":54.0,"seconds":14.0}"#,
        ]
    );
    // The null is read back, as NaN.
    let again = Recorder::open(dir.path(), None).unwrap();
    assert!(again.epochs[0].val_loss.is_nan() && again.steps == recorder.steps);
}

#[test]
fn a_resumed_run_leaves_the_same_lines_as_an_undisturbed_one() {
    let undisturbed = tempfile::tempdir().unwrap();
    train(&mut Recorder::open(undisturbed.path(), None).unwrap(), (0, 0), 4);
    for resume in [(0, 0), (1, 0), (2, 10), (2, 15), (2, 35), (3, 34), (4, 0)] {
        let dir = tempfile::tempdir().unwrap();
        train(&mut Recorder::open(dir.path(), None).unwrap(), (0, 0), 4);
        let mut recorder = Recorder::open(dir.path(), Some(resume)).unwrap();
        let kept = lines(dir.path());
        assert!(kept.iter().all(|line| lines(undisturbed.path()).contains(line)));
        train(&mut recorder, resume, 4);
        assert_eq!(lines(dir.path()), lines(undisturbed.path()), "resumed at {resume:?}");
        let read = |dir: &Path| std::fs::read_to_string(dir.join(CURVES)).unwrap();
        assert_eq!(read(dir.path()), read(undisturbed.path()), "resumed at {resume:?}");
    }
}

#[test]
fn a_torn_last_line_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    train(&mut Recorder::open(dir.path(), None).unwrap(), (0, 0), 1);
    let whole = std::fs::read_to_string(dir.path().join(METRICS)).unwrap();
    for cut in [1, 2, 40] {
        std::fs::write(dir.path().join(METRICS), &whole[..whole.len() - cut]).unwrap();
        let recorder = Recorder::open(dir.path(), None).unwrap();
        // Without its line end alone the last line is still whole.
        assert_eq!(recorder.epochs.len(), usize::from(cut == 1), "cut {cut}");
        assert_eq!(recorder.steps.len(), 3);
        let text = std::fs::read_to_string(dir.path().join(METRICS)).unwrap();
        assert!(text.ends_with("}\n"), "{text}");
    }
    std::fs::write(dir.path().join(METRICS), [0xff, 0xfe]).unwrap();
    assert!(Recorder::open(dir.path(), None).unwrap().steps.is_empty());
}

#[test]
fn the_picture_has_both_panels_and_their_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::open(dir.path(), None).unwrap();
    train(&mut recorder, (0, 0), 8);
    let svg = std::fs::read_to_string(recorder.curves_path()).unwrap();
    for words in ["Training", "Validation", "step", "epoch", "loss", "learning rate", "top-1 accuracy (%)"] {
        assert!(svg.contains(words), "{words}");
    }
    // The main curve, the other, and their keys, in each panel.
    assert!(svg.matches("<polyline").count() >= 8, "{svg}");
    assert!(svg.trim_end().ends_with("</svg>"));
    assert!(!dir.path().join("curves.svg.new").exists());
}

#[test]
fn anything_can_be_drawn() {
    let nan = StepPoint { loss: f64::NAN, lr: f64::INFINITY, ..step(0, 0) };
    let flat = |n: u64| StepPoint { loss: 0.0, lr: 0.0, ..step(0, n) };
    for steps in [vec![], vec![nan.clone()], vec![step(0, 0)], vec![flat(0), flat(1)], vec![nan, step(0, 1)]]
    {
        for epochs in [vec![], vec![epoch(0)], vec![epoch(0), epoch(1)]] {
            assert!(curves::draw(&steps, &epochs).unwrap().contains("</svg>"));
        }
    }
    let long: Vec<StepPoint> = (0..300_000).map(|n| step(0, n)).collect();
    assert!(curves::draw(&long, &[epoch(0)]).unwrap().len() < 200_000);
}

/// Not a check: writes a picture to look at. `CURVES_TO=FILE cargo test -p coordinator look_at -- --ignored`
#[test]
#[ignore = "writes a picture for a person"]
fn look_at_the_picture() {
    let Some(path) = std::env::var_os("CURVES_TO") else { return };
    let steps: Vec<StepPoint> = (0..8).flat_map(|e| (0..35).step_by(5).map(move |s| step(e, s))).collect();
    let epochs: Vec<EpochPoint> = (0..8).map(epoch).collect();
    std::fs::write(path, curves::draw(&steps, &epochs).unwrap()).unwrap();
}
