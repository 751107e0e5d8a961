//! Image files, and what training and evaluation do to what is in them. The first bytes of an input say which
//! crop and scale, the rest is the file.

use worker::data::augment::{Augment, EvalTransform, FinishOn, Input, Resize, Scaler};
use worker::data::cut::{Cut, Pick};
use worker::data::decode::{Decoder, Part, Pixels, RgbImage};
use worker::data::rng::KeyedRng;
use worker::data::{CropBox, ImageError, ImageSize};

use crate::{Target, split};

pub const TARGET: Target = Target {
    name: "jpeg",
    run,
    seeds: &[],
    // A PNG of one bit a pixel is deflated to a 1032nd at best, and each bit becomes 4 and then 3 bytes.
    amplification: 1032 * 8 * 8,
};

/// Bytes before the file: where the crop begins and ends in parts of 65536, side, resize and seed.
pub const CONTROL: usize = 12;

fn run(input: &[u8]) {
    let (control, file) = split::<CONTROL>(input);
    let mut decoder = Decoder::new();
    let mut image = RgbImage::default();
    let decoded = decoder.decode(file, &mut image);
    same_by_libjpeg(file, all, decoded.as_ref().map(|()| &image));
    if decoded.is_err() {
        return;
    }
    let ImageSize { width, height } = image.size;
    assert!(width > 0 && height > 0);
    assert_eq!(image.pixels.len() as u64, u64::from(width) * u64::from(height) * 3);

    let part = |at: usize, side: u32| {
        let fraction = u64::from(u16::from_le_bytes([control[at], control[at + 1]]));
        ((fraction * u64::from(side)) >> 16) as u32
    };
    let span = |start: usize, end: usize, side: u32| {
        let (a, b) = (part(start, side), part(end, side));
        (a.min(b), a.max(b) - a.min(b) + 1)
    };
    let ((left, cut_width), (top, cut_height)) = (span(0, 2, width), span(4, 6, height));
    let crop = CropBox { top, left, width: cut_width, height: cut_height };
    let side = 1 + u32::from(control[8]);
    let resize = if control[9] & 1 == 0 { Resize::Fast } else { Resize::Exact };
    let strength = f64::from(control[9] >> 1) / 127.0;
    let mut rng = KeyedRng::of_sample(control[10].into(), control[11].into(), 0);

    let mut scaler = Scaler::default();
    let augment = Augment {
        image_size: side,
        min_area: 0.08,
        color_jitter: strength,
        lighting: strength,
        resize,
        finish: FinishOn::Host,
    };
    let drawn = augment.draw_crop(image.size, &mut rng);
    let whole = Part::from(image.clone());
    let mut part = Part::default();
    let smaller = Pick::rgb(crop, 1 << (control[9] >> 2 & 3));
    let apart = Pick { components: true, ..smaller };
    for pick in [smaller, apart, Pick::rgb(crop, 1), drawn] {
        let crop = pick.crop;
        assert!(crop.width >= 1 && crop.left + crop.width <= width, "{crop:?} of {:?}", image.size);
        assert!(crop.height >= 1 && crop.top + crop.height <= height, "{crop:?} of {:?}", image.size);
        let cut = Cut::of_whole(image.size, crop);
        let made = augment.apply(&whole, &cut, &mut rng, &mut scaler, Vec::new());
        written(&made.expect("a crop within the image is resized"), side);
        let decoded = decoder.decode_part(file, |_| pick, &mut part);
        if let Pixels::Rgb(part) = part.pixels() {
            same_by_libjpeg(file, |_| pick, decoded.as_ref().map(|_| part));
        }
        // A fault in another part may be told of a part or not.
        let Ok(cut) = decoded else { continue };
        let size = match part.pixels() {
            Pixels::Rgb(part) => {
                let ImageSize { width, height } = part.size;
                assert_eq!(part.pixels.len() as u64, u64::from(width) * u64::from(height) * 3);
                part.size
            }
            Pixels::Components(components) => {
                for plane in components {
                    assert!(plane.size.width <= plane.pitch);
                    assert!(
                        plane.samples.len() as u64 > u64::from(plane.pitch) * u64::from(plane.size.height)
                    );
                }
                components[0].size
            }
        };
        assert_eq!((cut.size, cut.region.width, cut.region.height), (image.size, size.width, size.height));
        let exactly = resize == Resize::Exact;
        let is_apart = matches!(part.pixels(), Pixels::Components(_));
        if !exactly || (cut.shrink == 1 && !is_apart) {
            let made = augment.apply(&part, &cut, &mut rng, &mut scaler, Vec::new());
            written(&made.expect("a crop within the part is resized"), side);
        }
    }
    let crop_ratio = if control[9] & 2 == 0 { 0.875 } else { 1.0 };
    let eval = EvalTransform { image_size: side, crop_ratio, resize };
    written(&eval.apply(&image, &mut scaler, Vec::new()).expect("every image is evaluated"), side);
}

fn all(size: ImageSize) -> Pick {
    Pick::rgb(CropBox::whole(size), 1)
}

/// Holds what a [`Decoder`] made of a JPEG to what libjpeg makes of it without our Huffman decoder.
fn same_by_libjpeg(
    file: &[u8],
    pick: impl FnOnce(ImageSize) -> Pick,
    decoded: Result<&RgbImage, &ImageError>,
) {
    if !file.starts_with(&[0xFF, 0xD8]) {
        return;
    }
    let mut part = Part::default();
    match (decoded, Decoder::of_libjpeg_alone().decode_part(file, pick, &mut part)) {
        (Ok(decoded), Ok(_)) => {
            assert!(
                matches!(part.pixels(), Pixels::Rgb(image) if image == decoded),
                "other pixels than libjpeg's"
            )
        }
        (Err(error), Err(by_libjpeg)) => assert_eq!(error.to_string(), by_libjpeg.to_string()),
        (Ok(_), Err(error)) => panic!("decoded what libjpeg refuses: {error}"),
        (Err(error), Ok(_)) => panic!("refused what libjpeg decodes: {error}"),
    }
}

fn written(made: &Input, side: u32) {
    let mut floats = vec![f32::NAN; Input::floats(side)];
    made.write(&mut floats);
    assert!(floats.iter().all(|value| value.is_finite()));
}
