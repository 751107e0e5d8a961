//! Which samples along one side an output's pixel is made of, and how much each counts: Pillow's bilinear filter.

use std::ops::Range;

/// Fractional bits of a weight, so that two of them fit into the products that the processors have.
pub(super) const FRACTION: u32 = 14;

/// Fractional bits of what is between two roundings: as many as a byte leaves of 15.
pub(in crate::data) const BETWEEN: u32 = 6;

/// Bits that a sum of weighted bytes has more than what is in between.
pub(super) const ACROSS: u32 = FRACTION - BETWEEN;

/// What is added to round `bits` off.
pub(super) const fn half(bits: u32) -> i32 {
    1 << (bits - 1)
}

/// For each pixel along a side of the output as many samples.
#[derive(Debug, Default)]
pub(super) struct Taps {
    /// How many.
    pub count: usize,
    /// The first one's place.
    pub first: Vec<usize>,
    /// `[pixels, count]`, which add up to 1 for each pixel.
    pub weights: Vec<i16>,
    /// Of one pixel.
    exact: Vec<f64>,
}

impl Taps {
    /// For `to` pixels of the samples from `start` to `start + length`, with no part in it for those beyond `reach`, in
    /// which these lie. Where there are fewer than pixels, of this `density`, the filter is as wide as Pillow's together
    /// with the interpolation that makes pixels of them: their variances add up.
    pub(super) fn set(&mut self, reach: Range<usize>, start: f64, length: f64, density: f64, to: u32) {
        let scale = length / f64::from(to);
        let of_pixels = (scale / density).max(1.0) * density;
        let support = if density < 1.0 { of_pixels.hypot(1.0) } else { of_pixels };
        let narrow = 1.0 / support;
        // No pixel has more than there are centres of samples in its support.
        self.count = ((2.0 * support).ceil() as usize).min(reach.len());
        let last = reach.end - self.count;
        self.first.clear();
        self.weights.clear();
        for pixel in 0..to {
            let centre = start + (f64::from(pixel) + 0.5) * scale;
            // Converting cuts off the fraction and takes what is negative for 0.
            let first = ((centre - support + 0.5) as usize).clamp(reach.start, last);
            self.first.push(first);
            self.exact.clear();
            self.exact.extend((0..self.count).map(|tap| {
                let distance = ((first + tap) as f64 + 0.5 - centre) * narrow;
                (1.0 - distance.abs()).max(0.0)
            }));
            self.push();
        }
    }

    /// The weights in parts of 1, and what rounding leaves of 1 to the largest.
    fn push(&mut self) {
        let one = 1 << FRACTION;
        let share = f64::from(one) / self.exact.iter().sum::<f64>();
        let begin = self.weights.len();
        self.weights.extend(self.exact.iter().map(|weight| (weight * share + 0.5) as i16));
        let rounded = &mut self.weights[begin..];
        let rest = one - rounded.iter().map(|weight| i32::from(*weight)).sum::<i32>();
        if let Some(largest) = rounded.iter_mut().max() {
            *largest += rest as i16;
        }
    }

    /// The first samples' places and the weights, pixel after pixel.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &[i16])> {
        self.first.iter().copied().zip(self.weights.chunks_exact(self.count))
    }

    /// The first sample's place and the weights of a pixel.
    pub(super) fn of(&self, pixel: usize) -> (usize, &[i16]) {
        (self.first[pixel], &self.weights[pixel * self.count..][..self.count])
    }
}
