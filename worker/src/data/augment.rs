//! Decoded pixels to the network's input: what training and evaluation do to an image. The values follow
//! torchvision's transforms on Pillow images; the random numbers are this project's own.

use std::ops::Range;

use super::crop::{EvalGeometry, eval_geometry, random_resized_crop};
use super::cut::{Cut, Pick};
use super::decode::{Part, RgbImage};
use super::jitter::{self, Blend, LANES};
use super::resample::Window;
use super::resize::apart;
use super::rng::KeyedRng;
use super::streaming::stream;
use super::{CropBox, ImageError, ImageSize};

pub use super::jitter::Step;
pub use super::resize::Scaler;
pub use relabel_config::{FinishOn, Resize};

/// ImageNet's mean and standard deviation of red, green and blue, of values in [0, 1].
pub const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
pub const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Principal components of ImageNet's colours (Krizhevsky et al. 2012), a row a channel, and their weights.
const PCA_VECTORS: [[f64; 3]; 3] =
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]];
const PCA_VALUES: [f64; 3] = [0.2175, 0.0188, 0.0045];

/// The augmentation of training images.
#[derive(Debug, Clone, PartialEq)]
pub struct Augment {
    /// Side of the square input in pixels.
    pub image_size: u32,
    /// Smallest part of the image's area that a crop takes, in (0, 1].
    pub min_area: f64,
    /// Strength of brightness, contrast and saturation jitter; 0 turns it off.
    pub color_jitter: f64,
    /// Standard deviation of the PCA lighting noise; 0 turns it off.
    pub lighting: f64,
    pub resize: Resize,
    pub finish: FinishOn,
}

impl Augment {
    pub fn from_config(data: &relabel_config::Data) -> Self {
        Self {
            image_size: data.image_size,
            min_area: data.rrc_minimum,
            color_jitter: data.color_jitter,
            lighting: data.lighting,
            resize: data.resize,
            finish: data.finish,
        }
    }

    /// The box of an image of size `image` that `apply` is to take, decoded as small as the input allows, and no further
    /// than to its components where they may be resized first. The first draws from a sample's `rng`.
    pub fn draw_crop(&self, image: ImageSize, rng: &mut KeyedRng) -> Pick {
        let crop = random_resized_crop(image, self.min_area, rng);
        let fits = |shrink: &u32| crop.width.min(crop.height) / shrink >= self.image_size;
        let shrink = match self.resize {
            Resize::Fast => [8, 4, 2].into_iter().find(fits).unwrap_or(1),
            Resize::Exact => 1,
        };
        Pick { crop, shrink, components: self.resize == Resize::Fast }
    }

    /// Takes `cut` out of `part`, resizes it, and draws flip, jitter and lighting from `rng`. `planes` is a
    /// buffer to be used again.
    pub fn apply(
        &self,
        part: &Part,
        cut: &Cut,
        rng: &mut KeyedRng,
        scaler: &mut Scaler,
        planes: Vec<u8>,
    ) -> Result<Input, ImageError> {
        let planes = scaler.resize_cut(part, cut, self.image_size, self.resize, planes)?;
        let flip = rng.below(2) == 1;
        let steps = (self.color_jitter > 0.0).then(|| jitter::draw(self.color_jitter, rng));
        let light = if self.lighting > 0.0 { draw_lighting(self.lighting, rng) } else { [0.0; 3] };
        let blends = match (self.finish, &steps) {
            (FinishOn::Host, Some(steps)) => jitter::blends(steps, &planes),
            _ => Vec::new(),
        };
        Ok(Input { side: self.image_size, planes, finishing: Finishing { flip, steps, light }, blends })
    }
}

/// How many times an image is larger than what it is resized to, where Pillow's arithmetic is the faster: the fast one's
/// instructions want what a few pixels are made of within 16 bytes.
const LARGE: u32 = 3;

/// What evaluation does: resize the short side to ceil(image_size / crop_ratio), cut out the centre.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalTransform {
    /// Side of the square input in pixels.
    pub image_size: u32,
    /// Side of the input over the short side of the resized image, in (0, 1].
    pub crop_ratio: f64,
    pub resize: Resize,
}

impl EvalTransform {
    pub fn from_config(data: &relabel_config::Data) -> Self {
        Self { image_size: data.image_size, crop_ratio: data.crop_ratio, resize: data.resize }
    }

    /// `planes` is a buffer to be used again.
    pub fn apply(&self, image: &RgbImage, scaler: &mut Scaler, planes: Vec<u8>) -> Result<Input, ImageError> {
        let geometry = eval_geometry(image.size, self.image_size, self.crop_ratio);
        let large = geometry.resized.width.saturating_mul(LARGE) < image.size.width;
        if self.resize == Resize::Exact || large {
            let EvalGeometry { resized, crop } = geometry;
            let planes = scaler.exactly(image, CropBox::whole(image.size), resized, crop, planes)?;
            return Ok(Input::of(self.image_size, planes));
        }
        // Only the part of the image that the centre is made of is resized, with the whole around it
        // for the filter to see, which gives the same pixels as cutting afterwards.
        let along = |side: u32, resized: u32, start: u32| {
            let scale = f64::from(side) / f64::from(resized);
            let start = f64::from(start) * scale;
            (start, (f64::from(self.image_size) * scale).min(f64::from(side) - start))
        };
        let (left, width) = along(image.size.width, geometry.resized.width, geometry.crop.left);
        let (top, height) = along(image.size.height, geometry.resized.height, geometry.crop.top);
        let planes = scaler.fast(
            image,
            CropBox::whole(image.size),
            Window { left, top, width, height },
            self.image_size,
            planes,
        )?;
        Ok(Input::of(self.image_size, planes))
    }
}

/// The noise that PCA lighting adds to red, green and blue, of values in [0, 1].
fn draw_lighting(deviation: f64, rng: &mut KeyedRng) -> [f32; 3] {
    let weights = PCA_VALUES.map(|value| value * deviation * rng.normal());
    PCA_VECTORS.map(|row| row.iter().zip(weights).map(|(vector, weight)| vector * weight).sum::<f64>() as f32)
}

/// An image ready to be written as floats: its bytes and what one pass is still to do to them. Kept as
/// bytes because they take a quarter of the memory while a batch is waiting for its other images.
#[derive(Debug, Clone)]
pub struct Input {
    side: u32,
    /// RGB, `[3, side, side]`.
    planes: Vec<u8>,
    finishing: Finishing,
    /// What the steps are for these pixels, unless the device finds out.
    blends: Vec<Blend>,
}

/// What is to be done to the bytes of an image, in this order, before they are normalized.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Finishing {
    /// Left becomes right.
    pub flip: bool,
    /// Of the colour jitter, in their order.
    pub steps: Option<[Step; 3]>,
    /// What is added to red, green and blue, of values in [0, 1].
    pub light: [f32; 3],
}

/// What a byte is multiplied by to be normalized, and then given in addition, with `light` in it: by channel.
pub fn normalization(light: [f32; 3]) -> ([f32; 3], [f32; 3]) {
    let shift = std::array::from_fn(|channel| (light[channel] - MEAN[channel]) / STD[channel]);
    (STD.map(|deviation| 1.0 / (255.0 * deviation)), shift)
}

impl Input {
    /// `pixels`, RGB `[side, side, 3]`, that only remain to be normalized. `planes` is a buffer to be used again.
    pub fn plain(side: u32, pixels: &[u8], planes: Vec<u8>) -> Self {
        Self::of(side, apart(pixels, planes))
    }

    fn of(side: u32, planes: Vec<u8>) -> Self {
        Self { side, planes, finishing: Finishing::default(), blends: Vec::new() }
    }

    /// Floats that one input of side `side` takes.
    pub fn floats(side: u32) -> usize {
        side as usize * side as usize * 3
    }

    /// Writes the normalized image into `out`, `[side, side, 3]`.
    ///
    /// # Panics
    /// If `out` is not `floats(side)` long.
    pub fn write(&self, out: &mut [f32]) {
        let side = self.side as usize;
        self.write_patch(0..side, 0..side, out);
    }

    /// As [`Self::write`], but only the pixels of these rows and columns of the input: flip by the order of reading,
    /// jitter, to [0, 1], lighting, mean and deviation.
    ///
    /// # Panics
    /// If `out` is not `floats(side)` long, or a row or column lies outside.
    pub fn write_patch(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), self.planes.len());
        let Finishing { flip, light, .. } = self.finishing;
        let (scale, shift) = normalization(light);
        let side = self.side as usize;
        let channels = jitter::channels(&self.planes);
        stream(out, |out| {
            for row in rows {
                for column in columns.clone().step_by(LANES) {
                    let length = LANES.min(columns.end - column);
                    let first = row * side + if flip { side - column - length } else { column };
                    let blocks = channels.map(|channel| &channel[first..first + length]);
                    let mut colours = jitter::read(blocks, flip);
                    for blend in &self.blends {
                        blend.apply(&mut colours);
                    }
                    let mut floats = [0.0; 3 * LANES];
                    for lane in 0..LANES {
                        for channel in 0..3 {
                            floats[lane * 3 + channel] =
                                colours[channel][lane] * scale[channel] + shift[channel];
                        }
                    }
                    let start = (row * side + column) * 3;
                    match length == LANES {
                        true => out.put(start, &floats),
                        false => out.put_some(start, &floats[..3 * length]),
                    }
                }
            }
        });
    }

    /// Its bytes, RGB `[3, side, side]`, and what is still to be done to them.
    pub fn unfinished(&self) -> (&[u8], &Finishing) {
        (&self.planes, &self.finishing)
    }

    /// The buffer that it was made in, to be used again.
    pub fn into_planes(self) -> Vec<u8> {
        self.planes
    }
}

#[cfg(test)]
#[path = "augment_tests.rs"]
mod tests;
