//! Pillow's `resize(size, BILINEAR)` to the last bit, for what is compared with PyTorch and made once. The SIMD
//! resize of training is faster and up to one level of 255 apart, since Pillow rounds to bytes between its two
//! passes.
//!
//! Each output pixel is a weighted mean of the input pixels under a triangle, which is as wide as the picture is
//! shrunk; weights are fixed-point numbers; first all rows, then all columns. (Pillow 13 turns this order round for
//! some pictures that shrink more in height than in width, and is up to one level apart from itself before.)

use super::{ImageSize, decode::RgbImage};

/// Bits behind the point of a weight: what remains of 32 beside 8 of a pixel, and 2 to spare.
const BITS: u32 = 32 - 8 - 2;

/// `image` as `size`, RGB, row after row.
pub fn resize(image: &RgbImage, size: ImageSize) -> Vec<u8> {
    let ImageSize { width, height } = image.size;
    let narrow = columns(&image.pixels, width as usize, &windows(width, size.width));
    rows(&narrow, size.width as usize * 3, &windows(height, size.height))
}

/// The input pixels that one output pixel is made of.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// For each of `to` pixels of a side its window on `from` pixels.
fn windows(from: u32, to: u32) -> Vec<Window> {
    let scale = f64::from(from) / f64::from(to);
    // A picture that grows is interpolated: the triangle reaches to the next pixels.
    let support = scale.max(1.0);
    let window = |pixel: u32| {
        let centre = (f64::from(pixel) + 0.5) * scale;
        // Truncated as by a cast to int in C, hence towards 0.
        let first = ((centre - support + 0.5) as i64).max(0);
        let end = ((centre + support + 0.5) as i64).min(i64::from(from));
        let weight = |at: i64| (1.0 - ((at as f64 - centre + 0.5) / support).abs()).max(0.0);
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: f64| (0.5 + weight / sum * f64::from(1 << BITS)) as i32;
        Window { first: first as usize, weights: weights.into_iter().map(fixed).collect() }
    };
    (0..to).map(window).collect()
}

/// A sum of pixels times weights as a byte.
fn byte(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

const HALF: i32 = 1 << (BITS - 1);

fn columns(pixels: &[u8], width: usize, windows: &[Window]) -> Vec<u8> {
    let mut out = Vec::with_capacity(pixels.len() / width * windows.len());
    for row in pixels.chunks_exact(width * 3) {
        for Window { first, weights } in windows {
            let mut sums = [HALF; 3];
            for (pixel, weight) in row[first * 3..].chunks_exact(3).zip(weights) {
                for (sum, &value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            out.extend(sums.map(byte));
        }
    }
    out
}

/// `row` is the length of a row in bytes.
fn rows(pixels: &[u8], row: usize, windows: &[Window]) -> Vec<u8> {
    let mut out = Vec::with_capacity(row * windows.len());
    let mut sums = vec![0; row];
    for Window { first, weights } in windows {
        sums.fill(HALF);
        for (line, weight) in pixels[first * row..].chunks_exact(row).zip(weights) {
            for (sum, &value) in sums.iter_mut().zip(line) {
                *sum += i32::from(value) * weight;
            }
        }
        out.extend(sums.iter().map(|&sum| byte(sum)));
    }
    out
}
