//! The run as people and their tools see it: one value, [`View`], of what is now, and a stream of what happens,
//! [`News`]. The dashboard, `/metrics`, `coordinator status`, `metrics.jsonl`, the TensorBoard files and the progress
//! on the terminal all show these, so that a number is worked out in one place.
//!
//! ```text
//!   core ── Observation ─▶ Tally ── News ─▶ metrics.jsonl, curves.svg, TensorBoard, progress, events, traces
//!                            │
//!   core ── Status ──────▶ View ──────────▶ /metrics, /api/view, coordinator status
//! ```
//!
//! `tally` adds up what the core observes, `board` is where the readers find it. What the core does not say
//! stays none and is not shown.

mod board;
mod histogram;
mod tally;
#[cfg(test)]
mod tests;

use std::time::Duration;

use relabel_core::{Dataset, Position, Status, StepTimes, WorkerStatus};
use serde::{Deserialize, Serialize};

pub use board::{Board, words};
pub use histogram::{BOUNDS, Histogram};
pub use tally::{News, StepDone, Tally};

use crate::metrics::number;

/// A run at one moment. As JSON it is what `GET /api/view` and `coordinator status --json` give. Times are Unix
/// times and lengths of time are seconds; accuracies are shares in [0, 1].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct View {
    pub run_id: String,
    /// The run's folder on the coordinator's host.
    pub run_dir: String,
    /// Of the coordinator.
    pub version: String,
    pub arch: String,
    /// reuniting, gathering, forming, training, validating, saving or ended.
    pub phase: String,
    /// Why it is in its phase, in a sentence.
    pub reason: String,
    /// 0 before the first.
    pub generation: u64,
    /// The next step, once training has begun.
    pub position: Option<Position>,
    pub steps_per_epoch: Option<u64>,
    /// Of the whole run.
    pub epochs: u32,
    /// Images in one step, all workers together.
    pub batch_size: u32,
    pub dataset: Option<Dataset>,
    /// Seats.
    pub world: u32,
    /// Seats that are taken.
    pub seated: u32,
    /// The fewest workers that train together.
    pub min_workers: Option<u32>,
    /// Ranks of the current generation.
    pub training: Option<u32>,
    /// Mean loss of the last global batch, nats.
    pub loss: Option<f64>,
    pub learning_rate: Option<f64>,
    /// In fp16, what the loss of the next step is scaled by.
    pub loss_scale: Option<f64>,
    /// All workers together, over the newest steps.
    pub images_per_second: Option<f64>,
    /// Mean length of the newest steps on the rank that reports them.
    pub step_seconds: Option<f64>,
    /// The part of it that the rank waited for images.
    pub data_wait_seconds: Option<f64>,
    /// Images that the validation under way has come to, and those it is of.
    pub validating: Option<(u64, u64)>,
    /// The newest epoch that was validated.
    pub last_epoch: Option<EpochView>,
    pub best_top1: Option<f64>,
    /// From 0.
    pub best_epoch: Option<u32>,
    /// Until the last epoch is validated, at the present speed.
    pub eta_seconds: Option<f64>,
    /// When this coordinator began.
    pub started: f64,
    /// When this was true.
    pub time: f64,
    /// Coordinators that the run has had, this one among them.
    pub lives: Option<u32>,
    /// The checkpoint that a resume would start from.
    pub checkpoint: Option<String>,
    /// Oldest first.
    pub checkpoints: Vec<CheckpointView>,
    /// What was decided and why, oldest first; the newest few hundred.
    pub decisions: Vec<DecisionView>,
    /// By rank. A stream of events has only those of a large run who stand out.
    pub workers: Vec<WorkerView>,
    /// Mean losses between the newest points of `metrics.jsonl`, oldest first.
    pub recent_losses: Vec<f64>,
    pub totals: Totals,
}

/// An epoch and its validation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EpochView {
    /// From 0.
    pub epoch: u32,
    #[serde(deserialize_with = "number")]
    pub train_loss: f64,
    #[serde(deserialize_with = "number")]
    pub val_loss: f64,
    pub top1: f64,
    pub top5: f64,
    pub seconds: f64,
}

/// A checkpoint that can be resumed from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointView {
    /// Under the run's `checkpoints` folder.
    pub file: String,
    /// Where training goes on after loading it.
    pub position: Position,
    pub bytes: u64,
    /// When it was committed, if this coordinator saw it.
    pub time: Option<f64>,
}

/// Something that was decided, or went wrong and was dealt with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DecisionView {
    pub time: f64,
    /// A sentence, with the reason.
    pub words: String,
    /// Whether something had gone wrong.
    pub warning: bool,
}

/// A seated worker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerView {
    pub rank: u32,
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// indexing, waiting, training or leaving.
    pub state: String,
    /// Since it last said anything.
    pub silent_seconds: f64,
    /// The next step of the state that it holds.
    pub position: Option<Position>,
    /// Mean length of its newest steps, and the parts of it.
    pub step_seconds: Option<f64>,
    pub compute_seconds: Option<f64>,
    pub data_wait_seconds: Option<f64>,
    pub peer_wait_seconds: Option<f64>,
    /// The part of all workers' time that is lost to waiting for this one, 0 to 1.
    pub lost_share: Option<f64>,
    /// Whether the coordinator counts it as a straggler.
    pub slow: Option<bool>,
    /// That the process takes on its device.
    pub memory_bytes: Option<u64>,
}

/// What this coordinator has seen since it began.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    pub steps: u64,
    /// That counted in a step.
    pub images: u64,
    /// Left out as unreadable.
    pub skipped: u64,
    pub epochs: u64,
    pub checkpoints: u64,
    pub warnings: u64,
    /// Lengths of the steps on the rank that reports them.
    pub step_seconds: Histogram,
    /// Of it, waited for images.
    pub data_wait_seconds: f64,
}

/// What does not change while a coordinator lives.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct About {
    pub run_id: String,
    pub run_dir: String,
    pub arch: String,
    pub batch_size: u32,
    pub started: f64,
}

impl View {
    /// The run as `status` and `tally` have it at `time`.
    pub fn new(about: &About, status: &Status, tally: &Tally, time: f64) -> Self {
        let recent = tally.recent();
        let checkpoints = status.checkpoints.iter().map(|written| CheckpointView {
            file: written.file.clone(),
            position: written.position,
            bytes: written.bytes,
            time: tally.committed(&written.file),
        });
        Self {
            run_id: about.run_id.clone(),
            run_dir: about.run_dir.clone(),
            version: relabel_proto::VERSION.into(),
            arch: about.arch.clone(),
            phase: status.phase.clone(),
            reason: status.reason.clone(),
            generation: status.generation,
            position: status.position,
            steps_per_epoch: status.steps_per_epoch,
            epochs: status.epochs,
            batch_size: about.batch_size,
            dataset: tally.dataset().cloned(),
            world: status.world,
            seated: status.seated,
            min_workers: Some(status.min_workers),
            training: Some(status.training),
            loss: status.loss,
            learning_rate: tally.learning_rate(),
            loss_scale: tally.loss_scale(),
            images_per_second: recent.map(|recent| recent.images_per_second),
            step_seconds: recent.map(|recent| recent.step_seconds),
            data_wait_seconds: recent.map(|recent| recent.data_wait_seconds),
            validating: tally.validating(),
            last_epoch: tally.last_epoch().cloned(),
            best_top1: status.best_top1,
            best_epoch: tally.best_epoch(),
            eta_seconds: tally.left(),
            started: about.started,
            time,
            lives: Some(status.lives),
            checkpoint: status.checkpoint.clone(),
            checkpoints: checkpoints.collect(),
            decisions: tally.decisions().cloned().collect(),
            workers: status.workers.iter().map(WorkerView::from).collect(),
            recent_losses: tally.recent_losses(),
            totals: tally.totals().clone(),
        }
    }
}

impl From<&WorkerStatus> for WorkerView {
    fn from(worker: &WorkerStatus) -> Self {
        let pace = worker.pace.as_ref();
        let seconds = |of: fn(&StepTimes) -> Duration| pace.map(|pace| of(pace).as_secs_f64());
        Self {
            rank: worker.rank.0,
            host: worker.host.clone(),
            pid: worker.pid,
            device: worker.device.clone(),
            state: relabel_proto::state_word(worker.state).into(),
            silent_seconds: worker.silent.as_secs_f64(),
            position: worker.position,
            step_seconds: seconds(StepTimes::step),
            compute_seconds: seconds(|pace| pace.compute),
            data_wait_seconds: seconds(|pace| pace.data),
            peer_wait_seconds: seconds(|pace| pace.peers),
            lost_share: pace.map(|pace| pace.lost),
            slow: Some(worker.slow),
            memory_bytes: None,
        }
    }
}

impl From<relabel_proto::v1::Worker> for WorkerView {
    /// A worker as another coordinator told of it.
    fn from(worker: relabel_proto::v1::Worker) -> Self {
        let pace = worker.pace;
        Self {
            rank: worker.rank,
            host: worker.host,
            pid: worker.pid,
            device: worker.device,
            state: worker.state,
            silent_seconds: worker.silent,
            position: worker.position.map(Position::from),
            step_seconds: pace.map(|pace| pace.compute + pace.data + pace.peers),
            compute_seconds: pace.map(|pace| pace.compute),
            data_wait_seconds: pace.map(|pace| pace.data),
            peer_wait_seconds: pace.map(|pace| pace.peers),
            lost_share: pace.map(|pace| pace.lost),
            slow: Some(worker.slow),
            memory_bytes: None,
        }
    }
}

/// At most `most` of the workers: all of a small run; of a large one those that are slow, those that are not training, and
/// those that have been silent for longest, in the order of their ranks.
pub fn standing_out(workers: &[WorkerView], most: usize) -> Vec<&WorkerView> {
    let mut named: Vec<_> = workers.iter().collect();
    if named.len() > most {
        named.sort_by(|a, b| {
            let key = |w: &WorkerView| (w.slow == Some(true), w.state != "training", w.silent_seconds);
            key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal)
        });
        named.truncate(most);
        named.sort_by_key(|w| w.rank);
    }
    named
}

/// Unix time now, seconds.
pub fn unix_time() -> f64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
