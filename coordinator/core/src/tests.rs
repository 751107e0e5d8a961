//! The run from outside: events in, commands out. `sim` plays whole runs with workers that crash.
#![allow(clippy::unwrap_used)]

mod ending;
mod handing_over;
mod many;
mod properties;
mod returning;
mod sim;

pub(crate) use sim::Rng;

use std::time::Duration;

use crate::*;

pub(crate) fn settings(workers: u32) -> Settings {
    Settings {
        run_id: "run".into(),
        workers,
        min_workers: workers,
        spares: 0,
        epochs: 3,
        start_epoch: 0,
        test_only: false,
        global_batch: 10,
        checkpoint_every_steps: 4,
        checkpoint_every_epochs: 1,
        checkpoint_every: None,
        keep_checkpoints: 2,
        dead_after: Duration::from_secs(4),
        wait_for_workers: Duration::from_secs(60),
        gather_for: Duration::from_secs(10),
        admit_after: Duration::from_secs(1),
        reunite_for: Duration::from_secs(10),
        stragglers: StragglerPolicy { factor: 1.5, action: StragglerAction::Report },
        stop_deadline: Duration::from_secs(30),
        secret: [7; 32],
    }
}

/// Of the process `instance`, which wants the seat `rank` and listens on the port of its number.
pub(crate) fn hello(instance: u64, rank: Option<u32>) -> Hello {
    let ring_address = format!("host:{instance}");
    let (host, device) = ("host".into(), "cpu".into());
    Hello { rank: rank.map(Rank), host, pid: 1, device, ring_address, instance, standing: None, nccl: None }
}

/// 95 training images: ten steps of ten, the last one of five.
pub(crate) fn dataset() -> Dataset {
    Dataset {
        train_samples: 95,
        train_fingerprint: "aaaa".into(),
        val_samples: 33,
        val_fingerprint: "bbbb".into(),
        classes: 2,
    }
}

/// What a rank says of the step at `position`.
fn report(position: Position) -> StepReport {
    StepReport {
        position,
        loss: 1.0,
        learning_rate: 0.1,
        samples: 10,
        skipped: 0,
        duration: Duration::ZERO,
        data_wait: Duration::ZERO,
        epoch_loss_sum: 1.0,
        epoch_samples: 1,
        loss_scale: None,
    }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn join(run: &mut Run, worker: u64, rank: Option<u32>) -> Vec<Command> {
    run.handle(at(0), Event::Joined { worker: WorkerId(worker), hello: hello(worker, rank) })
}

fn say(run: &mut Run, worker: u64, message: FromWorker) -> Vec<Command> {
    run.handle(at(0), Event::Said { worker: WorkerId(worker), message })
}

/// Lets time pass from second `from` to second `to` as the driver does, and returns what came of it.
fn ticks(run: &mut Run, from: u64, to: u64) -> Vec<Command> {
    let steps = (to - from) * 5;
    (1..=steps).flat_map(|n| run.handle(at(from) + Duration::from_millis(200 * n), Event::Tick)).collect()
}

fn rejection(commands: &[Command]) -> Option<Rejection> {
    commands.iter().find_map(|c| match c {
        Command::Reject { rejection, .. } => Some(rejection.clone()),
        _ => None,
    })
}

fn outcome(commands: &[Command]) -> Option<Outcome> {
    commands.iter().find_map(|c| match c {
        Command::End(outcome) => Some(outcome.clone()),
        _ => None,
    })
}

fn failure(commands: &[Command]) -> String {
    match outcome(commands) {
        Some(Outcome::Failed { reason }) => reason,
        other => panic!("expected a failure, got {other:?}"),
    }
}

fn formations(commands: &[Command]) -> Vec<Formation> {
    let of = |c: &Command| match c {
        Command::Send { message: ToWorker::Form(formation), .. } => Some(formation.clone()),
        _ => None,
    };
    commands.iter().filter_map(of).collect()
}

/// A run whose workers 1 and 2 (ranks 0 and 1) have just been told to form generation 1.
fn forming() -> (Run, Vec<Command>) {
    let mut run = Run::new(settings(2), History::default());
    join(&mut run, 1, Some(0));
    join(&mut run, 2, Some(1));
    say(&mut run, 1, FromWorker::Indexed(dataset()));
    let commands = say(&mut run, 2, FromWorker::Indexed(dataset()));
    (run, commands)
}

#[test]
fn seats_are_given_once() {
    let mut run = Run::new(settings(2), History::default());
    assert_eq!(rejection(&join(&mut run, 1, Some(1))), None);
    let taken = rejection(&join(&mut run, 2, Some(1))).unwrap();
    assert!(matches!(taken, Rejection::RankTaken { rank: Rank(1), .. }));
    assert!(taken.to_string().contains("rank 1 is taken by process 1 on host"));
    assert_eq!(
        rejection(&join(&mut run, 3, Some(2))),
        Some(Rejection::RankOutside { rank: Rank(2), seats: 2 })
    );
    assert!(join(&mut run, 4, None).contains(&Command::Welcome {
        worker: WorkerId(4),
        rank: Rank(0),
        world: 2
    }));
    assert_eq!(rejection(&join(&mut run, 5, None)), Some(Rejection::Full { seats: 2 }));
}

#[test]
fn a_generation_deals_the_whole_batch_and_names_the_neighbours() {
    let (_, commands) = forming();
    let formations = formations(&commands);
    assert_eq!(formations.iter().map(|f| f.shard.clone()).collect::<Vec<_>>(), [0..5, 5..10]);
    for formation in &formations {
        let neighbour = ["host:2", "host:1"][formation.rank.0 as usize];
        assert_eq!((&*formation.previous, &*formation.next, formation.world), (neighbour, neighbour, 2));
        assert!(formation.transfer, "nobody holds the state of the beginning yet");
        assert_eq!(formation.token, Token::of(&[7; 32], Generation(1)));
        assert_eq!(formation.position, Position::default());
    }
}

#[test]
fn a_run_without_history_begins_with_its_start_epoch() {
    let settings = Settings { start_epoch: 2, ..settings(1) };
    let begun_at = |facts: &[Fact]| {
        let mut run = Run::new(settings.clone(), History::replay(facts));
        join(&mut run, 1, None);
        formations(&say(&mut run, 1, FromWorker::Indexed(dataset())))[0].position
    };
    assert_eq!(begun_at(&[]), Position { epoch: 2, step: 0 });
    // Whoever resumes goes on from the checkpoint, and names start_epoch or not.
    let position = Position { epoch: 2, step: 4 };
    let written = Written { file: "f".into(), bytes: 1, blake3: "b".into(), position };
    assert_eq!(begun_at(&[Fact::Agreed { dataset: dataset() }, Fact::Committed { written }]), position);
}

#[test]
fn workers_that_see_other_data_are_told_so() {
    let mut run = Run::new(settings(2), History::default());
    join(&mut run, 1, Some(0));
    join(&mut run, 2, Some(1));
    say(&mut run, 1, FromWorker::Indexed(dataset()));
    let other = Dataset { train_samples: 94, train_fingerprint: "cccc".into(), ..dataset() };
    let reason = failure(&say(&mut run, 2, FromWorker::Indexed(other)));
    assert!(
        reason.contains("worker 1 (process 1 on host) sees other training data than worker 0"),
        "{reason}"
    );
    assert!(reason.contains("94 images (fingerprint cccc) instead of 95 (aaaa)"), "{reason}");
}

#[test]
fn a_coordinator_that_stood_still_does_not_blame_its_workers() {
    let (mut run, _) = forming();
    run.handle(at(1), Event::Tick);
    let expels = |commands: &[Command]| commands.iter().any(|c| matches!(c, Command::Expel { .. }));
    assert!(!expels(&run.handle(at(60), Event::Tick)));
    assert!(expels(&ticks(&mut run, 60, 65)), "those that stay silent are lost after all");
}

#[test]
fn a_worker_that_only_its_own_host_can_reach_is_told_so() {
    let mut run = Run::new(settings(2), History::default());
    for (worker, ring_address) in [(1, "127.0.1.1:5000"), (2, "10.0.0.2:5000")] {
        let hello = Hello { ring_address: ring_address.into(), ..hello(worker, None) };
        run.handle(at(0), Event::Joined { worker: WorkerId(worker), hello });
    }
    say(&mut run, 1, FromWorker::Indexed(dataset()));
    let reason = failure(&say(&mut run, 2, FromWorker::Indexed(dataset())));
    assert!(reason.contains("127.0.1.1:5000") && reason.contains("--advertise"), "{reason}");
}

#[test]
fn silence_counts_as_loss_and_missing_workers_end_the_run() {
    let (mut run, _) = forming();
    let mut commands = ticks(&mut run, 0, 3);
    assert!(!commands.iter().any(|c| matches!(c, Command::Expel { .. })), "3 s are not too long");
    run.handle(at(3), Event::Said { worker: WorkerId(1), message: FromWorker::Heartbeat });
    commands = ticks(&mut run, 3, 5);
    let expelled = commands.iter().filter(|c| matches!(c, Command::Expel { worker: WorkerId(2), .. }));
    assert_eq!(expelled.count(), 1);
    let held = FromWorker::Held {
        generation: Generation(1),
        held: None,
        steps: vec![],
        reason: "told to".into(),
        blamed: None,
    };
    run.handle(at(5), Event::Said { worker: WorkerId(1), message: held });
    // It was lost when the fifth second began; the other one goes on being heard.
    for second in 5..64 {
        run.handle(at(second), Event::Said { worker: WorkerId(1), message: FromWorker::Heartbeat });
        assert_eq!(outcome(&ticks(&mut run, second, second + 1)), None);
    }
    run.handle(at(64), Event::Said { worker: WorkerId(1), message: FromWorker::Heartbeat });
    let reason = failure(&ticks(&mut run, 64, 66));
    assert!(reason.contains("waited 60 s (cluster.wait_for_workers) for rank 1"), "{reason}");
}

#[test]
fn a_damaged_checkpoint_falls_back_to_the_one_before_and_then_gives_up() {
    let written = |file: &str, epoch| Written {
        file: file.into(),
        bytes: 1,
        blake3: "b".into(),
        position: Position { epoch, step: 0 },
    };
    let facts = [
        Fact::Agreed { dataset: dataset() },
        Fact::Committed { written: written("old", 1) },
        Fact::Committed { written: written("new", 2) },
        Fact::Validated { epoch: 1, top1: 0.5, top5: 1.0 },
    ];
    let mut run = Run::new(settings(1), History::replay(&facts));
    join(&mut run, 1, None);
    let first = formations(&say(&mut run, 1, FromWorker::Indexed(dataset())));
    assert_eq!(first[0].restore.as_ref().unwrap().file, "new");
    let failed = |generation, file: &str| FromWorker::RestoreFailed {
        generation: Generation(generation),
        file: file.into(),
        reason: "checksum".into(),
    };
    let commands = say(&mut run, 1, failed(1, "new"));
    assert!(commands.contains(&Command::Persist(Fact::Retired { files: vec!["new".into()] })));
    let second = formations(&commands);
    assert_eq!(second[0].restore.as_ref().unwrap().file, "old");
    assert_eq!(second[0].position, Position { epoch: 1, step: 0 });
    assert!(failure(&say(&mut run, 1, failed(2, "old"))).contains("no checkpoint is left"));
}

#[test]
fn a_ring_that_never_stands_is_given_up_with_its_reason() {
    let (mut run, mut commands) = forming();
    for generation in 1..=3 {
        assert!(outcome(&commands).is_none());
        let held = |reason: &str| FromWorker::Held {
            generation: Generation(generation),
            held: None,
            steps: vec![],
            reason: reason.into(),
            blamed: None,
        };
        commands = say(&mut run, 2, held("connection refused"));
        if generation < 3 {
            commands.extend(say(&mut run, 1, held("told to")));
            // After the second failure it waits a little.
            commands.extend(ticks(&mut run, 0, 2));
            assert_eq!(formations(&commands).len(), 2);
        }
    }
    assert!(failure(&commands).contains("connection refused"));
}

/// The ids of NCCL that are sent, each with the worker that it goes to.
fn nccl_ids(commands: &[Command]) -> Vec<(u64, u64, Vec<u8>)> {
    let of = |c: &Command| match c {
        Command::Send { worker, message: ToWorker::NcclId { generation, id } } => {
            Some((worker.0, generation.0, id.clone()))
        }
        _ => None,
    };
    commands.iter().filter_map(of).collect()
}

/// A run of three workers of these versions of NCCL that have just been told to form generation 1.
fn forming_with(nccl: [Option<u32>; 3]) -> (Run, Vec<Command>) {
    let mut run = Run::new(Settings { spares: 1, ..settings(3) }, History::default());
    for (worker, nccl) in (1..).zip(nccl) {
        let hello = Hello { nccl, ..hello(worker, None) };
        run.handle(at(0), Event::Joined { worker: WorkerId(worker), hello });
    }
    // One that stands by is no peer.
    join(&mut run, 4, None);
    let commands = (1..=3).flat_map(|worker| say(&mut run, worker, FromWorker::Indexed(dataset()))).collect();
    (run, commands)
}

#[test]
fn ranks_that_share_a_version_of_nccl_sum_with_it_and_all_others_by_the_ring() {
    for (versions, together) in [
        ([Some(23_003); 3], true),
        ([Some(23_003), Some(23_003), Some(22_700)], false),
        ([Some(23_003), None, Some(23_003)], false),
        ([None, Some(23_003), Some(23_003)], false),
        ([None; 3], false),
    ] {
        let (_, commands) = forming_with(versions);
        let formations = formations(&commands);
        assert_eq!(formations.len(), 3);
        assert!(formations.iter().all(|formation| formation.nccl == together), "{versions:?}");
        let said = commands.iter().any(
            |c| matches!(c, Command::Observe(Observation::Note(words)) if words.contains("3 workers by NCCL 2.30.3,")),
        );
        assert_eq!(said, together, "{versions:?}: {commands:?}");
    }
    let mut alone = Run::new(settings(1), History::default());
    let hello = Hello { nccl: Some(23_003), ..hello(1, None) };
    alone.handle(at(0), Event::Joined { worker: WorkerId(1), hello });
    assert!(!formations(&say(&mut alone, 1, FromWorker::Indexed(dataset())))[0].nccl);
}

#[test]
fn the_id_that_rank_0_makes_goes_to_its_peers_as_it_is_while_they_form() {
    let (mut run, _) = forming_with([Some(23_003); 3]);
    // Nothing that would be text, or a number.
    let id: Vec<u8> = (0..128_u8).map(|n| n.wrapping_mul(73) ^ 0xc3).collect();
    let made = |generation| FromWorker::NcclId { generation: Generation(generation), id: id.clone() };
    for (worker, generation) in [(2, 1), (3, 1), (4, 1), (1, 0), (1, 2), (9, 1)] {
        let commands = say(&mut run, worker, made(generation));
        assert!(nccl_ids(&commands).is_empty(), "from worker {worker} of generation {generation}");
    }
    let sent = nccl_ids(&say(&mut run, 1, made(1)));
    assert_eq!(sent, [(2, 1, id.clone()), (3, 1, id.clone())]);

    // Once they train nobody waits for one, and of a generation that is over nobody wants one.
    let held = Position::default();
    for worker in 1..=3 {
        say(&mut run, worker, FromWorker::Ready { generation: Generation(1), held, epoch_loss: None });
    }
    assert!(nccl_ids(&say(&mut run, 1, made(1))).is_empty());
    run.handle(at(1), Event::Left { worker: WorkerId(3), reason: "reset".into() });
    assert!(nccl_ids(&say(&mut run, 1, made(1))).is_empty());
}
