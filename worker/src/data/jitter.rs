//! Brightness, contrast and saturation jitter with the values of torchvision's ColorJitter on Pillow
//! images: 8 bits after each step, truncated, and a contrast around the rounded mean of the luma.
//!
//! Brightness and contrast change each byte by itself, so they are kept as a table of 256 bytes and
//! applied by whatever reads the pixels next; only saturation has to write pixels.

use super::rng::KeyedRng;

/// One step of a jitter with its factor; 1 changes nothing, 0 removes the property.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Step {
    Brightness(f32),
    Contrast(f32),
    Saturation(f32),
}

/// What is still to be done to every byte.
pub(super) type ByteTable = [u8; 256];

/// Leaves every byte as it is.
pub(super) fn identity() -> ByteTable {
    std::array::from_fn(|byte| byte as u8)
}

/// Draws the three steps in random order, each factor uniform in `[max(0, 1 - strength), 1 + strength]`.
pub(super) fn draw(strength: f64, rng: &mut KeyedRng) -> [Step; 3] {
    let mut factor = || rng.uniform((1.0 - strength).max(0.0), 1.0 + strength) as f32;
    let mut steps = [Step::Brightness(factor()), Step::Contrast(factor()), Step::Saturation(factor())];
    for i in [2, 1] {
        steps.swap(i, rng.below(i as u32 + 1) as usize);
    }
    steps
}

/// Applies `steps` to `pixels`, RGB, except for what the table that is returned will do.
pub(super) fn apply(steps: &[Step], pixels: &mut [u8]) -> ByteTable {
    let mut table = identity();
    for step in steps {
        match *step {
            Step::Brightness(factor) => table = table.map(|byte| blend(0, byte, factor)),
            Step::Contrast(factor) => {
                let mean = mean_luma(pixels, &table);
                table = table.map(|byte| blend(mean, byte, factor));
            }
            Step::Saturation(factor) => {
                saturate(pixels, &table, factor);
                table = identity();
            }
        }
    }
    table
}

/// Pillow's `Image.blend` of a byte `from` and a byte `to`: beyond both for factors over 1, clipped, truncated.
#[inline(always)]
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let blended = f32::from(from) + factor * f32::from(i16::from(to) - i16::from(from));
    // As a conversion to u8 at once, but in steps for which there are instructions.
    blended.clamp(0.0, 255.0) as i32 as u8
}

/// Pixels that are taken apart into their channels at a time, for the instructions that work on many at once.
const LANES: usize = 64;

/// Red, green and blue of [`LANES`] pixels, after the table.
struct Channels([[u8; LANES]; 3]);

impl Channels {
    /// Of one block, which may be shorter; what lies beyond stays as it was.
    fn fill(&mut self, block: &[u8], table: &ByteTable) {
        for (lane, pixel) in block.chunks_exact(3).take(LANES).enumerate() {
            for (channel, &value) in self.0.iter_mut().zip(pixel) {
                channel[lane] = table[usize::from(value)];
            }
        }
    }

    /// Pillow's conversion to greyscale: ITU-R 601 weights in 16-bit fixed point, rounded.
    fn luma(&self) -> [u8; LANES] {
        let [red, green, blue] = &self.0;
        let mut luma = [0; LANES];
        for lane in 0..LANES {
            let of = |channel: &[u8; LANES]| u32::from(channel[lane]);
            luma[lane] = ((of(red) * 19595 + of(green) * 38470 + of(blue) * 7471 + 0x8000) >> 16) as u8;
        }
        luma
    }
}

/// Mean of the luma of at least one pixel, rounded half up.
fn mean_luma(pixels: &[u8], table: &ByteTable) -> u8 {
    let mut channels = Channels([[0; LANES]; 3]);
    let mut sum = 0;
    for block in pixels.chunks(3 * LANES) {
        channels.fill(block, table);
        let luma = channels.luma();
        sum += luma[..block.len() / 3].iter().map(|&value| u32::from(value)).sum::<u32>() as u64;
    }
    (sum as f64 / (pixels.len() / 3) as f64 + 0.5) as u8
}

fn saturate(pixels: &mut [u8], table: &ByteTable, factor: f32) {
    let mut channels = Channels([[0; LANES]; 3]);
    for block in pixels.chunks_mut(3 * LANES) {
        channels.fill(block, table);
        let luma = channels.luma();
        for channel in &mut channels.0 {
            for lane in 0..LANES {
                channel[lane] = blend(luma[lane], channel[lane], factor);
            }
        }
        for (lane, pixel) in block.chunks_exact_mut(3).enumerate() {
            for (value, channel) in pixel.iter_mut().zip(&channels.0) {
                *value = channel[lane];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jittered(steps: &[Step]) -> Vec<u8> {
        // 3 x 2 pixels, among them black, white and a saturated one.
        let mut pixels = vec![0, 0, 0, 255, 255, 255, 250, 10, 30, 100, 120, 140, 77, 200, 5, 128, 127, 3];
        let table = apply(steps, &mut pixels);
        pixels.iter().map(|&byte| table[usize::from(byte)]).collect()
    }

    use Step::{Brightness, Contrast, Saturation};

    #[rustfmt::skip]
    const PILLOW: [(&[Step], [u8; 18]); 9] = [
        (&[Brightness(1.37)], [0, 0, 0, 255, 255, 255, 255, 13, 41, 137, 164, 191, 105, 255, 6, 175, 173, 4]),
        (&[Brightness(0.63)], [0, 0, 0, 160, 160, 160, 157, 6, 18, 63, 75, 88, 48, 126, 3, 80, 80, 1]),
        (&[Contrast(1.4)], [0, 0, 0, 255, 255, 255, 255, 0, 0, 92, 120, 148, 60, 232, 0, 132, 130, 0]),
        (&[Contrast(0.61)], [46, 46, 46, 201, 201, 201, 198, 52, 64, 107, 119, 131, 92, 168, 49, 124, 123, 47]),
        (&[Saturation(1.39)], [0, 0, 0, 255, 255, 255, 255, 0, 8, 93, 121, 149, 52, 223, 0, 133, 132, 0]),
        (&[Saturation(0.6)], [0, 0, 0, 255, 255, 255, 183, 39, 51, 106, 118, 130, 102, 176, 59, 122, 121, 47]),
        (&[Brightness(1.2), Contrast(0.7), Saturation(1.3)], [39, 39, 39, 217, 217, 217, 252, 31, 53, 118, 140, 161, 86, 222, 8, 149, 148, 13]),
        (&[Saturation(0.8), Brightness(0.75), Contrast(1.33)], [0, 0, 0, 224, 224, 224, 186, 0, 10, 73, 89, 105, 58, 158, 2, 94, 94, 0]),
        (&[Contrast(1.11), Saturation(1.25), Brightness(0.9)], [0, 0, 0, 229, 229, 229, 229, 0, 4, 83, 108, 133, 48, 202, 0, 119, 117, 0]),
    ];

    /// The numbers are those of Pillow 13's ImageEnhance (what torchvision calls) on the same pixels.
    #[test]
    fn each_step_equals_pillow() {
        for (steps, expected) in PILLOW {
            assert_eq!(jittered(steps), expected, "{steps:?}");
        }
        assert_eq!(jittered(&[]), jittered(&[Brightness(1.0), Contrast(1.0), Saturation(1.0)]));
    }

    #[test]
    fn orders_and_factors_are_drawn_evenly() {
        let draws: Vec<[Step; 3]> =
            (0..6000).map(|id| draw(0.4, &mut KeyedRng::of_sample(3, 0, id))).collect();
        let first = |wanted: fn(&Step) -> bool| draws.iter().filter(|steps| wanted(&steps[0])).count();
        let second = |wanted: fn(&Step) -> bool| draws.iter().filter(|steps| wanted(&steps[1])).count();
        for count in [
            first(|step| matches!(step, Step::Brightness(_))),
            first(|step| matches!(step, Step::Contrast(_))),
            second(|step| matches!(step, Step::Contrast(_))),
            second(|step| matches!(step, Step::Saturation(_))),
        ] {
            assert!((1850..2150).contains(&count), "{count}");
        }
        let factor = |step: &Step| match *step {
            Step::Brightness(factor) | Step::Contrast(factor) | Step::Saturation(factor) => factor,
        };
        let factors: Vec<f32> = draws.iter().flatten().map(factor).collect();
        assert!(factors.iter().all(|factor| (0.6..=1.4).contains(factor)));
        let mean = factors.iter().sum::<f32>() / factors.len() as f32;
        assert!((mean - 1.0).abs() < 0.01);
    }
}
