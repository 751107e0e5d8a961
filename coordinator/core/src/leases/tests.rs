#![allow(clippy::unwrap_used)]

use super::*;
use crate::evaluation::counts::{Counts, Found, RealCounts};
use crate::evaluation::{AskedSet, EvalSeen, Evaluation, Folder};
use crate::labelling::{LabelReport, LabelSeen, Labelling};
use crate::tests::Rng;

const PATIENCE: Duration = Duration::from_secs(20);
const WAIT: Duration = Duration::from_secs(60);

fn settings(batch: u32) -> LeaseSettings {
    LeaseSettings { batch, dead_after: PATIENCE, wait_for_workers: WAIT }
}

/// Most of what happens to a worker is the same whatever the work is: here label maps are made.
fn labelling(batch: u32) -> Leases<Labelling> {
    Leases::new(Labelling::default(), settings(batch))
}

fn seen(samples: u64) -> LabelSeen {
    LabelSeen { samples, fingerprint: "aaaa".into(), recipe: "bbbb".into() }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn join<W: Work>(core: &mut Leases<W>, worker: u64, now: u64) {
    let name = format!("process {worker}");
    assert_eq!(core.handle(at(now), LeaseEvent::Joined { worker: WorkerId(worker), name }), []);
}

fn say<W: Work>(core: &mut Leases<W>, worker: u64, now: u64, message: FromHolder<W>) -> Vec<LeaseCommand> {
    core.handle(at(now), LeaseEvent::Said { worker: WorkerId(worker), message })
}

fn leave<W: Work>(core: &mut Leases<W>, worker: u64, now: u64) -> Vec<LeaseCommand> {
    core.handle(at(now), LeaseEvent::Left { worker: WorkerId(worker), reason: "it closed its stream".into() })
}

fn images(samples: Range<u64>) -> Piece {
    Piece { folder: 0, samples }
}

fn made(piece: &Piece) -> LabelReport {
    LabelReport { made: piece.len(), there: 0, unreadable: Vec::new() }
}

fn done(samples: Range<u64>) -> FromHolder<Labelling> {
    let piece = images(samples);
    FromHolder::Done { report: made(&piece), piece }
}

fn handed(commands: &[LeaseCommand]) -> Vec<(u64, Piece)> {
    let hand = |command: &LeaseCommand| match command {
        LeaseCommand::Hand { worker, piece } => Some((worker.0, piece.clone())),
        _ => None,
    };
    commands.iter().filter_map(hand).collect()
}

/// A worker that has opened its data; the range it got, if there was one.
fn ready(core: &mut Leases<Labelling>, worker: u64, samples: u64) -> Option<Range<u64>> {
    join(core, worker, 0);
    let commands = say(core, worker, 0, FromHolder::Ready(seen(samples)));
    handed(&commands).pop().map(|(_, piece)| piece.samples)
}

fn ended(commands: &[LeaseCommand]) -> Option<&str> {
    match commands.last() {
        Some(LeaseCommand::End(Err(reason))) => Some(reason),
        _ => None,
    }
}

#[test]
fn ranges_are_whole_batches_neither_too_long_nor_too_many() {
    for (samples, batch, wanted) in [(60, 1, 1), (60, 8, 8), (1000, 8, 16), (1_281_167, 8, 512), (5, 8, 5)] {
        let range = ready(&mut labelling(batch), 1, samples);
        assert_eq!(range, Some(0..wanted), "{samples} images in batches of {batch}");
    }
}

#[test]
fn every_folder_is_cut_by_itself_and_handed_out_in_order() {
    let mut core = Leases::new(evaluation(&["a", "b"]), settings(4));
    join(&mut core, 1, 0);
    let mut commands = say(&mut core, 1, 0, FromHolder::Ready(eval_seen(&[6, 9])));
    let mut all = Vec::new();
    while let Some((_, piece)) = handed(&commands).pop() {
        all.push((piece.folder, piece.samples.clone()));
        commands = say(&mut core, 1, 0, FromHolder::Done { report: found(&piece), piece });
    }
    assert_eq!(all, [(0, 0..4), (0, 4..6), (1, 0..4), (1, 4..8), (1, 8..9)]);
    assert_eq!(commands.last(), Some(&LeaseCommand::End(Ok(()))));
}

#[test]
fn a_silent_workers_range_goes_to_another_and_its_late_report_still_counts() {
    let mut core = labelling(1);
    assert_eq!(ready(&mut core, 1, 2), Some(0..1));
    assert_eq!(ready(&mut core, 2, 2), Some(1..2));
    join(&mut core, 3, 15);
    assert_eq!(handed(&say(&mut core, 3, 15, FromHolder::Ready(seen(2)))), []);
    assert_eq!(say(&mut core, 1, 19, FromHolder::Alive), []);
    assert_eq!(core.handle(at(20), LeaseEvent::Tick), []);
    let commands = core.handle(at(21), LeaseEvent::Tick);
    assert_eq!(handed(&commands), [(3, images(1..2))]);
    let dropped = |c: &LeaseCommand| matches!(c, LeaseCommand::Drop { worker: WorkerId(2), .. });
    assert!(commands.iter().any(dropped), "{commands:?}");

    let late = say(&mut core, 2, 21, done(1..2));
    assert_eq!(late, [LeaseCommand::Show(LeaseTally { samples: 2, done: 1, worked: 1 })]);
    assert_eq!(say(&mut core, 3, 22, done(1..2)), [], "the same range twice counts once");
    let last = say(&mut core, 1, 22, done(0..1));
    assert_eq!(last.last(), Some(&LeaseCommand::End(Ok(()))));
    assert_eq!((core.tally().done, core.work().made()), (2, 2));
    assert_eq!(core.handle(at(99), LeaseEvent::Tick), [], "it is over");
}

#[test]
fn who_sees_something_else_is_refused_with_the_reason() {
    let mut core = labelling(1);
    ready(&mut core, 1, 10);
    for (other, wanted) in [
        (seen(9), "9 against 10"),
        (LabelSeen { fingerprint: "cccc".into(), ..seen(10) }, "same data set"),
        (LabelSeen { recipe: "cccc".into(), ..seen(10) }, "its weights"),
    ] {
        join(&mut core, 2, 0);
        let commands = say(&mut core, 2, 0, FromHolder::Ready(other));
        let LeaseCommand::Refuse { reason, .. } = commands.last().unwrap() else { panic!("{commands:?}") };
        assert!(reason.contains(wanted), "{reason}");
        let warned = LeaseCommand::Warn(format!("process 2 was refused: {reason}"));
        assert!(commands.contains(&warned), "{commands:?}");
    }
}

#[test]
fn a_range_that_fails_everybody_ends_it() {
    let mut core = labelling(1);
    for worker in 1..=3 {
        assert_eq!(
            ready(&mut core, worker, 5),
            Some(0..1),
            "worker {worker} gets what the last one failed on"
        );
        let fault = FromHolder::Fault { reason: "a score of NaN".into(), hopeless: false };
        let commands = say(&mut core, worker, 0, fault);
        let wanted = "3 workers failed on images 0 to 0: a score of NaN";
        assert_eq!(ended(&commands), (worker == 3).then_some(wanted), "{commands:?}");
    }
}

#[test]
fn what_nobody_could_do_ends_it_at_once() {
    let mut core = labelling(1);
    ready(&mut core, 1, 5);
    let fault = FromHolder::Fault { reason: "a.jpeg is truncated".into(), hopeless: true };
    assert_eq!(ended(&say(&mut core, 1, 0, fault)), Some("a.jpeg is truncated"));
}

#[test]
fn a_report_that_was_not_asked_for_is_refused() {
    for (folder, range, maps) in [
        (0, 0..2, 2),
        (0, 1..2, 2),
        (0, 7..8, 1),
        (0, 0..0, 0),
        (0, u64::MAX - 1..u64::MAX, 1),
        (1, 0..1, 1),
        (0, 0..1, 0),
    ] {
        let mut core = labelling(1);
        assert_eq!(ready(&mut core, 1, 5), Some(0..1));
        let report = LabelReport { made: maps, there: 0, unreadable: Vec::new() };
        let wrong = FromHolder::Done { piece: Piece { folder, samples: range }, report };
        let commands = say(&mut core, 1, 0, wrong);
        assert!(matches!(commands.last(), Some(LeaseCommand::Refuse { .. })), "{commands:?}");
        assert_eq!(ready(&mut core, 2, 5), Some(0..1), "what it had is handed out again");
        assert_eq!(core.tally().done, 0);
    }
}

#[test]
fn unreadable_images_are_listed_in_the_order_of_the_images() {
    let mut core = labelling(1);
    assert_eq!((ready(&mut core, 1, 2), ready(&mut core, 2, 2)), (Some(0..1), Some(1..2)));
    for (worker, first) in [(2, 1), (1, 0)] {
        let report = LabelReport { made: 0, there: 0, unreadable: vec![format!("image {first}")] };
        say(&mut core, worker, 0, FromHolder::Done { piece: images(first..first + 1), report });
    }
    assert_eq!(core.work().unreadable().collect::<Vec<_>>(), ["image 0", "image 1"]);
}

#[test]
fn without_workers_it_ends_after_the_stated_time() {
    let mut core = labelling(1);
    assert_eq!(core.handle(at(60), LeaseEvent::Tick), []);
    let commands = core.handle(at(61), LeaseEvent::Tick);
    assert_eq!(ended(&commands), Some("no worker came within 60 s (--wait-for-workers)"));

    // A worker that is there, ready or not, is waited for; the time begins when the last has left.
    let mut core = labelling(1);
    join(&mut core, 1, 50);
    for now in (60..300).step_by(10) {
        assert_eq!(say(&mut core, 1, now, FromHolder::Alive), []);
        assert_eq!(core.handle(at(now), LeaseEvent::Tick), []);
    }
    say(&mut core, 1, 300, FromHolder::Ready(seen(2)));
    say(&mut core, 1, 300, done(0..1));
    leave(&mut core, 1, 310);
    assert_eq!(core.handle(at(370), LeaseEvent::Tick), []);
    let commands = core.handle(at(371), LeaseEvent::Tick);
    let reason = ended(&commands).unwrap();
    assert!(reason.contains("within 60 s") && reason.contains("it closed its stream"), "{reason}");
    assert!(reason.contains("1 of 2 images are done"), "{reason}");
}

fn evaluation(names: &[&str]) -> Evaluation {
    Evaluation::new(names.iter().map(|&name| AskedSet { name: name.into(), dir: name.into() }).collect())
}

fn eval_seen(folders: &[u64]) -> EvalSeen {
    let folder = |(set, &samples): (u32, &u64)| Folder {
        set,
        below: String::new(),
        corruption: None,
        samples,
        fingerprint: "aaaa".into(),
        classes: 3,
        restricted: false,
    };
    EvalSeen {
        arch: "resnet18".into(),
        outputs: 3,
        weights: "bbbb".into(),
        labels: "cccc".into(),
        folders: (0..).zip(folders).map(folder).collect(),
    }
}

/// What is found on a range: a function of its images, with sums that depend on the order in which they are added.
fn found(piece: &Piece) -> Found {
    let bits = |n: u64| Rng(n ^ u64::from(piece.folder)).below(1 << 20) as u64;
    let numbers = piece.samples.clone();
    let right = numbers.clone().filter(|&n| bits(n).is_multiple_of(3)).count() as u64;
    let loss_sum = numbers.map(|n| bits(n) as f64 / 1e3).sum();
    let counts = Counts { samples: piece.len(), top1: right, top5: right, loss_sum };
    Found { counts, real: Some(RealCounts { images: right, right }), ..Found::default() }
}

/// Work that the simulation below can play.
trait Played: Work {
    /// Images by folder, of `samples` in all, and the work on them.
    fn begin(samples: u64) -> (Vec<u64>, Self);
    fn seen(folders: &[u64]) -> Self::Seen;
    fn report(piece: &Piece) -> Self::Report;
}

impl Played for Labelling {
    fn begin(samples: u64) -> (Vec<u64>, Self) {
        (vec![samples], Self::default())
    }

    fn seen(folders: &[u64]) -> LabelSeen {
        seen(folders[0])
    }

    fn report(piece: &Piece) -> LabelReport {
        made(piece)
    }
}

impl Played for Evaluation {
    fn begin(samples: u64) -> (Vec<u64>, Self) {
        (vec![samples.div_ceil(2), samples / 3, samples / 6 + 1], evaluation(&["a", "b", "c"]))
    }

    fn seen(folders: &[u64]) -> EvalSeen {
        eval_seen(folders)
    }

    fn report(piece: &Piece) -> Found {
        found(piece)
    }
}

/// Workers join, work, fall silent, leave, and report late and twice, from a seed. Every image is done, nothing that
/// is done is handed out, nobody has two ranges, and no range is in two hands that are both alive. What has been
/// reported in the end is what one worker that does all ranges in their order would have.
fn play<W: Played>(seed: u64) {
    let mut rng = Rng(seed);
    let (folders, work) = W::begin(1 + rng.below(300) as u64);
    // Somebody always comes again, however late.
    let settings = LeaseSettings { wait_for_workers: Duration::MAX, ..settings(1 + rng.below(9) as u32) };
    let mut core = Leases::new(work.clone(), settings);
    let mut now = 0;
    let mut next = 0;
    // Live workers with what they have, and reports that are still on their way, perhaps of the dead.
    let mut alive: BTreeMap<u64, Option<Piece>> = BTreeMap::new();
    let mut under_way: Vec<(u64, Piece)> = Vec::new();
    let mut reported: Vec<Piece> = Vec::new();
    let mut ended = None;
    for turn in 0.. {
        assert!(turn < 20_000, "seed {seed}: it does not end");
        // It is a bad time first; then the workers behave.
        let bad = turn < 400;
        let anyone = alive.keys().copied().nth(rng.below(alive.len().max(1)));
        let commands = match (rng.below(if bad { 7 } else { 4 }), anyone) {
            (0, _) if alive.len() < 5 => {
                next += 1;
                join(&mut core, next, now);
                alive.insert(next, None);
                say(&mut core, next, now, FromHolder::Ready(W::seen(&folders)))
            }
            (1 | 2, Some(worker)) => match alive[&worker].clone() {
                Some(piece) => {
                    under_way.push((worker, piece.clone()));
                    if bad && rng.one_in(8) {
                        under_way.push((worker, piece));
                    }
                    alive.insert(worker, None);
                    Vec::new()
                }
                None => say(&mut core, worker, now, FromHolder::Alive),
            },
            (3, _) if !under_way.is_empty() => {
                let (worker, piece) = under_way.swap_remove(rng.below(under_way.len()));
                reported.push(piece.clone());
                say(&mut core, worker, now, FromHolder::Done { report: W::report(&piece), piece })
            }
            (4, Some(worker)) => {
                alive.remove(&worker);
                leave(&mut core, worker, now)
            }
            (5, _) => {
                now += 1 + rng.below(12) as u64;
                core.handle(at(now), LeaseEvent::Tick)
            }
            (_, Some(worker)) => say(&mut core, worker, now, FromHolder::Alive),
            _ => Vec::new(),
        };
        for command in commands {
            match command {
                LeaseCommand::Hand { worker, piece } => {
                    assert!(ended.is_none(), "seed {seed}: {piece:?} is handed out after the end");
                    assert!(!reported.contains(&piece), "seed {seed}: {piece:?} is done");
                    let twice = alive.values().flatten().any(|other| *other == piece);
                    assert!(!twice, "seed {seed}: two have {piece:?}");
                    let had = alive.insert(worker.0, Some(piece));
                    assert_eq!(had, Some(None), "seed {seed}: worker {worker} was not free");
                }
                LeaseCommand::Drop { worker, .. } => drop(alive.remove(&worker.0)),
                LeaseCommand::Refuse { reason, .. } => panic!("seed {seed}: {reason}"),
                LeaseCommand::End(outcome) => ended = Some(outcome),
                LeaseCommand::Note(_) | LeaseCommand::Warn(_) | LeaseCommand::Show(_) => {}
            }
        }
        if ended.is_some() {
            break;
        }
    }
    assert_eq!(ended, Some(Ok(())), "seed {seed}");
    let samples = folders.iter().sum();
    assert_eq!(core.tally(), LeaseTally { samples, done: samples, worked: samples }, "seed {seed}");
    let mut alone = work;
    alone.admit(W::seen(&folders)).unwrap();
    for (folder, &samples) in (0..).zip(&folders) {
        let length = range_length(samples, settings.batch);
        for first in (0..samples).step_by(length as usize) {
            let piece = Piece { folder, samples: first..samples.min(first + length) };
            alone.add(&piece, W::report(&piece)).unwrap();
        }
    }
    assert!(*core.work() == alone, "seed {seed}: {:?} against {alone:?}", core.work());
}

#[test]
fn whatever_workers_do_every_range_is_labelled_and_it_ends() {
    (0..2000).for_each(play::<Labelling>);
}

#[test]
fn whatever_workers_do_every_range_is_evaluated_once() {
    (0..2000).for_each(play::<Evaluation>);
}
