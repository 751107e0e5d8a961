//! Workers that come back, and what comes too late: each of these was found by the simulation.

use super::*;

fn ready(run: &mut Run, worker: u64, generation: u64, held: Position) -> Vec<Command> {
    say(run, worker, FromWorker::Ready { generation: Generation(generation), held, epoch_loss: None })
}

fn held(generation: u64, held: Position) -> FromWorker {
    let (generation, held, reason) = (Generation(generation), Some(held), "told to".into());
    FromWorker::Held { generation, held, steps: vec![], reason, blamed: None }
}

/// Rank 0 of one.
fn standing(generation: u64, in_ring: bool, held: Position) -> Standing {
    Standing {
        run_id: "run".into(),
        generation: Generation(generation),
        rank: Rank(0),
        world: 1,
        in_ring,
        held: Some(held),
    }
}

fn back(worker: u64, generation: u64, in_ring: bool, held: Position) -> Event {
    let standing = standing(generation, in_ring, held);
    let hello = Hello { standing: Some(standing), ..hello(1, Some(0)) };
    Event::Joined { worker: WorkerId(worker), hello }
}

fn at_step(step: u64) -> Position {
    Position { epoch: 0, step }
}

/// Which steps of the epoch are shown.
fn shown(commands: &[Command]) -> Vec<u64> {
    let step = |c: &Command| match c {
        Command::Observe(Observation::Step(step)) => Some(step.position.step),
        _ => None,
    };
    commands.iter().filter_map(step).collect()
}

fn written(epoch: u32, step: u64) -> Written {
    let position = Position { epoch, step };
    Written { file: format!("e{epoch}-s{step}"), bytes: 1, blake3: "b".into(), position }
}

/// A run of one worker that trains.
fn training(settings: Settings) -> Run {
    let mut run = Run::new(settings, History::default());
    join(&mut run, 1, None);
    say(&mut run, 1, FromWorker::Indexed(dataset()));
    ready(&mut run, 1, 1, Position::default());
    run
}

#[test]
fn a_worker_that_trained_on_says_what_it_holds_before_it_is_gone_on_with() {
    let mut run = training(settings(1));
    run.handle(at(1), Event::Left { worker: WorkerId(1), reason: "its stream ended".into() });
    let mut commands = run.handle(at(1), back(2, 1, true, at_step(3)));
    commands.extend(say(&mut run, 2, FromWorker::Indexed(dataset())));
    assert!(formations(&commands).is_empty(), "it may have done more steps since: {commands:?}");
    let commands = say(&mut run, 2, held(1, at_step(5)));
    assert_eq!(formations(&commands)[0].position, at_step(5));
}

#[test]
fn a_coordinator_that_was_away_ends_what_is_older_than_the_generation_it_knows() {
    let formed =
        |generation| Fact::Formed { generation: Generation(generation), world: 1, position: at_step(3) };
    let facts = [Fact::Agreed { dataset: dataset() }, formed(1), formed(2), Fact::Resumed];
    let mut run = Run::new(settings(1), History::replay(&facts));
    // It was killed before it told anybody of generation 2, and the worker trains on in the one before.
    let commands = run.handle(at(0), back(1, 1, true, at_step(3)));
    let told = |c: &Command| {
        matches!(c, Command::Send { message: ToWorker::Dissolve { generation: Generation(2), .. }, .. })
    };
    assert!(commands.iter().any(told), "{commands:?}");
    say(&mut run, 1, FromWorker::Indexed(dataset()));
    say(&mut run, 1, held(1, at_step(6)));
    let mut commands = ticks(&mut run, 0, 11);
    commands.retain(|c| matches!(c, Command::Send { .. }));
    let mut heard = Vec::new();
    for second in 11..16 {
        run.handle(at(second), Event::Said { worker: WorkerId(1), message: FromWorker::Heartbeat });
        heard.extend(ticks(&mut run, second, second + 1));
    }
    let formations = [formations(&commands), formations(&heard)].concat();
    assert!(formations.iter().all(|f| f.position == at_step(6)), "{formations:?}");
}

#[test]
fn a_checkpoint_that_is_further_than_all_that_live_is_gone_on_from() {
    let facts = [Fact::Agreed { dataset: dataset() }, Fact::Committed { written: written(2, 4) }];
    let mut run = Run::new(settings(1), History::replay(&facts));
    run.handle(at(0), back(1, 1, false, at_step(8)));
    say(&mut run, 1, held(1, at_step(8)));
    let commands = say(&mut run, 1, FromWorker::Indexed(dataset()));
    let formation = &formations(&commands)[0];
    assert_eq!(formation.position, Position { epoch: 2, step: 4 });
    assert_eq!(formation.restore.as_ref().map(|restore| &*restore.file), Some("e2-s4"));
}

#[test]
fn a_checkpoint_that_is_written_late_does_not_take_the_place_of_a_later_one() {
    let facts = [written(2, 0), written(3, 0), written(2, 9)].map(|written| Fact::Committed { written });
    let history = History::replay(&facts);
    assert_eq!(history.newest().map(|newest| newest.position), Some(Position { epoch: 3, step: 0 }));
    assert_eq!(checkpoint::retired(&history, 1), ["e2-s0", "e2-s9"]);
}

#[test]
fn what_was_validated_beyond_the_checkpoint_is_forgotten_by_later_lives_too() {
    let mut facts = vec![
        Fact::Agreed { dataset: dataset() },
        Fact::Committed { written: written(1, 0) },
        Fact::Validated { epoch: 0, top1: 0.5, top5: 1.0 },
        Fact::Validated { epoch: 1, top1: 0.6, top5: 1.0 },
    ];
    let mut run = Run::new(settings(1), History::replay(&facts));
    join(&mut run, 1, None);
    for command in say(&mut run, 1, FromWorker::Indexed(dataset())) {
        if let Command::Persist(fact) = command {
            facts.push(fact);
        }
    }
    let validated: Vec<_> = History::replay(&facts).validated.into_keys().collect();
    assert_eq!(validated, [0]);
}

#[test]
fn a_step_that_a_worker_was_given_leaves_no_gap_in_what_is_shown() {
    let facts = [
        Fact::Agreed { dataset: dataset() },
        Fact::Formed { generation: Generation(1), world: 1, position: Position::default() },
    ];
    let mut run = Run::new(settings(1), History::replay(&facts));
    run.handle(at(0), back(1, 1, false, at_step(6)));
    run.show(&[0, 1, 4, 5].map(at_step).map(report));
    let commands = run.handle(at(0), Event::Tick);
    assert_eq!(shown(&commands), [4, 5]);
}

#[test]
fn what_a_worker_says_before_the_others_are_back_is_shown() {
    let facts = [
        Fact::Agreed { dataset: dataset() },
        Fact::Formed { generation: Generation(1), world: 2, position: Position::default() },
    ];
    let mut run = Run::new(settings(2), History::replay(&facts));
    let is_back = |rank: u32, held: Position| {
        let standing = Standing { rank: Rank(rank), world: 2, ..standing(1, true, held) };
        let instance = u64::from(rank) + 1;
        Event::Joined {
            worker: WorkerId(instance),
            hello: Hello { standing: Some(standing), ..hello(instance, Some(rank)) },
        }
    };
    let progress = |steps: std::ops::Range<u64>| FromWorker::Progress {
        generation: Generation(1),
        position: at_step(steps.end),
        steps: steps.map(at_step).map(report).collect(),
        pace: Pace::default(),
    };
    run.handle(at(0), is_back(0, at_step(5)));
    say(&mut run, 1, progress(0..5));
    let mut commands = run.handle(at(0), is_back(1, at_step(6)));
    commands.extend(say(&mut run, 1, progress(5..7)));
    assert_eq!(shown(&commands), [0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn nobody_waits_for_a_checkpoint_of_a_worker_that_was_replaced() {
    let mut run = training(Settings { checkpoint_every_epochs: 0, epochs: 1, spares: 1, ..settings(1) });
    // Its checkpoint of step 4 is ordered, and it leaves at step 3.
    join(&mut run, 2, None);
    say(&mut run, 2, FromWorker::Indexed(dataset()));
    say(&mut run, 1, FromWorker::Leaving { reason: "SIGTERM".into() });
    let commands = say(&mut run, 1, held(1, at_step(3)));
    let mut orders = commands.clone();
    for command in commands {
        // What leaves alone is saved before the other goes on.
        if let Command::Send { message: ToWorker::Checkpoint { duty, at: position, .. }, .. } = command {
            let written = written(position.epoch, position.step);
            orders.extend(say(&mut run, 1, FromWorker::CheckpointWritten { duty, written }));
        }
    }
    assert_eq!(formations(&orders).len(), 1, "{orders:?}");
    let commands = ready(&mut run, 2, 2, at_step(3));
    let ordered = |c: &Command| {
        matches!(c, Command::Send { worker: WorkerId(2), message: ToWorker::Checkpoint { .. } })
    };
    assert!(commands.iter().any(ordered), "the next one is ordered of the one that trains: {commands:?}");
}
