//! The target of a crop: its box RoI-aligned out of the label map to 1 x 1, then softmax.
//!
//! The reference scatters the k logits of each cell into zeros over all classes and runs
//! `torchvision.ops.roi_align(map, [b, x1 * W - 0.5, y1 * H - 0.5, x2 * W - 0.5, y2 * H - 0.5],
//! output_size=(1, 1))` with its defaults on the dense map. A 1 x 1 RoIAlign is a weighted sum of the
//! cells, and the weight of a cell is that of its row times that of its column, so the sparse map can be
//! summed directly: the work is in proportion to k, but for filling in the softmax of absent classes,
//! whose logit is 0.

use relabel_config::Axes;

use super::LabelMap;
use crate::data::{CropBox, ImageSize};

/// A box in parts of the image's width (x) and height (y), `0 <= x1 <= x2 <= 1` and so for y.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UnitBox {
    pub x1: f32,
    pub y1: f32,
    pub x2: f32,
    pub y2: f32,
}

impl UnitBox {
    /// The whole image.
    pub const FULL: Self = Self { x1: 0.0, y1: 0.0, x2: 1.0, y2: 1.0 };

    /// The box of `crop` in an image of `image` pixels. Start and length are divided and added in f64 and
    /// then rounded to f32, as the reference does: the number of samples that RoIAlign takes can hang on
    /// the last bit.
    pub fn of(image: ImageSize, crop: CropBox) -> Self {
        let span = |start: u32, length: u32, side: u32| {
            let start = f64::from(start) / f64::from(side);
            (start as f32, (start + f64::from(length) / f64::from(side)) as f32)
        };
        let (x1, x2) = span(crop.left, crop.width, image.width);
        let (y1, y2) = span(crop.top, crop.height, image.height);
        Self { x1, y1, x2, y2 }
    }
}

/// Writes the target for `crop` into `out`, `[classes]`: not negative, sum 1. Every class id of the map must
/// be under `out.len()`.
pub fn pool(map: &LabelMap, crop: UnitBox, axes: Axes, out: &mut [f32]) {
    pool_logits(map, crop, axes, out);
    softmax(out);
}

/// Writes the pooled logits for `crop` into `out`, `[classes]`, 0 for a class that no cell of the box names.
pub fn pool_logits(map: &LabelMap, crop: UnitBox, axes: Axes, out: &mut [f32]) {
    let UnitBox { x1, y1, x2, y2 } = crop;
    // The reference hands (top, left, bottom, right) to roi_align, which reads (x1, y1, x2, y2).
    let ((left, right), (top, bottom)) = match axes {
        Axes::Hw => ((x1, x2), (y1, y2)),
        Axes::Reference => ((y1, y2), (x1, x2)),
    };
    let columns = side_weights(left, right, map.width);
    let rows = side_weights(top, bottom, map.height);
    out.fill(0.0);
    let plane = map.height * map.width;
    let repeats = names_a_class_twice(map);
    for (row, &row_weight) in rows.iter().enumerate().filter(|(_, w)| **w != 0.0) {
        for (column, &column_weight) in columns.iter().enumerate().filter(|(_, w)| **w != 0.0) {
            let cell = row * map.width + column;
            let weight = row_weight * column_weight;
            for j in 0..map.k {
                let class = map.classes[j * plane + cell];
                let overridden =
                    repeats && (j + 1..map.k).any(|later| map.classes[later * plane + cell] == class);
                if !overridden {
                    out[class as usize] += weight * map.logits[j * plane + cell];
                }
            }
        }
    }
}

/// Whether any cell does: what wrote the best `k` of each has none, and one look at all is cheaper than one at each.
fn names_a_class_twice(map: &LabelMap) -> bool {
    let planes: Vec<&[u32]> = map.classes.chunks_exact(map.height * map.width).collect();
    let same = |a: &[u32], b: &[u32]| a.iter().zip(b).fold(false, |any, (a, b)| any | (a == b));
    planes.iter().enumerate().any(|(j, plane)| planes[j + 1..].iter().any(|later| same(plane, later)))
}

/// The weight of each of `cells` cells along one side, for a box from `from` to `to` in [0, 1].
///
/// torchvision's `roi_align` with `spatial_scale` 1, `sampling_ratio` -1 and `aligned` false, in its float32
/// arithmetic: a side is at least 1 cell long, it takes ceil(length) samples, those beyond -1 or
/// beyond the size count as 0, and the others are clamped and interpolated.
fn side_weights(from: f32, to: f32, cells: usize) -> Vec<f32> {
    let size = cells as f32;
    let start = from * size - 0.5;
    let end = to * size - 0.5;
    let length = (end - start).max(1.0);
    let samples = length.ceil() as usize;
    let mut weights = vec![0.0_f32; cells];
    for i in 0..samples {
        let at = start + (i as f32 + 0.5) * length / samples as f32;
        if at < -1.0 || at > size {
            continue;
        }
        let at = at.max(0.0);
        let low = at as usize;
        if low >= cells - 1 {
            weights[cells - 1] += 1.0;
        } else {
            let part = at - low as f32;
            weights[low] += 1.0 - part;
            weights[low + 1] += part;
        }
    }
    for weight in &mut weights {
        *weight /= samples as f32;
    }
    weights
}

/// What a processor does at once; sums are kept in as many parts.
const LANES: usize = 16;

/// Softmax in place.
fn softmax(logits: &mut [f32]) {
    let mut most = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        most.iter_mut().zip(chunk).for_each(|(most, &v)| *most = if v > *most { v } else { *most });
    }
    let max = most.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0_f64; LANES];
    let (chunks, rest) = logits.as_chunks_mut::<LANES>();
    let take = |sum: &mut f64, v: &mut f32| {
        *v = exp(*v - max);
        *sum += f64::from(*v);
    };
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, v)| take(sum, v));
    }
    sums.iter_mut().zip(rest).for_each(|(sum, v)| take(sum, v));
    let scale = (1.0 / sums.iter().sum::<f64>()) as f32;
    logits.iter_mut().for_each(|v| *v *= scale);
}

/// e to the power of `x`, which is not over 0, to within two units in the last place; under -87, where that begins to
/// have no float32, e to -87. Written so that a loop over it needs no branch and no call.
fn exp(x: f32) -> f32 {
    // Adding it rounds to a whole number, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 as a part that multiplies exactly, and the rest.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = (std::f64::consts::LN_2 - LN2_HIGH as f64) as f32;
    /// Of r to the powers of 7 to 0, r being within ln 2 / 2 of 0.
    const SERIES: [f32; 8] =
        [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 1.0 / 2.0, 1.0, 1.0];
    let x = x.max(-87.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let power = rounded - ROUND;
    let r = (x - power * LN2_HIGH) - power * LN2_LOW;
    let series = SERIES.iter().fold(0.0, |sum, factor| sum * r + factor);
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    series * f32::from_bits(exponent << 23)
}

#[cfg(test)]
mod tests;
