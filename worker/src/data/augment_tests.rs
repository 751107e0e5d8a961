//! The expected pixels in `testdata` were made with Pillow 13 from the image of `source`: `crop` and
//! `resize(BILINEAR)` for the crops, torchvision's formulas for Resize and CenterCrop written out in Python.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::*;
use crate::data::decode::Decoder;

/// Sharp edges in both directions, so that a filter of another width or place shows.
fn source(width: u32, height: u32) -> RgbImage {
    let value =
        |x: u32, y: u32, channel: u32| ((x * 7 + y * 13 + channel * 50 + (x * y) % 17 * 6) % 256) as u8;
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let pixels = places.flat_map(|(x, y)| [0, 1, 2].map(|channel| value(x, y, channel))).collect();
    RgbImage { size: ImageSize { width, height }, pixels }
}

fn transposed(image: &RgbImage) -> RgbImage {
    let ImageSize { width, height } = image.size;
    let pixel = |x: u32, y: u32| &image.pixels[(y * width + x) as usize * 3..][..3];
    let pixels = (0..width).flat_map(|x| (0..height).flat_map(move |y| pixel(x, y).to_vec())).collect();
    RgbImage { size: ImageSize { width: height, height: width }, pixels }
}

const BOTH: [Resize; 2] = [Resize::Fast, Resize::Exact];

/// At most one level of 255 apart, or none.
fn assert_close(pixels: &[u8], resize: Resize, name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/data/testdata").join(name);
    let expected = std::fs::read(path).unwrap();
    assert_eq!(pixels.len(), expected.len());
    let worst = pixels.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(worst <= u8::from(resize == Resize::Fast), "{name}: {worst} levels apart");
}

/// `[3, H, W]` as `[H, W, 3]`.
fn together(planes: &[u8]) -> Vec<u8> {
    let area = planes.len() / 3;
    (0..planes.len()).map(|value| planes[value % 3 * area + value / 3]).collect()
}

#[test]
fn a_resized_crop_equals_pillow() {
    let image = source(61, 47);
    let (size, part, mut scaler) = (image.size, Part::from(image), Scaler::default());
    for resize in BOTH {
        let mut resized = |crop| scaler.resize_cut(&part, &Cut::of_whole(size, crop), 16, resize, Vec::new());
        let down = resized(CropBox { top: 3, left: 5, height: 41, width: 50 }).unwrap();
        assert_close(&together(&down), resize, "resize_down.rgb");
        let up = resized(CropBox { top: 20, left: 30, height: 9, width: 7 }).unwrap();
        assert_close(&together(&up), resize, "resize_up.rgb");
        assert!(resized(CropBox { top: 40, left: 0, height: 8, width: 8 }).is_err());
    }
}

/// Mean over crops of a JPEG of 21 x 13 pixels of noise, most of them decoded at a half for the smaller side, where two
/// filters stand in for one; for the larger its colours, at half the size, are interpolated by one filter in place of
/// two. (Over photographs it is a third: `bench difference` measures it.)
#[test]
fn the_default_resize_stays_close_to_the_exact_one() {
    let file =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/data/testdata/rgb.jpg")).unwrap();
    let (mut decoder, mut scaler, mut part) = (Decoder::new(), Scaler::default(), Part::default());
    for (image_size, shrunk, bound) in [(4, 100..200, 3.5), (16, 0..1, 0.9)] {
        let (mut smaller, mut sum) = (0, 0_u64);
        for sample in 0..200 {
            let [fast, exact] = BOTH.map(|resize| {
                let finish = FinishOn::Host;
                let augment =
                    Augment { image_size, min_area: 0.08, color_jitter: 0.0, lighting: 0.0, resize, finish };
                let mut rng = KeyedRng::of_sample(5, 0, sample);
                let cut =
                    decoder.decode_part(&file, |size| augment.draw_crop(size, &mut rng), &mut part).unwrap();
                smaller += usize::from(cut.shrink > 1);
                scaler.resize_cut(&part, &cut, image_size, resize, Vec::new()).unwrap()
            });
            sum += fast.iter().zip(&exact).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>();
        }
        let mean = sum as f64 / (200 * Input::floats(image_size)) as f64;
        assert!(shrunk.contains(&smaller), "{smaller} at a smaller scale");
        assert!(mean < bound, "side {image_size}: {mean} levels apart");
    }
}

#[test]
fn the_exact_resize_is_pillows_to_the_last_bit() {
    let image = source(61, 47);
    let cut = |left: u32, top: u32, width: u32, height: u32| {
        let rows = (top..top + height).map(|y| (y * 61 + left) as usize * 3);
        let pixels = rows.flat_map(|at| image.pixels[at..at + width as usize * 3].to_vec()).collect();
        RgbImage { size: ImageSize { width, height }, pixels }
    };
    let square = ImageSize { width: 16, height: 16 };
    for (cut, name) in [(cut(5, 3, 50, 41), "resize_down.rgb"), (cut(30, 20, 7, 9), "resize_up.rgb")] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/data/testdata").join(name);
        assert!(crate::data::pillow::resize(&cut, square).unwrap() == std::fs::read(path).unwrap(), "{name}");
    }
    let same = crate::data::pillow::resize(&image, image.size).unwrap();
    assert!(same == image.pixels, "the same size changes nothing");
}

#[test]
fn the_evaluation_transform_equals_torchvision() {
    let mut scaler = Scaler::default();
    let images = [
        (source(61, 47), "eval_down.rgb"),
        (transposed(&source(61, 47)), "eval_tall.rgb"),
        (source(13, 11), "eval_up.rgb"),
    ];
    for ((image, name), resize) in images.iter().flat_map(|image| BOTH.map(|resize| (image, resize))) {
        let eval = EvalTransform { image_size: 16, crop_ratio: 0.875, resize };
        let input = eval.apply(image, &mut scaler, Vec::new()).unwrap();
        let pixels = together(&input.planes);
        assert_close(&pixels, resize, name);
        let mut out = vec![0.0; Input::floats(16)];
        input.write(&mut out);
        for (at, (value, byte)) in out.iter().zip(&pixels).enumerate() {
            let expected = (f32::from(*byte) / 255.0 - MEAN[at % 3]) / STD[at % 3];
            assert!((value - expected).abs() < 1e-6);
        }
    }
}

#[test]
fn extreme_shapes_are_evaluated_without_their_whole_width_in_memory() {
    let sizes = [(1, 1), (1, 50_000), (50_000, 1)];
    for ((width, height), resize) in sizes.into_iter().flat_map(|size| BOTH.map(|resize| (size, resize))) {
        let eval = EvalTransform { image_size: 64, crop_ratio: 0.875, resize };
        let input = eval.apply(&source(width, height), &mut Scaler::default(), Vec::new()).unwrap();
        assert_eq!(input.planes.len(), Input::floats(64));
    }
}

/// A side that is no whole number of blocks.
#[test]
fn flip_blends_and_light_are_applied_as_written() {
    let side = LANES + 5;
    let pixels: Vec<u8> = (0..side * side * 3).map(|value| (value * 7 % 256) as u8).collect();
    let light = [0.01, -0.02, 0.03];
    let blends = vec![Blend::Grey { grey: 0.0, factor: 0.5 }];
    for flip in [false, true] {
        let input = Input {
            finishing: Finishing { flip, steps: None, light },
            blends: blends.clone(),
            ..Input::plain(side as u32, &pixels, Vec::new())
        };
        let mut out = vec![0.0; side * side * 3];
        input.write(&mut out);
        let (rows, columns) = (3..7, 1..side - 1);
        let mut patch = vec![9.0; side * side * 3];
        input.write_patch(rows.clone(), columns.clone(), &mut patch);
        for (at, (&value, &patch)) in out.iter().zip(&patch).enumerate() {
            let (y, x, channel) = (at / 3 / side, at / 3 % side, at % 3);
            let from = if flip { side - 1 - x } else { x };
            let byte = pixels[(y * side + from) * 3 + channel] / 2;
            let expected = (f32::from(byte) / 255.0 + light[channel] - MEAN[channel]) / STD[channel];
            assert!((value - expected).abs() < 1e-6);
            let within = rows.contains(&y) && columns.contains(&x);
            assert_eq!(patch, if within { value } else { 9.0 });
        }
    }
}

#[test]
fn an_augmentation_is_a_function_of_its_key_and_flips_half() {
    let (resize, finish) = (Resize::Fast, FinishOn::Host);
    let augment = Augment { image_size: 8, min_area: 0.08, color_jitter: 0.4, lighting: 0.1, resize, finish };
    let image = source(61, 47);
    let (size, part) = (image.size, Part::from(image));
    let make = |epoch, sample| {
        let mut rng = KeyedRng::of_sample(5, epoch, sample);
        let cut = Cut::of_whole(size, augment.draw_crop(size, &mut rng).crop);
        augment.apply(&part, &cut, &mut rng, &mut Scaler::default(), Vec::new()).unwrap()
    };
    let written = |input: &Input| {
        let mut out = vec![0.0; Input::floats(8)];
        input.write(&mut out);
        out
    };
    assert_eq!(written(&make(1, 2)), written(&make(1, 2)));
    assert_ne!(written(&make(1, 2)), written(&make(2, 2)));
    assert_ne!(written(&make(1, 2)), written(&make(1, 3)));
    let flips = (0..2000).filter(|&sample| make(0, sample).finishing.flip).count();
    assert!((900..1100).contains(&flips), "{flips}");
}

/// The covariance of red and green, say, is the sum over components of both vectors' entries times
/// (deviation * value)^2.
#[test]
fn lighting_has_the_covariance_of_its_components() {
    let draws: Vec<[f32; 3]> =
        (0..50_000).map(|sample| draw_lighting(0.1, &mut KeyedRng::of_sample(9, 0, sample))).collect();
    for a in 0..3 {
        for b in 0..3 {
            let found = draws.iter().map(|light| f64::from(light[a] * light[b])).sum::<f64>() / 50_000.0;
            let expected: f64 =
                (0..3).map(|i| PCA_VECTORS[a][i] * PCA_VECTORS[b][i] * (0.1 * PCA_VALUES[i]).powi(2)).sum();
            assert!((found - expected).abs() < 6e-6, "{a} {b}: {found} {expected}");
        }
    }
}
