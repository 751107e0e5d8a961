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

/// The `k` best classes of each cell of a grid over an image, wherever they are kept. A value's number is
/// `(j * height + row) * width + column`, `j` under `k`.
pub trait Cells {
    /// Classes kept a cell.
    fn k(&self) -> usize;
    /// Rows of cells, at least 1.
    fn height(&self) -> usize;
    /// Columns of cells, at least 1.
    fn width(&self) -> usize;
    /// The logit of value `i`.
    fn logit(&self, i: usize) -> f32;
    /// The class id of value `i`.
    fn class(&self, i: usize) -> u32;
}

impl Cells for LabelMap {
    fn k(&self) -> usize {
        self.k
    }

    fn height(&self) -> usize {
        self.height
    }

    fn width(&self) -> usize {
        self.width
    }

    fn logit(&self, i: usize) -> f32 {
        self.logits[i]
    }

    fn class(&self, i: usize) -> u32 {
        self.classes[i]
    }
}

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
pub fn pool(map: &impl Cells, crop: UnitBox, axes: Axes, out: &mut [f32]) {
    pool_logits(map, crop, axes, out);
    softmax(out);
}

/// Writes the pooled logits for `crop` into `out`, `[classes]`, 0 for a class that no cell of the box names.
pub fn pool_logits(map: &impl Cells, crop: UnitBox, axes: Axes, out: &mut [f32]) {
    let UnitBox { x1, y1, x2, y2 } = crop;
    // The reference hands (top, left, bottom, right) to roi_align, which reads (x1, y1, x2, y2).
    let ((left, right), (top, bottom)) = match axes {
        Axes::Hw => ((x1, x2), (y1, y2)),
        Axes::Reference => ((y1, y2), (x1, x2)),
    };
    let columns = side_weights(left, right, map.width());
    let rows = side_weights(top, bottom, map.height());
    out.fill(0.0);
    let plane = map.height() * map.width();
    for (row, &row_weight) in rows.iter().enumerate().filter(|(_, w)| **w != 0.0) {
        for (column, &column_weight) in columns.iter().enumerate().filter(|(_, w)| **w != 0.0) {
            let cell = row * map.width() + column;
            let weight = row_weight * column_weight;
            for j in 0..map.k() {
                let class = map.class(j * plane + cell);
                let overridden = (j + 1..map.k()).any(|later| map.class(later * plane + cell) == class);
                if !overridden {
                    out[class as usize] += weight * map.logit(j * plane + cell);
                }
            }
        }
    }
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

/// Softmax in place. Most classes are absent and share the logit 0, so their exponential is taken once.
fn softmax(logits: &mut [f32]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let absent = (-max).exp();
    let mut sum = 0.0_f64;
    for v in &mut *logits {
        *v = if *v == 0.0 { absent } else { (*v - max).exp() };
        sum += f64::from(*v);
    }
    let scale = (1.0 / sum) as f32;
    logits.iter_mut().for_each(|v| *v *= scale);
}

#[cfg(test)]
mod tests;
