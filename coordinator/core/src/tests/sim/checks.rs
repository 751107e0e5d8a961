//! What must hold, whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use super::world::{File, World};
use super::*;

pub(super) struct Checks {
    seed: u64,
    settings: Settings,
    seats: BTreeMap<Rank, WorkerId>,
    formed: BTreeSet<Generation>,
    states: BTreeMap<Generation, State>,
    /// The step that must be shown next.
    expected: Option<Position>,
    /// The same when the coordinator died, where the generation is gone on with as it was.
    expected_before: Option<Position>,
    /// Epochs whose numbers count, and all that have ever been validated.
    validated: BTreeSet<u32>,
    ever_validated: BTreeSet<u32>,
    may_again: Vec<u32>,
    /// The generation that is about to be formed goes on from here: it may not be the furthest state that there was.
    goes_on_from: Option<Position>,
    /// This life of the coordinator has found the generation as it left it, and has shown nothing yet.
    taken_up: bool,
    /// When a stop was asked for; none within where it was asked for once more.
    pub stopped_at: Option<Option<u64>>,
    /// When this life of the coordinator was first asked to make way.
    pub hand_over_asked: Option<u64>,
    pub damaged: bool,
    pub was_full: bool,
    /// Whether a generation has ever trained.
    pub trained: bool,
}

impl Checks {
    pub fn new(seed: u64, settings: &Settings) -> Self {
        Self {
            seed,
            settings: settings.clone(),
            seats: BTreeMap::new(),
            formed: BTreeSet::new(),
            states: BTreeMap::new(),
            expected: None,
            expected_before: None,
            validated: BTreeSet::new(),
            ever_validated: BTreeSet::new(),
            may_again: Vec::new(),
            goes_on_from: None,
            taken_up: false,
            stopped_at: None,
            hand_over_asked: None,
            damaged: false,
            was_full: false,
            trained: false,
        }
    }

    pub fn restarted(&mut self) {
        self.seats.clear();
        self.expected_before = self.expected.take();
        (self.goes_on_from, self.taken_up) = (None, false);
        (self.stopped_at, self.hand_over_asked) = (None, None);
    }

    pub fn welcomed(&mut self, worker: WorkerId, rank: Rank) {
        let before = self.seats.insert(rank, worker);
        assert_eq!(before, None, "seed {}: one worker a seat", self.seed);
    }

    pub fn left(&mut self, worker: WorkerId) {
        self.seats.retain(|_, seated| *seated != worker);
    }

    /// After it is ready, a rank holds what all the others hold, bit for bit.
    pub fn same_state(&mut self, generation: Generation, state: State) {
        let first = *self.states.entry(generation).or_insert(state);
        assert_eq!(first, state, "seed {}: all ranks of generation {generation} hold one state", self.seed);
    }

    pub fn fact(&mut self, fact: &Fact) {
        match fact {
            Fact::Validated { epoch, .. } => {
                let again = self.may_again.iter().position(|may| may == epoch);
                let again = again.map(|index| self.may_again.remove(index));
                self.ever_validated.insert(*epoch);
                let new = self.validated.insert(*epoch) || again.is_some();
                assert!(new, "seed {}: epoch {epoch} is validated once", self.seed);
            }
            Fact::Formed { generation, .. } => {
                let new = self.formed.insert(*generation);
                assert!(new, "seed {}: generation {generation} is formed once", self.seed);
                self.taken_up = false;
                if let Some(position) = self.goes_on_from.take() {
                    self.validated.retain(|epoch| *epoch < position.epoch);
                }
            }
            // Whether or not a generation is formed there before this coordinator dies.
            Fact::FellBack { position } => {
                let position = following(*position);
                self.validated.retain(|epoch| *epoch < position.epoch);
            }
            // It may be validated once more, to be the best after all.
            Fact::BestLost { epoch } => self.may_again.push(*epoch),
            _ => {}
        }
    }

    pub fn observed(&mut self, observation: &Observation) {
        let seed = self.seed;
        match observation {
            Observation::Note(words) if words.starts_with("going on as before") => self.taken_up = true,
            Observation::Started { position } => {
                self.trained = true;
                self.expected = Some(following(*position));
            }
            Observation::Step(step) => {
                let before = self.expected_before.take();
                if std::mem::take(&mut self.taken_up)
                    && let Some(before) = before
                {
                    assert!(
                        step.position <= before,
                        "seed {seed}: {} is shown after {before}",
                        step.position
                    );
                }
                let expected = self.expected;
                assert_eq!(Some(step.position), expected, "seed {seed}: steps are shown once and in order");
                self.expected = Some(following(Position { step: step.position.step + 1, ..step.position }));
            }
            Observation::Epoch(summary) => {
                // Every image counts its number: what is left out, or counted twice, shows.
                let (top1, loss) = (17.0 / 33.0, 16.0);
                let found = (summary.top1, summary.val_loss);
                assert_eq!(found, (top1, loss), "seed {seed}: a validation counts every image once");
            }
            _ => {}
        }
    }

    /// The run is done.
    pub fn ended(&self, journal: &[Fact], disk: &BTreeMap<String, File>) {
        let (seed, settings) = (self.seed, &self.settings);
        let all: BTreeSet<_> = (settings.start_epoch..settings.epochs).collect();
        // One whose numbers were forgotten on the way back may be passed by a worker that returns with a later state.
        assert_eq!(self.ever_validated, all, "seed {seed}: every epoch is validated");
        let history = History::replay(journal);
        assert!(history.finished, "seed {seed}: the end is in the journal");
        let newest = history.newest().expect("the end is saved");
        let end = Position { epoch: settings.epochs, step: 0 };
        assert_eq!(newest.position, end, "seed {seed}: the end is saved");
        let file = disk.get(&newest.file).expect("its file is there");
        assert_eq!(file.position, end);
        assert_eq!(file.state.steps, State::undisturbed(settings.start_epoch, end), "seed {seed}");
    }
}

/// The step that is done at `position`: after the last one of an epoch, the first of the next.
fn following(position: Position) -> Position {
    match position.step {
        STEPS => Position { epoch: position.epoch + 1, step: 0 },
        _ => position,
    }
}

impl World {
    /// The furthest state of those that the coordinator can be in touch with, but for `except`.
    fn furthest_in_touch(&self, except: Option<u64>) -> Option<Position> {
        let held = self.workers.iter().filter(|(id, _)| Some(**id) != except && self.in_touch(**id));
        held.filter_map(|(_, worker)| worker.held).max()
    }

    /// Looks at the generations and validations among `commands`.
    pub fn check_forms(&mut self, commands: &[Command]) {
        let seed = self.seed;
        let sent = |c: &Command| match c {
            Command::Send { message, .. } => Some(message.clone()),
            _ => None,
        };
        let messages: Vec<_> = commands.iter().filter_map(sent).collect();
        let ranges: Vec<_> = messages
            .iter()
            .filter_map(|message| match message {
                ToWorker::Validate { range, .. } => Some(range.clone()),
                _ => None,
            })
            .collect();
        if !ranges.is_empty() {
            let mut samples: Vec<_> = ranges.into_iter().flatten().collect();
            samples.sort_unstable();
            assert!(samples.into_iter().eq(0..33), "seed {seed}: each image is evaluated by one rank");
        }
        let forms: Vec<_> = messages
            .iter()
            .filter_map(|message| match message {
                ToWorker::Form(formation) => Some(formation),
                _ => None,
            })
            .collect();
        let Some(first) = forms.first() else { return };
        let (generation, position, world) = (first.generation, first.position, forms.len() as u32);
        let sizes = self.settings.min_workers..=self.settings.workers;
        assert!(sizes.contains(&world), "seed {seed}: {world} ranks of {sizes:?}");
        for (rank, form) in forms.iter().enumerate() {
            let place = (form.generation, form.rank, form.world, form.source, form.position);
            assert_eq!(place, (generation, Rank(rank as u32), world, first.source, position), "seed {seed}");
        }
        let shares: Vec<_> = forms.iter().flat_map(|form| form.shard.clone()).collect();
        assert!(shares.into_iter().eq(0..10), "seed {seed}: the batch is dealt once");
        // One that has been silent for too long, and is heard of again in this moment, comes back.
        let silent = commands.iter().find_map(|command| match command {
            Command::Expel { worker, reason, .. } if reason.starts_with("nothing heard") => {
                self.instance(*worker)
            }
            _ => None,
        });
        let furthest = self.furthest_in_touch(silent);
        assert!(
            Some(position) >= furthest,
            "seed {seed}: {furthest:?} is lost: {position:?} is gone on with"
        );
        self.check.goes_on_from = Some(following(position));
    }

    /// The process behind a seat.
    fn instance(&self, worker: WorkerId) -> Option<u64> {
        let stream = self.coordinator.as_ref()?.seated.get(&worker)?;
        self.streams.get(stream).map(|stream| stream.instance)
    }

    /// A worker may only be let go where what it holds is held elsewhere.
    pub fn check_release(&self, worker: WorkerId) {
        let Some(id) = self.instance(worker) else { return };
        let Some(held) = self.workers.get(&id).and_then(|leaver| leaver.held) else { return };
        let beginning = Position { epoch: self.settings.start_epoch, step: 0 };
        let saved = History::replay(&self.journal).newest().map(|written| written.position);
        // Another one, as far as the coordinator can know.
        let others = self.workers.iter().filter(|(other, w)| **other != id && w.connected.is_some());
        let seated =
            |stream: &u64| self.coordinator.iter().any(|c| c.seated.values().any(|mine| mine == stream));
        let believed = self.believed.iter().filter(|(stream, _)| seated(stream)).map(|(_, held)| *held).max();
        let elsewhere = others.filter_map(|(_, other)| other.held).max().max(saved).max(believed);
        let safe = held <= beginning || elsewhere >= Some(held) || self.rejoins(held, elsewhere);
        assert!(safe, "seed {}: {held} goes with worker {id}, and elsewhere is {elsewhere:?}", self.seed);
    }

    /// The end of an epoch is the beginning of the next.
    fn rejoins(&self, held: Position, elsewhere: Option<Position>) -> bool {
        elsewhere.is_some_and(|elsewhere| following(held) == following(elsewhere))
    }

    /// Nobody is put out by policy where too few would be left.
    pub fn check_expulsion(&self, worker: WorkerId, reason: &str) {
        if !reason.contains("could not reach") {
            return;
        }
        let Some(coordinator) = &self.coordinator else { return };
        let status = coordinator.run.status(Duration::ZERO);
        let ready =
            status.workers.iter().filter(|w| matches!(w.state, WorkerState::InRing | WorkerState::Waiting));
        let left = ready.count() as u32;
        assert!(left >= self.settings.min_workers, "seed {}: {left} are left without {worker}", self.seed);
    }

    /// A stop ends with what was held saved, unless its time was up.
    pub fn check_stop(&mut self, saved: Option<Position>) {
        let Some(Some(at)) = self.check.stopped_at else { return };
        let furthest = self.furthest_in_touch(None);
        let beginning = Position { epoch: self.settings.start_epoch, step: 0 };
        let lost =
            furthest.is_some_and(|held| held > beginning && Some(following(held)) > saved.map(following));
        let in_time = self.now - at < 20_000;
        assert!(!(lost && in_time), "seed {}: stopped at {saved:?}, and {furthest:?} is held", self.seed);
    }
}
