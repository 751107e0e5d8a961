//! A coordinator that has to go where the run need not.

use super::*;

/// Worker 1 alone has trained to `step` of the first epoch.
fn training(step: u64) -> Run {
    let mut run = Run::new(settings(1), History::default());
    join(&mut run, 1, None);
    say(&mut run, 1, FromWorker::Indexed(dataset()));
    let (generation, held) = (Generation(1), Position::default());
    say(&mut run, 1, FromWorker::Ready { generation, held, epoch_loss: None });
    progress(&mut run, step);
    run
}

fn progress(run: &mut Run, step: u64) -> Vec<Command> {
    let position = Position { epoch: 0, step };
    let (generation, pace) = (Generation(1), Pace::default());
    say(run, 1, FromWorker::Progress { generation, position, steps: vec![], pace })
}

fn hand_over(run: &mut Run) -> Vec<Command> {
    run.handle(at(0), Event::HandOver { reason: "SIGTERM".into() })
}

/// The checkpoints that are ordered.
fn duties(commands: &[Command]) -> Vec<DutyId> {
    let of = |c: &Command| match c {
        Command::Send { message: ToWorker::Checkpoint { duty, .. }, .. } => Some(*duty),
        _ => None,
    };
    commands.iter().filter_map(of).collect()
}

fn written(run: &mut Run, duty: DutyId, step: u64) -> Vec<Command> {
    let position = Position { epoch: 0, step };
    let written = Written { file: format!("{step}"), bytes: 1, blake3: "b".into(), position };
    say(run, 1, FromWorker::CheckpointWritten { duty, written })
}

/// Nobody may be told that the run is over, or has to leave its ring.
fn disturbs(commands: &[Command]) -> bool {
    let of = |c: &Command| match c {
        Command::Send { message, .. } => !matches!(message, ToWorker::Checkpoint { .. }),
        Command::End(_) | Command::Expel { .. } => true,
        _ => false,
    };
    commands.iter().any(of)
}

#[test]
fn it_goes_once_a_checkpoint_is_committed_and_the_workers_train_on() {
    let mut run = training(1);
    let commands = hand_over(&mut run);
    let [asked] = duties(&commands)[..] else { panic!("one checkpoint is asked for: {commands:?}") };
    assert!(!disturbs(&commands) && !commands.contains(&Command::HandOver), "{commands:?}");
    let commands = progress(&mut run, 2);
    assert!(!disturbs(&commands) && !commands.contains(&Command::HandOver), "{commands:?}");
    // It is not the one that is due at step 4 that it waits for.
    let commands = written(&mut run, asked, 2);
    assert!(!disturbs(&commands), "{commands:?}");
    assert_eq!(commands.last(), Some(&Command::HandOver));
    let committed = |c: &Command| matches!(c, Command::Persist(Fact::Committed { .. }));
    assert!(commands.iter().any(committed), "{commands:?}");
}

#[test]
fn it_does_not_wait_for_a_checkpoint_for_ever() {
    let mut run = training(1);
    assert!(!hand_over(&mut run).contains(&Command::HandOver));
    for second in 0..29 {
        assert!(!ticks(&mut run, second, second + 1).contains(&Command::HandOver));
        run.handle(at(second + 1), Event::Said { worker: WorkerId(1), message: FromWorker::Heartbeat });
    }
    assert_eq!(ticks(&mut run, 29, 30).last(), Some(&Command::HandOver));
}

#[test]
fn it_goes_at_once_where_there_is_nothing_to_save() {
    let mut run = Run::new(settings(2), History::default());
    assert_eq!(hand_over(&mut run).last(), Some(&Command::HandOver));
    let (mut run, _) = forming();
    let commands = hand_over(&mut run);
    assert_eq!(commands.last(), Some(&Command::HandOver));
    assert!(!disturbs(&commands), "{commands:?}");
}

#[test]
fn a_run_that_ends_meanwhile_is_not_handed_over() {
    let mut run = training(1);
    assert!(!hand_over(&mut run).contains(&Command::HandOver));
    let fault = say(&mut run, 1, FromWorker::Fault { reason: "no label map".into() });
    assert!(!fault.contains(&Command::HandOver), "{fault:?}");
    let commands = run.handle(at(1), Event::Left { worker: WorkerId(1), reason: "gone".into() });
    assert!(failure(&commands).contains("no label map"));
    assert!(!commands.contains(&Command::HandOver), "{commands:?}");
}

#[test]
fn what_is_left_to_those_that_leave_too_is_saved_first() {
    let mut run = training(3);
    let commands = hand_over(&mut run);
    let [asked] = duties(&commands)[..] else { panic!("one checkpoint is asked for: {commands:?}") };
    // Ordered before, as the one of step 4 of the epoch.
    let due = DutyId(asked.0 - 1);
    // All pods of a run may be told to go together.
    let commands = say(&mut run, 1, FromWorker::Leaving { reason: "SIGTERM".into() });
    assert!(!commands.contains(&Command::HandOver), "{commands:?}");
    assert!(!written(&mut run, asked, 3).contains(&Command::HandOver), "what it holds is still to be said");
    let (generation, held) = (Generation(1), Some(Position { epoch: 0, step: 5 }));
    let held = FromWorker::Held { generation, held, steps: vec![], reason: "leaving".into(), blamed: None };
    let commands = say(&mut run, 1, held);
    assert!(!commands.contains(&Command::HandOver), "it is still writing step 4: {commands:?}");
    let commands = written(&mut run, due, 4);
    let [further] = duties(&commands)[..] else { panic!("what it holds is saved: {commands:?}") };
    assert!(!commands.contains(&Command::HandOver), "{commands:?}");
    assert_eq!(written(&mut run, further, 5).last(), Some(&Command::HandOver));
}
