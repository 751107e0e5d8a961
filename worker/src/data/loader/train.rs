//! What a rank trains on: its part of every global batch of an epoch.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use relabel_config::OnError;
use relabel_core::shards;

use super::read_ahead::ReadAhead;
use super::{Buffers, Scratch, fit};
use crate::data::augment::{Augment, FinishOn, Input};
use crate::data::cutmix::{self, CutMix, Mix};
use crate::data::index::Split;
use crate::data::location::Location;
use crate::data::pool::{Closer, Pool, Work};
use crate::data::rng::KeyedRng;
use crate::data::unfinished::Unfinished;
use crate::data::{DataError, ImageError};
use crate::labels::Targets;

pub(super) const TRAIN_ADVICE: &str = "replace or remove the file, or set data.on_error to skip";

/// What one rank loads of an epoch.
pub struct TrainPlan {
    pub split: Arc<Split>,
    pub targets: Arc<dyn Targets>,
    pub augment: Augment,
    pub cutmix: CutMix,
    /// Seed of the run, of the order and of the augmentation.
    pub seed: u64,
    /// Images of consecutive shards that are shuffled together; 0 shuffles all. See [`Split::order`].
    pub shuffle_buffer: u32,
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
    /// `[n, H, W, 3]`, normalized, and mixed where CutMix is on. Empty where they are left to the device.
    pub images: Vec<f32>,
    /// The same, where they are.
    pub unfinished: Option<Unfinished>,
    /// `[n, classes]`, mixed as the images are.
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
        let order = plan.split.order(plan.seed, plan.epoch, plan.shuffle_buffer);
        let (threads, prefetch) = (plan.threads, plan.prefetch);
        let mut work = TrainWork { plan, order, read_ahead: None, buffers: Buffers::default() };
        if work.plan.shuffle_buffer > 0 {
            let own = (0..work.batches()).map(|batch| work.parts(batch).own);
            let buffer = work.plan.shuffle_buffer as usize;
            work.read_ahead = Some(ReadAhead::new(&work.plan.split, &work.order, own, buffer));
        }
        Ok(Self { pool: Pool::start(work, threads, prefetch)? })
    }

    /// What ends the loading where it is dropped, on whichever thread.
    pub fn closer(&self) -> Closer {
        self.pool.closer()
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

struct TrainWork {
    plan: TrainPlan,
    order: Vec<u32>,
    /// None where the order is not that of shards.
    read_ahead: Option<ReadAhead>,
    buffers: Buffers,
}

/// A sample on its way into a batch: its input and target, or why it is skipped.
struct TrainSample {
    id: u32,
    loaded: Result<Loaded, String>,
}

struct Loaded {
    input: Input,
    target: Vec<f32>,
}

/// Those of the first `own` samples that were loaded, each with the sample that lends it its box: the one before it, and
/// for the first the last of all. What cannot be read lends nothing.
fn pairs(samples: &[TrainSample], own: usize) -> impl Iterator<Item = (&Loaded, Option<&Loaded>)> {
    let lenders = samples.iter().cycle().skip(samples.len().saturating_sub(1));
    let pairs = samples[..own].iter().zip(lenders);
    pairs.filter_map(|(own, lender)| Some((own.loaded.as_ref().ok()?, lender.loaded.as_ref().ok())))
}

/// What the batch of one step is made of, as positions of the epoch's order.
struct Parts {
    own: Range<usize>,
    /// The one that lends its box to the first of `own`, where it has to be loaded besides.
    lender: Option<usize>,
    mix: Option<Mix>,
}

impl TrainWork {
    fn step(&self, batch: u64) -> u64 {
        self.plan.first_step.saturating_add(batch)
    }

    fn parts(&self, batch: u64) -> Parts {
        let plan = &self.plan;
        let step = self.step(batch);
        let positions = |shard: &Range<u32>| {
            let range = shards::positions(step, plan.global_batch, self.order.len() as u64, shard);
            range.start as usize..range.end as usize
        };
        let (all, own) = (positions(&(0..plan.global_batch)), positions(&plan.slice));
        let mix = plan.cutmix.draw(plan.seed, plan.epoch, step, plan.augment.image_size);
        let lender = mix.as_ref().filter(|_| !own.is_empty()).map(|_| cutmix::lender(own.start, &all));
        let lender = lender.filter(|position| !own.contains(position));
        Parts { own, lender, mix }
    }

    /// Has the system read what will be loaded later than number `index` of a batch.
    fn read_ahead(&self, batch: u64, index: usize) {
        let Some(read_ahead) = &self.read_ahead else { return };
        let slice = &self.plan.slice;
        // All batches but the last are full, and a batch's lender, which is a neighbour, counts as one of the next.
        let number = batch as usize * (slice.end - slice.start) as usize + index;
        for id in read_ahead.due(number) {
            self.plan.split.location(*id).read_ahead();
        }
    }

    /// The sample to be loaded as number `index` of a batch: the batch's own, then the lender.
    fn id(&self, batch: u64, index: usize) -> u32 {
        let Parts { own, lender, .. } = self.parts(batch);
        let lender = lender.filter(|_| index >= own.len());
        self.order[lender.unwrap_or(own.start + index)]
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
        let Parts { own, lender, .. } = self.parts(batch);
        own.len() + usize::from(lender.is_some())
    }

    fn scratch(&self) -> Scratch {
        Scratch::new()
    }

    fn sample(&self, batch: u64, index: usize, scratch: &mut Scratch) -> Result<TrainSample, DataError> {
        let plan = &self.plan;
        let id = self.id(batch, index);
        self.read_ahead(batch, index);
        let location = plan.split.location(id);
        let unreadable = |source: ImageError, image: Location| {
            let skip = plan.on_error == OnError::Skip && is_skippable(&source, &image);
            let error = DataError::Image { image, source, advice: TRAIN_ADVICE };
            if skip { Ok(TrainSample { id, loaded: Err(error.to_string()) }) } else { Err(error) }
        };
        let Scratch { decoder, part, scaler, .. } = scratch;
        let mut rng = KeyedRng::of_sample(plan.seed, plan.epoch, id);
        let picked = |size| plan.augment.draw_crop(size, &mut rng);
        let cut = match decoder.decode_file_part(&location, picked, part) {
            Ok(cut) => cut,
            Err(source) => return unreadable(source, location),
        };
        let input = match plan.augment.apply(part, &cut, &mut rng, scaler, self.buffers.take()) {
            Ok(input) => input,
            Err(source) => return unreadable(source, location),
        };
        let mut target = vec![0.0; plan.targets.classes()];
        plan.targets.write(id, cut.size, cut.crop, &mut target)?;
        Ok(TrainSample { id, loaded: Ok(Loaded { input, target }) })
    }

    fn assemble(&self, batch: u64, samples: Vec<TrainSample>, spare: Option<Batch>) -> Batch {
        let Parts { own, mix, .. } = self.parts(batch);
        let mut made = spare.unwrap_or_default();
        made.step = self.step(batch);
        made.sample_ids.clear();
        made.targets.clear();
        made.skipped.clear();
        for sample in &samples[..own.len()] {
            match &sample.loaded {
                Ok(_) => made.sample_ids.push(sample.id),
                Err(reason) => made.skipped.push((sample.id, reason.clone())),
            }
        }
        for (own, lender) in pairs(&samples, own.len()) {
            let start = made.targets.len();
            made.targets.extend_from_slice(&own.target);
            if let (Some(mix), Some(lender)) = (&mix, lender) {
                mix.mix_target(&mut made.targets[start..], &lender.target);
            }
        }
        match self.plan.augment.finish {
            FinishOn::Host => {
                let floats = Input::floats(self.plan.augment.image_size);
                fit(&mut made.images, made.sample_ids.len() * floats);
                let places = made.images.chunks_exact_mut(floats);
                for ((own, lender), place) in pairs(&samples, own.len()).zip(places) {
                    own.input.write(place);
                    if let (Some(mix), Some(lender)) = (&mix, lender) {
                        lender.input.write_patch(mix.rows.clone(), mix.columns.clone(), place);
                    }
                }
            }
            FinishOn::Device => {
                let unfinished = made.unfinished.get_or_insert_default();
                let loaded = samples.iter().map(|sample| sample.loaded.as_ref().ok().map(|it| &it.input));
                unfinished.fill(loaded, own.len(), mix.as_ref());
            }
        }
        for Loaded { input, .. } in samples.into_iter().filter_map(|sample| sample.loaded.ok()) {
            self.buffers.put(input.into_planes());
        }
        made
    }

    fn describe(&self, batch: u64, index: usize) -> String {
        self.plan.split.location(self.id(batch, index)).to_string()
    }
}

/// Whether an image may be left out: the fault is its own, and not that its folder is gone, as when a
/// file system was unmounted, which would leave out everything.
pub(in crate::data) fn is_skippable(error: &ImageError, location: &Location) -> bool {
    error.is_of_the_file() && location.has_its_folder()
}
