//! Batches of training and evaluation images in their order, made by threads ahead of the consumer.
//! What a batch holds is a function of the plan: not of the number of threads nor of who else loads.
//! Training's stands in `loader/train.rs`.

mod read_ahead;
mod train;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub(super) use train::is_skippable;
pub use train::{Batch, TrainLoader, TrainPlan};

use super::DataError;
use super::augment::{EvalTransform, Input, Scaler};
use super::decode::{Decoder, Part, RgbImage};
use super::index::Split;
use super::pool::{Pool, Work};

const EVAL_ADVICE: &str = "replace the file; evaluation skips none";

/// What one rank loads of an evaluation.
pub struct EvalPlan {
    pub split: Arc<Split>,
    /// Class id of each class folder of the split, by the folder's position.
    pub class_ids: Arc<[u32]>,
    pub transform: EvalTransform,
    /// Samples to load, by id, within the split.
    pub positions: Range<usize>,
    /// Images in one batch, at least 1; the last one may have fewer.
    pub batch: usize,
    /// Loader threads, at least 1.
    pub threads: usize,
    /// Batches made ahead of the consumer, at least 1.
    pub prefetch: usize,
}

/// `n` images of an evaluation, at least one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EvalBatch {
    /// Id of the first image; the others follow it.
    pub first: usize,
    /// `[n, H, W, 3]`, normalized.
    pub images: Vec<f32>,
    /// `[n]`, class ids.
    pub classes: Vec<i64>,
}

/// The images at `positions` in batches, in order. An unreadable image is an error, which ends it.
pub struct EvalLoader {
    pool: Pool<EvalWork>,
}

impl EvalLoader {
    /// Starts the threads.
    ///
    /// # Errors
    /// A batch of 0, positions outside of the split, a folder without class id, or threads that cannot be started.
    pub fn start(plan: EvalPlan) -> Result<Self, DataError> {
        let (positions, samples) = (&plan.positions, plan.split.len());
        if positions.start > positions.end || positions.end > samples || plan.batch == 0 {
            let reason = format!("{positions:?} in batches of {} of {samples} samples", plan.batch);
            return Err(DataError::Plan { reason });
        }
        let (ids, folders) = (plan.class_ids.len(), plan.split.classes().len());
        if ids != folders {
            return Err(DataError::Plan { reason: format!("{ids} class ids for {folders} class folders") });
        }
        let (threads, prefetch) = (plan.threads, plan.prefetch);
        let work = EvalWork { plan, buffers: Buffers::default() };
        Ok(Self { pool: Pool::start(work, threads, prefetch)? })
    }

    /// Gives back a batch whose data is no longer needed, so that its memory is used again.
    pub fn recycle(&self, batch: EvalBatch) {
        self.pool.recycle(batch);
    }

    /// How long `next` has waited for data in all.
    pub fn waited(&self) -> Duration {
        self.pool.waited()
    }
}

impl Iterator for EvalLoader {
    type Item = Result<EvalBatch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.pool.next()
    }
}

/// What a loader thread reuses from image to image.
struct Scratch {
    decoder: Decoder,
    /// Of evaluation.
    image: RgbImage,
    /// Of training.
    part: Part,
    scaler: Scaler,
}

impl Scratch {
    fn new() -> Self {
        Self {
            decoder: Decoder::new(),
            image: RgbImage::default(),
            part: Part::default(),
            scaler: Scaler::default(),
        }
    }
}

/// Pixel buffers that inputs have been written from.
#[derive(Default)]
struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn put(&self, buffer: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

/// Makes `buffer` `length` long without clearing what will be overwritten.
pub(super) fn fit(buffer: &mut Vec<f32>, length: usize) {
    if buffer.capacity() == 0 {
        // Fresh memory comes zeroed from the system at no cost.
        *buffer = vec![0.0; length];
    } else {
        buffer.resize(length, 0.0);
    }
}

struct EvalWork {
    plan: EvalPlan,
    buffers: Buffers,
}

impl EvalWork {
    fn range(&self, batch: u64) -> Range<usize> {
        // A batch's number is below the number of batches, which fits.
        let first = self.plan.positions.start + batch as usize * self.plan.batch;
        first..self.plan.positions.end.min(first.saturating_add(self.plan.batch))
    }

    fn id(&self, batch: u64, index: usize) -> u32 {
        (self.range(batch).start + index) as u32
    }
}

impl Work for EvalWork {
    type Scratch = Scratch;
    type Sample = Input;
    type Batch = EvalBatch;

    fn batches(&self) -> u64 {
        self.plan.positions.len().div_ceil(self.plan.batch) as u64
    }

    fn samples(&self, batch: u64) -> usize {
        self.range(batch).len()
    }

    fn scratch(&self) -> Scratch {
        Scratch::new()
    }

    fn sample(&self, batch: u64, index: usize, scratch: &mut Scratch) -> Result<Input, DataError> {
        let location = self.plan.split.location(self.id(batch, index));
        let Scratch { decoder, image, scaler, .. } = scratch;
        let input = decoder
            .decode_file(&location, image)
            .and_then(|()| self.plan.transform.apply(image, scaler, self.buffers.take()));
        input.map_err(|source| DataError::Image { image: location, source, advice: EVAL_ADVICE })
    }

    fn assemble(&self, batch: u64, samples: Vec<Input>, spare: Option<EvalBatch>) -> EvalBatch {
        let floats = Input::floats(self.plan.transform.image_size);
        let range = self.range(batch);
        let mut made = spare.unwrap_or_default();
        made.first = range.start;
        made.classes.clear();
        made.classes.extend(
            range.map(|id| i64::from(self.plan.class_ids[self.plan.split.class(id as u32) as usize])),
        );
        fit(&mut made.images, samples.len() * floats);
        for (input, place) in samples.into_iter().zip(made.images.chunks_exact_mut(floats)) {
            input.write(place);
            self.buffers.put(input.into_planes());
        }
        made
    }

    fn describe(&self, batch: u64, index: usize) -> String {
        self.plan.split.location(self.id(batch, index)).to_string()
    }
}

#[cfg(test)]
#[path = "loader_tests.rs"]
mod tests;
