//! Time and what is due, and the coordinator: its core, its journal, and its deaths.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::checks::Checks;
use super::network::{Direction, Down, Status, Stream};
use super::ring::Ring;
use super::trouble::Trouble;
use super::worker::Worker;
use super::*;

/// No schedule may take longer, in milliseconds: all that it waits for has come or been given up by then.
const END: u64 = 900_000;

/// Something that happens at its time.
#[derive(Debug, Clone)]
pub(super) enum Due {
    Tick {
        life: u32,
    },
    Deliver(u64, Direction),
    /// What worker `.0` waits for, unless its timer has been set anew since.
    Timer(u64, u64),
    Dial(u64, u64),
    AttemptOver(u64, u64),
    Heartbeat(u64),
    /// The saver of a worker has written a file.
    Written(u64),
    /// A worker that was told to leave has waited long enough.
    Deadline(u64),
    Start,
    Spawn,
    Trouble(Trouble),
    Heal(u64, u64),
    Thaw(u64),
}

/// A checkpoint on the disk that all hosts share.
#[derive(Debug, Clone, Copy)]
pub(super) struct File {
    pub position: Position,
    pub state: State,
    pub damaged: bool,
}

/// One life of the coordinator.
pub(super) struct Coordinator {
    pub run: Run,
    pub life: u32,
    began: u64,
    next_worker: u64,
    /// The streams of its workers.
    pub seated: BTreeMap<WorkerId, u64>,
    /// It is killed after so many of the next commands.
    pub dies_after: Option<usize>,
}

pub(super) struct World {
    pub seed: u64,
    pub rng: Rng,
    /// In milliseconds.
    pub now: u64,
    due: BTreeMap<(u64, u64), Due>,
    /// Numbers for whatever needs one.
    last: u64,
    pub settings: Settings,
    pub coordinator: Option<Coordinator>,
    pub journal: Vec<Fact>,
    pub disk: BTreeMap<String, File>,
    pub workers: BTreeMap<u64, Worker>,
    pub streams: BTreeMap<u64, Stream>,
    /// What processes held when their streams ended, by stream: the coordinator may not know yet that it has.
    pub believed: BTreeMap<u64, Position>,
    pub rings: BTreeMap<Generation, Ring>,
    /// Pairs of hosts between which nothing passes; 0 is the coordinator's.
    pub cuts: BTreeSet<(u64, u64)>,
    /// Nothing is disturbed from then on.
    pub calm: u64,
    pub disk_is_full: bool,
    pub check: Checks,
    trace: Option<Vec<String>>,
    over: Option<bool>,
}

/// How a schedule ended.
pub(super) struct End {
    /// All epochs are done; otherwise the run failed for a reason that is good enough.
    pub done: bool,
    pub trace: Vec<String>,
}

impl World {
    pub fn new(seed: u64, traced: bool) -> Self {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let workers = 1 + rng.below(5) as u32;
        let ms = Duration::from_millis;
        let action = [StragglerAction::Report, StragglerAction::Drop, StragglerAction::Replace][rng.below(3)];
        let settings = Settings {
            min_workers: 1 + rng.below(workers as usize) as u32,
            spares: rng.below(3) as u32,
            start_epoch: rng.below(8).saturating_sub(5) as u32,
            checkpoint_every_steps: [0, 0, 3, 4][rng.below(4)],
            checkpoint_every_epochs: rng.below(3) as u32,
            checkpoint_every: rng.one_in(3).then_some(ms(1500)),
            keep_checkpoints: 1 + rng.below(2),
            dead_after: ms(3000),
            gather_for: ms(rng.between(200, 3000)),
            admit_after: ms(500),
            reunite_for: ms(3000),
            stop_deadline: ms(20_000),
            stragglers: StragglerPolicy { factor: 1.5, action },
            ..settings(workers)
        };
        let mut world = Self {
            seed,
            rng,
            now: 0,
            due: BTreeMap::new(),
            last: 0,
            coordinator: None,
            journal: Vec::new(),
            disk: BTreeMap::new(),
            workers: BTreeMap::new(),
            streams: BTreeMap::new(),
            believed: BTreeMap::new(),
            rings: BTreeMap::new(),
            cuts: BTreeSet::new(),
            calm: 0,
            disk_is_full: false,
            check: Checks::new(seed, &settings),
            settings,
            trace: traced.then(Vec::new),
            over: None,
        };
        world.after(0, Due::Start);
        for _ in 0..workers {
            let at = world.rng.between(0, 2000);
            world.after(at, Due::Spawn);
        }
        world.plan_trouble();
        world
    }

    pub fn play(mut self) -> End {
        while self.over.is_none() {
            let ((at, _), due) = self.due.pop_first().expect("ticks go on");
            self.now = at;
            assert!(at < END, "seed {}: something is waited for for ever", self.seed);
            self.happens(due);
        }
        let done = self.over == Some(true);
        if done {
            self.check.ended(&self.journal, &self.disk);
        }
        End { done, trace: self.trace.unwrap_or_default() }
    }

    pub fn after(&mut self, delay: u64, due: Due) {
        self.last += 1;
        self.due.insert((self.now + delay, self.last), due);
    }

    pub fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub fn note(&mut self, words: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            let line = format!("{:>3}.{:03} {}", now / 1000, now % 1000, words());
            if std::env::var_os("SIM_SEED").is_some() {
                println!("{line}");
            }
            trace.push(line);
        }
    }

    fn happens(&mut self, due: Due) {
        match due {
            Due::Tick { life } if self.coordinator.as_ref().is_some_and(|c| c.life == life) => {
                self.after(200, Due::Tick { life });
                self.event(Event::Tick);
            }
            Due::Tick { .. } => {}
            Due::Deliver(stream, direction) => self.deliver(stream, direction),
            Due::Timer(worker, token) => self.timer(worker, token),
            Due::Dial(worker, token) => self.dial(worker, token),
            Due::AttemptOver(worker, stream) => self.attempt_over(worker, stream),
            Due::Heartbeat(worker) => self.heartbeat(worker),
            Due::Written(worker) => self.written(worker),
            Due::Deadline(worker) => self.exit(worker, "let go too late"),
            Due::Start => self.start(),
            Due::Spawn => self.spawn(),
            Due::Trouble(trouble) => self.disturb(trouble),
            Due::Heal(a, b) => self.heal(a, b),
            Due::Thaw(worker) => self.thaw(worker),
        }
    }

    /// The coordinator is started with the same command, from its journal.
    fn start(&mut self) {
        if self.coordinator.is_some() {
            return;
        }
        let life = self.journal.iter().filter(|fact| matches!(fact, Fact::Resumed)).count() as u32;
        let life = if self.journal.is_empty() {
            let (run_id, version, config) = ("run".into(), "1".into(), String::new());
            self.journal.push(Fact::Started { run_id, version, seed: 0, config });
            0
        } else {
            self.journal.push(Fact::Resumed);
            life + 1
        };
        self.note(|| format!("the coordinator starts, life {life}"));
        let run = Run::new(self.settings.clone(), History::replay(&self.journal));
        let (began, seated) = (self.now, BTreeMap::new());
        self.coordinator = Some(Coordinator { run, life, began, next_worker: 1, seated, dies_after: None });
        self.check.restarted();
        self.after(0, Due::Tick { life });
        self.keep_manned();
    }

    /// Hands an event to the core and carries out what it says, as `coordinator/src/driver.rs` does.
    pub fn event(&mut self, event: Event) {
        let Some(mut coordinator) = self.coordinator.take() else { return };
        if !matches!(event, Event::Tick | Event::Said { message: FromWorker::Heartbeat, .. }) {
            self.note(|| format!("{event:?}"));
        }
        if let Event::Left { worker, .. } = &event {
            coordinator.seated.remove(worker);
            self.check.left(*worker);
        }
        let now = Duration::from_millis(self.now - coordinator.began);
        let commands = coordinator.run.handle(now, event);
        coordinator.run.check();
        let kill = coordinator.dies_after.filter(|_| !commands.is_empty());
        if kill.is_some() {
            coordinator.dies_after = None;
        }
        self.coordinator = Some(coordinator);
        self.check_forms(&commands);
        for (done, command) in commands.into_iter().enumerate() {
            if kill.is_some_and(|kill| done >= kill) {
                self.note(|| format!("... and is killed before {command:?}"));
                self.kill_coordinator();
                return;
            }
            self.note(|| format!("    {command:?}"));
            match command {
                Command::End(outcome) => return self.ended(&outcome),
                Command::HandOver => return self.handed_over(),
                command => self.command(command),
            }
        }
        if kill.is_some() {
            self.kill_coordinator();
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Welcome { worker, rank, .. } => {
                self.check.welcomed(worker, rank);
                self.tell(worker, Down::Welcome(rank));
            }
            Command::Reject { worker, rejection } => {
                let status = match rejection {
                    Rejection::OtherRun { .. } | Rejection::Over | Rejection::RankOutside { .. } => {
                        Status::ForGood
                    }
                    Rejection::RankTaken { .. } | Rejection::Full { .. } => Status::Refused,
                };
                self.close(worker, status);
            }
            Command::Send { worker, message } => {
                if let ToWorker::Release { .. } = &message {
                    self.check_release(worker);
                }
                self.tell(worker, Down::Order(message));
            }
            Command::Expel { worker, reason, back } => {
                self.check_expulsion(worker, &reason);
                self.check.left(worker);
                self.close(worker, if back { Status::PutOut } else { Status::ForGood });
            }
            Command::Persist(fact) => {
                self.check.fact(&fact);
                self.journal.push(fact);
            }
            Command::Observe(observation) => self.check.observed(&observation),
            Command::End(_) | Command::HandOver => unreachable!("the coordinator has ended"),
        }
    }

    /// A worker's order goes into its stream.
    fn tell(&mut self, worker: WorkerId, down: Down) {
        let stream = self.coordinator.as_ref().and_then(|c| c.seated.get(&worker)).copied();
        if let Some(stream) = stream {
            self.put_down(stream, down);
        }
    }

    /// The coordinator ends a worker's stream.
    fn close(&mut self, worker: WorkerId, status: Status) {
        let stream = self.coordinator.as_mut().and_then(|c| c.seated.remove(&worker));
        if let Some(stream) = stream {
            self.put_down(stream, Down::End(status));
        }
    }

    /// A stream has come: its number in this life, before the core has seen it.
    pub fn register(&mut self, stream: u64) -> Option<WorkerId> {
        let coordinator = self.coordinator.as_mut()?;
        let worker = WorkerId(coordinator.next_worker);
        coordinator.next_worker += 1;
        coordinator.seated.insert(worker, stream);
        Some(worker)
    }

    pub fn kill_coordinator(&mut self) {
        self.note(|| "the coordinator is killed".into());
        self.coordinator = None;
        self.check.restarted();
        for stream in self.streams.keys().copied().collect::<Vec<_>>() {
            self.lose_stream(stream);
        }
        let away = self.rng.between(200, 6000);
        self.after(away, Due::Start);
    }

    fn ended(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Done => return self.over = Some(true),
            Outcome::Interrupted { saved, .. } => self.check_stop(*saved),
            // A damaged only checkpoint leaves nothing to go on with.
            Outcome::Failed { reason } if reason.contains("no checkpoint is left") => {
                assert!(self.check.damaged, "seed {}: {reason}", self.seed);
                return self.over = Some(false);
            }
            Outcome::Failed { reason } => {
                let disturbed = self.now < self.calm + 30_000;
                let full = reason.contains("could not be written") && self.check.was_full;
                let never = reason.contains("generations in a row") && disturbed && !self.check.trained;
                let away = reason.contains("cluster.wait_for_workers") && self.now < self.calm + 100_000;
                assert!(full || never || away, "seed {}: the run failed: {reason}", self.seed);
            }
        }
        // The same command once more, when the workers have left.
        self.coordinator_ends(3000);
    }

    fn handed_over(&mut self) {
        let asked = self.check.hand_over_asked.take().expect("nobody has asked");
        assert!(self.now - asked <= 20_200, "seed {}: made way too late", self.seed);
        let away = self.rng.between(200, 6000);
        self.coordinator_ends(away);
    }

    /// The coordinator ends of itself, and is started again after a while.
    fn coordinator_ends(&mut self, away: u64) {
        self.note(|| "the coordinator has ended, and is to be started again".into());
        self.coordinator = None;
        self.check.restarted();
        for stream in self.streams.keys().copied().collect::<Vec<_>>() {
            self.put_down(stream, Down::End(Status::Broken));
        }
        self.after(away, Due::Start);
    }
}
