//! Batches of training and evaluation images in their order, made by threads ahead of the consumer.
//! What a batch holds is a function of the plan: not of the number of threads nor of who else loads.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use relabel_config::OnError;
use relabel_core::shards;

use super::augment::{Augment, EvalTransform, Input, Scaler};
use super::decode::{Decoder, RgbImage};
use super::index::Split;
use super::order::epoch_order;
use super::pool::{Pool, Work};
use super::rng::SampleRng;
use super::{DataError, ImageError};
use crate::labels::Targets;

const TRAIN_ADVICE: &str = "replace or remove the file, or set data.on_error to skip";
const EVAL_ADVICE: &str = "replace the file; evaluation skips none";

/// What one rank loads of an epoch.
pub struct TrainPlan {
    pub split: Arc<Split>,
    pub targets: Arc<dyn Targets>,
    pub augment: Augment,
    /// Seed of the run, of the order and of the augmentation.
    pub seed: u64,
    pub epoch: u32,
    /// Images in one step, all ranks together; at least 1.
    pub global_batch: u32,
    /// Step of the epoch that the first batch is for.
    pub first_step: u64,
    /// This rank's part of each global batch, within `0..global_batch`.
    pub slice: Range<u32>,
    /// Whether an unreadable image ends the loading or is left out of its batch and listed.
    pub on_error: OnError,
    /// Loader threads, at least 1.
    pub threads: usize,
    /// Batches made ahead of the consumer, at least 1: bounds the memory.
    pub prefetch: usize,
}

/// One rank's part of one step: `n` images, perhaps none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Step within the epoch, from 0.
    pub step: u64,
    /// The `n` images' ids, in the epoch's order, without those skipped.
    pub sample_ids: Vec<u32>,
    /// `[n, H, W, 3]`, normalized.
    pub images: Vec<f32>,
    /// `[n, classes]`.
    pub targets: Vec<f32>,
    /// Ids of the images that were left out as unreadable, each with a line that names file and reason.
    pub skipped: Vec<(u32, String)>,
}

/// One batch for every step from `first_step` to the end of the epoch, empty ones too. The first error
/// in the order of the samples is returned in place of its batch and ends the iteration.
pub struct TrainLoader {
    pool: Pool<TrainWork>,
}

impl TrainLoader {
    /// Starts the threads.
    ///
    /// # Errors
    /// A global batch of 0, a slice outside of it, or threads that cannot be started.
    pub fn start(plan: TrainPlan) -> Result<Self, DataError> {
        let (slice, global_batch) = (&plan.slice, plan.global_batch);
        if slice.start > slice.end || slice.end > global_batch || global_batch == 0 {
            let reason = format!("slice {slice:?} is not within a global batch of {global_batch}");
            return Err(DataError::Plan { reason });
        }
        let order = epoch_order(plan.seed, plan.epoch, plan.split.len());
        let (threads, prefetch) = (plan.threads, plan.prefetch);
        let work = TrainWork { plan, order, buffers: Buffers::default() };
        Ok(Self { pool: Pool::start(work, threads, prefetch)? })
    }

    /// Gives back a batch whose data is no longer needed, so that its memory is used again.
    pub fn recycle(&self, batch: Batch) {
        self.pool.recycle(batch);
    }

    /// How long `next` has waited for data in all.
    pub fn waited(&self) -> Duration {
        self.pool.waited()
    }
}

impl Iterator for TrainLoader {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.pool.next()
    }
}

/// What one rank loads of an evaluation.
pub struct EvalPlan {
    pub split: Arc<Split>,
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
    /// `[n]`, class ids by folder.
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
    /// A batch of 0, positions outside of the split, or threads that cannot be started.
    pub fn start(plan: EvalPlan) -> Result<Self, DataError> {
        let (positions, samples) = (&plan.positions, plan.split.len());
        if positions.start > positions.end || positions.end > samples || plan.batch == 0 {
            let reason = format!("{positions:?} in batches of {} of {samples} samples", plan.batch);
            return Err(DataError::Plan { reason });
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
    image: RgbImage,
    scaler: Scaler,
}

impl Scratch {
    fn new() -> Self {
        Self { decoder: Decoder::new(), image: RgbImage::empty(), scaler: Scaler::default() }
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

struct TrainWork {
    plan: TrainPlan,
    order: Vec<u32>,
    buffers: Buffers,
}

/// A sample on its way into a batch: its input and target, or why it is skipped.
struct TrainSample {
    id: u32,
    loaded: Result<(Input, Vec<f32>), String>,
}

impl TrainWork {
    fn ids(&self, batch: u64) -> &[u32] {
        let plan = &self.plan;
        let step = plan.first_step.saturating_add(batch);
        let positions = shards::positions(step, plan.global_batch, self.order.len() as u64, &plan.slice);
        &self.order[positions.start as usize..positions.end as usize]
    }
}

impl Work for TrainWork {
    type Scratch = Scratch;
    type Sample = TrainSample;
    type Batch = Batch;

    fn batches(&self) -> u64 {
        let steps = shards::steps_per_epoch(self.order.len() as u64, self.plan.global_batch);
        steps.saturating_sub(self.plan.first_step)
    }

    fn samples(&self, batch: u64) -> usize {
        self.ids(batch).len()
    }

    fn scratch(&self) -> Scratch {
        Scratch::new()
    }

    fn sample(&self, batch: u64, index: usize, scratch: &mut Scratch) -> Result<TrainSample, DataError> {
        let plan = &self.plan;
        let id = self.ids(batch)[index];
        let path = plan.split.path(id);
        let unreadable = |source: ImageError, path: PathBuf| {
            let skip = plan.on_error == OnError::Skip && is_skippable(&source, &path);
            let error = DataError::Image { path, source, advice: TRAIN_ADVICE };
            if skip { Ok(TrainSample { id, loaded: Err(error.to_string()) }) } else { Err(error) }
        };
        let Scratch { decoder, image, scaler } = scratch;
        if let Err(source) = decoder.decode_file(&path, image) {
            return unreadable(source, path);
        }
        let mut rng = SampleRng::new(plan.seed, plan.epoch, id);
        let crop = plan.augment.draw_crop(image.size, &mut rng);
        let input = match plan.augment.apply(image, crop, &mut rng, scaler, self.buffers.take()) {
            Ok(input) => input,
            Err(source) => return unreadable(source, path),
        };
        let mut target = vec![0.0; plan.targets.classes()];
        plan.targets.write(id, image.size, crop, &mut target)?;
        Ok(TrainSample { id, loaded: Ok((input, target)) })
    }

    fn assemble(&self, batch: u64, samples: Vec<TrainSample>, spare: Option<Batch>) -> Batch {
        let floats = Input::floats(self.plan.augment.image_size);
        let loaded = samples.iter().filter(|sample| sample.loaded.is_ok()).count();
        let mut made = spare.unwrap_or_default();
        made.step = self.plan.first_step + batch;
        made.sample_ids.clear();
        made.targets.clear();
        made.skipped.clear();
        fit(&mut made.images, loaded * floats);
        let mut places = made.images.chunks_exact_mut(floats);
        for TrainSample { id, loaded } in samples {
            match loaded {
                Ok((input, target)) => {
                    made.sample_ids.push(id);
                    made.targets.extend_from_slice(&target);
                    if let Some(place) = places.next() {
                        input.write(place);
                    }
                    self.buffers.put(input.into_pixels());
                }
                Err(reason) => made.skipped.push((id, reason)),
            }
        }
        made
    }

    fn describe(&self, batch: u64, index: usize) -> String {
        self.plan.split.path(self.ids(batch)[index]).display().to_string()
    }
}

/// Whether an image may be left out: the fault is its own, and not that its folder is gone, as when a
/// file system was unmounted, which would leave out everything.
pub(super) fn is_skippable(error: &ImageError, path: &Path) -> bool {
    error.is_of_the_file() && path.parent().is_some_and(Path::is_dir)
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
        let path = self.plan.split.path(self.id(batch, index));
        let Scratch { decoder, image, scaler } = scratch;
        let input = decoder
            .decode_file(&path, image)
            .and_then(|()| self.plan.transform.apply(image, scaler, self.buffers.take()));
        input.map_err(|source| DataError::Image { path, source, advice: EVAL_ADVICE })
    }

    fn assemble(&self, batch: u64, samples: Vec<Input>, spare: Option<EvalBatch>) -> EvalBatch {
        let floats = Input::floats(self.plan.transform.image_size);
        let range = self.range(batch);
        let mut made = spare.unwrap_or_default();
        made.first = range.start;
        made.classes.clear();
        made.classes.extend(range.map(|id| i64::from(self.plan.split.class(id as u32))));
        fit(&mut made.images, samples.len() * floats);
        for (input, place) in samples.into_iter().zip(made.images.chunks_exact_mut(floats)) {
            input.write(place);
            self.buffers.put(input.into_pixels());
        }
        made
    }

    fn describe(&self, batch: u64, index: usize) -> String {
        self.plan.split.path(self.id(batch, index)).display().to_string()
    }
}

#[cfg(test)]
#[path = "loader_tests.rs"]
mod tests;
