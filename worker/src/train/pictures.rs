//! Draws what some training images teach in an epoch, for `util.log_images`: the image with this epoch's crop, its
//! label map, and the crop's target. The coordinator puts the pictures into the dashboard and TensorBoard's files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use relabel_config::{Axes, Config, PICTURES, Picture};

use super::inputs::Inputs;
use crate::data::augment::Augment;
use crate::data::decode::{Decoder, RgbImage};
use crate::data::index::Split;
use crate::data::rng::KeyedRng;
use crate::labels::inspect::{self, Lesson};
use crate::labels::pool::UnitBox;
use crate::labels::{LabelMaps, Targets};

/// Draws on a thread of its own, while training goes on.
pub(super) struct Pictures {
    /// None where nothing is to be drawn.
    drawer: Option<Arc<Drawer>>,
    /// The epoch that is being drawn.
    at_work: Option<JoinHandle<()>>,
}

/// All that a picture is made of.
struct Drawer {
    folder: PathBuf,
    split: Arc<Split>,
    maps: Arc<LabelMaps>,
    targets: Arc<dyn Targets>,
    augment: Augment,
    axes: Axes,
    seed: u64,
    /// The images that are drawn, the same ones in every epoch.
    samples: Vec<u32>,
}

impl Pictures {
    /// Draws for the run in `run_dir`, as many as `util.log_images` says; without label maps none.
    pub(super) fn new(config: &Config, inputs: &Inputs, run_dir: &Path) -> Self {
        let wanted = config.util.log_images;
        let drawer = inputs.maps.as_ref().filter(|_| wanted > 0).map(|maps| {
            Arc::new(Drawer {
                folder: run_dir.join(PICTURES),
                split: Arc::clone(&inputs.train),
                maps: Arc::clone(maps),
                targets: Arc::clone(&inputs.targets),
                augment: Augment::from_config(&config.data),
                axes: config.data.relabel.axes,
                seed: config.compute.seed as u64,
                samples: spread(wanted, inputs.train.len() as u32),
            })
        });
        if wanted > 0 && drawer.is_none() {
            tracing::warn!("util.log_images draws label maps, and this run has none: nothing is drawn");
        }
        Self { drawer, at_work: None }
    }

    /// Draws what the images teach in `epoch`. What cannot be drawn is said, and training goes on.
    pub(super) fn draw(&mut self, epoch: u32) {
        let Some(drawer) = &self.drawer else { return };
        if self.at_work.as_ref().is_some_and(|thread| !thread.is_finished()) {
            tracing::warn!(
                "the pictures of the epoch before are still being drawn: those of epoch {} are left out",
                epoch + 1
            );
            return;
        }
        let drawer = Arc::clone(drawer);
        let drawn = std::thread::Builder::new().name("pictures".into()).spawn(move || {
            if let Err(error) = drawer.epoch(epoch) {
                tracing::warn!("a picture for util.log_images could not be drawn: {error:#}");
            }
        });
        match drawn {
            Ok(thread) => self.at_work = Some(thread),
            Err(error) => tracing::warn!("no thread could be started that draws pictures: {error}"),
        }
    }
}

impl Drop for Pictures {
    /// A picture that was begun is finished.
    fn drop(&mut self) {
        if let Some(thread) = self.at_work.take() {
            // What it had to say it has said.
            let _ = thread.join();
        }
    }
}

/// `wanted` of `0..samples`, spread evenly, and so over the classes.
fn spread(wanted: u32, samples: u32) -> Vec<u32> {
    let wanted = u64::from(wanted.min(samples));
    (0..wanted).map(|n| ((2 * n + 1) * u64::from(samples) / (2 * wanted)) as u32).collect()
}

impl Drawer {
    fn epoch(&self, epoch: u32) -> Result<()> {
        std::fs::create_dir_all(&self.folder).with_context(|| self.folder.display().to_string())?;
        for (number, &sample) in (0..).zip(&self.samples) {
            let key = self.split.key(sample);
            self.sample(Picture { epoch, number, key: key.clone() }, sample).context(key)?;
        }
        Ok(())
    }

    fn sample(&self, picture: Picture, sample: u32) -> Result<()> {
        let location = self.split.location(sample);
        let mut image = RgbImage::default();
        Decoder::new().decode_file(&location, &mut image)?;
        // The very crop that the loader takes: its random numbers are those of seed, epoch and sample.
        let mut rng = KeyedRng::of_sample(self.seed, picture.epoch, sample);
        let crop = self.augment.draw_crop(image.size, &mut rng).crop;
        let mut target = vec![0.0; self.targets.classes()];
        self.targets.write(sample, image.size, crop, &mut target)?;
        inspect::draw_lesson(
            &Lesson {
                title: format!("{}, epoch {}", picture.key, picture.epoch + 1),
                map: self.maps.read(sample)?,
                image: &location,
                crop: UnitBox::of(image.size, crop),
                axes: self.axes,
                target,
                classes: self.split.classes(),
            },
            &self.folder.join(picture.file_name()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_are_spread_over_the_whole_set() {
        assert_eq!(spread(4, 100), [12, 37, 62, 87]);
        assert_eq!(spread(5, 3), [0, 1, 2]);
        assert_eq!(spread(1, 1), [0]);
        assert!(spread(2, u32::MAX).is_sorted());
        assert!(spread(3, 0).is_empty());
    }
}
