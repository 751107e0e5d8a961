//! The numbers that the core's decisions depend on, taken from the configuration once.

use std::time::Duration;

/// Constant for the life of a coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// World size, at least 1.
    pub workers: u32,
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
    /// Newest checkpoints that are kept, at least 1.
    pub keep_checkpoints: usize,
    /// Silence after which a worker counts as lost.
    pub dead_after: Duration,
    /// How long to wait for missing workers before the run fails.
    pub wait_for_workers: Duration,
    /// How long a stop waits for its checkpoint before it ends without.
    pub stop_deadline: Duration,
    /// Key of the generations' tokens; random for every start of a coordinator.
    pub secret: [u8; 32],
}
