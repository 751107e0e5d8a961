//! What `coordinator status` shows.

use std::time::Duration;

use crate::decision::Decision;
use crate::straggler::StepTimes;
use crate::{Position, Rank, Written};

/// A run at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// The phase in one word, and why it is in it, in a sentence.
    pub phase: String,
    pub reason: String,
    /// The newest decisions about who trains and from where, oldest first.
    pub decisions: Vec<Decision>,
    pub generation: u64,
    /// Lives of the coordinator, this one included.
    pub lives: u32,
    /// The next step, if training has begun.
    pub position: Option<Position>,
    pub steps_per_epoch: Option<u64>,
    pub epochs: u32,
    /// Most and fewest ranks of a generation, and how many the current one has.
    pub world: u32,
    pub min_workers: u32,
    pub training: u32,
    /// Loss of the last step.
    pub loss: Option<f64>,
    pub best_top1: Option<f64>,
    /// The checkpoint that a resume would start from.
    pub checkpoint: Option<String>,
    /// Those that can be resumed from, oldest first.
    pub checkpoints: Vec<Written>,
    /// Seated workers, and those of them that were asked for, by rank.
    pub seated: u32,
    pub workers: Vec<WorkerStatus>,
}

/// A seated worker at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerStatus {
    pub rank: Rank,
    pub host: String,
    pub pid: u32,
    pub device: String,
    /// Since it last said anything.
    pub silent: Duration,
    pub position: Option<Position>,
    pub state: WorkerState,
    /// Where its time goes, once it has trained.
    pub pace: Option<StepTimes>,
    /// Whether it holds the others up.
    pub slow: bool,
}

/// What a worker is doing, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerState {
    /// It reads the names of its images.
    Indexing,
    /// It waits to be let into a generation, or stands by.
    Waiting,
    /// It is a rank of the current generation.
    InRing,
    /// It is to go.
    Leaving,
}
