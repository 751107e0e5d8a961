//! The numbers that the core's decisions depend on, taken from the configuration once.

use std::time::Duration;

/// Constant for the life of a coordinator.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Name of the run: a worker that comes back from another is refused.
    pub run_id: String,
    /// Most ranks of a generation, at least 1.
    pub workers: u32,
    /// Fewest ranks that go on training, in `1..=workers`.
    pub min_workers: u32,
    /// Seats beyond `workers`, for workers that stand by.
    pub spares: u32,
    pub epochs: u32,
    /// The epoch that a run without history begins with.
    pub start_epoch: u32,
    /// Evaluate the weights that the workers were given, once, and train nothing.
    pub test_only: bool,
    /// Samples in one optimizer step, all workers together; at least 1.
    pub global_batch: u32,
    /// Steps between checkpoints within an epoch; 0 for none.
    pub checkpoint_every_steps: u64,
    /// Epochs between checkpoints; 0 for none but the last and the best.
    pub checkpoint_every_epochs: u32,
    /// Time between checkpoints within training, in addition.
    pub checkpoint_every: Option<Duration>,
    /// Newest checkpoints that are kept, at least 1.
    pub keep_checkpoints: usize,
    /// Silence after which a worker counts as lost.
    pub dead_after: Duration,
    /// How long to wait for missing workers before the run fails.
    pub wait_for_workers: Duration,
    /// How long a beginning waits for all `workers` where `min_workers` are there.
    pub gather_for: Duration,
    /// Least time between a generation's beginning and its end for the sake of newcomers.
    pub admit_after: Duration,
    /// How long a restarted coordinator waits for a generation that trained on without it.
    pub reunite_for: Duration,
    pub stragglers: StragglerPolicy,
    /// How long a stop waits for its checkpoint before it ends without.
    pub stop_deadline: Duration,
    /// Key of the generations' tokens; random for every start of a coordinator.
    pub secret: [u8; 32],
}

/// When a rank counts as slow, and what is done about it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StragglerPolicy {
    /// How many times the median rank's own time of a step makes a rank slow, above 1.
    pub factor: f64,
    pub action: StragglerAction,
}

/// What is done about a slow rank, beside naming it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StragglerAction {
    Report,
    /// Go on without it, where enough workers remain.
    Drop,
    /// Change it for a worker that stands by, where there is one.
    Replace,
}
