//! Brightness, contrast and saturation jitter with the values of torchvision's ColorJitter on Pillow
//! images: 8 bits after each step, truncated, and a contrast around the rounded mean of the luma.
//!
//! No step writes pixels: they are kept as blends for whatever reads the pixels next. Only a contrast looks at all of
//! them before.

use super::rng::KeyedRng;

/// One step of a jitter with its factor; 1 changes nothing, 0 removes the property.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    Brightness(f32),
    Contrast(f32),
    Saturation(f32),
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

/// Pixels that are worked on at a time, for the instructions that work on many at once.
pub(super) const LANES: usize = 32;

/// Red, green and blue of [`LANES`] pixels: whole numbers from 0 to 255, which floats hold and multiply exactly.
pub(super) type Colours = [[f32; LANES]; 3];

/// A step as one image has it: Pillow's `Image.blend` of its pixels with another image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Blend {
    /// With one grey all over: black, or the mean.
    Grey { grey: f32, factor: f32 },
    /// With the image's own greyscale.
    Luma { factor: f32 },
}

/// What `steps` are for the image of `planes`, `[3, H, W]`, at least one pixel.
pub(super) fn blends(steps: &[Step], planes: &[u8]) -> Vec<Blend> {
    let mut blends = Vec::with_capacity(steps.len());
    for step in steps {
        blends.push(match *step {
            Step::Brightness(factor) => Blend::Grey { grey: 0.0, factor },
            Step::Contrast(factor) => Blend::Grey { grey: mean_luma(planes, &blends), factor },
            Step::Saturation(factor) => Blend::Luma { factor },
        });
    }
    blends
}

impl Blend {
    #[inline(always)]
    pub(super) fn apply(self, colours: &mut Colours) {
        match self {
            Self::Grey { grey, factor } => {
                for channel in colours {
                    for value in channel {
                        *value = blend(grey, *value, factor);
                    }
                }
            }
            Self::Luma { factor } => {
                let luma = luma(colours);
                for channel in colours {
                    for lane in 0..LANES {
                        channel[lane] = blend(luma[lane], channel[lane], factor);
                    }
                }
            }
        }
    }
}

/// Beyond both for factors over 1, clipped, truncated.
#[inline(always)]
fn blend(from: f32, to: f32, factor: f32) -> f32 {
    (from + factor * (to - from)).clamp(0.0, 255.0).trunc()
}

/// Pillow's conversion to greyscale: ITU-R 601 weights in 16-bit fixed point, rounded. The sum stays below 2^24.
#[inline(always)]
fn luma([red, green, blue]: &Colours) -> [f32; LANES] {
    std::array::from_fn(|lane| {
        let sum = red[lane] * 19595.0 + green[lane] * 38470.0 + blue[lane] * 7471.0 + 32768.0;
        (sum / 65536.0).trunc()
    })
}

/// Reads the pixels of a block, which may be shorter than [`LANES`]; what lies beyond is black.
#[inline(always)]
pub(super) fn read(blocks: [&[u8]; 3], mirrored: bool) -> Colours {
    let mut colours = [[0.0; LANES]; 3];
    for (channel, block) in colours.iter_mut().zip(blocks) {
        let bytes = <[u8; LANES]>::try_from(block).unwrap_or_else(|_| padded(block, mirrored));
        for lane in 0..LANES {
            channel[lane] = f32::from(bytes[if mirrored { LANES - 1 - lane } else { lane }]);
        }
    }
    colours
}

/// A block that is shorter, put where reading begins. Apart, so that copying a whole one is no call.
#[cold]
#[inline(never)]
fn padded(block: &[u8], mirrored: bool) -> [u8; LANES] {
    let mut bytes = [0; LANES];
    let start = if mirrored { LANES - block.len() } else { 0 };
    bytes[start..start + block.len()].copy_from_slice(block);
    bytes
}

/// Red, green and blue of `[3, H, W]`.
pub(super) fn channels(planes: &[u8]) -> [&[u8]; 3] {
    let (red, others) = planes.split_at(planes.len() / 3);
    let (green, blue) = others.split_at(red.len());
    [red, green, blue]
}

/// The first `length` values, and nothing of what lies beyond. Apart, as [`padded`].
#[cold]
#[inline(never)]
fn first_of(values: [f32; LANES], length: usize) -> [f32; LANES] {
    std::array::from_fn(|lane| if lane < length { values[lane] } else { 0.0 })
}

/// Blocks over which a float adds up a lane's luma without rounding: 255 times so many stay below 2^24.
const EXACT: usize = 1 << 16;

/// Mean of the luma after `blends`, rounded half up.
fn mean_luma(planes: &[u8], blends: &[Blend]) -> f32 {
    let channels = channels(planes);
    let area = channels[0].len();
    let mut total = 0.0;
    for first in (0..area).step_by(EXACT * LANES) {
        let end = area.min(first + EXACT * LANES);
        let mut sums = [0.0; LANES];
        for start in (first..end).step_by(LANES) {
            let block = start..end.min(start + LANES);
            let mut colours = read(channels.map(|channel| &channel[block.clone()]), false);
            for blend in blends {
                blend.apply(&mut colours);
            }
            let luma = luma(&colours);
            let luma = if block.len() == LANES { luma } else { first_of(luma, block.len()) };
            for lane in 0..LANES {
                sums[lane] += luma[lane];
            }
        }
        total += sums.map(f64::from).iter().sum::<f64>();
    }
    (total / area as f64 + 0.5).floor() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 3 x 2 pixels, among them black, white and a saturated one.
    const PIXELS: [u8; 18] = [0, 0, 0, 255, 255, 255, 250, 10, 30, 100, 120, 140, 77, 200, 5, 128, 127, 3];

    /// Of [`PIXELS`] one after the other `copies` times, which changes no mean.
    fn jittered(steps: &[Step], copies: usize) -> Vec<u8> {
        let pixels = PIXELS.repeat(copies);
        let planes: Vec<u8> =
            (0..3).flat_map(|channel| pixels.iter().skip(channel).step_by(3).copied()).collect();
        let blends = blends(steps, &planes);
        let mut jittered = Vec::new();
        let [red, green, blue] = channels(&planes);
        for ((red, green), blue) in red.chunks(LANES).zip(green.chunks(LANES)).zip(blue.chunks(LANES)) {
            let mut colours = read([red, green, blue], false);
            blends.iter().for_each(|blend| blend.apply(&mut colours));
            jittered.extend((0..red.len()).flat_map(|lane| colours.map(|channel| channel[lane] as u8)));
        }
        jittered
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
            assert_eq!(jittered(steps, 1), expected, "{steps:?}");
            assert_eq!(jittered(steps, 2 * LANES + 1), expected.repeat(2 * LANES + 1), "{steps:?}");
        }
        assert_eq!(jittered(&[], 1), PIXELS);
        assert_eq!(jittered(&[Brightness(1.0), Contrast(1.0), Saturation(1.0)], 1), PIXELS);
    }

    #[test]
    fn the_mean_is_rounded_half_up() {
        assert_eq!(mean_luma(&[10, 11].repeat(3), &[]), 11.0);
        assert_eq!(mean_luma(&[10, 10, 11].repeat(3), &[]), 10.0);
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
