#![allow(clippy::unwrap_used)]

use super::*;
use crate::tests::Rng;

const PATIENCE: Duration = Duration::from_secs(20);

fn labelling(batch: u32) -> Labelling {
    Labelling::new(LabellingSettings { batch, dead_after: PATIENCE })
}

fn seen(samples: u64) -> Seen {
    Seen { samples, fingerprint: "aaaa".into(), recipe: "bbbb".into() }
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn join(core: &mut Labelling, worker: u64, now: u64) {
    let name = format!("process {worker}");
    assert_eq!(core.handle(at(now), LabelEvent::Joined { worker: WorkerId(worker), name }), []);
}

fn say(core: &mut Labelling, worker: u64, now: u64, message: FromLabeller) -> Vec<LabelCommand> {
    core.handle(at(now), LabelEvent::Said { worker: WorkerId(worker), message })
}

fn report(range: &Range<u64>) -> FromLabeller {
    let range = range.clone();
    FromLabeller::Done(RangeReport { made: range.end - range.start, there: 0, unreadable: Vec::new(), range })
}

fn handed(commands: &[LabelCommand]) -> Vec<(u64, Range<u64>)> {
    let hand = |command: &LabelCommand| match command {
        LabelCommand::Hand { worker, range } => Some((worker.0, range.clone())),
        _ => None,
    };
    commands.iter().filter_map(hand).collect()
}

/// A worker that has opened its data; the range it got, if there was one.
fn ready(core: &mut Labelling, worker: u64, samples: u64) -> Option<Range<u64>> {
    join(core, worker, 0);
    let commands = say(core, worker, 0, FromLabeller::Ready(seen(samples)));
    handed(&commands).pop().map(|(_, range)| range)
}

#[test]
fn ranges_are_whole_batches_neither_too_long_nor_too_many() {
    for (samples, batch, wanted) in [(60, 1, 1), (60, 8, 8), (1000, 8, 16), (1_281_167, 8, 512), (5, 8, 5)] {
        let range = ready(&mut labelling(batch), 1, samples);
        assert_eq!(range, Some(0..wanted), "{samples} images in batches of {batch}");
    }
}

#[test]
fn a_silent_workers_range_goes_to_another_and_its_late_report_still_counts() {
    let mut core = labelling(1);
    assert_eq!(ready(&mut core, 1, 2), Some(0..1));
    assert_eq!(ready(&mut core, 2, 2), Some(1..2));
    join(&mut core, 3, 15);
    assert_eq!(handed(&say(&mut core, 3, 15, FromLabeller::Ready(seen(2)))), []);
    assert_eq!(say(&mut core, 1, 19, FromLabeller::Alive), []);
    assert_eq!(core.handle(at(20), LabelEvent::Tick), []);
    let commands = core.handle(at(21), LabelEvent::Tick);
    assert_eq!(handed(&commands), [(3, 1..2)]);
    let dropped = |c: &LabelCommand| matches!(c, LabelCommand::Drop { worker: WorkerId(2), .. });
    assert!(commands.iter().any(dropped), "{commands:?}");

    let late = say(&mut core, 2, 21, report(&(1..2)));
    assert!(matches!(late[..], [LabelCommand::Show(LabelTally { made: 1, .. })]), "{late:?}");
    assert_eq!(say(&mut core, 3, 22, report(&(1..2))), [], "the same range twice counts once");
    let last = say(&mut core, 1, 22, report(&(0..1)));
    let tally = LabelTally { samples: 2, made: 2, there: 0, unreadable: 0 };
    assert_eq!(last.last(), Some(&LabelCommand::End(Ok(tally))));
    assert_eq!(core.handle(at(99), LabelEvent::Tick), [], "it is over");
}

#[test]
fn who_sees_something_else_is_refused_with_the_reason() {
    let mut core = labelling(1);
    ready(&mut core, 1, 10);
    for (other, wanted) in [
        (seen(9), "9 against 10"),
        (Seen { fingerprint: "cccc".into(), ..seen(10) }, "same data set"),
        (Seen { recipe: "cccc".into(), ..seen(10) }, "its weights"),
    ] {
        join(&mut core, 2, 0);
        let commands = say(&mut core, 2, 0, FromLabeller::Ready(other));
        let LabelCommand::Refuse { reason, .. } = commands.last().unwrap() else { panic!("{commands:?}") };
        assert!(reason.contains(wanted), "{reason}");
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
        let commands = say(&mut core, worker, 0, FromLabeller::Fault("a score of NaN".into()));
        let ended =
            matches!(commands.last(), Some(LabelCommand::End(Err(why))) if why.contains("a score of NaN"));
        assert_eq!(ended, worker == 3, "{commands:?}");
    }
}

#[test]
fn a_report_that_was_not_asked_for_is_refused() {
    for (range, made) in [(0..2, 2), (1..2, 2), (7..8, 1), (0..0, 0), (u64::MAX - 1..u64::MAX, 1)] {
        let mut core = labelling(1);
        assert_eq!(ready(&mut core, 1, 5), Some(0..1));
        let wrong = RangeReport { range, made, there: 0, unreadable: Vec::new() };
        let commands = say(&mut core, 1, 0, FromLabeller::Done(wrong));
        assert!(matches!(commands.last(), Some(LabelCommand::Refuse { .. })), "{commands:?}");
        assert_eq!(ready(&mut core, 2, 5), Some(0..1), "what it had is handed out again");
    }
}

#[test]
fn unreadable_images_are_listed_in_the_order_of_the_images() {
    let mut core = labelling(1);
    assert_eq!((ready(&mut core, 1, 2), ready(&mut core, 2, 2)), (Some(0..1), Some(1..2)));
    for (worker, first) in [(2, 1), (1, 0)] {
        let unreadable = vec![format!("image {first}")];
        let report = RangeReport { range: first..first + 1, made: 0, there: 0, unreadable };
        say(&mut core, worker, 0, FromLabeller::Done(report));
    }
    assert_eq!(core.unreadable().collect::<Vec<_>>(), ["image 0", "image 1"]);
}

/// Workers join, work, fall silent, leave, and report late and twice, from a seed. Every image is done, nothing that
/// is done is handed out, nobody has two ranges, and no range is in two hands that are both alive.
#[test]
fn whatever_workers_do_every_range_is_done_and_the_run_ends() {
    for seed in 0..2000 {
        let mut rng = Rng(seed);
        let samples = 1 + rng.below(300) as u64;
        let mut core = labelling(1 + rng.below(9) as u32);
        let mut now = 0;
        let mut next = 0;
        // Live workers with what they have, and reports that are still on their way, perhaps of the dead.
        let mut alive: BTreeMap<u64, Option<Range<u64>>> = BTreeMap::new();
        let mut under_way: Vec<(u64, Range<u64>)> = Vec::new();
        let mut done: BTreeSet<u64> = BTreeSet::new();
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
                    say(&mut core, next, now, FromLabeller::Ready(seen(samples)))
                }
                (1 | 2, Some(worker)) => match alive[&worker].clone() {
                    Some(range) => {
                        under_way.push((worker, range.clone()));
                        if bad && rng.one_in(8) {
                            under_way.push((worker, range));
                        }
                        alive.insert(worker, None);
                        Vec::new()
                    }
                    None => say(&mut core, worker, now, FromLabeller::Alive),
                },
                (3, _) if !under_way.is_empty() => {
                    let (worker, range) = under_way.swap_remove(rng.below(under_way.len()));
                    done.extend(range.clone());
                    say(&mut core, worker, now, report(&range))
                }
                (4, Some(worker)) => {
                    alive.remove(&worker);
                    core.handle(at(now), LabelEvent::Left { worker: WorkerId(worker), reason: "gone".into() })
                }
                (5, _) => {
                    now += 1 + rng.below(12) as u64;
                    core.handle(at(now), LabelEvent::Tick)
                }
                (_, Some(worker)) => say(&mut core, worker, now, FromLabeller::Alive),
                _ => Vec::new(),
            };
            for command in commands {
                match command {
                    LabelCommand::Hand { worker, range } => {
                        assert!(ended.is_none(), "seed {seed}: {range:?} is handed out after the end");
                        assert!(done.is_disjoint(&range.clone().collect()), "seed {seed}: {range:?} is done");
                        let twice = alive.values().flatten().any(|other| *other == range);
                        assert!(!twice, "seed {seed}: two have {range:?}");
                        let had = alive.insert(worker.0, Some(range));
                        assert_eq!(had, Some(None), "seed {seed}: worker {worker} was not free");
                    }
                    LabelCommand::Drop { worker, .. } => drop(alive.remove(&worker.0)),
                    LabelCommand::Refuse { reason, .. } => panic!("seed {seed}: {reason}"),
                    LabelCommand::End(outcome) => ended = Some(outcome),
                    LabelCommand::Note(_) | LabelCommand::Warn(_) | LabelCommand::Show(_) => {}
                }
            }
            if ended.is_some() {
                break;
            }
        }
        assert_eq!(done, (0..samples).collect(), "seed {seed}");
        let tally = LabelTally { samples, made: samples, there: 0, unreadable: 0 };
        assert_eq!(ended, Some(Ok(tally)), "seed {seed}");
    }
}
