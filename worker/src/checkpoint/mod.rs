//! The state of a training run in one `.safetensors` file: copied aside while training computes its next gradients,
//! written by any thread afterwards, verified before it is trusted.
//!
//! A file `NAME.safetensors` holds parameters and buffers under torchvision's names, the optimizer's state
//! under `optimizer.<what PyTorch calls it>.<parameter>`, and where the run stood in the header's metadata.
//! Where a run keeps a moving average of the weights, the plain names hold the average, as it is what was
//! validated and what is to be used, and `optimizer.trained.<name>` the weights to be trained further.
//! Any reader of safetensors can open it. Two checksums guard it: `NAME.b3` beside it holds the BLAKE3
//! hash of the whole file as `b3sum` prints it, and the header holds one of everything else in the file,
//! so that a file that has lost its neighbour still cannot pass damaged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use relabel_store::StoreError;
use tch::Tensor;

use crate::model::{Model, ModelError, StateDict};
use crate::optim::{Ema, Optimizer};
use crate::torch::TorchError;
use crate::train::loss_scale::LossScale;

mod copying;
mod read;
pub mod safetensors_file;
pub(crate) mod temporary;
#[cfg(test)]
mod tests;
mod upload;
mod write;

pub use copying::Copying;
pub(crate) use read::{is_ours, parse};
pub use read::{load, load_verified, verify};
pub use upload::Remote;
pub use write::{Written, keep_as, write};

/// Where a run stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The epoch in progress, from 0.
    pub epoch: u32,
    /// Steps of that epoch that the weights have taken.
    pub step: u64,
    /// The run's seed, of which sample order and augmentation are functions.
    pub seed: i64,
}

/// Everything that training needs to go on as if nothing had happened, on the CPU, owned.
#[derive(Debug)]
pub struct State {
    pub progress: Progress,
    /// Name of the architecture, as the options have it.
    pub arch: String,
    /// Whatever else the run wants to find again, by name.
    pub metadata: BTreeMap<String, String>,
    /// Parameters and buffers by torchvision's names: those that are trained.
    pub model: StateDict,
    /// Their moving average, if one is kept.
    pub ema: Option<StateDict>,
    /// Name of the optimizer, as the options have it.
    pub optimizer_name: String,
    /// As [`Optimizer::state`] has it.
    pub optimizer: StateDict,
    /// In fp16, what the loss is scaled by.
    pub loss_scale: Option<LossScale>,
}

/// Why a checkpoint was not written or not taken.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("cannot {operation} {}: {source} (the checkpoint needs {needed} bytes; free some space or choose another folder)", path.display())]
    Write {
        operation: &'static str,
        path: PathBuf,
        needed: u64,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is damaged: {reason}; use an older checkpoint", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("{} is not a checkpoint of this program: {reason}", path.display())]
    Foreign { path: PathBuf, reason: String },
    #[error(
        "the checkpoint is of {found}, but the run trains {wanted}; set model.arch to {found} or start afresh"
    )]
    OtherArch { found: String, wanted: String },
    #[error(
        "the checkpoint was trained with {found}, but the run trains with {wanted}; set optim.optimizer to {found} or \
         start afresh"
    )]
    OtherOptimizer { found: String, wanted: &'static str },
    #[error("cannot copy the state aside: {0}")]
    Snapshot(#[source] TorchError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot prepare for the object store: {0}")]
    Runtime(#[source] std::io::Error),
    #[error("cannot restore the checkpoint: {0}")]
    Restore(#[source] ModelError),
}

impl CheckpointError {
    /// Whether another copy of the file would do: this one is damaged, or not there.
    pub fn may_be_elsewhere(&self) -> bool {
        match self {
            Self::Read { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            error => error.is_of_the_file(),
        }
    }

    /// Whether this one file is at fault, so that another checkpoint of the run may do: it is damaged, or
    /// gone from a folder that is there.
    pub fn is_of_the_file(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Store(error) => error.is_of_the_object(),
            Self::Read { path, source } => {
                source.kind() == std::io::ErrorKind::NotFound && path.parent().is_some_and(Path::is_dir)
            }
            _ => false,
        }
    }
}

impl State {
    /// The state as it stands, in the tensors that training goes on with: to be [copied](Self::copied) before it does.
    pub fn of(
        model: &Model,
        optimizer: &Optimizer,
        ema: Option<&Ema>,
        progress: Progress,
        metadata: BTreeMap<String, String>,
    ) -> Self {
        Self {
            progress,
            arch: model.arch().to_owned(),
            metadata,
            model: model.state_dict(),
            ema: ema.map(|ema| ema.model().state_dict()),
            optimizer_name: optimizer.name().to_owned(),
            optimizer: optimizer.state(),
            loss_scale: None,
        }
    }

    /// Every tensor, in an order that is the same for all states of one run.
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = &mut (String, Tensor)> {
        self.model.iter_mut().chain(self.ema.iter_mut().flatten()).chain(self.optimizer.iter_mut())
    }

    /// Puts weights, buffers and optimizer state back into a model and an optimizer of the same kind. An `ema`
    /// of which the state knows nothing begins anew with the weights.
    ///
    /// # Errors
    /// Another architecture or optimizer, or names or shapes that differ: nothing is to be trained with what is
    /// left.
    pub fn restore(
        &self,
        model: &mut Model,
        optimizer: &mut Optimizer,
        ema: Option<&mut Ema>,
    ) -> Result<(), CheckpointError> {
        if self.arch != model.arch() {
            return Err(CheckpointError::OtherArch {
                found: self.arch.clone(),
                wanted: model.arch().to_owned(),
            });
        }
        if self.optimizer_name != optimizer.name() {
            let (found, wanted) = (self.optimizer_name.clone(), optimizer.name());
            return Err(CheckpointError::OtherOptimizer { found, wanted });
        }
        model.load_state_dict(&self.model).map_err(CheckpointError::Restore)?;
        optimizer.load_state(&self.optimizer).map_err(CheckpointError::Restore)?;
        let averaged = match (ema, &self.ema) {
            (Some(ema), Some(average)) => ema.model_mut().load_state_dict(average),
            (Some(ema), None) => ema.begin_with(model),
            (None, _) => Ok(()),
        };
        averaged.map_err(CheckpointError::Restore)
    }
}
