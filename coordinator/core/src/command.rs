//! What the driver is to do.

use std::ops::Range;
use std::time::Duration;

use crate::history::Fact;
use crate::{DutyId, Generation, Position, Rank, Rejection, StepReport, Token, WorkerId, Written};

/// One thing to be done. The driver carries commands out in their order.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Seat the worker: its stream is accepted.
    Welcome { worker: WorkerId, rank: Rank, world: u32 },
    /// Refuse the worker: its stream ends with the reason.
    Reject { worker: WorkerId, rejection: Rejection },
    /// Say this to a worker.
    Send { worker: WorkerId, message: ToWorker },
    /// Close a seated worker's stream; the core has already forgotten it. With `back` it may come again.
    Expel { worker: WorkerId, reason: String, back: bool },
    /// Append to the journal and sync, before the commands after this one.
    Persist(Fact),
    /// Show to people and metrics.
    Observe(Observation),
    /// The run is over.
    End(Outcome),
    /// Exit without ending the run: its workers train on and look for the coordinator that is started next.
    HandOver,
}

/// What a worker is told.
#[derive(Debug, Clone, PartialEq)]
pub enum ToWorker {
    /// Build the ring of a new generation and take the source's state.
    Form(Formation),
    /// The id by which the ranks of `generation` find each other with NCCL, as rank 0 has made it.
    NcclId { generation: Generation, id: Vec<u8> },
    /// Train `epoch` from `first_step` to its end.
    Train { generation: Generation, epoch: u32, first_step: u64 },
    /// Evaluate samples `range` of the validation set.
    Validate { generation: Generation, epoch: u32, range: Range<u64> },
    /// Write a checkpoint at the first step boundary at or after `at`. A boundary at the end of an epoch
    /// is written as the beginning of the next. With `best`, keep it under the name of the best as well.
    Checkpoint { duty: DutyId, at: Position, best: bool, top1: Option<f64> },
    /// Remove these files from the run's `checkpoints` folder.
    Remove { files: Vec<String> },
    /// The generation is over: give up its collectives and say what is held.
    Dissolve { generation: Generation, reason: String },
    /// The generation is to end with the next step that all ranks take together: no work of any is lost.
    Drain { generation: Generation, reason: String },
    /// Nothing is lost without this worker any more: exit.
    Release { reason: String },
    /// The run is over: exit.
    Finish { outcome: Outcome },
}

/// All that a rank needs to take part in a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Formation {
    pub generation: Generation,
    /// Its rank in this generation, in `0..world`: the seats that are taken, in their order.
    pub rank: Rank,
    pub world: u32,
    /// `host:port` of the previous and the next rank's end of the ring; its own in a world of one.
    pub previous: String,
    pub next: String,
    pub token: Token,
    /// Whether the ranks sum with NCCL, by an id that rank 0 makes and [`ToWorker::NcclId`] brings to the others, and
    /// not by the ring.
    pub nccl: bool,
    /// The part of every global batch that this rank consumes; see [`crate::shards`].
    pub shard: Range<u32>,
    /// The rank that every other takes its state from.
    pub source: Rank,
    /// Whether the state has to go round; not where every rank is known to hold it.
    pub transfer: bool,
    /// The checkpoint that the source loads first; none if it holds the state or the run starts afresh.
    pub restore: Option<Restore>,
    /// Where training goes on.
    pub position: Position,
}

/// A checkpoint to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    pub file: String,
    pub blake3: String,
}

/// What happened, for people and metrics. Never an input to a decision.
#[derive(Debug, Clone, PartialEq)]
pub enum Observation {
    /// A sentence about a decision and its reason.
    Note(String),
    /// A sentence about something that went wrong and was dealt with.
    Warning(String),
    /// The numbers of steps and of images are known.
    Planned {
        steps_per_epoch: u64,
        dataset: crate::Dataset,
    },
    /// Training starts or goes on here. What was shown at or after it will be done again.
    Started {
        position: Position,
    },
    Step(StepReport),
    /// Validation has come to `done` of `samples`.
    Validating {
        epoch: u32,
        done: u64,
        samples: u64,
    },
    Epoch(EpochSummary),
    /// What a run that only evaluates found: the mean cross entropy, and shares in [0, 1].
    Tested {
        samples: u64,
        val_loss: f64,
        top1: f64,
        top5: f64,
    },
    Checkpoint(Written),
}

/// An epoch with its validation.
#[derive(Debug, Clone, PartialEq)]
pub struct EpochSummary {
    pub epoch: u32,
    /// Mean training loss of the epoch.
    pub train_loss: f64,
    /// Samples left out of it as unreadable, as far as this coordinator has seen.
    pub skipped: u64,
    /// Mean cross entropy on the validation set, and shares of right answers in [0, 1].
    pub val_loss: f64,
    pub top1: f64,
    pub top5: f64,
    /// The best top-1 so far, this epoch included, and its epoch.
    pub best_top1: f64,
    pub best_epoch: u32,
    /// Since the epoch's first step, on this coordinator.
    pub duration: Duration,
}

/// How a run ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are done and saved; or the weights were evaluated, where nothing else was wanted.
    Done,
    /// It was asked to stop; `saved` says where it can be resumed, if anywhere.
    Interrupted { reason: String, saved: Option<Position> },
    /// It cannot go on.
    Failed { reason: String },
}
