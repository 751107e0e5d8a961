//! What can happen to a run.

use std::time::Duration;

use crate::{DutyId, Generation, Position, Rank, WorkerId};

/// One thing that happened, as the driver saw it.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A worker opened a stream and said who it is.
    Joined { worker: WorkerId, hello: Hello },
    /// A worker said something on its stream. Anything said also counts as a heartbeat.
    Said { worker: WorkerId, message: FromWorker },
    /// A worker's stream ended.
    Left { worker: WorkerId, reason: String },
    /// Somebody asked for the run to end: a checkpoint is written first.
    Stop { reason: String },
    /// Somebody asked for a checkpoint; training goes on.
    Save { reason: String },
    /// This coordinator has to go and the run need not: another is started in its place.
    HandOver { reason: String },
    /// Something outside the core went wrong for good, such as a journal that cannot be written.
    Broken { reason: String },
    /// Time has passed.
    Tick,
}

/// How a worker introduces itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The seat it wants; none takes the first free one.
    pub rank: Option<Rank>,
    /// Name of its host and its process id there, for people.
    pub host: String,
    pub pid: u32,
    /// Its device, such as `cpu` or `cuda:0`, for people.
    pub device: String,
    /// The version of NCCL that it can use, as NCCL counts (23003 is 2.30.3).
    pub nccl: Option<u32>,
    /// `host:port` where its peers reach its end of the ring.
    pub ring_address: String,
    /// Drawn by the process at its start: two streams of one instance are one worker that has come back.
    pub instance: u64,
    /// Where it stands, if it has been in this run before and lost its coordinator.
    pub standing: Option<Standing>,
}

/// What a worker that comes back was doing when it was last in touch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub run_id: String,
    /// The last generation that it was in, its rank there, and how many they were.
    pub generation: Generation,
    pub rank: Rank,
    pub world: u32,
    /// Whether its ring still stands.
    pub in_ring: bool,
    /// Where the state is that it holds, if it holds one that is whole.
    pub held: Option<Position>,
}

/// What a worker says once it is seated.
#[derive(Debug, Clone, PartialEq)]
pub enum FromWorker {
    /// Nothing but that it is alive.
    Heartbeat,
    /// It has indexed its data.
    Indexed(Dataset),
    /// The id by which the ranks of a generation find each other with NCCL, made by rank 0: for the others, as it is.
    NcclId { generation: Generation, id: Vec<u8> },
    /// Its ring stands and its state is that of the formation's source. `held` is where that state is,
    /// `epoch_loss` the mean training loss of the steps of its epoch so far, if there are any.
    Ready { generation: Generation, held: Position, epoch_loss: Option<f64> },
    /// It could not load the checkpoint that the formation named.
    RestoreFailed { generation: Generation, file: String, reason: String },
    /// It has done all steps before `position`. `steps` are those since its last report, oldest first; `pace` is how
    /// its own time went by since then.
    Progress { generation: Generation, position: Position, steps: Vec<StepReport>, pace: Pace },
    /// Its collective failed or it was told to leave: it is out of the ring, holding `held` if it has
    /// trained at all. `steps` are its newest reports, some of which may have been reported before; `blamed` is
    /// the rank that it could not reach or lost, if one was to blame.
    Held {
        generation: Generation,
        held: Option<Position>,
        steps: Vec<StepReport>,
        reason: String,
        blamed: Option<Rank>,
    },
    /// It has evaluated `done` samples of its part of the validation set.
    Validating { generation: Generation, done: u64 },
    /// It has evaluated its part of the validation set.
    Validated { generation: Generation, part: crate::validation::Part },
    /// A checkpoint is on the disk, synced and under its final name.
    CheckpointWritten { duty: DutyId, written: Written },
    /// A checkpoint could not be written.
    CheckpointFailed { duty: DutyId, reason: String },
    /// It cannot go on and neither can the run: bad data, a non-finite loss, a bug.
    Fault { reason: String },
    /// It has to go, the run need not: its host is wanted for something else.
    Leaving { reason: String },
}

/// What a worker sees of the data set. Two workers must see the same.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Dataset {
    /// Number of training images and a hash over their class and file names, in order.
    pub train_samples: u64,
    pub train_fingerprint: String,
    /// The same of the validation images.
    pub val_samples: u64,
    pub val_fingerprint: String,
    pub classes: u32,
}

/// One optimizer step as all ranks saw it: the numbers are of the global batch.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The step that was done.
    pub position: Position,
    /// Mean loss of the global batch, before the update; not finite where the update was left out for that.
    pub loss: f64,
    /// Learning rate of the update.
    pub learning_rate: f64,
    /// Samples that counted, and samples left out as unreadable.
    pub samples: u64,
    pub skipped: u64,
    /// Wall time of the step on the reporting rank, and the part of it spent waiting for data.
    pub duration: Duration,
    pub data_wait: Duration,
    /// Sum of the losses and number of samples since the epoch began.
    pub epoch_loss_sum: f64,
    pub epoch_samples: u64,
    /// What the loss of the next step is scaled by, in fp16. Smaller than the step before's where the gradient
    /// overflowed and the update was left out for that.
    pub loss_scale: Option<f64>,
}

/// Where a rank's time went over some steps, in sums. What it did itself and what it waited for are apart: the
/// ranks of a ring take their steps together, so only the former tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pace {
    pub steps: u32,
    /// Forward, backward, update and what lies between, without the waits below.
    pub compute: Duration,
    /// Waiting for its own loader.
    pub data: Duration,
    /// Waiting for its peers, and for the wire.
    pub peers: Duration,
}

/// A checkpoint as its writer reports it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Written {
    /// File name under the run's `checkpoints` folder.
    pub file: String,
    pub bytes: u64,
    /// blake3 of the whole file, in hexadecimal.
    pub blake3: String,
    /// Where training goes on after loading it.
    pub position: Position,
}
