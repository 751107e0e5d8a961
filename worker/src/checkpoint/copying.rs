//! Copies a state aside. Weights, averages and the optimizer's state stay as they are until the next update, so that
//! another thread copies them while training computes the gradients for it; the rest, which the forward pass moves, is
//! little and copied first.

use std::io;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tch::{Device, Tensor};

use super::{CheckpointError, State};
use crate::model::StateDict;
use crate::torch::TorchError;

/// A copy that is being made. Until [`Copying::wait`] has returned, nothing may change the weights, their averages or
/// the optimizer's state.
#[derive(Debug)]
#[must_use]
pub struct Copying(pub(crate) mpsc::Receiver<()>);

impl Copying {
    /// Waits for the end of it, and says how long that took.
    pub fn wait(self) -> Duration {
        let began = Instant::now();
        // It ends by the other side's being dropped, whatever became of the copy.
        let _ = self.0.recv();
        began.elapsed()
    }
}

impl State {
    /// Copies all tensors aside, at memory speed; training may go on as soon as this returns.
    ///
    /// A `spare` state of the same run gives its memory, which is written over: a copy into new memory takes ten times
    /// as long.
    ///
    /// # Errors
    /// No memory left, or a spare state of other shapes.
    pub fn copied(mut self, spare: Option<Self>) -> Result<Self, CheckpointError> {
        let mut spare = spare.map_or_else(|| self.room(), Ok)?;
        for ((_, tensor), (_, room)) in self.tensors_mut().zip(spare.tensors_mut()) {
            room.f_copy_(&tensor.detach()).map_err(not_copied)?;
            *tensor = room.shallow_clone();
        }
        Ok(self)
    }

    /// Has a thread of its own do that and call `then` with what came of it, and returns as soon as all is copied that
    /// a forward pass changes.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn copied_behind(
        mut self,
        spare: Option<Self>,
        then: impl FnOnce(Result<Self, CheckpointError>) + Send + 'static,
    ) -> io::Result<Copying> {
        for (_, buffer) in self.model.iter_mut().filter(|(_, tensor)| !tensor.requires_grad()) {
            *buffer = buffer.copy();
        }
        let (end, ended) = mpsc::channel();
        std::thread::Builder::new().name("copier".into()).spawn(move || {
            let copied = self.copied(spare);
            drop::<mpsc::Sender<()>>(end);
            then(copied);
        })?;
        Ok(Copying(ended))
    }

    /// The same with zeros in all tensors, on the CPU and in the same memory formats: reordering is left to whoever
    /// writes a file.
    ///
    /// # Errors
    /// No memory left.
    pub fn room(&self) -> Result<Self, CheckpointError> {
        let zeros = |(name, tensor): &(String, Tensor)| {
            let zeros = Tensor::f_empty_strided(tensor.size(), tensor.stride(), (tensor.kind(), Device::Cpu));
            zeros.and_then(|mut zeros| zeros.f_zero_()).map(|zeros| (name.clone(), zeros)).map_err(not_copied)
        };
        let all = |tensors: &StateDict| tensors.iter().map(zeros).collect::<Result<StateDict, _>>();
        Ok(Self {
            progress: self.progress,
            arch: self.arch.clone(),
            metadata: self.metadata.clone(),
            model: all(&self.model)?,
            ema: self.ema.as_ref().map(all).transpose()?,
            optimizer_name: self.optimizer_name.clone(),
            optimizer: all(&self.optimizer)?,
            loss_scale: self.loss_scale,
        })
    }
}

fn not_copied(error: tch::TchError) -> CheckpointError {
    CheckpointError::Snapshot(TorchError::during("copy a tensor")(error))
}
