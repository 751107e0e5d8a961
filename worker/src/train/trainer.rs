//! Follows the coordinator's orders, one after the other, on the main thread.
//!
//! Between two orders the trainer holds a state and a position, perhaps a ring. Within an epoch it looks
//! for orders at each step boundary; one that ends the generation also aborts the collective from the
//! session's thread, so that nothing waits for a peer that is gone. How the ranks of a generation find each other
//! stands in `trainer/joining.rs`, what is done within an epoch in `trainer/epoch.rs`, and where the state comes from
//! and goes to in `trainer/state.rs`.

mod epoch;
mod joining;
mod state;

use std::collections::VecDeque;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use relabel_config::Config;
use relabel_core::{
    DutyId, Formation, FromWorker, Generation, Outcome, Pace, Position, Rank, StepReport, ToWorker, shards,
};
use tch::Device;

use super::inputs::{InputError, Inputs};
use super::learner::Learner;
use super::pictures::Pictures;
use super::samples::SampleLog;
use super::saver::{self, Saver};
use super::step::StepError;
use super::transfer::Tally;
use crate::checkpoint::{CheckpointError, Progress, Remote};
use crate::collective::{AbortHandle, Collective};
use crate::data::DataError;
use crate::model::ModelError;
use crate::session::{Place, Session, SessionError};
use crate::torch::TorchError;
use crate::weights::WeightsError;

/// How long a worker that cannot go on waits for the run to end, so that the coordinator can have saved
/// what it holds.
const LAST_WORDS: Duration = Duration::from_secs(60);

/// Why a worker ends before its run does.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Step(StepError),
    #[error(transparent)]
    Torch(#[from] TorchError),
    #[error("model.pretrained: {0}")]
    Pretrained(#[source] WeightsError),
    #[error("util.test_weight_file: {0}")]
    Tested(#[source] WeightsError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("cannot start the thread that writes checkpoints: {0}")]
    Saver(#[source] std::io::Error),
    #[error("cannot record the samples in {}: {source}", path.display())]
    SampleLog { path: PathBuf, source: std::io::Error },
    #[error("{loss}; the whole batch: {samples:?}")]
    NotFinite { loss: StepError, samples: Vec<u32> },
    #[error("ordered to {order} in generation {generation}, but there is no ring of it")]
    NoRing { order: &'static str, generation: Generation },
}

/// What a trainer is made of.
pub struct Setup {
    pub config: Config,
    pub rank: Rank,
    /// What is trained on.
    pub device: Device,
    /// Folder for the index of the data set, if there is one.
    pub cache_dir: Option<PathBuf>,
    /// This rank's end of the ring, whose address the coordinator has been told.
    pub listener: TcpListener,
    /// Folder for checkpoints and sample records.
    pub run_dir: PathBuf,
    pub loader_threads: usize,
}

/// A rank's side of the run.
pub struct Trainer<'a> {
    session: &'a Session,
    setup: Setup,
    inputs: Inputs,
    learner: Learner,
    saver: Saver,
    sample_log: Option<SampleLog>,
    pictures: Pictures,
    generation: Generation,
    place: Place,
    formation: Option<Member>,
    /// The next step of the state that the learner holds; none before the first generation, or when the
    /// state is half overwritten.
    held: Option<Position>,
    tally: Tally,
    /// The newest steps, for whoever asks when this rank leaves the ring, and how many of them have not
    /// been reported.
    recent: VecDeque<StepReport>,
    unreported: usize,
    /// The stream that the last report went to.
    reported_to: Option<u64>,
    /// Where this rank's time went since its last report.
    pace: Pace,
    duties: VecDeque<Duty>,
}

/// This rank's part in a standing ring.
struct Member {
    ring: Box<dyn Collective>,
    shard: std::ops::Range<u32>,
    reporter: bool,
}

struct Duty {
    id: DutyId,
    at: Position,
    best: bool,
    top1: Option<f64>,
}

/// Whether to go on with what was being done.
enum Next {
    Continue,
    /// The generation is over; what is held has been reported.
    Left,
    /// This order comes first.
    Order(ToWorker),
    Ended(Ended),
}

/// How a worker's part in a run ended.
#[derive(Debug)]
pub enum Ended {
    /// The run is over.
    Run(Outcome),
    /// The run goes on without this worker, which was to go for this reason.
    Released { reason: String },
}

impl<'a> Trainer<'a> {
    /// Opens the data and builds the model, and tells the coordinator that this rank has its data. The ring
    /// comes with the first formation.
    ///
    /// # Errors
    /// Data, labels or options that cannot be trained with.
    pub fn new(session: &'a Session, setup: Setup) -> Result<Self, TrainError> {
        let config = &setup.config;
        let began = Instant::now();
        let inputs = Inputs::open(config, setup.cache_dir.as_deref())?;
        let dataset = inputs.dataset();
        tracing::info!(
            "{} training and {} validation images in {} classes, indexed in {:.2?}",
            dataset.train_samples,
            dataset.val_samples,
            dataset.classes,
            began.elapsed()
        );
        let steps = shards::steps_per_epoch(dataset.train_samples, config.optim.batch_size);
        let learner = Learner::new(config, inputs.classes, steps, setup.device)?;
        let checkpoints = setup.run_dir.join("checkpoints");
        saver::remove_leftovers(&checkpoints);
        let like = learner.state(Progress { epoch: 0, step: 0, seed: 0 }, Default::default());
        let remote = Remote::of(&config.checkpoint)?;
        let reports = session.reports().clone();
        let saver = Saver::start(checkpoints, remote, reports, like).map_err(TrainError::Saver)?;
        let samples = setup.run_dir.join("samples");
        let sample_log = match config.util.record_samples {
            true => Some(SampleLog::create(&samples, setup.rank.0))
                .transpose()
                .map_err(|source| TrainError::SampleLog { path: samples, source })?,
            false => None,
        };
        let pictures = Pictures::new(config, &inputs, &setup.run_dir);
        session.reports().send(FromWorker::Indexed(dataset));
        Ok(Self {
            session,
            learner,
            saver,
            sample_log,
            pictures,
            inputs,
            generation: Generation::default(),
            place: Place {
                generation: Generation::default(),
                rank: Rank(0),
                world: 1,
                in_ring: false,
                held: None,
            },
            formation: None,
            held: None,
            tally: Tally::default(),
            recent: VecDeque::new(),
            unreported: 0,
            reported_to: None,
            pace: Pace::default(),
            duties: VecDeque::new(),
            setup,
        })
    }

    /// Follows orders until the run is over or goes on without this worker, and says which.
    ///
    /// # Errors
    /// What makes it impossible for the run to go on is reported to the coordinator by the caller.
    pub fn run(&mut self) -> Result<Ended, TrainError> {
        self.session.shared().follow();
        let mut first = None;
        loop {
            let order = match first.take() {
                Some(order) => order,
                None => self.session.next_order()?,
            };
            let next = match order {
                ToWorker::Form(formation) => self.form(formation)?,
                // A ring that broke meanwhile: what is held has been reported.
                ToWorker::Train { generation, .. } | ToWorker::Validate { generation, .. }
                    if self.formation.is_none() && generation == self.generation =>
                {
                    Next::Left
                }
                ToWorker::Train { generation, epoch, first_step } => {
                    let at = Position { epoch, step: first_step };
                    let reporter = self.formation.as_ref().is_some_and(|member| member.reporter);
                    match self.held.is_some_and(|held| held > at) && generation == self.generation {
                        true => {
                            // A coordinator that was away does not know how far this has come.
                            self.report(reporter);
                            Next::Continue
                        }
                        false => self.train(generation, at)?,
                    }
                }
                ToWorker::Validate { generation, epoch, range } => self.validate(generation, epoch, range)?,
                order => self.heed(order)?,
            };
            match next {
                Next::Continue | Next::Left => {}
                Next::Order(order) => first = Some(order),
                Next::Ended(ended) => return Ok(ended),
            }
        }
    }

    /// Does what can be done at any step boundary.
    fn heed(&mut self, order: ToWorker) -> Result<Next, TrainError> {
        match order {
            ToWorker::Checkpoint { duty, at, best, top1 } => {
                self.duties.push_back(Duty { id: duty, at, best, top1 });
                self.do_duties()?;
            }
            // The session keeps it for the forming that waits for it.
            ToWorker::NcclId { .. } => {}
            ToWorker::Remove { files } => self.saver.remove(files),
            ToWorker::Dissolve { generation, reason } | ToWorker::Drain { generation, reason }
                if generation >= self.generation =>
            {
                self.leave(&reason, None);
                return Ok(Next::Left);
            }
            ToWorker::Dissolve { .. } | ToWorker::Drain { .. } => {}
            ToWorker::Release { reason } => return Ok(Next::Ended(Ended::Released { reason })),
            ToWorker::Finish { outcome } => return Ok(Next::Ended(Ended::Run(outcome))),
            ToWorker::Form(_) | ToWorker::Train { .. } | ToWorker::Validate { .. } => {
                return Ok(Next::Order(order));
            }
        }
        Ok(Next::Continue)
    }

    /// Builds the ring of a generation and takes the source's state.
    fn form(&mut self, formation: Formation) -> Result<Next, TrainError> {
        let Formation { generation, rank, world, source, transfer, position, .. } = formation;
        self.formation = None;
        self.generation = generation;
        self.stand(Place { generation, rank, world, in_ring: false, held: self.held });
        // After a fall back to a checkpoint, steps beyond it will be done again.
        self.recent.retain(|step| step.position < position);
        self.unreported = self.unreported.min(self.recent.len());
        let abort = AbortHandle::new();
        self.session.fence().guard(generation, abort.clone());

        let mut ring = match self.join(&formation, abort) {
            Ok(ring) => ring,
            Err((reason, blamed)) => {
                self.leave(&reason, blamed);
                return Ok(Next::Left);
            }
        };
        if let Some(restore) = formation.restore {
            let folder = self.setup.run_dir.join("checkpoints");
            self.hold(None);
            match self.restore(&folder, &restore.file, &restore.blake3, position) {
                // An older one may do. Whatever else is wrong would be wrong with that one too.
                Err(error) if error.is_of_the_file() => {
                    let (file, reason) = (restore.file, error.to_string());
                    self.session.reports().send(FromWorker::RestoreFailed { generation, file, reason });
                    return Ok(Next::Left);
                }
                restored => restored?,
            }
        } else if rank == source && self.held.is_none() {
            self.start_from_weights()?;
        }
        if transfer && let Err(error) = self.take_state(source, &mut *ring) {
            self.leave(&error.to_string(), error.blamed());
            return Ok(Next::Left);
        }
        self.formation = Some(Member { ring, shard: formation.shard, reporter: rank.0 == 0 });
        self.hold(Some(position));
        self.stand(Place { in_ring: true, ..self.place });
        let epoch_loss = self.tally.mean();
        self.session.reports().send(FromWorker::Ready { generation, held: position, epoch_loss });
        Ok(Next::Continue)
    }

    /// Notes where the state is that this rank holds.
    fn hold(&mut self, held: Option<Position>) {
        self.held = held;
        self.stand(Place { held, ..self.place });
    }

    /// Notes where this rank stands, for a coordinator that was away.
    fn stand(&mut self, place: Place) {
        self.place = place;
        self.session.shared().set_place(place);
    }

    /// Tells the coordinator why this worker cannot go on, saves what it holds if it is told to, and waits
    /// until the run has ended.
    pub fn give_up(&mut self, error: &TrainError) {
        // The peers are let go.
        self.formation = None;
        self.stand(Place { in_ring: false, ..self.place });
        self.duties.clear();
        self.session.reports().send(FromWorker::Fault { reason: error.to_string() });
        let until = Instant::now() + LAST_WORDS;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match self.session.next_order_within(left) {
                Ok(Some(ToWorker::Checkpoint { duty, at, best, top1 })) => {
                    self.duties.push_back(Duty { id: duty, at, best, top1 });
                    if let Err(error) = self.do_duties() {
                        let reason = error.to_string();
                        self.session.reports().send(FromWorker::CheckpointFailed { duty, reason });
                    }
                }
                Ok(Some(ToWorker::Finish { .. })) | Ok(None) | Err(_) => return,
                Ok(Some(_)) => {}
            }
        }
    }

    /// Gives the ring up and reports what is held, and which rank is to blame if one is.
    fn leave(&mut self, reason: &str, blamed: Option<Rank>) {
        self.formation = None;
        self.stand(Place { in_ring: false, ..self.place });
        let steps = self.recent.iter().cloned().collect();
        let (generation, held, reason) = (self.generation, self.held, reason.to_string());
        tracing::debug!("left generation {generation} ({reason}), holding {held:?}");
        self.session.reports().send(FromWorker::Held { generation, held, steps, reason, blamed });
    }

    fn steps_per_epoch(&self) -> u64 {
        shards::steps_per_epoch(self.inputs.train.len() as u64, self.setup.config.optim.batch_size)
    }
}
