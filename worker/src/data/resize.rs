//! From what was decoded to a square of planes: red, green and blue.

use super::components::{Components, mix};
use super::cut::Cut;
use super::decode::{Part, Pixels, RgbImage};
use super::resample::{BETWEEN, BEYOND, Resampler, Samples, Wanted, Window};
use super::{CropBox, ImageError, ImageSize, pillow};
use relabel_config::Resize;

/// Resizes with Pillow's antialiased bilinear filter: `fast` with SIMD instructions and 14-bit weights, a level or two of
/// 255 from Pillow, `exact` to Pillow's last bit. Keeps its buffers; belongs to one thread.
#[derive(Debug, Default)]
pub struct Scaler {
    fast: Resampler,
    exact: pillow::Resampler,
    /// Of an image in colours, `[3, H, W]`.
    colours: Vec<u8>,
    /// What was resized exactly, RGB, row after row.
    pixels: Vec<u8>,
}

impl Scaler {
    /// The box of `cut`, of which `part` holds the region, as a square of `side` pixels: RGB, `[3, side, side]`, in the
    /// buffer `planes`. Samples beyond the box have no part in it, as when cutting comes first, unless its edges lie
    /// between samples.
    ///
    /// # Errors
    /// The box is not within the region, or components are to be resized exactly, which are no pixels of Pillow's.
    pub fn resize_cut(
        &mut self,
        part: &Part,
        cut: &Cut,
        side: u32,
        resize: Resize,
        mut planes: Vec<u8>,
    ) -> Result<Vec<u8>, ImageError> {
        let image = match part.pixels() {
            Pixels::Components(_) if resize == Resize::Exact => {
                return Err(ImageError::Resize("components cannot be resized exactly".into()));
            }
            Pixels::Components(components) => {
                self.components(components, cut, side, &mut planes)?;
                return Ok(planes);
            }
            Pixels::Rgb(image) => image,
        };
        let window = window(cut, (1.0, 1.0));
        match (resize, window.whole()) {
            (Resize::Exact, Some(source)) => {
                let to = ImageSize { width: side, height: side };
                self.exactly(image, source, to, CropBox::whole(to), planes)
            }
            (_, source) => {
                self.fast(image, source.unwrap_or(CropBox::whole(image.size)), window, side, planes)
            }
        }
    }

    fn components(
        &mut self,
        components: &Components,
        cut: &Cut,
        side: u32,
        planes: &mut Vec<u8>,
    ) -> Result<(), ImageError> {
        let samples = components.each_ref().map(|plane| Samples {
            bytes: &plane.samples,
            pitch: plane.pitch as usize,
            size: plane.size,
        });
        let wanted = [&components[0], &components[1]].map(|plane| {
            let window = window(cut, plane.density);
            let reach = window.whole().unwrap_or(CropBox::whole(plane.size));
            Wanted { reach, window, density: plane.density }
        });
        let side = side as usize;
        planes.resize(side * side * 3, 0);
        let [red, green, blue] = thirds(planes);
        self.fast.resize(samples, wanted, side as u32, |y, rows| {
            let row = y * side..(y + 1) * side;
            mix(rows, [&mut red[row.clone()], &mut green[row.clone()], &mut blue[row]]);
        })
    }

    /// `part` of what `source` is when it is resized to `to`, as [`Self::resize_cut`].
    pub(super) fn exactly(
        &mut self,
        image: &RgbImage,
        source: CropBox,
        to: ImageSize,
        part: CropBox,
        planes: Vec<u8>,
    ) -> Result<Vec<u8>, ImageError> {
        self.exact.resize(image, source, to, part, &mut self.pixels)?;
        Ok(apart(&self.pixels, planes))
    }

    /// `window` of an image in colours, without what is beyond `reach`, as [`Self::resize_cut`].
    pub(super) fn fast(
        &mut self,
        image: &RgbImage,
        reach: CropBox,
        window: Window,
        side: u32,
        mut planes: Vec<u8>,
    ) -> Result<Vec<u8>, ImageError> {
        let (size, pitch) = (image.size, image.size.width as usize);
        self.colours = apart(&image.pixels, std::mem::take(&mut self.colours));
        let area = pitch * size.height as usize;
        self.colours.resize(3 * area + BEYOND, 0);
        let samples =
            [0, 1, 2].map(|channel| Samples { bytes: &self.colours[channel * area..], pitch, size });
        let wanted = Wanted { reach, window, density: (1.0, 1.0) };
        let side = side as usize;
        planes.resize(side * side * 3, 0);
        let mut colours = thirds(&mut planes);
        self.fast.resize(samples, [wanted; 2], side as u32, |y, rows| {
            for (plane, row) in colours.iter_mut().zip(rows) {
                for (byte, pixel) in plane[y * side..].iter_mut().zip(row) {
                    *byte = ((pixel + (1 << (BETWEEN - 1))) >> BETWEEN) as u8;
                }
            }
        })?;
        Ok(planes)
    }
}

/// The planes of `[3, H, W]`.
fn thirds(planes: &mut [u8]) -> [&mut [u8]; 3] {
    let (first, others) = planes.split_at_mut(planes.len() / 3);
    let (second, third) = others.split_at_mut(first.len());
    [first, second, third]
}

/// The box of `cut` in what was decoded of it: samples of this density.
fn window(cut: &Cut, density: (f64, f64)) -> Window {
    let Cut { crop, shrink, region, .. } = *cut;
    let along = |start: u32, length: u32, first: u32, density: f64| {
        let start = (f64::from(start) / f64::from(shrink) - f64::from(first)) * density;
        (start, f64::from(length) / f64::from(shrink) * density)
    };
    let (left, width) = along(crop.left, crop.width, region.left, density.0);
    let (top, height) = along(crop.top, crop.height, region.top, density.1);
    Window { left, top, width, height }
}

/// RGB pixels, row after row, as `[3, H, W]` in the buffer `planes`.
pub(super) fn apart(pixels: &[u8], mut planes: Vec<u8>) -> Vec<u8> {
    planes.clear();
    for channel in 0..3 {
        planes.extend(pixels.iter().skip(channel).step_by(3));
    }
    planes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::data::components::Plane;

    /// A plane of `region` with a sample of `value`, of its centre's place in the image, for so many pixels.
    fn plane(region: CropBox, density: (f64, f64), value: impl Fn(f64, f64) -> f64) -> Plane {
        let samples = |pixels: u32, density: f64| (f64::from(pixels) * density) as u32;
        let (width, height) = (samples(region.width, density.0), samples(region.height, density.1));
        let centre =
            |first: u32, sample: u32, density: f64| f64::from(first) + (f64::from(sample) + 0.5) / density;
        let row = |y: u32| (0..width).map(move |x| (x, y));
        let places = (0..height).flat_map(row);
        let mut bytes: Vec<u8> = places
            .map(|(x, y)| value(centre(region.left, x, density.0), centre(region.top, y, density.1)) as u8)
            .collect();
        bytes.resize(bytes.len() + BEYOND, 0);
        Plane { size: ImageSize { width, height }, pitch: width, density, samples: bytes }
    }

    /// Slopes stay slopes, whatever they are resized to, and so show where every sample is taken to lie.
    #[test]
    fn components_of_any_density_lie_where_the_pixels_do() {
        let luma = |x: f64, y: f64| 126.0 + 2.0 * x - 2.0 * y;
        let blue = |_: f64, y: f64| 64.0 + 2.0 * y;
        let red = |x: f64, y: f64| 128.0 + 2.0 * x - 2.0 * y;
        let crop = CropBox { top: 9, left: 19, height: 35, width: 33 };
        for region in [
            CropBox { top: 0, left: 0, height: 64, width: 64 },
            CropBox { top: 8, left: 16, height: 40, width: 48 },
        ] {
            for density in [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (0.5, 0.5)] {
                let components = [
                    plane(region, (1.0, 1.0), luma),
                    plane(region, density, blue),
                    plane(region, density, red),
                ];
                let size = ImageSize { width: 64, height: 64 };
                let cut = Cut { size, crop, shrink: 1, region };
                // A filter that is no whole samples wide leans to one side a little, as Pillow's does.
                for side in [12_u32, 40] {
                    let (mut scaler, mut planes) = (Scaler::default(), Vec::new());
                    scaler.components(&components, &cut, side, &mut planes).unwrap();
                    let [reds, greens, blues] = thirds(&mut planes);
                    // The filter is cut off at the crop's edges.
                    let margin = side.div_ceil(12);
                    for (x, y) in
                        (margin..side - margin).flat_map(|y| (margin..side - margin).map(move |x| (x, y)))
                    {
                        let along = |first: u32, place: u32, length: u32| {
                            f64::from(first) + (f64::from(place) + 0.5) * f64::from(length) / f64::from(side)
                        };
                        let (across, down) =
                            (along(crop.left, x, crop.width), along(crop.top, y, crop.height));
                        let (grey, blue) = (luma(across, down), blue(across, down) - 128.0);
                        let red = red(across, down) - 128.0;
                        let right = [
                            grey + 1.402 * red,
                            grey - 0.344_136 * blue - 0.714_136 * red,
                            grey + 1.772 * blue,
                        ];
                        let at = (y * side + x) as usize;
                        for (found, right) in [reds[at], greens[at], blues[at]].into_iter().zip(right) {
                            let right = right.clamp(0.0, 255.0);
                            assert!(
                                (f64::from(found) - right).abs() < 1.5,
                                "{density:?} {region:?} {side} ({x}, {y}): {found}, not {right}"
                            );
                        }
                    }
                }
            }
        }
    }
}
