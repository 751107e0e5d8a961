//! Pillow's antialiased bilinear resize of 8-bit pixels, to the last bit: weights in double precision, rounded
//! to 22 fractional bits; across first, rounded to bytes, then down. (Pillow 13 turns this order round for some
//! pictures that shrink more in height than in width, and is up to one level apart from itself before.)

use super::decode::RgbImage;
use super::{CropBox, ImageError, ImageSize};

/// Fractional bits of a weight: 32 less 8 of a pixel and 2 for sums beyond it.
const FRACTION: u32 = 22;

/// The whole of `image` as `size`, RGB, row after row.
///
/// # Errors
/// An image without pixels.
pub(super) fn resize(image: &RgbImage, size: ImageSize) -> Result<Vec<u8>, ImageError> {
    let whole = |ImageSize { width, height }| CropBox { top: 0, left: 0, height, width };
    let mut out = Vec::new();
    Resampler::default().resize(image, whole(image.size), size, whole(size), &mut out)?;
    Ok(out)
}

/// What is kept from one image to the next.
#[derive(Debug, Default)]
pub(super) struct Resampler {
    across: Taps,
    down: Taps,
    /// `[rows, width, 3]`, resized across.
    half: Vec<u8>,
}

/// For each pixel along one side of the output: where its pixels in the source begin, and their weights.
#[derive(Debug, Default)]
struct Taps {
    places: Vec<(usize, std::ops::Range<usize>)>,
    weights: Vec<i32>,
}

impl Taps {
    /// Pixels `start..start + length` of a side of `from` pixels resized to `to`.
    fn set(&mut self, from: u32, to: u32, start: u32, length: u32) {
        self.places.clear();
        self.weights.clear();
        let scale = f64::from(from) / f64::from(to);
        let support = scale.max(1.0);
        let mut exact = Vec::new();
        for pixel in start..start + length {
            let centre = (f64::from(pixel) + 0.5) * scale;
            // Converting cuts off the fraction and takes what is negative for 0.
            let first = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(from as usize);
            exact.clear();
            exact.extend((first..end).map(|source| {
                let distance = (source as f64 - centre + 0.5) * (1.0 / support);
                (1.0 - distance.abs()).max(0.0)
            }));
            let sum: f64 = exact.iter().sum();
            let begin = self.weights.len();
            let one = f64::from(1 << FRACTION);
            self.weights.extend(exact.iter().map(|weight| (0.5 + weight / sum * one) as i32));
            self.places.push((first, begin..self.weights.len()));
        }
    }

    /// Each output pixel's first source pixel and weights.
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.places.iter().map(|(first, range)| (*first, &self.weights[range.clone()]))
    }
}

impl Resampler {
    /// Resizes `source` of `image` to `to` and writes `part` of that into `out`, RGB, row after row. Pixels
    /// beyond `source` have no part in it. `part` lies within `to`.
    ///
    /// # Errors
    /// `source` is not within the image.
    pub(super) fn resize(
        &mut self,
        image: &RgbImage,
        source: CropBox,
        to: ImageSize,
        part: CropBox,
        out: &mut Vec<u8>,
    ) -> Result<(), ImageError> {
        let within = |start: u32, length: u32, side: u32| {
            length > 0 && start.checked_add(length).is_some_and(|end| end <= side)
        };
        let ImageSize { width, height } = image.size;
        if !within(source.left, source.width, width) || !within(source.top, source.height, height) {
            return Err(ImageError::Resize(format!("{source:?} is not within {width} x {height} pixels")));
        }
        self.across.set(source.width, to.width, part.left, part.width);
        self.down.set(source.height, to.height, part.top, part.height);

        // Only the rows that the part is made of.
        let first_row = self.down.iter().map(|(first, _)| first).min().unwrap_or(0);
        let end_row = self.down.iter().map(|(first, weights)| first + weights.len()).max().unwrap_or(0);
        let stride = width as usize * 3;
        let half_row = part.width as usize * 3;
        self.half.resize((end_row - first_row) * half_row, 0);
        let rows = image.pixels.chunks_exact(stride).skip(source.top as usize + first_row);
        for (row, half) in rows.zip(self.half.chunks_exact_mut(half_row)) {
            let row = &row[source.left as usize * 3..][..source.width as usize * 3];
            for ((first, weights), pixel) in self.across.iter().zip(half.chunks_exact_mut(3)) {
                let mut sums = [1_i32 << (FRACTION - 1); 3];
                for (weight, from) in weights.iter().zip(row[first * 3..].chunks_exact(3)) {
                    for (sum, &byte) in sums.iter_mut().zip(from) {
                        *sum += i32::from(byte) * weight;
                    }
                }
                pixel.copy_from_slice(&sums.map(to_byte));
            }
        }

        out.resize(part.height as usize * half_row, 0);
        let mut sums = vec![0_i32; half_row];
        for ((first, weights), row) in self.down.iter().zip(out.chunks_exact_mut(half_row)) {
            sums.fill(1 << (FRACTION - 1));
            let from = self.half.chunks_exact(half_row).skip(first - first_row);
            for (weight, from) in weights.iter().zip(from) {
                for (sum, &byte) in sums.iter_mut().zip(from) {
                    *sum += i32::from(byte) * weight;
                }
            }
            for (byte, &sum) in row.iter_mut().zip(&sums) {
                *byte = to_byte(sum);
            }
        }
        Ok(())
    }
}

fn to_byte(sum: i32) -> u8 {
    (sum >> FRACTION).clamp(0, 255) as u8
}
