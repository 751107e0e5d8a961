//! Whether images can be read, and how large they are.

use std::cell::RefCell;

use super::folders::Listing;
use super::{Findings, Verdict, images, spread};
use crate::data::decode::{Decoder, RgbImage};
use crate::data::location::Location;
use crate::data::{ImageError, ImageSize};
use crate::labels::map_in_order;
use crate::progress::Progress;

/// Decodes `most` images of a split and says which cannot be read, and which are smaller than a crop.
pub(super) fn open(
    findings: &mut Findings,
    what: &'static str,
    split: &Listing,
    most: usize,
    threads: usize,
    image_size: u32,
) {
    let all = images(split);
    let chosen: Vec<_> = spread(all.len(), most).into_iter().map(|place| all[place]).collect();
    let progress = Progress::new(chosen.len() as u64, "images opened");
    let sizes: Vec<Result<ImageSize, ImageError>> = map_in_order(&chosen, threads, |image| {
        let size = decode(&split.location(*image));
        progress.advance(1);
        size
    });
    progress.finish();
    let name = |place: &usize| split.location(chosen[*place]).to_string();
    let read: Vec<(usize, ImageSize)> =
        sizes.iter().enumerate().filter_map(|(place, size)| Some((place, *size.as_ref().ok()?))).collect();
    let mut sides: Vec<u32> = read.iter().map(|(_, size)| size.width.min(size.height)).collect();
    sides.sort_unstable();
    let opened = match chosen.len() == all.len() {
        true => "all".to_owned(),
        false => format!("{} of {}", chosen.len(), all.len()),
    };
    if let (Some(least), Some(middle), Some(largest)) =
        (sides.first(), sides.get(sides.len() / 2), sides.last())
    {
        let sides = match least == largest {
            true => format!("{least} pixels"),
            false => format!("{least} to {largest} pixels, {middle} in the middle"),
        };
        findings.good(what, format!("{opened} opened; the shorter side has {sides}"));
    }
    let damaged = sizes.iter().enumerate().filter_map(|(place, size)| {
        let error = size.as_ref().err()?;
        Some(format!("{}: {error}", name(&place)))
    });
    findings.wrong(what, Verdict::Bad, damaged.collect(), |n| {
        format!("{n} cannot be read ({opened} opened): replace or remove them, or set data.on_error to skip")
    });
    let small = read.iter().filter(|(_, size)| size.width.min(size.height) < image_size);
    let small = small.map(|(place, size)| format!("{}: {} x {}", name(place), size.width, size.height));
    findings.wrong(what, Verdict::Odd, small.collect(), |n| {
        format!("{n} are smaller than the crop of {image_size} pixels and would be enlarged")
    });
}

/// The size of the image in a file that can be read to its end.
fn decode(location: &Location) -> Result<ImageSize, ImageError> {
    thread_local! {
        static BUFFERS: RefCell<(Decoder, RgbImage)> = RefCell::new((Decoder::new(), RgbImage::default()));
    }
    BUFFERS.with_borrow_mut(|(decoder, image)| decoder.decode_file(location, image).map(|()| image.size))
}
