//! What `coordinator status` shows.

use std::time::Duration;

use crate::{Position, Rank};

/// A run at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// The phase in one word, and why it is in it, in a sentence.
    pub phase: String,
    pub reason: String,
    pub generation: u64,
    /// The next step, if training has begun.
    pub position: Option<Position>,
    pub steps_per_epoch: Option<u64>,
    pub epochs: u32,
    pub world: u32,
    /// Loss of the last step.
    pub loss: Option<f64>,
    pub best_top1: Option<f64>,
    /// The checkpoint that a resume would start from.
    pub checkpoint: Option<String>,
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
}
