//! JPEG decompression by libjpeg-turbo 3. Knows bytes and pixels; files and other formats are `decode`. This folder has
//! most of the unsafe code of `data`.

mod baseline;
mod huffman;
mod scan;
mod turbo;

use baseline::Baseline;

use super::components::Components;
use super::cut::{Cut, Pick};
use super::{CropBox, ImageError, ImageSize};

/// Most pixels that a byte of a JPEG can be: a block of 64 takes a bit at least, in the first scan of a progressive
/// one. (Twice that, because arithmetic coding has no such end; nobody writes it.)
const DENSITY: u64 = 2 * 8 * 64;

/// The version of libjpeg-turbo, and whether it was built with SIMD; none where its header did not say.
pub(crate) fn build() -> (Option<&'static str>, Option<bool>) {
    (option_env!("JPEG_VERSION"), option_env!("JPEG_SIMD").map(|simd| simd == "true"))
}

/// How the pixels came out of the decompressor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// 3 bytes a pixel.
    Rgb,
    /// As planes.
    Components,
    /// 4 bytes a pixel, as stored: Adobe's convention, 255 is no ink.
    Cmyk,
}

/// Decodes one image after the other. Belongs to one thread.
pub(super) struct Decompressor {
    /// For the usual, beside [`turbo`] for everything.
    baseline: Option<Baseline>,
}

impl Decompressor {
    pub(super) fn new() -> Self {
        Self { baseline: Baseline::new() }
    }

    /// One that leaves everything to libjpeg, from which the other differs in its speed, and in that it has components.
    pub(super) fn of_libjpeg_alone() -> Self {
        Self { baseline: None }
    }

    /// Decodes of the JPEG in `jpeg` what `pick` asks of an image of that size, or a little more, into `pixels`, row
    /// after row without padding, at libjpeg's accurate settings, those of Pillow; or into `components`, where it asks
    /// for them and there is nothing unusual. What libjpeg only warns about is let through, as Pillow does; a file that
    /// ends too early is an error.
    pub(super) fn decode(
        &mut self,
        jpeg: &[u8],
        pick: impl FnOnce(ImageSize) -> Pick,
        pixels: &mut Vec<u8>,
        components: &mut Components,
    ) -> Result<(Cut, Layout), ImageError> {
        let Some(opened) = self.baseline.as_mut().and_then(|baseline| baseline.open(jpeg)) else {
            return turbo::decode(jpeg, pick, pixels);
        };
        let size = opened.header.size();
        size.check(jpeg.len(), DENSITY)?;
        let picked = pick(size);
        let Pick { crop, shrink, components: apart } = picked;
        let (margin, layout) = match apart && opened.header.has_components() {
            true => (0, Layout::Components),
            false => (1, Layout::Rgb),
        };
        let region = around(crop, opened.header.unit(), margin, size, shrink);
        let decoded = ends(jpeg).then(|| match layout {
            Layout::Components => opened.decode_components(shrink, region, components),
            _ => opened.decode(shrink, region, pixels),
        });
        if decoded.flatten().is_some() {
            return Ok((Cut { size, crop, shrink, region }, layout));
        }
        turbo::decode(jpeg, |_| picked, pixels)
    }
}

/// The box, in an image of `size` at 1 / `shrink`, that holds `crop` and `margin` blocks of `unit` pixels around it: one
/// where colours are made, from neighbours too. It begins where libjpeg can begin, at a whole block.
fn around(crop: CropBox, (wide, high): (u32, u32), margin: u32, size: ImageSize, shrink: u32) -> CropBox {
    // From whole blocks to whole blocks.
    let along = |start: u32, length: u32, block: u32, side: u32| {
        let first = (start / block).saturating_sub(margin) * block;
        let end = ((start + length).div_ceil(block) + margin).saturating_mul(block).min(side);
        (first / shrink, end.div_ceil(shrink))
    };
    let (left, right) = along(crop.left, crop.width, wide, size.width);
    let (top, bottom) = along(crop.top, crop.height, high, size.height);
    CropBox { top, left, height: bottom - top, width: right - left }
}

/// Whether an end marker follows the last start of a scan. Within a scan 0xFF is always escaped, so
/// neither marker can occur there by chance.
fn ends(jpeg: &[u8]) -> bool {
    let last_end = jpeg.windows(2).rposition(|pair| pair == [0xFF, 0xD9]);
    last_end.is_some_and(|end| !jpeg[end..].windows(2).any(|pair| pair == [0xFF, 0xDA]))
}

#[cfg(test)]
mod tests;
