//! The work itself: images of one data set to label maps on the disk.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use relabel_config::LabelOptions;
use relabel_core::labelling::{LabelReport, LabelSeen, Labelling};
use relabel_core::leases::Piece;

use super::annotator::{Annotator, Arch};
use super::recipe::Recipe;
use super::writer::Writer;
use crate::data::index::Split;
use crate::data::whole::{WholeLoader, WholePlan};
use crate::labels::pack::training_folder;
use crate::labels::{LabelMap, map_in_order, map_path};
use crate::leases::Holder;
use crate::progress::Progress;

/// Pixels of the input for each cell of the map, for every network here.
const STRIDE: u32 = 32;
/// Side of the input of the published maps in pixels, which gives 15 cells.
const SIZE: u32 = 475;
/// Batches that loader threads make ahead.
const PREFETCH: usize = 3;

/// An annotator, the images and the folder for their maps, all opened and agreed.
pub(super) struct Labeller {
    options: LabelOptions,
    annotator: Annotator,
    split: Arc<Split>,
    recipe: Recipe,
    /// Side of the input in pixels.
    side: u32,
    threads: usize,
}

/// What came of some images.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// Maps that were made.
    pub(super) maps: usize,
    /// A line for each image that could not be read.
    pub(super) unreadable: Vec<String>,
}

impl Holder for Labeller {
    type Work = Labelling;

    fn open(options: LabelOptions, threads: usize) -> Result<Self> {
        Self::open(options, threads)
    }

    fn seen(&self) -> Result<LabelSeen> {
        Ok(LabelSeen {
            samples: self.split.len() as u64,
            fingerprint: blake3::Hash::from(self.split.fingerprint()).to_hex().to_string(),
            recipe: self.recipe.hash()?,
        })
    }

    fn work(&self, piece: &Piece, over: &AtomicBool) -> Result<LabelReport> {
        let (range, images) = (&piece.samples, self.split.len() as u64);
        ensure!(range.end <= images, "the coordinator handed out images {range:?} of {images}");
        // Below the number of images, which is one of 32 bits.
        let samples: Vec<u32> = range.clone().map(|sample| sample as u32).collect();
        let missing = self.missing(&samples);
        let there = (samples.len() - missing.len()) as u64;
        let made = self.make(missing, over)?;
        Ok(LabelReport { made: made.maps as u64, there, unreadable: made.unreadable })
    }
}

impl Labeller {
    /// Opens everything and makes the folder for the maps.
    ///
    /// # Errors
    /// Data or weights that cannot be read or do not fit the options, and a folder that holds something else.
    pub(super) fn open(options: LabelOptions, threads: usize) -> Result<Self> {
        let arch: Arch = options.arch.parse().map_err(|why: String| anyhow!("--arch {why}"))?;
        let split = Arc::new(Split::open(&training_folder(&options.data), None)?);
        let side = options.size.or_else(|| Some(options.map? * STRIDE)).unwrap_or(SIZE);
        let (weights, head) = (options.weights.as_deref(), options.head.as_deref());
        let annotator = Annotator::open(&arch, weights, head, options.top_k, options.precision)?;
        if let Some(classes) = annotator.classes() {
            compare_classes(classes, &split, &options)?;
        }
        let out = &options.out;
        std::fs::create_dir_all(out).with_context(|| format!("{} cannot be made", out.display()))?;
        let recipe = Recipe::new(&arch, &options, &annotator, side)?;
        recipe.claim(out)?;
        Ok(Self { options, annotator, split, recipe, side, threads })
    }

    /// The images.
    pub(super) fn split(&self) -> &Split {
        &self.split
    }

    /// Those of `samples` whose map does not stand on the disk whole.
    pub(super) fn missing(&self, samples: &[u32]) -> Vec<u32> {
        let progress = Progress::new(samples.len() as u64, "label maps looked for");
        let (out, split) = (&self.options.out, &self.split);
        let whole = map_in_order(samples, self.threads, |&sample| {
            let bytes = std::fs::read(map_path(out, &split.key(sample)));
            progress.advance(1);
            // Its checksums tell whether it is whole.
            bytes.is_ok_and(|bytes| LabelMap::parse_stored(bytes, None).is_ok())
        });
        progress.finish();
        samples.iter().zip(whole).filter(|(_, whole)| !whole).map(|(&sample, _)| sample).collect()
    }

    /// Makes the maps of `samples`. Where `stop` is set meanwhile it ends early, with less made.
    ///
    /// # Errors
    /// An annotator that fails, a disk that fails, and maps of another size than wanted.
    pub(super) fn make(&self, samples: Vec<u32>, stop: &AtomicBool) -> Result<Made> {
        let progress = Progress::new(samples.len() as u64, "images labelled");
        let out = &self.options.out;
        let classes: BTreeSet<u32> = samples.iter().map(|&sample| self.split.class(sample)).collect();
        for class in classes {
            let folder = out.join(&self.split.classes()[class as usize]);
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("{} cannot be made", folder.display()))?;
        }
        let plan = WholePlan {
            split: self.split.clone(),
            samples,
            side: self.side,
            batch: usize::from(self.options.batch),
            threads: self.threads,
            prefetch: PREFETCH,
        };
        let mut loader = WholeLoader::start(plan)?;
        let writer = Writer::start(out, self.options.half)?;
        let mut made = Made::default();
        while let Some(batch) = loader.next().transpose()? {
            made.unreadable.extend_from_slice(&batch.skipped);
            if !batch.samples.is_empty() {
                let maps = self.annotator.label(&batch.images, batch.samples.len(), self.side)?;
                self.check_side(&maps)?;
                for (&sample, map) in batch.samples.iter().zip(maps) {
                    if !writer.send(self.split.key(sample), map) {
                        // It has failed, and says why below.
                        break;
                    }
                }
            }
            made.maps += batch.samples.len();
            progress.advance((batch.samples.len() + batch.skipped.len()) as u64);
            loader.recycle(batch);
            if writer.has_failed() || stop.load(Ordering::Relaxed) {
                break;
            }
        }
        writer.finish()?;
        progress.finish();
        Ok(made)
    }

    fn check_side(&self, maps: &[LabelMap]) -> Result<()> {
        if let (Some(wanted), Some(map)) = (self.options.map, maps.first()) {
            let (height, width, side) = (map.height, map.width, self.side);
            ensure!(
                height == wanted as usize && width == wanted as usize,
                "an input of {side} pixels gives a map of {height} x {width} cells, not --map {wanted}: change --size"
            );
        }
        Ok(())
    }
}

/// Says so where the annotator's classes cannot be those of the folders.
fn compare_classes(classes: u32, split: &Split, options: &LabelOptions) -> Result<()> {
    let folders = split.classes().len();
    if classes as usize != folders {
        tracing::warn!(
            "the annotator knows {classes} classes, {} has {folders} class folders: train with model.num_classes \
             {classes}, and see that class ids mean the same",
            options.data.display()
        );
    }
    ensure!(
        !options.half || classes <= 2049,
        "--half cannot hold class ids up to {}: leave it out",
        classes - 1
    );
    Ok(())
}
