#![allow(clippy::unwrap_used)]

use relabel_core::Position;

use super::table::{NAMED, counted, draw, seconds, spark};
use crate::view::{CheckpointView, DecisionView, EpochView, View, WorkerView};

#[test]
fn a_run_that_has_not_begun_is_short() {
    let view = View {
        run_id: "r".into(),
        run_dir: "/runs/r".into(),
        phase: "gathering".into(),
        reason: "waiting for workers".into(),
        world: 2,
        epochs: 4,
        ..View::default()
    };
    assert_eq!(
        draw(&view),
        "run        r in /runs/r\n\
         phase      gathering (waiting for workers)\n\
         position   not begun, generation 0\n\
         workers    0 of 2 seats are taken\n"
    );
}

#[test]
fn what_is_known_has_a_line_and_what_nobody_has_no_column() {
    let worker = |rank| WorkerView {
        rank,
        host: "node".into(),
        pid: 7,
        device: "cpu".into(),
        state: "training".into(),
        step_seconds: (rank == 0).then_some(0.5),
        slow: Some(rank == 1),
        ..WorkerView::default()
    };
    let view = View {
        position: Some(Position { epoch: 1, step: 5 }),
        steps_per_epoch: Some(10),
        epochs: 4,
        world: 3,
        seated: 2,
        min_workers: Some(1),
        training: Some(2),
        lives: Some(2),
        loss: Some(1.25),
        recent_losses: vec![3.0, 2.0, 1.0],
        learning_rate: Some(0.05),
        images_per_second: Some(12.4),
        step_seconds: Some(0.5),
        data_wait_seconds: Some(0.05),
        eta_seconds: Some(72.0),
        validating: Some((3, 8)),
        last_epoch: Some(EpochView { top1: 0.25, seconds: 8.0, ..EpochView::default() }),
        best_top1: Some(0.5),
        best_epoch: Some(0),
        checkpoint: Some("b".into()),
        checkpoints: vec![CheckpointView {
            file: "b".into(),
            bytes: 2_000_000,
            time: Some(90.0),
            ..Default::default()
        }],
        decisions: vec![DecisionView { time: 70.0, words: "rank 1 was lost".into(), warning: true }],
        time: 100.0,
        workers: vec![worker(0), worker(1)],
        ..View::default()
    };
    let text = draw(&view);
    for line in [
        "position   epoch 2/4, step 5/10, generation 0, life 2 of the coordinator",
        "progress   ███████████░░░░░░░░░░░░░░░░░░░ 38%, 1m12s left, validated 3 of 8 images",
        "loss       1.2500  █▅▁",
        "speed      12 img/s, 500 ms a step, 10% of it waiting for images, learning rate 0.05",
        "epoch 1    train loss 0.000  val loss 0.000  top-1 25.00%  top-5 0.00%  8 s",
        "best       50.00% top-1 at epoch 1",
        "checkpoint b (2.0 MB, 10 s ago)",
        "workers    2 train, 2 of 3 seats are taken; 1 are enough",
        "  rank  host  process  device  state             step      heard",
        "     0  node        7  cpu     training        500 ms  0.0 s ago",
        "     1  node        7  cpu     training, slow       -  0.0 s ago",
        "     30 s ago  ! rank 1 was lost",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
    }
}

#[test]
fn numbers_are_short() {
    assert_eq!([0.00002, 0.0125, 3.0].map(seconds), ["20 us", "12 ms", "3.00 s"]);
    assert_eq!(spark(&[0.0, 1.0, 0.5]), "▁█▅");
    assert_eq!(spark(&[2.0, 2.0]), "▁▁");
    assert_eq!(spark(&[]), "");
}

#[test]
fn of_a_large_run_those_are_named_who_stand_out() {
    let worker = |rank| WorkerView {
        rank,
        state: if rank == 300 { "waiting" } else { "training" }.into(),
        slow: Some(rank == 700),
        ..WorkerView::default()
    };
    let workers: Vec<_> = (0..1000).map(worker).collect();
    assert_eq!(counted(&workers), "1 slow, 999 training, 1 waiting");
    let text = draw(&View { world: 1000, seated: 1000, workers, ..View::default() });
    let counts = "workers    1000 of 1000 seats are taken\n           1 slow, 999 training, 1 waiting; below, who stands out\n";
    assert!(text.contains(counts) && text.lines().count() == 6 + NAMED, "{text}");
    assert!(text.contains("\n   300") && text.contains("\n   700"), "{text}");
}
