//! Whole runs with simulated workers, from a seed: they train in lockstep, crash, are cut off and come
//! back, and the coordinator itself is killed and started again from its journal. After every event the
//! invariants below are checked. A failing seed is printed and replays.

use std::collections::{BTreeMap, VecDeque};

use super::*;

/// Schedules that are played.
const SCHEDULES: u64 = 10_000;

const STEPS: u64 = 10;

/// A pseudo-random sequence (splitmix64): the simulation must not depend on anything else.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone)]
struct Worker {
    rank: Rank,
    inbox: VecDeque<ToWorker>,
    outbox: VecDeque<FromWorker>,
    /// The generation whose ring it is in, and what it does there.
    ring: Option<Generation>,
    work: Work,
    held: Option<Position>,
    duties: Vec<(DutyId, Position)>,
}

#[derive(Clone, PartialEq)]
enum Work {
    Idle,
    /// In a generation's formation, waiting for its peers.
    Joining(Formation),
    Training(u32),
}

struct Sim {
    seed: u64,
    rng: Rng,
    now: Duration,
    settings: Settings,
    run: Run,
    workers: BTreeMap<WorkerId, Worker>,
    /// Seats that nobody holds and when somebody comes for them.
    next_worker: u64,
    journal: Vec<Fact>,
    /// The step that must be observed next.
    expected: Option<Position>,
    validated: BTreeMap<u32, u32>,
    ended: Option<Outcome>,
    trace: Vec<String>,
    crashes: usize,
}

impl Sim {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let world = 1 + rng.below(4) as u32;
        let crashes = rng.below(6);
        let start_epoch = rng.below(8).saturating_sub(5) as u32;
        let settings = Settings { start_epoch, reunite_for: Duration::from_millis(200), ..settings(world) };
        Self {
            seed,
            rng,
            now: Duration::ZERO,
            run: Run::new(settings.clone(), History::default()),
            settings,
            workers: BTreeMap::new(),
            next_worker: 1,
            journal: Vec::new(),
            expected: None,
            validated: BTreeMap::new(),
            ended: None,
            trace: Vec::new(),
            crashes,
        }
    }

    fn play(mut self) -> Vec<String> {
        for _ in 0..20_000 {
            if self.ended.is_some() {
                break;
            }
            self.turn();
        }
        let seed = self.seed;
        assert_eq!(self.ended, Some(Outcome::Done), "seed {seed} did not come to its end");
        let epochs: Vec<_> = self.validated.keys().copied().collect();
        let all: Vec<_> = (self.settings.start_epoch..3).collect();
        assert_eq!(epochs, all, "seed {seed}: every epoch is validated");
        let newest = History::replay(&self.journal).newest().map(|w| w.position);
        assert_eq!(newest, Some(Position { epoch: 3, step: 0 }), "seed {seed}: the end is saved");
        self.trace
    }

    /// One random thing happens.
    fn turn(&mut self) {
        self.now += Duration::from_millis(5);
        if self.rng.one_in(40) {
            self.event(Event::Tick);
        }
        let world = self.settings.workers;
        if (self.workers.len() as u32) < world && self.rng.one_in(5) {
            let worker = WorkerId(self.next_worker);
            self.next_worker += 1;
            self.event(Event::Joined { worker, hello: hello(worker.0, None) });
        }
        if self.crashes > 0 && self.rng.one_in(300) {
            self.crashes -= 1;
            self.crash();
        }
        if self.workers.is_empty() {
            return;
        }
        let index = self.rng.below(self.workers.len());
        let id = *self.workers.keys().nth(index).unwrap();
        if self.rng.one_in(2) {
            self.act(id);
        } else if let Some(message) = self.workers.get_mut(&id).and_then(|w| w.outbox.pop_front()) {
            self.event(Event::Said { worker: id, message });
        } else {
            self.event(Event::Said { worker: id, message: FromWorker::Heartbeat });
        }
    }

    /// A worker dies with all that it had not yet said, or the coordinator does with all its connections.
    fn crash(&mut self) {
        if self.rng.one_in(4) {
            self.workers.clear();
            self.expected = None;
            self.run = Run::new(self.settings.clone(), History::replay(&self.journal));
            self.trace.push("coordinator killed".into());
        } else if !self.workers.is_empty() {
            let index = self.rng.below(self.workers.len());
            let id = *self.workers.keys().nth(index).unwrap();
            self.trace.push(format!("worker {id} killed"));
            self.workers.remove(&id);
            self.event(Event::Left { worker: id, reason: "killed".into() });
        }
    }

    /// A worker takes its next order, or goes on with its work.
    fn act(&mut self, id: WorkerId) {
        let mut worker = self.workers.remove(&id).unwrap();
        match worker.inbox.pop_front() {
            Some(order) => self.obey(id, &mut worker, order),
            None => self.work(&mut worker),
        }
        let end = |p: Position| p.step == STEPS;
        if let Some(held) = worker.held {
            worker.duties.retain(|(duty, at)| {
                let turns = end(held) && *at == Position { epoch: held.epoch + 1, step: 0 };
                let position = if held >= *at { held } else { *at };
                if held < *at && !turns {
                    return true;
                }
                let file = format!("e{}-s{}", position.epoch, position.step);
                let written = Written { file, bytes: 1, blake3: "b".into(), position };
                worker.outbox.push_back(FromWorker::CheckpointWritten { duty: *duty, written });
                false
            });
        }
        self.workers.insert(id, worker);
    }

    fn obey(&mut self, id: WorkerId, worker: &mut Worker, order: ToWorker) {
        match order {
            ToWorker::Form(formation) => {
                if let Some(restore) = &formation.restore {
                    assert_eq!(formation.source, worker.rank, "seed {}: only the source restores", self.seed);
                    assert!(!restore.file.is_empty());
                }
                let beginning = Position { epoch: self.settings.start_epoch, step: 0 };
                let fresh = formation.position == beginning && formation.restore.is_none();
                if formation.source == worker.rank && formation.restore.is_none() && !fresh {
                    let (held, seed) = (worker.held, self.seed);
                    assert_eq!(held, Some(formation.position), "seed {seed}: the source holds what it gives");
                }
                worker.work = Work::Joining(formation);
            }
            ToWorker::Train { generation, epoch, first_step } => {
                assert_eq!(worker.ring, Some(generation), "seed {}: {id} trains in its own ring", self.seed);
                worker.work = Work::Training(epoch);
                worker.held = Some(Position { epoch, step: first_step });
            }
            ToWorker::Validate { generation, epoch, range } => {
                assert_eq!(worker.ring, Some(generation));
                let part =
                    validation::Part { epoch, top1: range.end - range.start, top5: 0, range, loss_sum: 1.0 };
                worker.outbox.push_back(FromWorker::Validated { generation, part });
            }
            ToWorker::Checkpoint { duty, at, .. } => worker.duties.push((duty, at)),
            ToWorker::Dissolve { generation, .. } => self.leave(worker, generation),
            ToWorker::Remove { .. }
            | ToWorker::Finish { .. }
            | ToWorker::Drain { .. }
            | ToWorker::Release { .. } => {}
        }
    }

    fn leave(&self, worker: &mut Worker, generation: Generation) {
        worker.ring = None;
        worker.work = Work::Idle;
        let (held, reason) = (worker.held, "ring".into());
        worker.outbox.push_back(FromWorker::Held {
            generation,
            held,
            steps: self.steps(worker),
            reason,
            blamed: None,
        });
    }

    /// The newest steps up to what a worker holds, as it would report them.
    fn steps(&self, worker: &Worker) -> Vec<StepReport> {
        let Some(held) = worker.held else { return Vec::new() };
        (0..held.step)
            .map(|step| StepReport {
                position: Position { epoch: held.epoch, step },
                loss: 1.0,
                learning_rate: 0.1,
                samples: 10,
                skipped: 0,
                duration: Duration::ZERO,
                data_wait: Duration::ZERO,
                epoch_loss_sum: 1.0,
                epoch_samples: 1,
            })
            .collect()
    }

    /// A ring moves when all its ranks are there; one that has lost a rank breaks.
    fn work(&mut self, worker: &mut Worker) {
        let world = self.settings.workers as usize;
        match worker.work.clone() {
            Work::Idle => {}
            Work::Joining(formation) => {
                let generation = formation.generation;
                let others = self.workers.values().filter(|peer| match &peer.work {
                    Work::Joining(theirs) => theirs.generation == generation,
                    _ => peer.ring == Some(generation),
                });
                if others.count() + 1 < world {
                    // A peer has died: its connections are refused, sooner or later.
                    if self.workers.len() + 1 < world && self.rng.one_in(20) {
                        self.leave(worker, generation);
                    }
                    return;
                }
                worker.held = Some(formation.position);
                worker.ring = Some(generation);
                worker.work = Work::Idle;
                worker.outbox.push_back(FromWorker::Ready {
                    generation,
                    held: formation.position,
                    epoch_loss: None,
                });
            }
            Work::Training(epoch) => {
                let (Some(held), Some(generation)) = (worker.held, worker.ring) else { return };
                let peers: Vec<_> =
                    self.workers.values().filter(|peer| peer.ring == Some(generation)).collect();
                if peers.len() + 1 < world {
                    return self.leave(worker, generation);
                }
                // No rank gets more than one step ahead of another: the sum needs them all.
                let ready =
                    peers.iter().all(|p| p.held.is_some_and(|h| h.epoch == epoch && h.step >= held.step));
                let training = peers.iter().all(|p| p.work == worker.work || p.held > worker.held);
                if !ready || !training {
                    return;
                }
                let position = Position { epoch, step: held.step + 1 };
                worker.held = Some(position);
                let steps = self.steps(worker);
                let steps = if worker.rank == Rank(0) { steps } else { Vec::new() };
                worker.outbox.push_back(FromWorker::Progress {
                    generation,
                    position,
                    steps,
                    pace: Pace::default(),
                });
                if position.step == STEPS {
                    worker.work = Work::Idle;
                }
            }
        }
    }

    fn event(&mut self, event: Event) {
        self.trace.push(format!("{event:?}"));
        for command in self.run.handle(self.now, event) {
            self.trace.push(format!("  {command:?}"));
            self.command(command);
        }
    }

    fn command(&mut self, command: Command) {
        let seed = self.seed;
        match command {
            Command::Welcome { worker, rank, .. } => {
                let new = Worker {
                    rank,
                    inbox: VecDeque::new(),
                    outbox: VecDeque::from([FromWorker::Indexed(dataset())]),
                    ring: None,
                    work: Work::Idle,
                    held: None,
                    duties: Vec::new(),
                };
                assert!(self.workers.values().all(|w| w.rank != rank), "seed {seed}: one worker a seat");
                self.workers.insert(worker, new);
            }
            Command::Send { worker, message } => {
                let known = self.workers.get_mut(&worker);
                known.unwrap_or_else(|| panic!("seed {seed}: {worker} is gone")).inbox.push_back(message);
            }
            Command::Expel { worker, .. } => drop(self.workers.remove(&worker)),
            Command::Persist(fact) => self.journal.push(fact),
            Command::Observe(Observation::Started { position }) => {
                let furthest = self.workers.values().filter_map(|w| w.held).max();
                assert!(Some(position) >= furthest, "seed {seed}: a step was lost while a worker lived");
                self.expected = Some(following(position));
            }
            Command::Observe(Observation::Step(step)) => {
                let expected = self.expected.unwrap();
                assert_eq!(step.position, expected, "seed {seed}: steps are shown once and in order");
                self.expected = Some(following(Position { step: expected.step + 1, ..expected }));
            }
            Command::Observe(Observation::Epoch(summary)) => {
                assert_eq!(summary.top1, 1.0, "seed {seed}: every image is counted once");
                *self.validated.entry(summary.epoch).or_default() += 1;
            }
            Command::End(outcome) => self.ended = Some(outcome),
            Command::Reject { .. } | Command::Observe(_) => {}
        }
    }
}

/// The step that is done at `position`: after the last one of an epoch, the first of the next.
fn following(position: Position) -> Position {
    match position.step {
        STEPS => Position { epoch: position.epoch + 1, step: 0 },
        _ => position,
    }
}

#[test]
fn every_schedule_of_crashes_comes_to_its_end_and_loses_nothing() {
    for seed in 0..SCHEDULES {
        Sim::new(seed).play();
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 17, 42] {
        let (first, second) = (Sim::new(seed).play(), Sim::new(seed).play());
        assert!(first.len() > 100);
        assert_eq!(first, second, "seed {seed}");
    }
}
