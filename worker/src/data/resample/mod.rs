//! Pillow's antialiased bilinear filter over planes of bytes, with weights of 14 bits: each row across, and the few of
//! these that make a row of the output down, while they are in the nearest cache. Nothing is rounded to bytes in between.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod taps;

use super::{CropBox, ImageError, ImageSize};
use taps::{ACROSS, FRACTION, Taps, half};

pub(super) use taps::BETWEEN;

/// Samples, row after row, of which rows of `pitch` the first `size` count, and [`BEYOND`] bytes more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Samples<'a> {
    pub bytes: &'a [u8],
    pub pitch: usize,
    pub size: ImageSize,
}

/// A box in them, whose edges may lie between samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Window {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
}

impl Window {
    /// None where an edge lies between samples.
    pub(super) fn whole(self) -> Option<CropBox> {
        let Self { left, top, width, height } = self;
        let whole = [left, top, width, height].iter().all(|edge| edge.fract() == 0.0 && *edge >= 0.0);
        let [left, top, width, height] = [left, top, width, height].map(|edge| edge as u32);
        whole.then_some(CropBox { top, left, height, width })
    }

    fn is_within(self, reach: CropBox) -> bool {
        let within = |start: f64, length: f64, first: u32, side: u32| {
            let (first, end) = (f64::from(first), f64::from(first) + f64::from(side));
            // Sums of halves and quarters are exact, others nearly so.
            start >= first && length > 0.0 && start + length <= end + 1e-6
        };
        within(self.left, self.width, reach.left, reach.width)
            && within(self.top, self.height, reach.top, reach.height)
    }
}

impl From<CropBox> for Window {
    fn from(CropBox { top, left, height, width }: CropBox) -> Self {
        let [left, top, width, height] = [left, top, width, height].map(f64::from);
        Self { left, top, width, height }
    }
}

/// What is wanted of a plane: `window`, in which what is beyond `reach` has no part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Wanted {
    pub reach: CropBox,
    pub window: Window,
    /// Samples along a pixel's width and height, at most 1.
    pub density: (f64, f64),
}

/// Keeps its buffers from one image to the next.
#[derive(Debug, Default)]
pub(super) struct Resampler {
    grids: [Grid; 2],
    lines: [Lines; 3],
}

/// Which samples make which pixels, of planes of which the same is wanted.
#[derive(Debug, Default)]
struct Grid {
    across: Taps,
    down: Taps,
    #[cfg(target_arch = "x86_64")]
    shuffles: avx2::Shuffles,
}

/// Rows of one plane, resized across, in parts of 1 << [`BETWEEN`].
#[derive(Debug, Default)]
struct Lines {
    /// `[count, side]`, of which row y is at y modulo the count.
    rows: Vec<i16>,
    /// The next that is not there yet.
    next: usize,
    /// Where those begin that make the row which is.
    places: Vec<usize>,
    /// One that is resized down as well.
    done: Vec<i16>,
}

/// Bytes beyond those that count, at the end of the last row, so that any 16 can be looked at.
pub(super) const BEYOND: usize = 16;

impl Resampler {
    /// Makes three planes of `side` x `side` pixels, of the first plane what is `wanted` first, of the others what is
    /// wanted last, and has `take` look at them row by row: number, and each plane's pixels in parts of 1 << [`BETWEEN`],
    /// from 0 to 255.
    ///
    /// # Errors
    /// A window is not within its reach, or that not within the samples.
    pub(super) fn resize(
        &mut self,
        planes: [Samples<'_>; 3],
        wanted: [Wanted; 2],
        side: u32,
        mut take: impl FnMut(usize, [&[i16]; 3]),
    ) -> Result<(), ImageError> {
        let of = [0, 1, 1];
        for (Samples { size, .. }, of) in planes.into_iter().zip(of) {
            let Wanted { reach, window, .. } = wanted[of];
            if !Window::from(reach).is_within(CropBox::whole(size)) || !window.is_within(reach) {
                let ImageSize { width, height } = size;
                let Window { left, top, width: wide, height: high } = window;
                return Err(ImageError::Resize(format!(
                    "{wide} x {high} at ({left}, {top}) is not within {reach:?} of {width} x {height}"
                )));
            }
        }
        for (grid, wanted) in self.grids.iter_mut().zip(wanted) {
            grid.set(wanted, side);
        }
        for (lines, of) in self.lines.iter_mut().zip(of) {
            lines.begin(&self.grids[of], side as usize);
        }
        for y in 0..side as usize {
            for ((lines, of), samples) in self.lines.iter_mut().zip(of).zip(planes) {
                lines.make(&self.grids[of], y, samples);
            }
            take(y, self.lines.each_ref().map(|lines| &lines.done[..]));
        }
        Ok(())
    }
}

impl Grid {
    fn set(&mut self, wanted: Wanted, side: u32) {
        let Wanted { window, reach: CropBox { top, left, height, width }, density } = wanted;
        let range = |start: u32, length: u32| start as usize..(start + length) as usize;
        self.across.set(range(left, width), window.left, window.width, density.0, side);
        self.down.set(range(top, height), window.top, window.height, density.1, side);
        #[cfg(target_arch = "x86_64")]
        self.shuffles.set(&self.across);
    }

    /// Resizes a row across.
    fn cross(&self, row: &[u8], out: &mut [i16]) {
        #[cfg(target_arch = "x86_64")]
        let made = self.shuffles.apply(row, out);
        #[cfg(not(target_arch = "x86_64"))]
        let made = 0;
        for ((first, weights), pixel) in self.across.iter().zip(out).skip(made) {
            let samples = row[first..].iter().zip(weights);
            let sum: i32 = samples.map(|(byte, weight)| i32::from(*byte) * i32::from(*weight)).sum();
            *pixel = ((sum + half(ACROSS)) >> ACROSS) as i16;
        }
    }
}

impl Lines {
    fn begin(&mut self, grid: &Grid, side: usize) {
        self.rows.resize(grid.down.count * side, 0);
        self.done.resize(side, 0);
        self.next = 0;
    }

    /// Makes row `y` of the output. To be asked for one after the other, for what is there is used again.
    fn make(&mut self, grid: &Grid, y: usize, samples: Samples<'_>) {
        let (side, count) = (self.done.len(), grid.down.count);
        let (first, weights) = grid.down.of(y);
        for from in self.next.max(first)..first + count {
            let place = from % count * side;
            grid.cross(&samples.bytes[from * samples.pitch..], &mut self.rows[place..place + side]);
        }
        self.next = first + count;
        self.places.clear();
        self.places.extend((first..first + count).map(|from| from % count * side));
        add_up(&self.rows, &self.places, weights, &mut self.done);
    }
}

/// Weighted sums of the rows that begin at `places`.
fn add_up(rows: &[i16], places: &[usize], weights: &[i16], out: &mut [i16]) {
    #[cfg(target_arch = "x86_64")]
    let made = avx2::add_up(rows, places, weights, out);
    #[cfg(not(target_arch = "x86_64"))]
    let made = 0;
    for (column, pixel) in out.iter_mut().enumerate().skip(made) {
        let pixels = places.iter().map(|place| i32::from(rows[place + column]));
        let sum: i32 = pixels.zip(weights).map(|(pixel, weight)| pixel * i32::from(*weight)).sum();
        *pixel = ((sum + half(FRACTION)) >> FRACTION) as i16;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Noise, a row after the other, with bytes between that must not be seen.
    fn noise(size: ImageSize, pitch: usize) -> Vec<u8> {
        let mut state = 7_u32;
        let mut draw = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..size.height as usize * pitch).map(|_| draw()).collect()
    }

    /// As Pillow's filter is defined, in double precision: across and down at once.
    fn exact(samples: Samples<'_>, window: Window, reach: CropBox, side: u32) -> Vec<f64> {
        let taps = |start: f64, length: f64, first: u32, count: u32| -> Vec<Vec<(usize, f64)>> {
            let scale = length / f64::from(side);
            let support = scale.max(1.0);
            (0..side)
                .map(|pixel| {
                    let centre = start + (f64::from(pixel) + 0.5) * scale;
                    let weight =
                        |place: u32| (1.0 - ((f64::from(place) + 0.5 - centre) / support).abs()).max(0.0);
                    let sum: f64 = (first..first + count).map(weight).sum();
                    (first..first + count).map(|place| (place as usize, weight(place) / sum)).collect()
                })
                .collect()
        };
        let across = taps(window.left, window.width, reach.left, reach.width);
        let down = taps(window.top, window.height, reach.top, reach.height);
        let pixel = |rows: &[(usize, f64)], columns: &[(usize, f64)]| -> f64 {
            let row = |y: usize| -> f64 {
                columns
                    .iter()
                    .map(|(x, weight)| weight * f64::from(samples.bytes[y * samples.pitch + x]))
                    .sum()
            };
            rows.iter().map(|(y, weight)| weight * row(*y)).sum()
        };
        down.iter().flat_map(|rows| across.iter().map(move |columns| pixel(rows, columns))).collect()
    }

    /// One plane, which comes out three times; in bytes.
    fn resized(
        resampler: &mut Resampler,
        samples: Samples<'_>,
        reach: CropBox,
        window: Window,
        side: u32,
    ) -> Result<Vec<f64>, ImageError> {
        let mut out = Vec::new();
        let wanted = Wanted { reach, window, density: (1.0, 1.0) };
        resampler.resize([samples; 3], [wanted; 2], side, |y, rows| {
            assert_eq!(out.len(), y * side as usize);
            assert!(rows[1] == rows[0] && rows[2] == rows[0]);
            out.extend(rows[0].iter().map(|pixel| f64::from(*pixel) / f64::from(1 << BETWEEN)));
        })?;
        Ok(out)
    }

    #[test]
    fn it_is_pillows_filter_wherever_the_window_lies() {
        let mut resampler = Resampler::default();
        for (width, height) in [(90, 61), (40, 33), (7, 9), (1, 1), (300, 20)] {
            let size = ImageSize { width, height };
            let pitch = width as usize + 5;
            let bytes = [noise(size, pitch), vec![0; BEYOND]].concat();
            let samples = Samples { bytes: &bytes, pitch, size };
            let (wide, high) = (f64::from(width), f64::from(height));
            for window in [
                Window { left: 0.0, top: 0.0, width: wide, height: high },
                Window { left: (wide / 3.0).floor(), top: 0.0, width: (wide / 2.0).ceil(), height: high },
                Window { left: wide * 0.13, top: high * 0.4, width: wide * 0.7, height: high * 0.6 },
                Window { left: wide - 0.5, top: high - 0.75, width: 0.5, height: 0.5 },
            ] {
                let all = CropBox::whole(size);
                let reaches = [Some(all), window.whole()].into_iter().flatten();
                for (side, reach) in reaches.flat_map(|reach| [1, 4, 16, 33, 50].map(|side| (side, reach))) {
                    let found = resized(&mut resampler, samples, reach, window, side).unwrap();
                    let right = exact(samples, window, reach, side);
                    for (place, (found, right)) in found.iter().zip(right).enumerate() {
                        // What the bits of weights and rows leave out.
                        assert!(
                            (found - right).abs() < 0.06,
                            "{size:?} {window:?} {side} {place}: {found}, not {right}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_of_one_colour_stays_so() {
        let size = ImageSize { width: 100, height: 70 };
        let bytes = vec![203; 7000 + BEYOND];
        let samples = Samples { bytes: &bytes, pitch: 100, size };
        let window = Window { left: 3.3, top: 1.7, width: 90.1, height: 66.6 };
        let out = resized(&mut Resampler::default(), samples, CropBox::whole(size), window, 61).unwrap();
        assert_eq!(out, vec![203.0; 61 * 61]);
    }

    #[test]
    fn a_window_beyond_the_samples_is_an_error() {
        let size = ImageSize { width: 10, height: 10 };
        let samples = Samples { bytes: &[0; 100 + BEYOND], pitch: 10, size };
        let reach = CropBox { top: 1, left: 1, height: 9, width: 9 };
        let inside = Window::from(reach);
        let told = |window, reach| {
            let resized = resized(&mut Resampler::default(), samples, reach, window, 4);
            resized.map(|pixels| pixels.len()).map_err(|error| error.to_string())
        };
        assert_eq!(told(inside, reach), Ok(16));
        let beyond = CropBox { top: 2, ..reach };
        assert!(told(Window::from(beyond), beyond).is_err());
        for window in [
            Window { left: -1.0, ..inside },
            Window { left: 2.0, ..inside },
            Window { top: 1.5, ..inside },
            Window { height: 0.0, ..inside },
            Window { width: f64::NAN, ..inside },
        ] {
            assert!(told(window, reach).unwrap_err().contains("is not within"), "{window:?}");
        }
    }
}
