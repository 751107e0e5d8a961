#![allow(clippy::unwrap_used, unsafe_code)]

use std::ffi::c_int;

use turbojpeg_sys as tj;

use super::*;

const SIZE: ImageSize = ImageSize { width: 203, height: 149 };

/// A photograph's smooth areas, edges and noise, of [`SIZE`].
fn pixels() -> Vec<u8> {
    let value = |x: u32, y: u32, channel: u32| {
        let wave = 90.0
            * (f64::from(x * (channel + 1)) / 17.0).sin()
            * (f64::from(y) / (11.0 + f64::from(channel))).cos();
        let edge = if (x / 31 + y / 23 + channel).is_multiple_of(3) { 60 } else { 0 };
        let noise = (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503) ^ channel) >> 7 & 15;
        (100.0 + wave + f64::from(edge + noise)).clamp(0.0, 255.0) as u8
    };
    let rows = (0..SIZE.height).flat_map(|y| (0..SIZE.width).map(move |x| (x, y)));
    rows.flat_map(|(x, y)| [0, 1, 2].map(|channel| value(x, y, channel))).collect()
}

/// A JPEG of them, baseline or progressive.
fn compress(subsampling: tj::TJSAMP, progressive: bool) -> Vec<u8> {
    compress_with(&[
        (tj::TJPARAM_TJPARAM_SUBSAMP, subsampling as c_int),
        (tj::TJPARAM_TJPARAM_PROGRESSIVE, c_int::from(progressive)),
    ])
}

fn compress_with(settings: &[(tj::TJPARAM, c_int)]) -> Vec<u8> {
    let pixels = pixels();
    let (mut jpeg, mut length) = (std::ptr::null_mut(), 0);
    // SAFETY: the handle lives from Init to Destroy; the callee reads rows of SIZE.width pixels of 3 bytes, all in
    // `pixels`, and allocates `length` bytes at `jpeg`, which are copied before they are freed.
    unsafe {
        let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as c_int);
        for (param, value) in [(tj::TJPARAM_TJPARAM_QUALITY, 90)].iter().chain(settings) {
            assert_eq!(tj::tj3Set(handle, *param as c_int, *value), 0);
        }
        let (width, height) = (SIZE.width as c_int, SIZE.height as c_int);
        let format = tj::TJPF_TJPF_RGB as c_int;
        let status =
            tj::tj3Compress8(handle, pixels.as_ptr(), width, 0, height, format, &mut jpeg, &mut length);
        assert_eq!(status, 0);
        let copy = std::slice::from_raw_parts(jpeg, length as usize).to_vec();
        tj::tj3Free(jpeg.cast());
        tj::tj3Destroy(handle);
        copy
    }
}

/// By a decompressor that is to give colours.
fn decode_rgb(
    decompressor: &mut Decompressor,
    jpeg: &[u8],
    pick: impl FnOnce(ImageSize) -> Pick,
    pixels: &mut Vec<u8>,
) -> Result<(Cut, Layout), ImageError> {
    decompressor.decode(jpeg, pick, pixels, &mut Components::default())
}

fn decode(jpeg: &[u8], crop: CropBox, shrink: u32) -> (Cut, Vec<u8>) {
    let mut pixels = Vec::new();
    let (cut, layout) =
        decode_rgb(&mut Decompressor::new(), jpeg, |_| Pick::rgb(crop, shrink), &mut pixels).unwrap();
    assert_eq!((cut.size, cut.crop, layout), (SIZE, crop, Layout::Rgb));
    (cut, pixels)
}

fn crops() -> Vec<CropBox> {
    let along = |side: u32| [(0, side), (0, 1), (side - 1, 1), (3, 40), (16, 32), (77, 61), (side - 50, 50)];
    let rows = |(left, width)| along(SIZE.height).map(|(top, height)| CropBox { top, left, height, width });
    along(SIZE.width).into_iter().flat_map(rows).collect()
}

#[test]
fn a_part_has_the_pixels_that_it_has_in_the_whole() {
    for subsampling in [
        tj::TJSAMP_TJSAMP_420,
        tj::TJSAMP_TJSAMP_422,
        tj::TJSAMP_TJSAMP_440,
        tj::TJSAMP_TJSAMP_444,
        tj::TJSAMP_TJSAMP_411,
        tj::TJSAMP_TJSAMP_GRAY,
    ] {
        for progressive in [false, true] {
            let jpeg = compress(subsampling, progressive);
            let (_, whole) = decode(&jpeg, CropBox::whole(SIZE), 1);
            let mut smaller = 0;
            for crop in crops() {
                let (cut, part) = decode(&jpeg, crop, 1);
                assert_eq!(part.len(), cut.region.width as usize * cut.region.height as usize * 3);
                smaller += usize::from(part.len() < whole.len());
                for y in crop.top..crop.top + crop.height {
                    let at = |y: u32, x: u32, width: u32| (y as usize * width as usize + x as usize) * 3;
                    let here = at(y - cut.region.top, crop.left - cut.region.left, cut.region.width);
                    let there = at(y, crop.left, SIZE.width);
                    let row = crop.width as usize * 3;
                    assert_eq!(
                        part[here..here + row],
                        whole[there..there + row],
                        "{subsampling} {crop:?} row {y}"
                    );
                }
            }
            assert!(smaller > 30);
        }
    }
}

#[test]
fn a_smaller_part_has_the_pixels_that_it_has_in_the_smaller_whole() {
    for subsampling in [tj::TJSAMP_TJSAMP_420, tj::TJSAMP_TJSAMP_444] {
        let jpeg = compress(subsampling, false);
        for shrink in [2, 4, 8] {
            let (all, whole) = decode(&jpeg, CropBox::whole(SIZE), shrink);
            assert_eq!(
                (all.region.width, all.region.height),
                (SIZE.width.div_ceil(shrink), SIZE.height.div_ceil(shrink))
            );
            for crop in crops() {
                let (cut, part) = decode(&jpeg, crop, shrink);
                for y in crop.top.div_ceil(shrink)..(crop.top + crop.height) / shrink {
                    let (left, right) = (crop.left.div_ceil(shrink), (crop.left + crop.width) / shrink);
                    let row =
                        |left: u32, top: u32, width: u32| (top as usize * width as usize + left as usize) * 3;
                    let here = row(left - cut.region.left, y - cut.region.top, cut.region.width);
                    let there = row(left, y, all.region.width);
                    let bytes = right.saturating_sub(left) as usize * 3;
                    assert_eq!(
                        part[here..here + bytes],
                        whole[there..there + bytes],
                        "1/{shrink} {crop:?} row {y}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_part_of_a_file_without_its_end_is_refused_wherever_it_lies() {
    let jpeg = compress(tj::TJSAMP_TJSAMP_420, false);
    let top = CropBox { top: 0, left: 0, height: 8, width: 8 };
    for missing in [1, 2, 500, jpeg.len() / 2] {
        let mut pixels = Vec::new();
        let cut = &jpeg[..jpeg.len() - missing];
        let decoded = decode_rgb(&mut Decompressor::new(), cut, |_| Pick::rgb(top, 1), &mut pixels);
        assert!(matches!(decoded, Err(ImageError::Truncated)), "{missing}");
    }
}

#[test]
fn what_one_image_was_asked_for_is_not_asked_of_the_next() {
    let jpeg = compress(tj::TJSAMP_TJSAMP_420, false);
    let (mut decompressor, mut pixels) = (Decompressor::new(), Vec::new());
    let mut sizes = Vec::new();
    for (crop, shrink) in
        [(crops()[10], 4), (CropBox::whole(SIZE), 1), (crops()[12], 1), (CropBox::whole(SIZE), 2)]
    {
        decode_rgb(&mut decompressor, &jpeg, |_| Pick::rgb(crop, shrink), &mut pixels).unwrap();
        sizes.push(pixels.len());
    }
    let alone = |crop, shrink| decode(&jpeg, crop, shrink).1.len();
    assert_eq!(sizes, [alone(crops()[10], 4), 203 * 149 * 3, alone(crops()[12], 1), 102 * 75 * 3]);
}

/// What [`Baseline`] makes of the JPEG without help.
fn baseline_alone(jpeg: &[u8], Pick { crop, shrink, .. }: Pick) -> Option<Vec<u8>> {
    let mut baseline = Baseline::new().unwrap();
    let opened = baseline.open(jpeg)?;
    let (size, unit, mut pixels) = (opened.header.size(), opened.header.unit(), Vec::new());
    opened.decode(shrink, around(crop, unit, 1, size, shrink), &mut pixels)?;
    Some(pixels)
}

#[test]
fn the_usual_has_the_pixels_that_libjpeg_alone_gives_it() {
    use tj::{
        TJSAMP_TJSAMP_411, TJSAMP_TJSAMP_420, TJSAMP_TJSAMP_422, TJSAMP_TJSAMP_440, TJSAMP_TJSAMP_444,
        TJSAMP_TJSAMP_GRAY,
    };
    let mut alone = Decompressor::of_libjpeg_alone();
    for subsampling in [
        TJSAMP_TJSAMP_444,
        TJSAMP_TJSAMP_422,
        TJSAMP_TJSAMP_420,
        TJSAMP_TJSAMP_440,
        TJSAMP_TJSAMP_411,
        TJSAMP_TJSAMP_GRAY,
    ] {
        for optimize in [0, 1] {
            let jpeg = compress_with(&[
                (tj::TJPARAM_TJPARAM_SUBSAMP, subsampling as c_int),
                (tj::TJPARAM_TJPARAM_OPTIMIZE, optimize),
            ]);
            for (crop, shrink) in
                crops().into_iter().flat_map(|crop| [1, 2, 4, 8].map(|shrink| (crop, shrink)))
            {
                let mut expected = Vec::new();
                let pick = Pick::rgb(crop, shrink);
                decode_rgb(&mut alone, &jpeg, |_| pick, &mut expected).unwrap();
                let made = baseline_alone(&jpeg, pick);
                assert!(made == Some(expected), "{subsampling}, optimized: {optimize}, {pick:?}");
            }
        }
    }
}

#[test]
fn the_unusual_is_left_to_libjpeg() {
    let whole = Pick::rgb(CropBox::whole(SIZE), 1);
    let unusual = [
        (tj::TJPARAM_TJPARAM_PROGRESSIVE, 1),
        (tj::TJPARAM_TJPARAM_RESTARTROWS, 1),
        (tj::TJPARAM_TJPARAM_ARITHMETIC, 1),
        (tj::TJPARAM_TJPARAM_COLORSPACE, tj::TJCS_TJCS_RGB as c_int),
    ];
    for setting in unusual {
        let jpeg = compress_with(&[(tj::TJPARAM_TJPARAM_SUBSAMP, tj::TJSAMP_TJSAMP_444 as c_int), setting]);
        assert_eq!(baseline_alone(&jpeg, whole), None, "{setting:?}");
        let [made, expected] =
            [Decompressor::new(), Decompressor::of_libjpeg_alone()].map(|mut decompressor| {
                let mut pixels = Vec::new();
                decode_rgb(&mut decompressor, &jpeg, |_| whole, &mut pixels).unwrap();
                pixels
            });
        assert!(made == expected, "{setting:?}");
    }
}

/// Damage of every kind, at many places: the same pixels or the same error, whoever it is that decodes.
#[test]
fn a_damaged_file_is_what_libjpeg_makes_of_it() {
    let jpeg = compress(tj::TJSAMP_TJSAMP_420, false);
    let crop = CropBox { top: 40, left: 50, height: 60, width: 70 };
    let (mut decompressor, mut alone) = (Decompressor::new(), Decompressor::of_libjpeg_alone());
    let mut refused = 0;
    for at in (2..jpeg.len()).step_by(23) {
        for change in [0x01, 0x40, 0xFF] {
            let mut damaged = jpeg.clone();
            damaged[at] ^= change;
            for crop in [crop, CropBox::whole(SIZE)] {
                let picked =
                    |size: ImageSize| Pick::rgb(if size == SIZE { crop } else { CropBox::whole(size) }, 1);
                let (mut made, mut expected) = (Vec::new(), Vec::new());
                let decoded = decode_rgb(&mut decompressor, &damaged, picked, &mut made);
                let by_libjpeg = decode_rgb(&mut alone, &damaged, picked, &mut expected);
                let told =
                    |decoded: Result<(Cut, Layout), ImageError>| decoded.map_err(|error| error.to_string());
                let by_libjpeg_failed = by_libjpeg.is_err();
                refused += u32::from(by_libjpeg_failed);
                assert_eq!(told(decoded), told(by_libjpeg), "byte {at} changed by {change}");
                assert!(by_libjpeg_failed || made == expected, "byte {at} changed by {change}");
            }
        }
    }
    assert!(refused > 10);
}

/// `jpeg` without its segments of that kind.
fn without(jpeg: &[u8], kind: u8) -> Vec<u8> {
    let (mut kept, mut at) = (jpeg[..2].to_vec(), 2);
    while jpeg[at + 1] != 0xDA {
        let end = at + 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
        if jpeg[at + 1] != kind {
            kept.extend(&jpeg[at..end]);
        }
        at = end;
    }
    [&kept, &jpeg[at..]].concat()
}

/// libjpeg keeps Huffman and quantization tables for images that have none.
#[test]
fn an_image_without_tables_does_not_get_those_of_the_image_before() {
    let whole = |size| Pick::rgb(CropBox::whole(size), 1);
    let of_its_own = compress_with(&[
        (tj::TJPARAM_TJPARAM_SUBSAMP, tj::TJSAMP_TJSAMP_420 as c_int),
        (tj::TJPARAM_TJPARAM_OPTIMIZE, 1),
    ]);
    for kind in [0xC4, 0xDB] {
        let lacking = without(&of_its_own, kind);
        assert!(lacking.len() < of_its_own.len() - 50);
        for new in [Decompressor::new, Decompressor::of_libjpeg_alone] {
            let decoded = |decompressor: &mut Decompressor| {
                let mut pixels = Vec::new();
                let decoded = decode_rgb(decompressor, &lacking, whole, &mut pixels);
                decoded.map(|_| pixels).map_err(|error| error.to_string())
            };
            let mut after = new();
            decode_rgb(&mut after, &of_its_own, whole, &mut Vec::new()).unwrap();
            assert!(decoded(&mut after) == decoded(&mut new()), "{kind:#x}");
        }
    }
}

/// The planes that libjpeg makes of all of a JPEG: each one's width, and samples row after row.
fn planes_of_libjpeg(jpeg: &[u8]) -> [(usize, Vec<u8>); 3] {
    // SAFETY: the handle lives from Init to Destroy; the callee writes of each plane as many rows, of as many bytes, as
    // it says itself that there are of one of that number.
    unsafe {
        let handle = tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as c_int);
        assert_eq!(tj::tj3DecompressHeader(handle, jpeg.as_ptr(), jpeg.len() as tj::size_t), 0);
        let subsampling = tj::tj3Get(handle, tj::TJPARAM_TJPARAM_SUBSAMP as c_int);
        let mut planes = [0, 1, 2].map(|component| {
            let width = tj::tj3YUVPlaneWidth(component, SIZE.width as c_int, subsampling);
            let height = tj::tj3YUVPlaneHeight(component, SIZE.height as c_int, subsampling);
            (width as usize, vec![0; width as usize * height as usize])
        });
        let mut samples = planes.each_mut().map(|(_, samples)| samples.as_mut_ptr());
        let (length, strides) = (jpeg.len() as tj::size_t, std::ptr::null_mut());
        let status =
            tj::tj3DecompressToYUVPlanes8(handle, jpeg.as_ptr(), length, samples.as_mut_ptr(), strides);
        assert_eq!(status, 0);
        tj::tj3Destroy(handle);
        planes
    }
}

#[test]
fn components_are_those_of_libjpeg() {
    for (subsampling, density) in [
        (tj::TJSAMP_TJSAMP_444, (1.0, 1.0)),
        (tj::TJSAMP_TJSAMP_422, (0.5, 1.0)),
        (tj::TJSAMP_TJSAMP_420, (0.5, 0.5)),
        (tj::TJSAMP_TJSAMP_440, (1.0, 0.5)),
        (tj::TJSAMP_TJSAMP_411, (0.25, 1.0)),
    ] {
        let jpeg = compress(subsampling, false);
        let whole = planes_of_libjpeg(&jpeg);
        let (mut decompressor, mut components) = (Decompressor::new(), Components::default());
        for crop in crops() {
            let pick = Pick { components: true, ..Pick::rgb(crop, 1) };
            let (cut, layout) =
                decompressor.decode(&jpeg, |_| pick, &mut Vec::new(), &mut components).unwrap();
            assert_eq!((cut.size, cut.crop, layout), (SIZE, crop, Layout::Components));
            let densities = [(1.0, 1.0), density, density];
            for ((plane, (width, whole)), (across, down)) in components.iter().zip(&whole).zip(densities) {
                let samples = |pixels: u32, density: f64| (f64::from(pixels) * density).ceil() as usize;
                let size = (samples(cut.region.width, across), samples(cut.region.height, down));
                assert_eq!((plane.size.width as usize, plane.size.height as usize), size);
                assert_eq!(plane.density, (across, down));
                let (left, top) = (samples(cut.region.left, across), samples(cut.region.top, down));
                for y in 0..size.1 {
                    let made = &plane.samples[y * plane.pitch as usize..][..size.0];
                    let right = &whole[(top + y) * width + left..][..size.0];
                    assert!(made == right, "{subsampling} {crop:?} row {y}");
                }
            }
        }
    }
}

/// The differences' planes come larger than luma's where the image comes smaller, so that there is nothing left to
/// interpolate: then they are what the colours are made of.
#[test]
fn smaller_components_are_those_of_the_smaller_colours() {
    for (subsampling, shrinks) in
        [(tj::TJSAMP_TJSAMP_444, [1, 2, 4, 8].as_slice()), (tj::TJSAMP_TJSAMP_420, &[2, 4, 8])]
    {
        let jpeg = compress(subsampling, false);
        let (mut decompressor, mut components) = (Decompressor::new(), Components::default());
        for (crop, shrink) in
            crops().into_iter().flat_map(|crop| shrinks.iter().map(move |shrink| (crop, *shrink)))
        {
            let pick = Pick { components: true, ..Pick::rgb(crop, shrink) };
            let (cut, _) = decompressor.decode(&jpeg, |_| pick, &mut Vec::new(), &mut components).unwrap();
            let (around, pixels) = decode(&jpeg, crop, shrink);
            let CropBox { top, left, width, height } = cut.region;
            for plane in &components {
                assert_eq!((plane.size, plane.density), (ImageSize { width, height }, (1.0, 1.0)));
            }
            for (x, y) in (0..height).flat_map(|y| (0..width).map(move |x| (x, y))) {
                let [luma, blue, red] = components
                    .each_ref()
                    .map(|plane| f64::from(plane.samples[y as usize * plane.pitch as usize + x as usize]));
                let (row, column) = (top + y - around.region.top, left + x - around.region.left);
                let at = (row * around.region.width + column) as usize * 3;
                let green = luma - 0.344_136 * (blue - 128.0) - 0.714_136 * (red - 128.0);
                let colours = [luma + 1.402 * (red - 128.0), green, luma + 1.772 * (blue - 128.0)];
                for (found, colour) in pixels[at..at + 3].iter().zip(colours) {
                    assert!(
                        (f64::from(*found) - colour.clamp(0.0, 255.0)).abs() < 1.01,
                        "{subsampling} 1/{shrink} {crop:?} ({x}, {y})"
                    );
                }
            }
        }
    }
}

#[test]
fn the_smallest_images_have_components() {
    for (width, height) in [(1, 1), (3, 17), (16, 2)] {
        let image =
            image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8 * 9, y as u8 * 7, 90]));
        let mut jpeg = Vec::new();
        image::codecs::jpeg::JpegEncoder::new(&mut jpeg).encode_image(&image).unwrap();
        let mut components = Components::default();
        let size = ImageSize { width, height };
        let pick = |size| Pick { components: true, ..Pick::rgb(CropBox::whole(size), 1) };
        let decoded = Decompressor::new().decode(&jpeg, pick, &mut Vec::new(), &mut components);
        assert_eq!(decoded.unwrap().1, Layout::Components);
        assert_eq!(components[0].size, size);
    }
}

#[test]
fn what_has_no_components_or_is_unusual_comes_in_colours() {
    let whole = Pick { components: true, ..Pick::rgb(CropBox::whole(SIZE), 1) };
    for jpeg in [compress(tj::TJSAMP_TJSAMP_GRAY, false), compress(tj::TJSAMP_TJSAMP_420, true)] {
        let (mut pixels, mut components) = (Vec::new(), Components::default());
        let (cut, layout) =
            Decompressor::new().decode(&jpeg, |_| whole, &mut pixels, &mut components).unwrap();
        assert_eq!((cut.region, layout), (CropBox::whole(SIZE), Layout::Rgb));
        assert!(pixels == decode(&jpeg, CropBox::whole(SIZE), 1).1);
        assert_eq!(components, Components::default());
    }
}
