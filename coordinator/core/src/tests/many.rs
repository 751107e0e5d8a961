//! What must not grow with the square of the number of workers: orders, log lines, and the looks over all of them.

use std::collections::BTreeMap;

use super::*;

const MANY: u32 = 200;

/// A run of which `come` of `MANY` workers have come and indexed their data; half of `MANY` are enough.
fn crowd(come: u32) -> (Run, Vec<Command>) {
    let mut run = Run::new(Settings { min_workers: MANY / 2, ..settings(MANY) }, History::default());
    let mut commands = Vec::new();
    for worker in 1..=u64::from(come) {
        commands.extend(join(&mut run, worker, None));
        commands.extend(say(&mut run, worker, FromWorker::Indexed(dataset())));
    }
    (run, commands)
}

/// The first generation of all of them, training.
fn training() -> Run {
    let (mut run, commands) = crowd(MANY);
    assert_eq!(formations(&commands).len() as u32, MANY);
    for worker in 1..=u64::from(MANY) {
        let (generation, held) = (Generation(1), Position::default());
        say(&mut run, worker, FromWorker::Ready { generation, held, epoch_loss: None });
    }
    assert_eq!(run.status(at(0)).phase, "training");
    run
}

fn notes(commands: &[Command]) -> Vec<&str> {
    let of = |c: &'_ Command| matches!(c, Command::Observe(Observation::Note(_)));
    let notes = commands.iter().filter(|c| of(c));
    notes
        .filter_map(
            |c| if let Command::Observe(Observation::Note(words)) = c { Some(&**words) } else { None },
        )
        .collect()
}

#[test]
fn when_many_are_lost_together_the_rest_are_told_once() {
    let mut run = training();
    let mut told = BTreeMap::new();
    for worker in 1..=50 {
        let reason = "its connection broke".to_owned();
        for command in run.handle(at(1), Event::Left { worker: WorkerId(worker), reason }) {
            if let Command::Send { worker, message: ToWorker::Dissolve { .. } } = command {
                *told.entry(worker).or_insert(0) += 1;
            }
        }
    }
    assert!(told.values().all(|times| *times == 1), "{told:?}");
    assert!((51..=u64::from(MANY)).all(|worker| told.contains_key(&WorkerId(worker))), "{told:?}");
    // One that is lost while the next ring is built is told of again: it is another generation.
    for worker in 51..=u64::from(MANY) {
        let (generation, held) = (Generation(1), Some(Position::default()));
        let (steps, reason, blamed) = (Vec::new(), "told to".into(), None);
        say(&mut run, worker, FromWorker::Held { generation, held, steps, reason, blamed });
    }
    assert_eq!(run.status(at(1)).generation, 2);
    let commands =
        run.handle(at(2), Event::Left { worker: WorkerId(51), reason: "it closed its stream".into() });
    let dissolved = |c: &&Command| matches!(c, Command::Send { message: ToWorker::Dissolve { .. }, .. });
    assert_eq!(commands.iter().filter(dissolved).count() as u32, MANY - 51);
}

#[test]
fn a_crowd_that_is_not_all_of_them_is_looked_over_by_the_tick() {
    let (mut run, commands) = crowd(MANY - 10);
    assert_eq!(formations(&commands), []);
    // As many as are enough have come; the rest are waited for as long as is said, and no longer.
    assert_eq!(formations(&ticks(&mut run, 0, 9)), []);
    assert_eq!(formations(&ticks(&mut run, 9, 11)), [], "they have fallen silent");
    let (mut run, _) = crowd(MANY - 10);
    let mut formed = Vec::new();
    for second in 0..11 {
        for worker in 1..=u64::from(MANY - 10) {
            run.handle(at(second), Event::Said { worker: WorkerId(worker), message: FromWorker::Heartbeat });
        }
        formed.extend(formations(&ticks(&mut run, second, second + 1)));
    }
    assert_eq!(formed.len() as u32, MANY - 10);
}

#[test]
fn a_crowd_that_comes_is_announced_in_a_few_lines() {
    let (mut run, commands) = crowd(MANY);
    let came = |words: &&&str| words.contains("joined") || words.contains("came");
    assert_eq!(notes(&commands).iter().filter(came).count(), 16);
    let later = ticks(&mut run, 0, 3);
    let sums: Vec<_> = notes(&later).into_iter().filter(|words| came(&words)).collect();
    assert_eq!(sums, ["184 more workers came; 200 of 200 seats are taken"]);
    // Who comes alone is named again.
    run.handle(at(3), Event::Left { worker: WorkerId(7), reason: "it closed its stream".into() });
    let alone = run.handle(at(3), Event::Joined { worker: WorkerId(1000), hello: hello(1000, None) });
    assert!(notes(&alone).iter().any(|words| words.contains("joined as rank 6 of 200")), "{alone:?}");
}

#[test]
fn a_status_comes_in_pages() {
    let run = training();
    let page = |first, most| run.status_from(at(1), Rank(first), most);
    assert_eq!((page(0, 0).workers.len(), page(0, 0).seated), (0, MANY));
    let ranks: Vec<_> = [page(0, 150), page(150, 150)].iter().flat_map(|p| p.workers.clone()).collect();
    assert_eq!(ranks, run.status(at(1)).workers);
    assert_eq!(page(MANY, 150).workers, []);
}
