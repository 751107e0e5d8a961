//! A batch of training images as bytes, with what is still to be done to them, for a device that does it.

use std::ops::Range;

use super::augment::{Finishing, Input};
use super::cutmix::Mix;

/// The `n` images of a batch, and perhaps one behind them that only lends its box.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Unfinished {
    /// `[n or n + 1, 3, H, W]`: red, green, blue.
    pub planes: Vec<u8>,
    /// One for each image.
    pub finishing: Vec<Finishing>,
    /// The box that is pasted over once the images are finished, where they are mixed.
    pub paste: Option<Paste>,
}

/// CutMix's box, and whose it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Paste {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
    /// For each of the `n` images, in this batch: which one its box is taken from. Itself where nothing is.
    pub lenders: Vec<usize>,
}

impl Unfinished {
    /// Puts the images that were loaded into it, the first `own` of them the batch's.
    pub(super) fn fill<'a>(
        &mut self,
        loaded: impl Iterator<Item = Option<&'a Input>>,
        own: usize,
        mix: Option<&Mix>,
    ) {
        self.planes.clear();
        self.finishing.clear();
        // Where each has its place.
        let mut places = Vec::new();
        for input in loaded {
            places.push(input.is_some().then_some(self.finishing.len()));
            if let Some((planes, finishing)) = input.map(Input::unfinished) {
                self.planes.extend_from_slice(planes);
                self.finishing.push(finishing.clone());
            }
        }
        self.paste = mix.map(|Mix { rows, columns, .. }| {
            let lenders = places.iter().cycle().skip(places.len().saturating_sub(1));
            let pairs = places[..own].iter().zip(lenders);
            let lenders = pairs.filter_map(|(own, lender)| own.map(|own| lender.unwrap_or(own))).collect();
            Paste { rows: rows.clone(), columns: columns.clone(), lenders }
        });
    }
}
