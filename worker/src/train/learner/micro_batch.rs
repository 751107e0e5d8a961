//! How many images of its slice a rank takes through the network at once. The gradient of a slice is the sum of those of
//! its micro-batches; BatchNorm's statistics in training are those of each micro-batch.

use std::ops::Range;
use std::sync::Arc;

use relabel_config::Compute;
use tch::Tensor;

use super::Learner;
use crate::collective::buckets::Ready;
use crate::data::loader::Batch;
use crate::model::seeded;
use crate::torch::TorchError;
use crate::train::feed::Sent;
use crate::train::loss::soft_cross_entropy;
use crate::train::step::{Ask, StepError};

/// A rank's slice of a batch, on the device.
#[derive(Clone, Copy)]
pub(super) struct Slice<'a> {
    pub batch: &'a Batch,
    /// f32 `[n, 3, side, side]`.
    pub images: &'a Tensor,
    /// f32 `[n, classes]`.
    pub targets: &'a Tensor,
}

impl<'a> Slice<'a> {
    /// `batch` as it was `sent`.
    pub(super) fn new(batch: &'a Batch, sent: &'a Sent) -> Result<Self, TorchError> {
        let (images, targets) = sent.arrived()?;
        Ok(Self { batch, images, targets })
    }

    /// Its `n` images.
    pub(super) fn len(self) -> usize {
        self.batch.sample_ids.len()
    }
}

/// What `compute.micro_batch` says, and what was found where it leaves that to the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MicroBatch {
    Slice,
    Of(usize),
    /// As many as fit: so many have fitted at once, and with `bounded` more have not.
    Found {
        images: usize,
        bounded: bool,
    },
}

impl MicroBatch {
    pub(super) fn new(compute: &Compute) -> Self {
        match compute.micro_batch {
            0 => Self::Slice,
            wanted => match usize::try_from(wanted) {
                Ok(images) => Self::Of(images),
                Err(_) => Self::Found { images: 0, bounded: false },
            },
        }
    }

    /// At once of a slice of `own` images, 1 or more.
    pub(super) fn of(self, own: usize) -> usize {
        match self {
            Self::Slice => own,
            Self::Of(images) | Self::Found { images, .. } => images.clamp(1, own),
        }
    }
}

impl Learner {
    /// Where `compute.micro_batch` leaves it to the memory: finds, by taking `slice` through, in how few equal parts one
    /// of its size fits. Does nothing where one as large has fitted, or not fitted, before. Leaves values in the
    /// gradients; wants the statistics [kept](crate::model::FlatGradients::keep_buffers).
    ///
    /// # Errors
    /// What libtorch throws besides.
    pub(super) fn find_micro_batch(&mut self, slice: Slice, ask: Ask, masks: i64) -> Result<(), StepError> {
        let own = slice.len();
        let MicroBatch::Found { images, bounded } = self.micro_batch else { return Ok(()) };
        if bounded || own <= images {
            return Ok(());
        }
        let parts = fewest(own, |parts| {
            let at_once = own.div_ceil(parts);
            match seeded(masks, || self.backward(slice, at_once, ask.planned, None)) {
                Ok(_) => Ok(true),
                Err(StepError::Memory { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        });
        self.gradients.restore_buffers();
        let parts = parts?;
        let images = own.div_ceil(parts);
        match parts {
            1 => tracing::debug!("a slice of {own} images fits the memory as a whole"),
            _ => tracing::info!(
                "a slice of {own} images goes through the network {images} at a time, as many as fit the memory"
            ),
        }
        self.micro_batch = MicroBatch::Found { images, bounded: parts > 1 };
        Ok(())
    }

    /// Adds the gradient of the slice's share of the mean loss, `at_once` images at a time; returns the sum of the
    /// slice's losses. The last of them complete the gradients, of which `ready` is told.
    pub(super) fn backward(
        &self,
        slice: Slice,
        at_once: usize,
        planned: u64,
        ready: Option<&Arc<Ready>>,
    ) -> Result<f64, StepError> {
        let own = slice.len();
        let mut sum = 0.0;
        for first in (0..own).step_by(at_once) {
            let images = first..own.min(first + at_once);
            let last = images.end == own;
            sum += self.pass(slice, images, planned, ready.filter(|_| last))?;
        }
        Ok(sum)
    }

    /// Forward and backward of these images of `slice`, which tells `ready` of each gradient; returns the sum of their
    /// losses.
    fn pass(
        &self,
        slice: Slice,
        images: Range<usize>,
        planned: u64,
        ready: Option<&Arc<Ready>>,
    ) -> Result<f64, StepError> {
        let (size, count) = (self.config.data.image_size, images.len());
        self.losses(slice, images, planned, ready).map_err(|source| match source.is_out_of_memory() {
            true => StepError::Memory { images: count, size, source },
            false => source.into(),
        })
    }

    fn losses(
        &self,
        slice: Slice,
        images: Range<usize>,
        planned: u64,
        ready: Option<&Arc<Ready>>,
    ) -> Result<f64, TorchError> {
        let part = |all: &Tensor| all.f_narrow(0, images.start as i64, images.len() as i64);
        let (x, targets) = (part(slice.images)?, part(slice.targets)?);
        let loss = soft_cross_entropy(&self.model.forward(&x, true)?, &targets)?;
        let share = loss.f_div_scalar(planned as f64)?;
        let scaled = match self.loss_scale {
            Some(by) => share.f_mul_scalar(f64::from(by.scale))?,
            None => share,
        };
        let backward = || scaled.f_backward();
        match (ready, &self.hooks) {
            (Some(ready), Some(hooks)) => {
                let ready = Arc::clone(ready);
                hooks.listen(Arc::new(move |gradient| ready.arrived(gradient)), backward)
            }
            _ => backward(),
        }
        .map_err(TorchError::during("compute the gradients"))?;
        // On a GPU this is where what failed there is told.
        Ok(loss.f_double_value(&[])?)
    }
}

/// The least number of parts, from 1 to `most`, that `fits`, which is to be true of all above it too; `most` is not tried.
fn fewest<E>(most: usize, mut fits: impl FnMut(usize) -> Result<bool, E>) -> Result<usize, E> {
    let (mut too_few, mut parts) = (0, 1);
    while parts < most && !fits(parts)? {
        (too_few, parts) = (parts, (2 * parts).min(most));
    }
    while parts - too_few > 1 {
        let between = too_few.midpoint(parts);
        match fits(between)? {
            true => parts = between,
            false => too_few = between,
        }
    }
    Ok(parts)
}
