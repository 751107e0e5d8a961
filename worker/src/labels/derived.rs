//! Targets made of other targets: the ablations of the paper, and label smoothing. Each stands before any
//! source of targets, whatever its maps are stored as.

use std::sync::Arc;

use relabel_config::{Config, Mode};

use super::{LabelError, Targets};
use crate::data::{CropBox, ImageSize};

/// `targets` as the options of a run change them. `data.relabel.mode` has no part in training without label maps.
pub fn derived(targets: Arc<dyn Targets>, config: &Config) -> Arc<dyn Targets> {
    let relabel = &config.data.relabel;
    let targets: Arc<dyn Targets> = match relabel.mode {
        Mode::Global if relabel.enabled => Arc::new(Global(targets)),
        Mode::LocalizedSingle if relabel.enabled => Arc::new(Single(targets)),
        _ => targets,
    };
    match config.optim.label_smoothing {
        part if part > 0.0 => Arc::new(Smoothed::new(targets, part)),
        _ => targets,
    }
}

/// What the whole image shows, whatever the crop: the map's cells averaged, then softmax ("global
/// multi-label").
pub struct Global(pub Arc<dyn Targets>);

impl Targets for Global {
    fn classes(&self) -> usize {
        self.0.classes()
    }

    fn write(&self, sample: u32, image: ImageSize, _: CropBox, out: &mut [f32]) -> Result<(), LabelError> {
        let whole = CropBox { top: 0, left: 0, height: image.height, width: image.width };
        self.0.write(sample, image, whole, out)
    }
}

/// Only the likeliest class of what the crop shows ("localized single-label"); the first of equals.
pub struct Single(pub Arc<dyn Targets>);

impl Targets for Single {
    fn classes(&self) -> usize {
        self.0.classes()
    }

    fn write(&self, sample: u32, image: ImageSize, crop: CropBox, out: &mut [f32]) -> Result<(), LabelError> {
        self.0.write(sample, image, crop, out)?;
        let best =
            out.iter().enumerate().fold(0, |best, (class, p)| if *p > out[best] { class } else { best });
        out.fill(0.0);
        if let Some(one) = out.get_mut(best) {
            *one = 1.0;
        }
        Ok(())
    }
}

/// Label smoothing: `target * (1 - part) + part / classes`. It is linear, so that images which CutMix mixes
/// afterwards are smoothed once, as the mixture is.
pub struct Smoothed {
    targets: Arc<dyn Targets>,
    part: f64,
}

impl Smoothed {
    /// `part` is in [0, 1).
    pub fn new(targets: Arc<dyn Targets>, part: f64) -> Self {
        Self { targets, part }
    }
}

impl Targets for Smoothed {
    fn classes(&self) -> usize {
        self.targets.classes()
    }

    fn write(&self, sample: u32, image: ImageSize, crop: CropBox, out: &mut [f32]) -> Result<(), LabelError> {
        self.targets.write(sample, image, crop, out)?;
        let spread = (self.part / out.len() as f64) as f32;
        out.iter_mut().for_each(|p| *p = *p * (1.0 - self.part) as f32 + spread);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: ImageSize = ImageSize { width: 8, height: 4 };
    const LEFT: CropBox = CropBox { top: 0, left: 0, height: 4, width: 4 };

    /// Classes 0 and 1 stand on the left and right half of every image; class 2 is what the whole is.
    struct Halves;

    impl Targets for Halves {
        fn classes(&self) -> usize {
            4
        }

        fn write(&self, _: u32, image: ImageSize, crop: CropBox, out: &mut [f32]) -> Result<(), LabelError> {
            let target = match crop {
                CropBox { width, .. } if width == image.width => [0.2, 0.2, 0.6, 0.0],
                CropBox { left: 0, .. } => [0.7, 0.1, 0.2, 0.0],
                _ => [0.1, 0.7, 0.2, 0.0],
            };
            out.copy_from_slice(&target);
            Ok(())
        }
    }

    fn target(change: impl Fn(&mut Config)) -> [f32; 4] {
        let mut config = Config::default();
        config.data.relabel.enabled = true;
        change(&mut config);
        let targets = derived(Arc::new(Halves), &config);
        assert_eq!(targets.classes(), 4);
        let mut out = [f32::NAN; 4];
        targets.write(0, IMAGE, LEFT, &mut out).unwrap();
        out
    }

    fn mode(mode: Mode) -> [f32; 4] {
        target(|config| config.data.relabel.mode = mode)
    }

    #[test]
    fn each_mode_is_the_paper_s() {
        assert_eq!(mode(Mode::Localized), [0.7, 0.1, 0.2, 0.0]);
        assert_eq!(mode(Mode::Global), [0.2, 0.2, 0.6, 0.0]);
        assert_eq!(mode(Mode::LocalizedSingle), [1.0, 0.0, 0.0, 0.0]);
        let without_maps = target(|config| {
            config.data.relabel.enabled = false;
            config.data.relabel.mode = Mode::Global;
        });
        assert_eq!(without_maps, [0.7, 0.1, 0.2, 0.0]);
    }

    #[test]
    fn smoothing_spreads_a_part_once_and_after_the_mode() {
        let close = |found: [f32; 4], expected: [f32; 4]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {expected:?}");
        };
        close(target(|c| c.optim.label_smoothing = 0.2), [0.61, 0.13, 0.21, 0.05]);
        let single = target(|c| {
            c.optim.label_smoothing = 0.2;
            c.data.relabel.mode = Mode::LocalizedSingle;
        });
        close(single, [0.85, 0.05, 0.05, 0.05]);
    }
}
