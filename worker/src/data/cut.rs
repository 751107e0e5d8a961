//! The part of an image that is decoded for a crop.

use super::{CropBox, ImageSize};

/// What is wanted of an image: a box in it, at 1 / `shrink` of its size (1, 2, 4 or 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    pub crop: CropBox,
    pub shrink: u32,
    /// The components of a JPEG rather than colours, where it has them.
    pub components: bool,
}

impl Pick {
    /// In colours.
    pub fn rgb(crop: CropBox, shrink: u32) -> Self {
        Self { crop, shrink, components: false }
    }
}

/// A box in an image, and where it is in what was decoded of it: the pixels of `region` of the image at 1 / `shrink` of
/// its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Of the whole image, as the file has it.
    pub size: ImageSize,
    /// In pixels of the whole image.
    pub crop: CropBox,
    pub shrink: u32,
    /// In pixels of the smaller image.
    pub region: CropBox,
}

impl Cut {
    /// `crop` of an image of which all is decoded.
    pub fn of_whole(size: ImageSize, crop: CropBox) -> Self {
        Self { size, crop, shrink: 1, region: CropBox::whole(size) }
    }
}
