#![allow(clippy::unwrap_used)]

use std::time::Duration;

use relabel_config::Config;
use relabel_core::{
    EpochSummary, Observation, Rank, StepReport, StepTimes, WorkerState, WorkerStatus, Written,
};

use super::*;

/// Four epochs, a point every five steps.
fn tally() -> Tally {
    let mut config = Config::default();
    config.optim.epochs = 4;
    config.util.print_freq = 5;
    config.checkpoint.keep = 2;
    Tally::new(&config)
}

fn dataset() -> Dataset {
    Dataset {
        train_samples: 96,
        train_fingerprint: "a".into(),
        val_samples: 20,
        val_fingerprint: "b".into(),
        classes: 4,
    }
}

/// A step of 8 images that takes half a second, an eighth of it waiting for images.
fn step(epoch: u32, step: u64) -> Observation {
    Observation::Step(StepReport {
        position: Position { epoch, step },
        loss: 2.0 - step as f64 / 10.0,
        learning_rate: 0.1,
        samples: 8,
        skipped: u64::from(step == 3),
        duration: Duration::from_millis(500),
        data_wait: Duration::from_micros(62_500),
        epoch_loss_sum: 0.0,
        epoch_samples: 0,
        loss_scale: None,
    })
}

fn summary(epoch: u32) -> Observation {
    Observation::Epoch(EpochSummary {
        epoch,
        train_loss: 1.5,
        skipped: 1,
        val_loss: f64::NAN,
        top1: 0.25,
        top5: 0.75,
        best_top1: 0.5,
        best_epoch: 0,
        duration: Duration::from_secs(8),
    })
}

/// A tally that has come to the end of the first epoch of twelve steps.
fn after_an_epoch() -> (Tally, Vec<News>) {
    let mut tally = tally();
    let mut news = Vec::new();
    let mut see = |observation: &Observation| news.extend(tally.observe(observation, 100.0));
    see(&Observation::Planned { steps_per_epoch: 12, dataset: dataset() });
    see(&Observation::Started { position: Position::default() });
    (0..12).for_each(|n| see(&step(0, n)));
    see(&Observation::Validating { epoch: 0, done: 5, samples: 20 });
    see(&summary(0));
    (tally, news)
}

fn written(file: &str, bytes: u64) -> Written {
    Written { file: file.into(), bytes, blake3: String::new(), position: Position::default() }
}

fn status() -> Status {
    Status {
        phase: "training".into(),
        reason: "all are ready".into(),
        decisions: Vec::new(),
        generation: 3,
        lives: 2,
        position: Some(Position { epoch: 1, step: 0 }),
        steps_per_epoch: Some(12),
        epochs: 4,
        world: 2,
        min_workers: 1,
        training: 2,
        seated: 2,
        loss: Some(0.9),
        best_top1: Some(0.5),
        checkpoint: Some("c".into()),
        checkpoints: ["a", "c"].map(|file| written(file, 7)).into(),
        workers: (0..2)
            .map(|rank| WorkerStatus {
                rank: Rank(rank),
                host: "node".into(),
                pid: 10 + rank,
                device: "cpu".into(),
                silent: Duration::from_millis(250),
                position: None,
                state: WorkerState::InRing,
                pace: (rank == 0).then(|| StepTimes {
                    compute: Duration::from_millis(250),
                    data: Duration::from_millis(125),
                    peers: Duration::from_millis(125),
                    lost: 0.25,
                }),
                slow: rank == 0,
            })
            .collect(),
    }
}

#[test]
fn a_point_is_the_mean_since_the_point_before_and_the_last_step_has_one() {
    let (_, news) = after_an_epoch();
    let points: Vec<_> = news.iter().filter_map(News::record).collect();
    let json: Vec<_> = points.iter().map(|point| serde_json::to_value(point).unwrap()).collect();
    let column = |name: &str| json.iter().map(|line| line[name].as_f64()).collect::<Vec<_>>();
    assert_eq!(column("step"), [Some(4.0), Some(9.0), Some(11.0), None]);
    // Steps 0 to 4, 5 to 9, 10 and 11.
    let near = |found: Option<f64>, wanted: f64| (found.unwrap() - wanted).abs() < 1e-12;
    assert!(
        column("loss").into_iter().zip([1.8, 1.3, 0.95]).all(|(found, wanted)| near(found, wanted)),
        "{json:?}"
    );
    assert!(column("images_per_second")[..3].iter().all(|rate| near(*rate, 16.0)));
    assert!(column("data_wait")[..3].iter().all(|wait| near(*wait, 0.0625)));
    assert_eq!(column("skipped"), [Some(1.0), Some(0.0), Some(0.0), Some(1.0)]);
    // Percent in the file, shares in the view.
    assert_eq!((column("top1")[3], column("best_top1")[3]), (Some(25.0), Some(50.0)));
    let Some(News::Epoch { steps, best_epoch: 0, .. }) = news.last() else { panic!("{news:?}") };
    assert_eq!((steps.count(), steps.sum), (12, 6.0));
}

#[test]
fn a_step_whose_loss_is_no_number_leaves_the_mean_alone() {
    let mut tally = tally();
    let mut points = Vec::new();
    for n in 0..10 {
        let Observation::Step(mut report) = step(0, n) else { panic!() };
        if n == 2 || n >= 5 {
            report.loss = f64::NAN;
        }
        let news = tally.observe(&Observation::Step(report), 0.0);
        points.extend(news.and_then(|news| news.record()));
    }
    let losses: Vec<_> =
        points.iter().map(|point| serde_json::to_value(point).unwrap()["loss"].as_f64()).collect();
    // Of the second five none has one.
    assert!((losses[0].unwrap() - 1.8).abs() < 1e-9 && losses[1].is_none(), "{losses:?}");
}

#[test]
fn the_time_left_counts_steps_and_validations() {
    let (mut tally, _) = after_an_epoch();
    // Each epoch is twelve steps of half a second, and two seconds for the rest.
    assert_eq!(tally.left(), Some(3.0 * 8.0));
    for n in 0..12 {
        tally.observe(&step(1, n), 100.0);
    }
    assert_eq!(tally.left(), Some(2.0 + 2.0 * 8.0));
    tally.observe(&Observation::Validating { epoch: 1, done: 10, samples: 20 }, 100.0);
    assert_eq!(tally.left(), Some(1.0 + 2.0 * 8.0));
    for epoch in 1..4 {
        tally.observe(&summary(epoch), 100.0);
    }
    assert_eq!(tally.left(), Some(0.0));

    // Resumed within an epoch there is no telling what its validation takes, and a new ring has another speed.
    let mut resumed = super::tests::tally();
    resumed.observe(&Observation::Planned { steps_per_epoch: 12, dataset: dataset() }, 0.0);
    resumed.observe(&Observation::Started { position: Position { epoch: 2, step: 6 } }, 0.0);
    assert_eq!(resumed.left(), None);
    for n in 6..12 {
        resumed.observe(&step(2, n), 0.0);
    }
    assert_eq!(resumed.left(), Some(6.0));
    resumed.observe(&summary(2), 0.0);
    assert_eq!(resumed.left(), Some(6.0));
}

#[test]
fn the_view_has_what_was_said_and_what_was_observed() {
    let (mut tally, _) = after_an_epoch();
    for (file, time) in [("b", 190.0), ("c", 200.0)] {
        tally.observe(&Observation::Checkpoint(written(file, 7)), time);
    }
    tally.observe(&Observation::Note("rank 1 joined".into()), 300.0);
    tally.observe(&Observation::Warning("rank 1 was lost".into()), 301.5);
    let about = About { run_id: "run-1".into(), batch_size: 8, started: 50.0, ..About::default() };
    let view = View::new(&about, &status(), &tally, 400.0);

    assert_eq!((view.images_per_second, view.step_seconds), (Some(16.0), Some(0.5)));
    assert_eq!(view.eta_seconds, Some(24.0));
    let epoch = view.last_epoch.as_ref().unwrap();
    assert!((epoch.top1, epoch.top5) == (0.25, 0.75) && epoch.val_loss.is_nan());
    let known: Vec<_> = view.checkpoints.iter().map(|known| (known.file.as_str(), known.time)).collect();
    assert_eq!(
        known,
        [("a", None), ("c", Some(200.0))],
        "those of the core, with the time where it was seen"
    );
    assert_eq!(
        view.decisions[1],
        DecisionView { time: 301.5, words: "rank 1 was lost".into(), warning: true }
    );
    assert_eq!((view.totals.steps, view.totals.images, view.totals.skipped), (12, 96, 1));
    assert_eq!((view.totals.checkpoints, view.totals.warnings, view.totals.epochs), (2, 1, 1));
    let [first, second] = [0, 1].map(|rank: usize| &view.workers[rank]);
    assert_eq!((first.step_seconds, first.compute_seconds), (Some(0.5), Some(0.25)));
    assert_eq!((first.slow, first.lost_share, first.state.as_str()), (Some(true), Some(0.25), "training"));
    assert_eq!((second.step_seconds, second.slow), (None, Some(false)));

    // It comes back from JSON as it was, but for the NaN, which is no equal of itself.
    let mut back: View = serde_json::from_str(&serde_json::to_string(&view).unwrap()).unwrap();
    assert!(back.last_epoch.as_ref().unwrap().val_loss.is_nan());
    back.last_epoch = view.last_epoch.clone();
    let same = |view: &View| format!("{view:?}");
    assert_eq!(same(&back), same(&view));
    // An older or newer coordinator may know other fields.
    let other: View = serde_json::from_str(r#"{"run_id": "x", "unheard_of": 1}"#).unwrap();
    assert_eq!(other.run_id, "x");
}

#[test]
fn a_length_is_counted_in_its_bucket() {
    let mut histogram = Histogram::default();
    for value in [0.0005, 0.001, 0.0011, 0.5, 500.0] {
        histogram.add(value);
    }
    assert_eq!(histogram.counts[0], 2, "a bound belongs to its bucket");
    assert_eq!(histogram.counts[1], 1);
    assert_eq!(histogram.counts[BOUNDS.iter().position(|bound| *bound == 0.5).unwrap()], 1);
    assert_eq!(histogram.counts[BOUNDS.len()], 1);
    assert_eq!((histogram.count(), histogram.min, histogram.max), (5, 0.0005, 500.0));
    assert!(BOUNDS.is_sorted());
}

#[test]
fn a_worker_looks_the_same_from_another_process() {
    let status = status();
    let here: Vec<_> = status.workers.iter().map(WorkerView::from).collect();
    let told = relabel_proto::status(status, String::new(), String::new()).workers;
    assert_eq!(told.into_iter().map(WorkerView::from).collect::<Vec<_>>(), here);
}

#[test]
fn of_many_workers_those_stand_out_that_hold_the_others_up() {
    let workers = |count: u32| -> Vec<WorkerView> {
        (0..count)
            .map(|rank| WorkerView { rank, state: "training".into(), ..WorkerView::default() })
            .collect()
    };
    let ranks = |workers: &[WorkerView]| standing_out(workers, 32).iter().map(|w| w.rank).collect::<Vec<_>>();
    assert_eq!(ranks(&workers(32)), (0..32).collect::<Vec<_>>());
    let mut many = workers(1000);
    many[700].slow = Some(true);
    many[300].state = "waiting".into();
    for silent in &mut many[500..530] {
        silent.silent_seconds = 2.0;
    }
    let mut expected: Vec<_> = (500..530).chain([700, 300]).collect();
    expected.sort_unstable();
    assert_eq!(ranks(&many), expected);
}
