//! Batches on their way from the loader to the device. A GPU is sent the next one, and finishes its images, while it
//! trains on this one: by a thread of its own, from pinned memory, on a stream of its own.

use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use super::finish::finish;
use super::step::StepError;
use super::trainer::TrainError;
use crate::data::loader::{Batch, TrainLoader};
use crate::data::{Closer, DataError};
use crate::torch::{self, Mark, TorchError};

/// How a network takes a batch.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// Side of an image.
    pub side: i64,
    pub classes: i64,
    pub device: Device,
}

/// The `n` images of a batch and their targets on the device, from whichever thread they were sent.
#[derive(Debug)]
pub struct Sent {
    /// f32 `[n, 3, side, side]`, in channels_last memory.
    images: Tensor,
    /// f32 `[n, classes]`.
    targets: Tensor,
    mark: Mark,
}

impl Sent {
    /// # Errors
    /// No memory left on the device; a batch of another form.
    pub fn new(batch: &Batch, form: Form) -> Result<Self, StepError> {
        let n = batch.sample_ids.len();
        Self::send(batch, n as i64, form).map_err(|source| match source.is_out_of_memory() {
            true => StepError::Memory { images: n, size: form.side as u32, source },
            false => source.into(),
        })
    }

    fn send(batch: &Batch, n: i64, Form { side, classes, device }: Form) -> Result<Self, TorchError> {
        let floats = |values: &[f32], shape: &[i64]| {
            torch::send(bytemuck::cast_slice(values), shape, Kind::Float, device)
        };
        let images = match &batch.unfinished {
            Some(unfinished) => finish(unfinished, n as usize, side, device)?,
            None => floats(&batch.images, &[n, side, side, 3])?.permute([0, 3, 1, 2]),
        };
        Ok(Self { images, targets: floats(&batch.targets, &[n, classes])?, mark: Mark::new(device)? })
    }

    /// Images and targets, for what this thread has the device do next.
    ///
    /// # Errors
    /// As libtorch says.
    pub fn arrived(&self) -> Result<(&Tensor, &Tensor), TorchError> {
        self.mark.before(&[&self.images, &self.targets])?;
        Ok((&self.images, &self.targets))
    }
}

/// What a step is done with.
pub type Fed = (Batch, Sent);

/// The batches of a loader, in its order.
pub enum Feed {
    /// Sent when they are asked for.
    Plain(TrainLoader, Form),
    /// One is sent while the one before is trained on.
    Ahead(Ahead),
}

/// The end of the thread that sends.
pub struct Ahead {
    /// None after the last batch: a thread that is gone without has died.
    fed: Receiver<Option<Result<Fed, TrainError>>>,
    ended: bool,
    used: Sender<Batch>,
    /// Ends the loader's threads, and so the one that sends, which is not waited for.
    _closer: Closer,
    waited: Duration,
}

impl Feed {
    /// On the CPU, which has nothing to gain by it, without a thread.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn new(loader: TrainLoader, form: Form) -> Result<Self, TrainError> {
        match form.device {
            Device::Cpu => Ok(Self::Plain(loader, form)),
            _ => Self::ahead(loader, form),
        }
    }

    /// With the thread, wherever the network is.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn ahead(mut loader: TrainLoader, form: Form) -> Result<Self, TrainError> {
        let closer = loader.closer();
        // A batch is handed over, and then the next one sent.
        let (send, fed) = mpsc::sync_channel(0);
        let (used, reused) = mpsc::channel();
        let feed = move || {
            if let Err(error) = torch::own_stream(form.device) {
                // Whoever has asked for nothing more has no use for the error either.
                let _ = send.send(Some(Err(error.into())));
                return;
            }
            loop {
                reused.try_iter().for_each(|batch| loader.recycle(batch));
                let fed = loader.next().map(|batch| sent(batch, form));
                let last = !matches!(fed, Some(Ok(_)));
                if send.send(fed).is_err() || last {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("feed".into()).spawn(feed);
        thread.map_err(|source| DataError::Thread { source })?;
        Ok(Self::Ahead(Ahead { fed, ended: false, used, _closer: closer, waited: Duration::ZERO }))
    }

    /// Gives back a batch whose data is no longer needed, so that its memory is used again.
    pub fn recycle(&self, batch: Batch) {
        match self {
            Self::Plain(loader, _) => loader.recycle(batch),
            // The thread may have ended.
            Self::Ahead(ahead) => drop(ahead.used.send(batch)),
        }
    }

    /// How long `next` has waited for data in all.
    pub fn waited(&self) -> Duration {
        match self {
            Self::Plain(loader, _) => loader.waited(),
            Self::Ahead(ahead) => ahead.waited,
        }
    }
}

impl Iterator for Feed {
    type Item = Result<Fed, TrainError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Plain(loader, form) => loader.next().map(|batch| sent(batch, *form)),
            Self::Ahead(ahead) => {
                if ahead.ended {
                    return None;
                }
                let asked = Instant::now();
                let fed = ahead.fed.recv().unwrap_or_else(|_| {
                    let message = "the thread that sends it died".into();
                    Some(Err(DataError::Panic { what: "a batch".into(), message }.into()))
                });
                ahead.waited += asked.elapsed();
                ahead.ended = !matches!(fed, Some(Ok(_)));
                fed
            }
        }
    }
}

fn sent(batch: Result<Batch, DataError>, form: Form) -> Result<Fed, TrainError> {
    let batch = batch?;
    let sent = Sent::new(&batch, form).map_err(TrainError::Step)?;
    Ok((batch, sent))
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
