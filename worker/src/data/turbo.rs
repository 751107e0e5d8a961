//! JPEG decompression by libjpeg-turbo 3: a safe handle around its C interface, and the one file of
//! `data` with unsafe code. Knows bytes and pixels; files and other formats are `decode`.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};

use turbojpeg_sys as tj;

use super::cut::{Cut, Pick};
use super::{CropBox, ImageError, ImageSize};

/// Most pixels that a byte of a JPEG can be: a block of 64 takes a bit at least, in the first scan of a progressive
/// one. (Twice that, because arithmetic coding has no such end; nobody writes it.)
const DENSITY: u64 = 2 * 8 * 64;

/// More scans than any real progressive JPEG has; each costs a pass over all coefficients, so that a
/// small hostile file could otherwise keep a thread busy for hours.
const MAX_SCANS: c_int = 500;

/// The version of libjpeg-turbo, and whether it was built with SIMD; none where its header did not say.
pub(crate) fn build() -> (Option<&'static str>, Option<bool>) {
    (option_env!("JPEG_VERSION"), option_env!("JPEG_SIMD").map(|simd| simd == "true"))
}

/// How the pixels came out of the decompressor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// 3 bytes a pixel.
    Rgb,
    /// 4 bytes a pixel, as stored: Adobe's convention, 255 is no ink.
    Cmyk,
}

/// Width and height of the blocks that an image is coded in, by libjpeg-turbo's number of its subsampling.
const UNITS: [(u32, u32); 7] = [(8, 8), (16, 8), (16, 16), (8, 8), (8, 16), (32, 8), (8, 32)];

/// A decompressor of one thread. Reused from image to image; made anew after a damaged one, because
/// libjpeg leaves the state of a failed header behind.
pub(super) struct Decompressor {
    handle: Option<Handle>,
}

/// Owns a non-null decompression handle.
struct Handle(tj::tjhandle);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle came from tj3Init, is not null, and is destroyed only here.
        unsafe { tj::tj3Destroy(self.0) }
    }
}

/// What a call that did not return 0 meant.
enum Fault {
    /// The image is there; libjpeg was not content with something. Its first complaint.
    Warning(String),
    Fatal(String),
}

/// The beginnings of libjpeg's warnings. `tj3GetErrorCode` calls a fatal error that follows a warning a
/// warning as well; the message is the fatal one then, so only the message can tell.
const WARNINGS: [&str; 7] = [
    PREMATURE_END,
    "Corrupt JPEG data: ",
    "Inconsistent progression sequence ",
    "Invalid SOS parameters for sequential JPEG",
    "Unknown Adobe color transform code ",
    "Warning: unknown JFIF revision number ",
    "Application transferred too many scanlines",
];
const PREMATURE_END: &str = "Premature end of JPEG file";

impl Handle {
    fn new() -> Result<Self, ImageError> {
        // SAFETY: no preconditions; the result is checked for null before it is used.
        let raw = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as c_int) };
        if raw.is_null() {
            return Err(ImageError::Jpeg("no memory for a decompressor".into()));
        }
        let handle = Self(raw);
        handle.set(tj::TJPARAM_TJPARAM_SCANLIMIT, MAX_SCANS)?;
        handle.set(tj::TJPARAM_TJPARAM_SAVEMARKERS, 0)?;
        Ok(handle)
    }

    fn set(&self, param: tj::TJPARAM, value: c_int) -> Result<(), ImageError> {
        // SAFETY: the handle is live; an unknown parameter or value is refused by the callee.
        let status = unsafe { tj::tj3Set(self.0, param as c_int, value) };
        if status == 0 { Ok(()) } else { Err(ImageError::Jpeg(self.message())) }
    }

    /// A parameter of the image whose header was read last, -1 where it is unknown.
    fn get(&self, param: tj::TJPARAM) -> c_int {
        // SAFETY: the handle is live.
        unsafe { tj::tj3Get(self.0, param as c_int) }
    }

    fn read_header(&self, jpeg: &[u8]) -> Result<(), Fault> {
        // SAFETY: the handle is live; pointer and length are those of one slice, only read in the call.
        let status = unsafe { tj::tj3DecompressHeader(self.0, jpeg.as_ptr(), jpeg.len() as tj::size_t) };
        self.check(status)
    }

    /// Has the next image decoded at 1 / `shrink` of its size (1, 2, 4 or 8), and of that only `region`, or all.
    fn choose(&self, shrink: u32, region: Option<CropBox>) -> Result<(), ImageError> {
        let int =
            |value: u32| c_int::try_from(value).map_err(|_| ImageError::Jpeg("the image is too wide".into()));
        let factor = tj::tjscalingfactor { num: 1, denom: int(shrink)? };
        let region = match region {
            Some(CropBox { left, top, width, height }) => {
                tj::tjregion { x: int(left)?, y: int(top)?, w: int(width)?, h: int(height)? }
            }
            None => tj::tjregion { x: 0, y: 0, w: 0, h: 0 },
        };
        // SAFETY: the handle is live; the callee refuses a factor that it does not have and a region that does not lie
        // in the image whose header was read last, at that factor.
        let statuses =
            unsafe { [tj::tj3SetScalingFactor(self.0, factor), tj::tj3SetCroppingRegion(self.0, region)] };
        if statuses == [0, 0] { Ok(()) } else { Err(ImageError::Jpeg(self.message())) }
    }

    /// Decodes what was [chosen](Self::choose), of `size`, into `pixels`, `bytes` bytes a pixel of `format`.
    fn read_pixels(
        &self,
        jpeg: &[u8],
        size: ImageSize,
        format: tj::TJPF,
        bytes: usize,
        pixels: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let row = size.width as usize * bytes;
        let Ok(pitch) = c_int::try_from(row) else {
            return Err(Fault::Fatal("the image is too wide".into()));
        };
        pixels.resize(row * size.height as usize, 0);
        // SAFETY: the handle is live; `jpeg` is one slice, only read. The callee parses the header of
        // the same bytes again and writes `height` rows of `pitch` bytes, which is the length that
        // `pixels` was given from the dimensions that the first parse of these bytes found and from what was chosen of
        // them.
        let status = unsafe {
            tj::tj3Decompress8(
                self.0,
                jpeg.as_ptr(),
                jpeg.len() as tj::size_t,
                pixels.as_mut_ptr(),
                pitch,
                format as c_int,
            )
        };
        self.check(status)
    }

    fn check(&self, status: c_int) -> Result<(), Fault> {
        if status == 0 {
            return Ok(());
        }
        let message = self.message();
        // SAFETY: the handle is live.
        let code = unsafe { tj::tj3GetErrorCode(self.0) };
        let warning = code == tj::TJERR_TJERR_WARNING as c_int
            && WARNINGS.iter().any(|beginning| message.starts_with(beginning));
        Err(if warning { Fault::Warning(message) } else { Fault::Fatal(message) })
    }

    /// The last error's message on one line.
    fn message(&self) -> String {
        // SAFETY: the handle is live; the callee returns a NUL-terminated string in the handle or in
        // memory of this thread, which stays as it is until the next call, after the copy made here.
        let text = unsafe { CStr::from_ptr(tj::tj3GetErrorStr(self.0)) };
        text.to_string_lossy().replace('\n', " ")
    }
}

impl Decompressor {
    pub(super) fn new() -> Self {
        Self { handle: None }
    }

    /// Decodes of the JPEG in `jpeg` what `pick` asks of an image of that size, or a little more, into `pixels`, row
    /// after row without padding, at libjpeg's accurate settings, those of Pillow. What libjpeg only warns about is let
    /// through, as Pillow does; a file that ends too early is an error.
    pub(super) fn decode(
        &mut self,
        jpeg: &[u8],
        pick: impl FnOnce(ImageSize) -> Pick,
        pixels: &mut Vec<u8>,
    ) -> Result<(Cut, Layout), ImageError> {
        let handle = match self.handle.take() {
            Some(handle) => handle,
            None => Handle::new()?,
        };
        let decoded = decode_with(&handle, jpeg, pick, pixels);
        if decoded.is_ok() {
            self.handle = Some(handle);
        }
        decoded
    }
}

fn decode_with(
    handle: &Handle,
    jpeg: &[u8],
    pick: impl FnOnce(ImageSize) -> Pick,
    pixels: &mut Vec<u8>,
) -> Result<(Cut, Layout), ImageError> {
    complain(handle.read_header(jpeg), jpeg)?;
    let dimension = |param| u32::try_from(handle.get(param)).unwrap_or(0);
    let size = ImageSize {
        width: dimension(tj::TJPARAM_TJPARAM_JPEGWIDTH),
        height: dimension(tj::TJPARAM_TJPARAM_JPEGHEIGHT),
    };
    if size.width == 0 || size.height == 0 {
        return Err(ImageError::Jpeg("no image in it".into()));
    }
    size.check(jpeg.len(), DENSITY)?;
    let colorspace = handle.get(tj::TJPARAM_TJPARAM_COLORSPACE);
    let four_inks = [tj::TJCS_TJCS_CMYK, tj::TJCS_TJCS_YCCK].map(|space| space as c_int);
    let (layout, format, bytes) = if four_inks.contains(&colorspace) {
        (Layout::Cmyk, tj::TJPF_TJPF_CMYK, 4)
    } else {
        (Layout::Rgb, tj::TJPF_TJPF_RGB, 3)
    };
    let Pick { crop, shrink } = pick(size);
    let whole = CropBox::whole(size);
    let unit = usize::try_from(handle.get(tj::TJPARAM_TJPARAM_SUBSAMP)).ok().and_then(|kind| UNITS.get(kind));
    let divisible =
        handle.get(tj::TJPARAM_TJPARAM_LOSSLESS) == 0 && handle.get(tj::TJPARAM_TJPARAM_PRECISION) == 8;
    let (shrink, region) = match unit {
        Some(unit) if divisible && (crop != whole || shrink > 1) => {
            let region = around(crop, *unit, size, shrink);
            handle.choose(shrink, Some(region))?;
            (shrink, region)
        }
        _ => {
            handle.choose(1, None)?;
            (1, whole)
        }
    };
    let of_region = ImageSize { width: region.width, height: region.height };
    complain(handle.read_pixels(jpeg, of_region, format, bytes, pixels), jpeg)?;
    // What lies behind the region is not read, and would not be missed.
    if region != whole && !ends(jpeg) {
        return Err(ImageError::Truncated);
    }
    Ok((Cut { size, crop, shrink, region }, layout))
}

/// The box, in an image of `size` at 1 / `shrink`, that holds `crop` and a block of `unit` pixels around it, from the
/// neighbours of which the colours at its edges are made. It begins where libjpeg can begin, at a whole block.
fn around(crop: CropBox, (wide, high): (u32, u32), size: ImageSize, shrink: u32) -> CropBox {
    // From whole blocks to whole blocks.
    let along = |start: u32, length: u32, block: u32, side: u32| {
        let first = (start / block).saturating_sub(1) * block;
        let end = ((start + length).div_ceil(block) + 1).saturating_mul(block).min(side);
        (first / shrink, end.div_ceil(shrink))
    };
    let (left, right) = along(crop.left, crop.width, wide, size.width);
    let (top, bottom) = along(crop.top, crop.height, high, size.height);
    CropBox { top, left, height: bottom - top, width: right - left }
}

/// Turns libjpeg's faults into errors and lets its warnings pass, unless they hide a truncated file.
fn complain(outcome: Result<(), Fault>, jpeg: &[u8]) -> Result<(), ImageError> {
    match outcome {
        Ok(()) => Ok(()),
        Err(Fault::Fatal(message)) => Err(ImageError::Jpeg(message)),
        Err(Fault::Warning(message)) if message.starts_with(PREMATURE_END) => Err(ImageError::Truncated),
        // Only the first warning is told, so that a premature end may stand behind it.
        Err(Fault::Warning(_)) if !ends(jpeg) => Err(ImageError::Truncated),
        Err(Fault::Warning(_)) => Ok(()),
    }
}

/// Whether an end marker follows the last start of a scan. Within a scan 0xFF is always escaped, so
/// neither marker can occur there by chance.
fn ends(jpeg: &[u8]) -> bool {
    let last_end = jpeg.windows(2).rposition(|pair| pair == [0xFF, 0xD9]);
    last_end.is_some_and(|end| !jpeg[end..].windows(2).any(|pair| pair == [0xFF, 0xDA]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

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

    /// A JPEG of them.
    fn compress(subsampling: tj::TJSAMP, progressive: bool) -> Vec<u8> {
        let pixels = pixels();
        let (mut jpeg, mut length) = (std::ptr::null_mut(), 0);
        // SAFETY: the handle lives from Init to Destroy; the callee reads rows of SIZE.width pixels of 3 bytes, all in
        // `pixels`, and allocates `length` bytes at `jpeg`, which are copied before they are freed.
        unsafe {
            let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as c_int);
            for (param, value) in [
                (tj::TJPARAM_TJPARAM_SUBSAMP, subsampling as c_int),
                (tj::TJPARAM_TJPARAM_QUALITY, 90),
                (tj::TJPARAM_TJPARAM_PROGRESSIVE, c_int::from(progressive)),
            ] {
                assert_eq!(tj::tj3Set(handle, param as c_int, value), 0);
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

    fn decode(jpeg: &[u8], crop: CropBox, shrink: u32) -> (Cut, Vec<u8>) {
        let mut pixels = Vec::new();
        let (cut, layout) = Decompressor::new().decode(jpeg, |_| Pick { crop, shrink }, &mut pixels).unwrap();
        assert_eq!((cut.size, cut.crop, layout), (SIZE, crop, Layout::Rgb));
        (cut, pixels)
    }

    fn crops() -> Vec<CropBox> {
        let along =
            |side: u32| [(0, side), (0, 1), (side - 1, 1), (3, 40), (16, 32), (77, 61), (side - 50, 50)];
        let rows =
            |(left, width)| along(SIZE.height).map(|(top, height)| CropBox { top, left, height, width });
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
                        let row = |left: u32, top: u32, width: u32| {
                            (top as usize * width as usize + left as usize) * 3
                        };
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
            let decoded = Decompressor::new().decode(cut, |_| Pick { crop: top, shrink: 1 }, &mut pixels);
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
            decompressor.decode(&jpeg, |_| Pick { crop, shrink }, &mut pixels).unwrap();
            sizes.push(pixels.len());
        }
        let alone = |crop, shrink| decode(&jpeg, crop, shrink).1.len();
        assert_eq!(sizes, [alone(crops()[10], 4), 203 * 149 * 3, alone(crops()[12], 1), 102 * 75 * 3]);
    }
}
