//! The workers' ring, in memory: it stands once all ranks have come, takes a step whenever a step's time has passed,
//! and breaks with any of them. No gradients go round; what the coordinator hears of it is as from a real one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use relabel_core::{Generation, Position, Rank};
use tokio::sync::watch;

/// What goes on in a ring.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Stage {
    /// Not all ranks have come.
    Forming,
    /// All hold the state and wait for their order.
    Standing,
    /// Steps are taken since then, the first of them `first`.
    Training { since: Instant, first: Position },
    /// The step that ends then is the last; after it all hold `held`.
    Ending { at: Instant, held: Position },
    /// Nobody goes on; its neighbours see that this rank is gone, if one is.
    Broken { lost: Option<Rank> },
}

/// One generation's ring.
pub struct Ring {
    pub generation: Generation,
    pub world: u32,
    stage: watch::Sender<Stage>,
    come: AtomicU32,
    told: AtomicU32,
    /// Where it stopped, if it has.
    stopped: Mutex<Option<Position>>,
    rings: Arc<Rings>,
}

/// A generation that came to train.
#[derive(Debug, Clone, Copy)]
pub struct Trained {
    pub generation: Generation,
    pub world: u32,
    /// Since the last step of the generation before it, or its first order to form where there was none.
    pub paused: Duration,
}

/// All rings of a run.
pub struct Rings {
    /// What a step takes.
    pub step: Duration,
    pub steps_per_epoch: u64,
    rings: Mutex<BTreeMap<Generation, Arc<Ring>>>,
    /// When training last stopped.
    stopped: Mutex<Option<Instant>>,
    trained: Mutex<Vec<Trained>>,
    newest: watch::Sender<Generation>,
    /// Steps done by the run.
    steps: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Rings {
    pub fn new(step: Duration, steps_per_epoch: u64) -> Arc<Self> {
        Arc::new(Self {
            step,
            steps_per_epoch,
            rings: Mutex::default(),
            stopped: Mutex::default(),
            trained: Mutex::default(),
            newest: watch::Sender::new(Generation::default()),
            steps: AtomicU64::new(0),
        })
    }

    /// The ring of a generation.
    pub fn of(self: &Arc<Self>, generation: Generation, world: u32) -> Arc<Ring> {
        let mut rings = locked(&self.rings);
        let ring = rings.entry(generation).or_insert_with(|| {
            Arc::new(Ring {
                generation,
                world,
                stage: watch::Sender::new(Stage::Forming),
                come: AtomicU32::new(0),
                told: AtomicU32::new(0),
                stopped: Mutex::default(),
                rings: Arc::clone(self),
            })
        });
        let ring = Arc::clone(ring);
        while rings.len() > 4 {
            rings.pop_first();
        }
        ring
    }

    /// Generations that came to train, in their order.
    pub fn trained(&self) -> Vec<Trained> {
        locked(&self.trained).clone()
    }

    /// Changes whenever a generation begins to train.
    pub fn newest(&self) -> watch::Receiver<Generation> {
        self.newest.subscribe()
    }

    /// Steps that the run has done, those of the current generation included.
    pub fn steps(&self) -> u64 {
        let current = locked(&self.rings).values().next_back().and_then(|ring| ring.position());
        self.steps.load(Ordering::Relaxed).max(current.map_or(0, |at| self.global(at)))
    }

    fn global(&self, at: Position) -> u64 {
        u64::from(at.epoch) * self.steps_per_epoch + at.step
    }

    fn stop(&self, at: Instant, held: Option<Position>) {
        locked(&self.stopped).get_or_insert(at);
        if let Some(held) = held {
            self.steps.fetch_max(self.global(held), Ordering::Relaxed);
        }
    }
}

impl Ring {
    /// A rank has its order to form.
    pub fn come(&self) {
        let come = self.come.fetch_add(1, Ordering::Relaxed) + 1;
        if come == 1 && self.generation.0 == 1 {
            self.rings.stop(Instant::now(), None);
        }
        if come == self.world {
            self.turn(Stage::Standing, |stage| matches!(stage, Stage::Forming));
        }
    }

    /// A rank has its order to train; with the last of them the steps begin.
    pub fn train(&self, first: Position) {
        if !(self.told.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(self.world) {
            return;
        }
        let since = Instant::now();
        let begins = |stage: &Stage| matches!(stage, Stage::Standing | Stage::Training { .. });
        if !self.turn(Stage::Training { since, first }, begins) {
            return;
        }
        if let Some(at) = locked(&self.rings.stopped).take() {
            let (generation, world) = (self.generation, self.world);
            let paused = since.saturating_duration_since(at);
            locked(&self.rings.trained).push(Trained { generation, world, paused });
        }
        self.rings.newest.send_replace(self.generation);
    }

    /// A rank wants to end with the next step that all take.
    pub fn end(&self) {
        let Stage::Training { since, first } = self.stage() else { return };
        let done = self.steps_since(since) + 1;
        let held = self.after(first, done);
        let at = since + self.rings.step * u32::try_from(done).unwrap_or(u32::MAX);
        if self.turn(Stage::Ending { at, held }, |stage| matches!(stage, Stage::Training { .. })) {
            locked(&self.stopped).get_or_insert(held);
            self.rings.stop(at, Some(held));
        }
    }

    /// A rank is gone, or was told to leave at once.
    pub fn breaks(&self, lost: Option<Rank>) {
        let held = self.position();
        if self.turn(Stage::Broken { lost }, |stage| !matches!(stage, Stage::Broken { .. })) {
            if let Some(held) = held {
                locked(&self.stopped).get_or_insert(held);
            }
            self.rings.stop(Instant::now(), held);
        }
    }

    pub fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    pub fn watch(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// The next step, once steps have been taken.
    pub fn position(&self) -> Option<Position> {
        if let Some(stopped) = *locked(&self.stopped) {
            return Some(stopped);
        }
        match self.stage() {
            Stage::Training { since, first } => Some(self.after(first, self.steps_since(since))),
            _ => None,
        }
    }

    /// The position `steps` after `first`, within its epoch.
    pub fn after(&self, first: Position, steps: u64) -> Position {
        Position { step: (first.step + steps).min(self.rings.steps_per_epoch), ..first }
    }

    fn steps_since(&self, since: Instant) -> u64 {
        (since.elapsed().as_nanos() / self.rings.step.as_nanos().max(1)) as u64
    }

    fn turn(&self, to: Stage, from: impl Fn(&Stage) -> bool) -> bool {
        self.stage.send_if_modified(|stage| {
            let turns = from(stage);
            if turns {
                *stage = to;
            }
            turns
        })
    }
}
