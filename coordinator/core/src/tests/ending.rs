//! How runs end: done, stopped, failed, and what is saved before.

use super::*;

#[test]
fn one_worker_s_fault_ends_the_run_for_all() {
    let (mut run, _) = forming();
    let commands = say(&mut run, 2, FromWorker::Fault { reason: "label map x.pt is missing".into() });
    assert_eq!(failure(&commands), "worker 1 (process 1 on host): label map x.pt is missing");
    let told =
        commands.iter().filter(|c| matches!(c, Command::Send { message: ToWorker::Finish { .. }, .. }));
    assert_eq!(told.count(), 2);
    assert_eq!(rejection(&join(&mut run, 9, None)), Some(Rejection::Over));
}

#[test]
fn a_fault_in_training_saves_what_was_trained_first() {
    let (mut run, _) = forming();
    let ready = FromWorker::Ready { generation: Generation(1), held: Position::default(), epoch_loss: None };
    say(&mut run, 1, ready.clone());
    say(&mut run, 2, ready);
    let position = Position { epoch: 0, step: 3 };
    say(
        &mut run,
        2,
        FromWorker::Progress { generation: Generation(1), position, steps: vec![], pace: Pace::default() },
    );
    let fault = FromWorker::Fault { reason: "label map x.pt is missing".into() };
    let commands = say(&mut run, 2, fault.clone());
    assert_eq!(outcome(&commands), None);
    let duty = commands.iter().find_map(|c| match c {
        Command::Send { worker: WorkerId(2), message: ToWorker::Checkpoint { duty, .. } } => Some(*duty),
        _ => None,
    });
    // The others lose their ring, or find the same fault; neither ends the run before it is saved.
    let held = FromWorker::Held {
        generation: Generation(1),
        held: Some(position),
        steps: vec![],
        reason: "peer gone".into(),
        blamed: None,
    };
    assert_eq!(outcome(&say(&mut run, 1, held)), None);
    assert_eq!(outcome(&say(&mut run, 1, fault)), None);
    let written = Written { file: "x".into(), bytes: 1, blake3: "b".into(), position };
    let duty = duty.expect("the faulty worker is told to save");
    let commands = say(&mut run, 2, FromWorker::CheckpointWritten { duty, written: written.clone() });
    assert!(commands.contains(&Command::Persist(Fact::Committed { written })));
    let reason = failure(&commands);
    assert!(reason.contains("label map x.pt is missing") && reason.contains("--resume"), "{reason}");
}

#[test]
fn a_faulty_worker_that_dies_before_it_has_saved_ends_the_run() {
    let (mut run, _) = forming();
    let ready = FromWorker::Ready {
        generation: Generation(1),
        held: Position { epoch: 0, step: 0 },
        epoch_loss: None,
    };
    say(&mut run, 1, ready.clone());
    say(&mut run, 2, ready);
    let position = Position { epoch: 0, step: 1 };
    say(
        &mut run,
        1,
        FromWorker::Progress { generation: Generation(1), position, steps: vec![], pace: Pace::default() },
    );
    // Rank 0 has a checkpoint to write already, which goes with it.
    assert_eq!(outcome(&say(&mut run, 1, FromWorker::Fault { reason: "bad data".into() })), None);
    let left = Event::Left { worker: WorkerId(1), reason: "its stream ended".into() };
    assert!(failure(&run.handle(at(1), left)).contains("bad data"));
}

#[test]
fn a_run_whose_end_cannot_be_recorded_still_ends() {
    let (mut run, _) = forming();
    let commands = say(&mut run, 2, FromWorker::Fault { reason: "bad data".into() });
    assert!(outcome(&commands).is_some());
    let broken = Event::Broken { reason: "the journal cannot be written".into() };
    assert_eq!(failure(&run.handle(at(1), broken)), "the journal cannot be written");
}

#[test]
fn a_worker_lost_while_the_last_checkpoint_is_written_is_not_waited_for() {
    let dataset = Dataset { train_samples: 10, ..dataset() };
    let mut run = Run::new(Settings { epochs: 1, ..settings(2) }, History::default());
    for worker in [1, 2] {
        join(&mut run, worker, None);
        say(&mut run, worker, FromWorker::Indexed(dataset.clone()));
    }
    let generation = Generation(1);
    for worker in [1, 2] {
        let ready = FromWorker::Ready { generation, held: Position::default(), epoch_loss: None };
        say(&mut run, worker, ready);
    }
    let position = Position { epoch: 0, step: 1 };
    for worker in [1, 2] {
        say(
            &mut run,
            worker,
            FromWorker::Progress { generation, position, steps: vec![], pace: Pace::default() },
        );
    }
    let part = |rank| {
        let range = shards::deal(33, 2, rank);
        validation::Part { epoch: 0, range, top1: 1, top5: 2, loss_sum: 3.0 }
    };
    say(&mut run, 1, FromWorker::Validated { generation, part: part(0) });
    let commands = say(&mut run, 2, FromWorker::Validated { generation, part: part(1) });
    let duty = commands.iter().find_map(|c| match c {
        Command::Send { worker, message: ToWorker::Checkpoint { duty, best: true, .. } } => {
            Some((*worker, *duty))
        }
        _ => None,
    });
    let (writer, duty) = duty.expect("the last epoch is saved");
    assert_eq!(writer, WorkerId(1));
    let lost = Event::Left { worker: WorkerId(2), reason: "preempted".into() };
    assert_eq!(outcome(&run.handle(at(1), lost)), None);
    let position = Position { epoch: 1, step: 0 };
    let written = Written { file: "x".into(), bytes: 1, blake3: "b".into(), position };
    let commands = say(&mut run, 1, FromWorker::CheckpointWritten { duty, written });
    assert_eq!(outcome(&commands), Some(Outcome::Done));
}

#[test]
fn a_stop_halts_training_and_saves_the_furthest_state() {
    let (mut run, _) = forming();
    let generation = Generation(1);
    for worker in [1, 2] {
        let ready = FromWorker::Ready { generation, held: Position::default(), epoch_loss: None };
        say(&mut run, worker, ready);
    }
    let commands = run.handle(at(1), Event::Stop { reason: "SIGTERM".into() });
    let dissolved =
        commands.iter().filter(|c| matches!(c, Command::Send { message: ToWorker::Dissolve { .. }, .. }));
    assert_eq!(dissolved.count(), 2);
    let left = |step| FromWorker::Held {
        generation,
        held: Some(Position { epoch: 0, step }),
        steps: vec![],
        reason: "told to".into(),
        blamed: None,
    };
    assert!(orders(&say(&mut run, 1, left(2))).is_empty(), "the other may have gone further");
    let commands = say(&mut run, 2, left(3));
    let &[(2, duty, position)] = orders(&commands).as_slice() else { panic!("{commands:?}") };
    assert_eq!(position, Position { epoch: 0, step: 3 });
    let written = Written { file: "x".into(), bytes: 1, blake3: "b".into(), position };
    let commands = say(&mut run, 2, FromWorker::CheckpointWritten { duty, written });
    let saved = Some(position);
    assert_eq!(outcome(&commands), Some(Outcome::Interrupted { reason: "SIGTERM".into(), saved }));
}

#[test]
fn a_stop_whose_writer_is_lost_is_saved_by_another() {
    let (mut run, _) = forming();
    let (generation, held) = (Generation(1), Position { epoch: 0, step: 2 });
    for worker in [1, 2] {
        let ready = FromWorker::Ready { generation, held: Position::default(), epoch_loss: None };
        say(&mut run, worker, ready);
    }
    for worker in [1, 2] {
        say(
            &mut run,
            worker,
            FromWorker::Progress { generation, position: held, steps: vec![], pace: Pace::default() },
        );
    }
    run.handle(at(1), Event::Stop { reason: "SIGTERM".into() });
    run.handle(at(1), Event::Left { worker: WorkerId(1), reason: "its stream ended".into() });
    let left = FromWorker::Held {
        generation,
        held: Some(held),
        steps: vec![],
        reason: "peer gone".into(),
        blamed: None,
    };
    let commands = say(&mut run, 2, left);
    let duty = commands.iter().find_map(|c| match c {
        Command::Send { worker: WorkerId(2), message: ToWorker::Checkpoint { duty, .. } } => Some(*duty),
        _ => None,
    });
    let duty = duty.expect("the survivor is told to save");
    let written = Written { file: "x".into(), bytes: 1, blake3: "b".into(), position: held };
    let commands = say(&mut run, 2, FromWorker::CheckpointWritten { duty, written });
    assert!(matches!(outcome(&commands), Some(Outcome::Interrupted { saved: Some(_), .. })));
}

/// The orders to write a checkpoint among `commands`: who, which, and the state of what.
fn orders(commands: &[Command]) -> Vec<(u64, DutyId, Position)> {
    let order = |c: &Command| match c {
        Command::Send { worker, message: ToWorker::Checkpoint { duty, at, .. } } => {
            Some((worker.0, *duty, *at))
        }
        _ => None,
    };
    commands.iter().filter_map(order).collect()
}

#[test]
fn a_checkpoint_that_fails_within_training_is_tried_again_by_another_worker() {
    let (mut run, _) = forming();
    let ready = FromWorker::Ready { generation: Generation(1), held: Position::default(), epoch_loss: None };
    say(&mut run, 1, ready.clone());
    let commands = say(&mut run, 2, ready);
    let &[(1, duty, position)] = orders(&commands).as_slice() else { panic!("{commands:?}") };
    assert_eq!(position, Position { epoch: 0, step: 4 });
    let failed = |duty| FromWorker::CheckpointFailed { duty, reason: "no space left on device".into() };
    assert!(say(&mut run, 2, failed(duty)).is_empty(), "another worker's duty");
    let commands = say(&mut run, 1, failed(duty));
    assert_eq!(outcome(&commands), None);
    let warned = |c: &Command| matches!(c, Command::Observe(Observation::Warning(words)) if words.contains("no space left on device"));
    assert!(commands.iter().any(warned), "{commands:?}");
    assert!(matches!(orders(&commands).as_slice(), [(2, ..)]), "{commands:?}");
}

#[test]
fn a_last_checkpoint_that_nobody_can_write_ends_the_run_and_says_what_is_left() {
    let (mut run, _) = forming();
    let (generation, held) = (Generation(1), Position { epoch: 0, step: 2 });
    for worker in [1, 2] {
        say(&mut run, worker, FromWorker::Ready { generation, held: Position::default(), epoch_loss: None });
    }
    run.handle(at(1), Event::Stop { reason: "SIGTERM".into() });
    let left = FromWorker::Held {
        generation,
        held: Some(held),
        steps: vec![],
        reason: "told to".into(),
        blamed: None,
    };
    say(&mut run, 1, left.clone());
    let commands = say(&mut run, 2, left);
    let &[(1, duty, _)] = orders(&commands).as_slice() else { panic!("{commands:?}") };
    let failed = |duty| FromWorker::CheckpointFailed { duty, reason: "no space left on device".into() };
    let commands = say(&mut run, 1, failed(duty));
    let &[(2, duty, position)] = orders(&commands).as_slice() else { panic!("{commands:?}") };
    assert_eq!(position, held, "the other worker tries");
    let reason = failure(&say(&mut run, 2, failed(duty)));
    assert!(reason.contains("no space left on device") && reason.contains("--resume"), "{reason}");
}

#[test]
fn what_only_evaluates_deals_the_set_once_and_saves_nothing() {
    let mut run = Run::new(Settings { test_only: true, ..settings(2) }, History::default());
    join(&mut run, 1, Some(0));
    join(&mut run, 2, Some(1));
    let untrained = Dataset { train_samples: 0, ..dataset() };
    say(&mut run, 1, FromWorker::Indexed(untrained.clone()));
    say(&mut run, 2, FromWorker::Indexed(untrained));
    let generation = Generation(1);
    let held = Position::default();
    say(&mut run, 1, FromWorker::Ready { generation, held, epoch_loss: None });
    let commands = say(&mut run, 2, FromWorker::Ready { generation, held, epoch_loss: None });
    let ranges: Vec<_> = commands
        .iter()
        .filter_map(|c| match c {
            Command::Send { message: ToWorker::Validate { range, .. }, .. } => Some(range.clone()),
            Command::Send { message, .. } => panic!("only a validation is wanted, not {message:?}"),
            _ => None,
        })
        .collect();
    assert_eq!(ranges, [0..16, 16..33]);
    let part = |range: &std::ops::Range<u64>, top1| crate::validation::Part {
        epoch: 0,
        range: range.clone(),
        top1,
        top5: 2 * top1,
        loss_sum: 3.3,
    };
    say(&mut run, 1, FromWorker::Validated { generation, part: part(&ranges[0], 5) });
    let commands = say(&mut run, 2, FromWorker::Validated { generation, part: part(&ranges[1], 6) });
    let (top1, top5, val_loss) = (11.0 / 33.0, 22.0 / 33.0, 6.6 / 33.0);
    assert!(commands.contains(&Command::Observe(Observation::Tested { samples: 33, val_loss, top1, top5 })));
    assert_eq!(outcome(&commands), Some(Outcome::Done));
    assert!(!commands.iter().any(|c| matches!(c, Command::Persist(_))), "{commands:?}");
}

#[test]
fn what_only_evaluates_stops_at_once() {
    let mut run = Run::new(Settings { test_only: true, ..settings(1) }, History::default());
    join(&mut run, 1, None);
    say(&mut run, 1, FromWorker::Indexed(Dataset { train_samples: 0, ..dataset() }));
    say(
        &mut run,
        1,
        FromWorker::Ready { generation: Generation(1), held: Position::default(), epoch_loss: None },
    );
    let commands = run.handle(at(1), Event::Stop { reason: "asked".into() });
    assert_eq!(outcome(&commands), Some(Outcome::Interrupted { reason: "asked".into(), saved: None }));
}

#[test]
fn what_a_worker_that_leaves_alone_holds_is_saved_before_others_go_on() {
    let mut run = Run::new(Settings { min_workers: 1, gather_for: at(0), ..settings(2) }, History::default());
    join(&mut run, 1, None);
    let commands = say(&mut run, 1, FromWorker::Indexed(dataset()));
    assert_eq!(formations(&commands).len(), 1, "it does not wait for the other one");
    let generation = Generation(1);
    let said = |run: &mut Run, worker, message| {
        run.handle(at(11), Event::Said { worker: WorkerId(worker), message })
    };
    said(&mut run, 1, FromWorker::Ready { generation, held: Position::default(), epoch_loss: None });
    said(&mut run, 1, FromWorker::Leaving { reason: "SIGTERM".into() });
    run.handle(at(11), Event::Joined { worker: WorkerId(2), hello: hello(2, None) });
    said(&mut run, 2, FromWorker::Indexed(dataset()));
    let position = Position { epoch: 0, step: 3 };
    let held = FromWorker::Held {
        generation,
        held: Some(position),
        steps: vec![],
        reason: "drained".into(),
        blamed: None,
    };
    let commands = said(&mut run, 1, held);
    assert!(formations(&commands).is_empty(), "the newcomer would begin before it");
    let &[(1, duty, ordered)] = orders(&commands).as_slice() else { panic!("{commands:?}") };
    assert_eq!(ordered, position);
    let written = Written { file: "x".into(), bytes: 1, blake3: "b".into(), position };
    let commands = said(&mut run, 1, FromWorker::CheckpointWritten { duty, written });
    let released =
        |c: &Command| matches!(c, Command::Send { worker: WorkerId(1), message: ToWorker::Release { .. } });
    assert!(commands.iter().any(released), "{commands:?}");
    assert_eq!(formations(&commands)[0].position, position);
}

#[test]
fn checkpoints_that_cannot_keep_up_are_left_out_but_not_the_last() {
    let settings = Settings { epochs: 5, checkpoint_every_steps: 0, keep_checkpoints: 9, ..settings(1) };
    let mut run = Run::new(settings, History::default());
    join(&mut run, 1, None);
    say(&mut run, 1, FromWorker::Indexed(dataset()));
    let (generation, begin) = (Generation(1), Position::default());
    let mut commands = say(&mut run, 1, FromWorker::Ready { generation, held: begin, epoch_loss: None });
    // Each epoch is better than the one before; nothing that is ordered is written.
    for epoch in 0..5 {
        let position = Position { epoch, step: 10 };
        let progress = FromWorker::Progress { generation, position, steps: vec![], pace: Pace::default() };
        commands.extend(say(&mut run, 1, progress));
        let top1 = u64::from(epoch);
        let part = validation::Part { epoch, range: 0..33, top1, top5: 20, loss_sum: 1.0 };
        commands.extend(say(&mut run, 1, FromWorker::Validated { generation, part }));
    }
    let mut saved: Vec<_> = commands
        .iter()
        .filter_map(|c| match c {
            Command::Send { message: ToWorker::Checkpoint { duty, at, .. }, .. } => Some((*duty, *at)),
            _ => None,
        })
        .collect();
    let epochs: Vec<_> = saved.iter().map(|(_, at)| at.epoch).collect();
    assert_eq!(epochs, [1, 2, 5], "{commands:?}");
    let lost = |epoch| commands.contains(&Command::Persist(Fact::BestLost { epoch }));
    assert_eq!([0, 1, 2, 3, 4].map(lost), [false, false, true, true, false]);
    // Once they are written, the run is over.
    let (last, at) = saved.pop().expect("one is the last");
    for (duty, position) in saved.into_iter().chain([(last, at)]) {
        let written =
            Written { file: format!("e{}", position.epoch), bytes: 1, blake3: "b".into(), position };
        commands = say(&mut run, 1, FromWorker::CheckpointWritten { duty, written });
    }
    assert_eq!(outcome(&commands), Some(Outcome::Done));
}
