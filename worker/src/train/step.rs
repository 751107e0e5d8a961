//! What is asked of an optimizer step, what it found, and why it could not be done.

use std::time::Duration;

use relabel_core::Position;

use crate::collective::CollectiveError;
use crate::torch::TorchError;

/// Why a step could not be done. The state is that before the step.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error(transparent)]
    Torch(#[from] TorchError),
    #[error(
        "no memory for {images} images of {size} x {size} pixels at a time ({source}): {}", with_less(*images)
    )]
    Memory { images: usize, size: u32, source: TorchError },
    #[error(
        "the loss is {loss} at {position}: lower optim.lr.init or lengthen optim.warmup.epochs, then carry on from the \
         newest checkpoint with --resume (samples of this rank's slice: {samples:?})"
    )]
    NotFinite { loss: f64, position: Position, samples: Vec<u32> },
    #[error(
        "at {position} this rank scales its loss by {own}, and the mean over the ranks is {mean}: some train in another \
         precision; set compute.precision to one that all of them can do"
    )]
    Scales { position: Position, own: f32, mean: f32 },
    #[error(
        "at {position} the gradient is not finite in fp16, however small the loss is scaled (down to {scale:.1e}): lower \
         optim.lr.init, or set compute.precision bf16, then carry on from the newest checkpoint with --resume"
    )]
    Overflow { position: Position, scale: f32 },
    #[error(
        "at {position} libtorch added twice to the gradient of {parameter} in one backward pass: other ranks may have been \
         sent what it was before"
    )]
    Again { position: Position, parameter: String },
}

/// How to train with less memory than `images` at a time take.
fn with_less(images: usize) -> &'static str {
    match images {
        1 => "lower data.image_size, or choose a smaller model.arch",
        _ => {
            "set compute.micro_batch to fewer, or have each worker find out how many fit with --auto-batch; the batch of a \
             step stays as large as it is"
        }
    }
}

/// What a step found; the same numbers on every rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stepped {
    /// Sum of the losses over the global batch.
    pub loss_sum: f64,
    /// Samples that counted.
    pub samples: u64,
    /// Samples left out as unreadable.
    pub skipped: u64,
    pub learning_rate: f64,
    /// Some rank wants the generation to end after this step; all ranks learn of it together.
    pub leaving: bool,
    pub update: Update,
    /// In fp16, what the loss of the next step is scaled by.
    pub loss_scale: Option<f32>,
    /// How long this rank waited for the others and the wire, with nothing left to compute.
    pub waited: Duration,
}

/// What became of a step's update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    Done,
    /// Left out, as is wanted where the loss is no number.
    NoLoss,
    /// Left out, as the gradient of the scaled loss overflowed in fp16.
    Overflow,
}

/// What is asked of a step, beside its batch.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    pub position: Position,
    /// Samples that were dealt to all ranks together.
    pub planned: u64,
    /// This rank wants the generation to end after the step.
    pub leave: bool,
    /// A loss that is no number leaves the update out, and is no error.
    pub may_skip: bool,
}
