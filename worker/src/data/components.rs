//! A JPEG before its components are mixed into colours: luma, and how much blue and red differ from it. Most files have
//! the latter two at half the width and height, so that three planes are a half of what three colours are, and it is less
//! work to resize them first and to mix them then.

use super::ImageSize;
use super::resample::BETWEEN;

/// Samples of one component of what was decoded.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plane {
    /// Of which so many in a row, and so many rows, count.
    pub size: ImageSize,
    /// From one row to the next.
    pub pitch: u32,
    /// Samples along a pixel's width and height: 1, 1/2 or 1/4.
    pub density: (f64, f64),
    /// Rows, some that do not count among them, and `BEYOND` bytes more.
    pub samples: Vec<u8>,
}

/// Luma, and the differences of blue and red from it, both of the same size.
pub type Components = [Plane; 3];

/// Luma and differences, in parts of 1 << [`BETWEEN`], to red, green and blue (JFIF, ITU-T T.871).
pub(super) fn mix([luma, blue, red]: [&[i16]; 3], out: [&mut [u8]; 3]) {
    /// Fractional bits of the weights, which leave room for the largest sum.
    const FRACTION: u32 = 14;
    let [out_red, out_green, out_blue] = out;
    let colours = out_red.iter_mut().zip(out_green).zip(out_blue);
    for (((luma, blue), red), ((out_red, out_green), out_blue)) in luma.iter().zip(blue).zip(red).zip(colours)
    {
        let from_grey = |difference: i16| i32::from(difference) - (128 << BETWEEN);
        let (blue, red) = (from_grey(*blue), from_grey(*red));
        let luma = (i32::from(*luma) << FRACTION) + (1 << (FRACTION + BETWEEN - 1));
        let colour = |difference: i32| ((luma + difference) >> (FRACTION + BETWEEN)).clamp(0, 255) as u8;
        *out_red = colour(22_970 * red);
        *out_green = colour(-5_638 * blue - 11_700 * red);
        *out_blue = colour(29_032 * blue);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of every luma and difference, the nearest to what JFIF says.
    #[test]
    fn colours_are_those_of_jfif() {
        for (blue, red) in (0..=255_u8).step_by(3).flat_map(|blue| (0..=255_u8).map(move |red| (blue, red))) {
            let lumas: Vec<i16> = (0..=255).map(|luma| luma << BETWEEN).collect();
            let [blues, reds] = [blue, red].map(|value| vec![i16::from(value) << BETWEEN; 256]);
            let mut colours = [(); 3].map(|()| vec![0; 256]);
            mix([&lumas, &blues, &reds], colours.each_mut().map(|plane| &mut plane[..]));
            let (from_blue, from_red) = (f64::from(blue) - 128.0, f64::from(red) - 128.0);
            let differences =
                [1.402 * from_red, -0.344_136_286 * from_blue - 0.714_136_286 * from_red, 1.772 * from_blue];
            for (channel, difference) in differences.into_iter().enumerate() {
                for (luma, found) in colours[channel].iter().enumerate() {
                    let right = (luma as f64 + difference).clamp(0.0, 255.0);
                    assert!(
                        (f64::from(*found) - right).abs() < 0.51,
                        "{luma} {blue} {red}: {found}, not {right}"
                    );
                }
            }
        }
    }
}
