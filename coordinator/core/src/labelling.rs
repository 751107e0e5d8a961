//! Label maps of one data set, made by several workers: what they must agree on, and what they made.
//!
//! A map on the disk is the truth about an image, so nothing is kept for a next start: ranges whose maps are all
//! there are then soon done.

use std::collections::BTreeMap;

use crate::leases::{Piece, Work};

/// What a worker sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSeen {
    /// Number of images.
    pub samples: u64,
    /// A hash over their class and file names in order, in hexadecimal.
    pub fingerprint: String,
    /// A hash over what the maps are made with, in hexadecimal.
    pub recipe: String,
}

/// What a worker did with a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelReport {
    /// Maps that it made.
    pub made: u64,
    /// Maps that were there already.
    pub there: u64,
    /// A line for each image that could not be read.
    pub unreadable: Vec<String>,
}

/// The maps so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labelling {
    /// What the first worker saw.
    seen: Option<LabelSeen>,
    made: u64,
    there: u64,
    /// Lines about unreadable images, by the first image of their range.
    unreadable: BTreeMap<u64, Vec<String>>,
}

impl Labelling {
    /// Maps that were made.
    pub fn made(&self) -> u64 {
        self.made
    }

    /// Maps that were there already.
    pub fn there(&self) -> u64 {
        self.there
    }

    /// A line for each image that could not be read, in the order of the images.
    pub fn unreadable(&self) -> impl Iterator<Item = &str> {
        self.unreadable.values().flatten().map(String::as_str)
    }
}

impl Work for Labelling {
    const NAME: &'static str = "labelling";
    const PAST: &'static str = "labelled";
    type Seen = LabelSeen;
    type Report = LabelReport;

    fn admit(&mut self, seen: LabelSeen) -> Result<Vec<u64>, String> {
        let first = self.seen.get_or_insert_with(|| seen.clone());
        if (first.samples, &first.fingerprint) != (seen.samples, &seen.fingerprint) {
            return Err(format!(
                "it sees other images than the first worker did ({} against {}): give every host the same data set",
                seen.samples, first.samples
            ));
        }
        if first.recipe != seen.recipe {
            return Err(
                "its weights are not those of the first worker: give every host the same files".into()
            );
        }
        Ok(vec![seen.samples])
    }

    fn add(&mut self, piece: &Piece, report: LabelReport) -> Result<u64, String> {
        let LabelReport { made, there, unreadable } = report;
        let counted = [made, there, unreadable.len() as u64].into_iter().try_fold(0, u64::checked_add);
        if counted != Some(piece.len()) {
            return Err(format!("it reports on other images than {:?}", piece.samples));
        }
        self.made += made;
        self.there += there;
        if !unreadable.is_empty() {
            self.unreadable.insert(piece.samples.start, unreadable);
        }
        Ok(made)
    }
}
