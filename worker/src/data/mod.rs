//! From folders of JPEG files, or tar files of them, to batches of normalized pixels. Knows nothing of libtorch.
//!
//! One sample's way: [`order`] says which sample is consumed at which position of an epoch, and
//! `relabel_core::shards` by which rank; [`index`] turns its id into a [`location`], a file or a part of a tar file;
//! [`decode`] makes pixels of what is there, or a JPEG's components; [`rng`] gives the sample its random numbers;
//! [`crop`] draws the box; `resize` makes it a square of pixels, [`augment`] these `[H, W, 3]` floats; [`cutmix`] may
//! paste a part of its neighbour over it; [`loader`] does so on many threads and hands out whole batches in order. With
//! `data.finish device` an [`unfinished`] batch leaves the floats, and what is pasted, to the device.

pub mod augment;
pub mod components;
pub mod crop;
pub mod cut;
pub mod cutmix;
pub mod decode;
mod error;
pub mod index;
mod jitter;
pub(crate) mod jpeg;
pub mod loader;
pub mod location;
pub mod order;
mod pillow;
mod pool;
mod resample;
mod resize;
pub mod rng;
mod streaming;
pub mod unfinished;
pub mod whole;

pub use error::{DataError, ImageError, ShardError};
pub use pool::Closer;

/// Most pixels that an image may have, where Pillow too refuses it as a decompression bomb.
pub const MAX_PIXELS: u64 = 178_956_970;

/// Most pixels along a side of an image: what a JPEG can have. Resizing takes memory in proportion to the longer side.
pub const MAX_SIDE: u32 = 65_535;

/// Width and height of a decoded image in pixels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageSize {
    pub width: u32,
    pub height: u32,
}

impl ImageSize {
    /// Refuses an image of so many pixels that they take more memory than the machine may have, or than `bytes` bytes
    /// of a file with at most `density` pixels a byte can be asking for in earnest: a header alone claims anything.
    fn check(self, bytes: usize, density: u64) -> Result<(), ImageError> {
        let Self { width, height } = self;
        let pixels = u64::from(width) * u64::from(height);
        if pixels > MAX_PIXELS || width.max(height) > MAX_SIDE {
            return Err(ImageError::TooLarge { width, height });
        }
        if pixels > (bytes as u64).saturating_mul(density) {
            return Err(ImageError::TooShort { bytes, width, height });
        }
        Ok(())
    }
}

/// A crop in pixels of the decoded image: rows `top..top + height`, columns `left..left + width`,
/// inside the image and at least 1 x 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropBox {
    pub top: u32,
    pub left: u32,
    pub height: u32,
    pub width: u32,
}

impl CropBox {
    /// All of an image.
    pub fn whole(size: ImageSize) -> Self {
        Self { top: 0, left: 0, height: size.height, width: size.width }
    }
}
