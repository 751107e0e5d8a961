//! Whole images squashed to a square, as a label map sees them: nothing is cropped, so a cell of the map is
//! a part of the image. Resized exactly as Pillow does, which costs little beside the network that scores
//! them. Unreadable ones are left out and listed.

use std::sync::Arc;

use super::augment::Input;
use super::decode::{Decoder, RgbImage};
use super::index::Split;
use super::loader::{fit, is_skippable};
use super::pool::{Pool, Work};
use super::{DataError, ImageSize, pillow};

const ADVICE: &str = "replace the file and run this again";

/// What is to be loaded.
pub struct WholePlan {
    pub split: Arc<Split>,
    /// Ids within the split.
    pub samples: Vec<u32>,
    /// Side of the square in pixels.
    pub side: u32,
    /// Images in one batch, at least 1; the last one may have fewer.
    pub batch: usize,
    /// Loader threads, at least 1.
    pub threads: usize,
    /// Batches made ahead of the consumer, at least 1.
    pub prefetch: usize,
}

/// `n` images, perhaps none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WholeBatch {
    /// Ids of the `n` images.
    pub samples: Vec<u32>,
    /// `[n, side, side, 3]`, normalized.
    pub images: Vec<f32>,
    /// For each image that was left out as unreadable a line that names file and reason.
    pub skipped: Vec<String>,
}

/// The images of a plan in batches, in order. A fault that is not of one file, as a failing disk, ends it.
pub struct WholeLoader {
    pool: Pool<WholeWork>,
}

impl WholeLoader {
    /// Starts the threads.
    ///
    /// # Errors
    /// A batch or side of 0, or threads that cannot be started.
    pub fn start(plan: WholePlan) -> Result<Self, DataError> {
        if plan.batch == 0 || plan.side == 0 {
            let reason = format!("batches of {} images of {} pixels", plan.batch, plan.side);
            return Err(DataError::Plan { reason });
        }
        let (threads, prefetch) = (plan.threads, plan.prefetch);
        let work = WholeWork { plan };
        Ok(Self { pool: Pool::start(work, threads, prefetch)? })
    }

    /// Gives back a batch whose data is no longer needed, so that its memory is used again.
    pub fn recycle(&self, batch: WholeBatch) {
        self.pool.recycle(batch);
    }
}

impl Iterator for WholeLoader {
    type Item = Result<WholeBatch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.pool.next()
    }
}

struct WholeWork {
    plan: WholePlan,
}

/// An image on its way into a batch, or why it is left out.
struct Whole {
    id: u32,
    loaded: Result<Input, String>,
}

impl WholeWork {
    fn ids(&self, batch: u64) -> &[u32] {
        let samples = &self.plan.samples;
        // A batch's number is below the number of batches, which fits.
        let first = batch as usize * self.plan.batch;
        &samples[first..samples.len().min(first.saturating_add(self.plan.batch))]
    }
}

impl Work for WholeWork {
    type Scratch = (Decoder, RgbImage);
    type Sample = Whole;
    type Batch = WholeBatch;

    fn batches(&self) -> u64 {
        self.plan.samples.len().div_ceil(self.plan.batch) as u64
    }

    fn samples(&self, batch: u64) -> usize {
        self.ids(batch).len()
    }

    fn scratch(&self) -> Self::Scratch {
        (Decoder::new(), RgbImage::default())
    }

    fn sample(&self, batch: u64, index: usize, scratch: &mut Self::Scratch) -> Result<Whole, DataError> {
        let id = self.ids(batch)[index];
        let (location, side) = (self.plan.split.location(id), self.plan.side);
        let (decoder, image) = scratch;
        let square = ImageSize { width: side, height: side };
        match decoder.decode_file(&location, image).and_then(|()| pillow::resize(image, square)) {
            Ok(pixels) => Ok(Whole { id, loaded: Ok(Input::plain(side, &pixels, Vec::new())) }),
            Err(source) => {
                let skip = is_skippable(&source, &location);
                let error = DataError::Image { image: location, source, advice: ADVICE };
                if skip { Ok(Whole { id, loaded: Err(error.to_string()) }) } else { Err(error) }
            }
        }
    }

    fn assemble(&self, _batch: u64, samples: Vec<Whole>, spare: Option<WholeBatch>) -> WholeBatch {
        let floats = Input::floats(self.plan.side);
        let loaded = samples.iter().filter(|sample| sample.loaded.is_ok()).count();
        let mut made = spare.unwrap_or_default();
        made.samples.clear();
        made.skipped.clear();
        fit(&mut made.images, loaded * floats);
        let mut places = made.images.chunks_exact_mut(floats);
        for Whole { id, loaded } in samples {
            match loaded {
                Ok(input) => {
                    made.samples.push(id);
                    if let Some(place) = places.next() {
                        input.write(place);
                    }
                }
                Err(reason) => made.skipped.push(reason),
            }
        }
        made
    }

    fn describe(&self, batch: u64, index: usize) -> String {
        self.plan.split.location(self.ids(batch)[index]).to_string()
    }
}
