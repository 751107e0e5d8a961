//! Image files to RGB pixels, with the values that Pillow's `open(path).convert("RGB")` gives, or to a JPEG's components.
//! The content decides what a file is, not its name: ImageNet has a PNG named .JPEG. EXIF rotation is not applied, as
//! Pillow does not apply it and the published label maps were made without.

use std::io::Cursor;

use super::components::Components;
use super::cut::{Cut, Pick};
use super::jpeg::{Decompressor, Layout};
use super::location::Location;
use super::{CropBox, ImageError, ImageSize};

/// A decoded image, at first none: `pixels` holds `height` rows of `width` pixels of 3 bytes, red, green, blue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RgbImage {
    pub size: ImageSize,
    pub pixels: Vec<u8>,
}

/// What was decoded of an image for a crop. Keeps its buffers for the next.
#[derive(Debug, Clone, Default)]
pub struct Part {
    image: RgbImage,
    components: Components,
    apart: bool,
}

/// What a [`Part`] holds.
#[derive(Debug, Clone, Copy)]
pub enum Pixels<'a> {
    Rgb(&'a RgbImage),
    Components(&'a Components),
}

impl Part {
    pub fn pixels(&self) -> Pixels<'_> {
        if self.apart { Pixels::Components(&self.components) } else { Pixels::Rgb(&self.image) }
    }
}

impl From<RgbImage> for Part {
    fn from(image: RgbImage) -> Self {
        Self { image, ..Self::default() }
    }
}

/// Decodes one file after the other, reusing its buffers. Belongs to one thread.
pub struct Decoder {
    jpeg: Decompressor,
    file: Vec<u8>,
    inks: Vec<u8>,
}

impl Decoder {
    pub fn new() -> Self {
        Self::around(Decompressor::new())
    }

    /// One that leaves JPEGs to libjpeg from the first byte to the last: slower, the same colours and errors, and
    /// never components.
    pub fn of_libjpeg_alone() -> Self {
        Self::around(Decompressor::of_libjpeg_alone())
    }

    fn around(jpeg: Decompressor) -> Self {
        Self { jpeg, file: Vec::new(), inks: Vec::new() }
    }

    /// Decodes the file at `location` into `image`. After an error `image` holds nothing of use.
    pub fn decode_file(&mut self, location: &Location, image: &mut RgbImage) -> Result<(), ImageError> {
        self.of_file(location, |decoder, file| decoder.decode(file, image))
    }

    /// Decodes of the file at `location` what `pick` asks of an image of that size, and a little around it where that is
    /// less work than the whole. The values are those of the whole image; what it asks of JPEGs is left out of others.
    pub fn decode_file_part(
        &mut self,
        location: &Location,
        pick: impl FnOnce(ImageSize) -> Pick,
        part: &mut Part,
    ) -> Result<Cut, ImageError> {
        self.of_file(location, |decoder, file| decoder.decode_part(file, pick, part))
    }

    fn of_file<T>(
        &mut self,
        location: &Location,
        decode: impl FnOnce(&mut Self, &[u8]) -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        let mut file = std::mem::take(&mut self.file);
        let read = location.read(&mut file).map_err(ImageError::Read);
        let decoded = read.and_then(|()| decode(self, &file));
        self.file = file;
        decoded
    }

    /// Decodes `bytes`, the content of a JPEG or PNG file, into `image`: greyscale is repeated in the three
    /// channels, alpha is dropped, CMYK is converted as Pillow does.
    pub fn decode(&mut self, bytes: &[u8], image: &mut RgbImage) -> Result<(), ImageError> {
        let mut part = Part::from(std::mem::take(image));
        let decoded = self.decode_part(bytes, all, &mut part);
        *image = part.image;
        decoded.map(drop)
    }

    /// As [`Self::decode_file_part`], of a file's content.
    pub fn decode_part(
        &mut self,
        bytes: &[u8],
        pick: impl FnOnce(ImageSize) -> Pick,
        part: &mut Part,
    ) -> Result<Cut, ImageError> {
        part.apart = false;
        if bytes.is_empty() {
            Err(ImageError::Empty)
        } else if bytes.starts_with(&[0xFF, 0xD8, 0xFF]) {
            self.decode_jpeg(bytes, pick, part)
        } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            decode_png(bytes, &mut part.image)?;
            let size = part.image.size;
            Ok(Cut::of_whole(size, pick(size).crop))
        } else {
            let first: Vec<String> = bytes.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
            Err(ImageError::NotAnImage(first.join(" ")))
        }
    }

    fn decode_jpeg(
        &mut self,
        bytes: &[u8],
        pick: impl FnOnce(ImageSize) -> Pick,
        part: &mut Part,
    ) -> Result<Cut, ImageError> {
        let Part { image, components, apart } = part;
        let (cut, layout) = self.jpeg.decode(bytes, pick, &mut image.pixels, components)?;
        *apart = layout == Layout::Components;
        if *apart {
            return Ok(cut);
        }
        image.size = ImageSize { width: cut.region.width, height: cut.region.height };
        if layout == Layout::Cmyk {
            std::mem::swap(&mut self.inks, &mut image.pixels);
            image.pixels.clear();
            image.pixels.extend(self.inks.chunks_exact(4).flat_map(|inks| {
                let [cyan, magenta, yellow, black] = [inks[0], inks[1], inks[2], inks[3]];
                [cyan, magenta, yellow].map(|ink| under_black(ink, black))
            }));
        }
        Ok(cut)
    }
}

fn all(size: ImageSize) -> Pick {
    Pick::rgb(CropBox::whole(size), 1)
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

/// One channel of Pillow's CMYK to RGB, from inks stored by Adobe's convention (255 is no ink), which
/// Pillow assumes of every JPEG with four channels: black - (255 - ink) * black / 255, rounded.
fn under_black(ink: u8, black: u8) -> u8 {
    let product = u32::from(255 - ink) * u32::from(black) + 128;
    black - (((product >> 8) + product) >> 8) as u8
}

/// Most bits that a byte of a PNG can become: deflate's best is 1032 to 1.
const PNG_BITS: u64 = 1032 * 8;

fn decode_png(bytes: &[u8], image: &mut RgbImage) -> Result<(), ImageError> {
    let damaged = |error: image::ImageError| ImageError::Png(error.to_string().replace('\n', " "));
    let reader = |bytes| image::ImageReader::with_format(Cursor::new(bytes), image::ImageFormat::Png);
    let (width, height) = reader(bytes).into_dimensions().map_err(damaged)?;
    // The byte after width and height: deflated pixels have one bit at least.
    let bits = bytes.get(24).map_or(1, |depth| u64::from(*depth).max(1));
    ImageSize { width, height }.check(bytes.len(), PNG_BITS / bits)?;
    let mut png = reader(bytes);
    // The pixels are bounded above; the library's own default would refuse some that Pillow reads.
    png.no_limits();
    let pixels = png.decode().map_err(damaged)?.into_rgb8();
    image.size = ImageSize { width, height };
    image.pixels = pixels.into_raw();
    Ok(())
}

/// The images in `testdata` were made with Pillow 13: 21 x 13 pixels of noisy waves, saved in the mode and
/// format that the name says (`ycck.jpg` is `cmyk.jpg` with the transform in its Adobe marker set to 2,
/// `cmyk_plain.jpg` the same without the marker). NAME.rgb is what its `convert("RGB")` makes of it.
#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn testdata(name: &str) -> Vec<u8> {
        std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/data/testdata").join(name))
            .unwrap()
    }

    fn decode(bytes: &[u8]) -> Result<RgbImage, ImageError> {
        let mut image = RgbImage::default();
        Decoder::new().decode(bytes, &mut image).map(|()| image)
    }

    #[test]
    fn every_kind_of_file_equals_pillow() {
        let mut decoder = Decoder::new();
        let mut image = RgbImage::default();
        for name in [
            "rgb.jpg",
            "progressive.jpg",
            "grey.jpg",
            "cmyk.jpg",
            "ycck.jpg",
            "cmyk_plain.jpg",
            "palette.png",
            "alpha.png",
            "grey_alpha.png",
            "bits.png",
            "rgb.jpg",
        ] {
            decoder.decode(&testdata(name), &mut image).unwrap();
            assert_eq!(image.size, ImageSize { width: 21, height: 13 }, "{name}");
            assert_eq!(image.pixels, testdata(&format!("{name}.rgb")), "{name}");
        }
    }

    /// As Pillow: a file without its end is refused, even if it is the end marker alone that is missing.
    #[test]
    fn a_truncated_file_is_an_error_wherever_it_ends() {
        for name in ["rgb.jpg", "progressive.jpg", "cmyk.jpg"] {
            let whole = testdata(name);
            for length in 3..whole.len() {
                let error = decode(&whole[..length]).unwrap_err();
                assert!(matches!(error, ImageError::Truncated | ImageError::Jpeg(_)), "{length}: {error}");
            }
            for missing in [1, 2, 50] {
                let error = decode(&whole[..whole.len() - missing]).unwrap_err();
                assert!(matches!(error, ImageError::Truncated), "{error}");
            }
        }
        let png = testdata("alpha.png");
        assert!(matches!(decode(&png[..png.len() / 2]), Err(ImageError::Png(_))));
    }

    /// Real files carry bytes between markers that nobody asked for; only libjpeg's first warning is told, so
    /// they must not hide that the file is truncated as well.
    #[test]
    fn stray_bytes_are_let_through_but_hide_nothing() {
        let whole = testdata("rgb.jpg");
        let tables = whole.windows(2).position(|pair| pair == [0xFF, 0xDB]).unwrap();
        let stray = [&whole[..tables], &[1, 2, 3], &whole[tables..]].concat();
        assert_eq!(decode(&stray).unwrap().pixels, testdata("rgb.jpg.rgb"));
        assert!(matches!(decode(&stray[..stray.len() - 60]), Err(ImageError::Truncated)));
        // A warning and then a fatal error: a marker that no baseline JPEG may have.
        let mut fatal = stray.clone();
        let frame = fatal.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
        fatal[frame + 1] = 0xC5;
        assert!(matches!(decode(&fatal), Err(ImageError::Jpeg(_))));
    }

    #[test]
    fn a_decoder_goes_on_after_a_damaged_file() {
        let whole = testdata("rgb.jpg");
        let mut decoder = Decoder::new();
        let mut image = RgbImage::default();
        for length in (3..whole.len()).step_by(7) {
            assert!(decoder.decode(&whole[..length], &mut image).is_err());
            decoder.decode(&whole, &mut image).unwrap();
            assert_eq!(image.pixels, testdata("rgb.jpg.rgb"));
        }
    }

    #[test]
    fn no_damage_makes_it_panic() {
        for name in ["rgb.jpg", "progressive.jpg", "ycck.jpg", "palette.png"] {
            let whole = testdata(name);
            for at in 0..whole.len() {
                for flip in [0xFF, 0x01, 0x80] {
                    let mut damaged = whole.clone();
                    damaged[at] ^= flip;
                    if let Ok(image) = decode(&damaged) {
                        let ImageSize { width, height } = image.size;
                        assert_eq!(image.pixels.len(), width as usize * height as usize * 3);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_image_is_told_apart() {
        assert!(matches!(decode(b""), Err(ImageError::Empty)));
        let page = decode(b"<html>404</html>").unwrap_err();
        assert_eq!(page.to_string(), "neither a JPEG nor a PNG (its first bytes are 3c 68 74 6d)");
        assert!(matches!(decode(&[0xFF, 0xD8, 0xFF]), Err(ImageError::Truncated | ImageError::Jpeg(_))));
        // The header of a JPEG of 65000 x 65000 pixels.
        let mut bomb = testdata("rgb.jpg");
        let frame = bomb.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
        bomb[frame + 5..frame + 9].copy_from_slice(&[0xFD, 0xE8, 0xFD, 0xE8]);
        assert!(matches!(decode(&bomb), Err(ImageError::TooLarge { width: 65000, height: 65000 })));
        let nowhere = Location::File("/nonexistent/a.jpg".into());
        let missing = Decoder::new().decode_file(&nowhere, &mut RgbImage::default());
        assert!(matches!(missing, Err(ImageError::Read(_))));
    }
}
