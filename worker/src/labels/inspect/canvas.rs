//! A picture to draw on: filled boxes, pictures, letters.

use std::path::Path;

use anyhow::{Context, Result};
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use crate::checkpoint::temporary::Temporary;

/// Red, green, blue.
pub(super) type Rgb = [u8; 3];

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Area {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

/// How letters look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Face {
    Text,
    Bold,
    Title,
}

impl Face {
    fn raster(self) -> (FontWeight, RasterHeight) {
        match self {
            Self::Text => (FontWeight::Regular, RasterHeight::Size16),
            Self::Bold => (FontWeight::Bold, RasterHeight::Size16),
            Self::Title => (FontWeight::Bold, RasterHeight::Size20),
        }
    }

    /// Pixels that a letter is wide; all are.
    pub(super) fn advance(self) -> u32 {
        let (weight, height) = self.raster();
        get_raster_width(weight, height) as u32
    }
}

/// RGB pixels. What is drawn beyond the edge is left out.
pub(super) struct Canvas {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Canvas {
    pub(super) fn new(width: u32, height: u32, background: Rgb) -> Self {
        Self { width, height, pixels: background.repeat(width as usize * height as usize) }
    }

    pub(super) fn at(&self, x: u32, y: u32) -> Rgb {
        let i = (y as usize * self.width as usize + x as usize) * 3;
        [self.pixels[i], self.pixels[i + 1], self.pixels[i + 2]]
    }

    pub(super) fn set(&mut self, x: u32, y: u32, colour: Rgb) {
        if x < self.width && y < self.height {
            let i = (y as usize * self.width as usize + x as usize) * 3;
            self.pixels[i..i + 3].copy_from_slice(&colour);
        }
    }

    /// Draws `colour` over `area`; `share` 1 hides what was there, 0 leaves it.
    pub(super) fn fill(&mut self, area: Area, colour: Rgb, share: f32) {
        for y in area.y..area.y.saturating_add(area.height).min(self.height) {
            for x in area.x..area.x.saturating_add(area.width).min(self.width) {
                self.set(x, y, mix(self.at(x, y), colour, share));
            }
        }
    }

    /// The outline of `area`, `thick` pixels inwards.
    pub(super) fn outline(&mut self, area: Area, thick: u32, colour: Rgb) {
        let Area { x, y, width, height } = area;
        let thick = thick.min(width).min(height);
        for side in [
            Area { x, y, width, height: thick },
            Area { x, y: y + height - thick, width, height: thick },
            Area { x, y, width: thick, height },
            Area { x: x + width - thick, y, width: thick, height },
        ] {
            self.fill(side, colour, 1.0);
        }
    }

    /// Writes a line of text, its upper left corner at `x`, `y`. What the font lacks becomes `?`.
    pub(super) fn text(&mut self, x: u32, y: u32, face: Face, colour: Rgb, text: &str) {
        let (weight, height) = face.raster();
        for (place, letter) in (0..).zip(text.chars()) {
            let raster = get_raster(letter, weight, height).or_else(|| get_raster('?', weight, height));
            let left = x + place * face.advance();
            for (row, line) in (y..).zip(raster.iter().flat_map(|raster| raster.raster())) {
                for (column, &ink) in (left..).zip(line.iter()) {
                    if ink > 0 && column < self.width && row < self.height {
                        let mixed = mix(self.at(column, row), colour, f32::from(ink) / 255.0);
                        self.set(column, row, mixed);
                    }
                }
            }
        }
    }

    /// Writes it as a PNG file, which appears under its name only once it is whole.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let shown = || format!("{} cannot be written", path.display());
        let mut png = Vec::new();
        PngEncoder::new(&mut png)
            .write_image(&self.pixels, self.width, self.height, ExtendedColorType::Rgb8)
            .with_context(shown)?;
        Temporary::write(path, |file| std::io::Write::write_all(file, &png))
            .and_then(|temporary| temporary.rename(path))
            .with_context(shown)
    }
}

/// `share` of `b` and the rest of `a`.
pub(super) fn mix(a: Rgb, b: Rgb, share: f32) -> Rgb {
    std::array::from_fn(|c| (f32::from(a[c]) + (f32::from(b[c]) - f32::from(a[c])) * share).round() as u8)
}
