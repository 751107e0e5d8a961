//! A network evaluated on sets, by one process or by several: what the workers must agree on, and what their reports
//! add up to.
//!
//! ```text
//!   sets, as --data names them     ImageNet            ImageNet-C
//!   folders of class folders       val/                fog/1/, fog/2/, ... snow/5/
//!   ranges of images               0..512, 512..1024   0..512, ...
//! ```
//!
//! - [`counts`]: what is counted on a range.
//! - [`Evaluation`]: the ranges so far. It adds them in their order, not in that in which they came, so that sums of
//!   floating-point numbers do not depend on how many workers there were and what became of them.
//! - [`corruption`]: ImageNet-C's error for each corruption, and their mean.
//! - [`report`]: the table and the JSON.

pub mod corruption;
pub mod counts;
pub mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::leases::{Piece, Work};
use corruption::{Baseline, CorruptionErrors, mean_error};
use counts::Found;
use report::{CorruptedReport, Report, SetReport};

/// A set that is to be evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedSet {
    /// What it is called in the report.
    pub name: String,
    /// Its folder, as the report shows it.
    pub dir: PathBuf,
}

/// A folder of class folders, as a worker sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// The set that it belongs to, by its number on the command line.
    pub set: u32,
    /// Where it is in the set's folder, such as `val`; empty for that folder itself.
    pub below: String,
    /// In ImageNet-C, the corruption and its severity.
    pub corruption: Option<(String, u32)>,
    /// Number of images.
    pub samples: u64,
    /// A hash over their class and file names in order, in hexadecimal.
    pub fingerprint: String,
    /// Number of classes.
    pub classes: u64,
    /// Whether only these are answers.
    pub restricted: bool,
}

/// What a worker sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvalSeen {
    pub arch: String,
    /// Number of the network's outputs.
    pub outputs: u64,
    /// A hash over the weights, in hexadecimal.
    pub weights: String,
    /// A hash over what else the answers are judged by, in hexadecimal.
    pub labels: String,
    /// In the order in which they are evaluated: those of ImageNet-C last.
    pub folders: Vec<Folder>,
}

/// What was found so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    sets: Vec<AskedSet>,
    /// What the first worker saw.
    seen: Option<EvalSeen>,
    /// By folder, and by the first image of the range.
    found: Vec<BTreeMap<u64, Found>>,
}

impl Evaluation {
    /// Nothing is found yet on `sets`.
    pub fn new(sets: Vec<AskedSet>) -> Self {
        Self { sets, seen: None, found: Vec::new() }
    }

    /// What a folder is called: its set's name, and the corruption.
    fn name(&self, folder: &Folder) -> String {
        let set = self.sets.get(folder.set as usize).map_or("an unknown set", |set| &set.name);
        match &folder.corruption {
            None => set.to_owned(),
            Some((corruption, severity)) => format!("{corruption} {severity} of {set}"),
        }
    }

    /// How what a worker sees differs from what the first saw.
    fn compare(&self, first: &EvalSeen, seen: &EvalSeen) -> Result<(), String> {
        const SETS: &str = "give every host the same sets";
        const FILES: &str = "give every host the same files";
        let place = |folder: &Folder| (folder.set, folder.below.clone(), folder.corruption.clone());
        if !first.folders.iter().map(place).eq(seen.folders.iter().map(place)) {
            return Err(format!(
                "it sees other folders than the first worker did ({} against {}): {SETS}",
                seen.folders.len(),
                first.folders.len()
            ));
        }
        let images = |folder: &Folder| (folder.samples, folder.fingerprint.clone());
        let mut pairs = first.folders.iter().zip(&seen.folders);
        if let Some((first, own)) = pairs.find(|(first, own)| images(first) != images(own)) {
            return Err(format!(
                "it sees other images in {} than the first worker did ({} against {}): {SETS}",
                self.name(first),
                own.samples,
                first.samples
            ));
        }
        let network = |seen: &EvalSeen| (seen.weights.clone(), seen.arch.clone(), seen.outputs);
        if network(first) != network(seen) {
            return Err(format!("its weights are not those of the first worker: {FILES}"));
        }
        match first == seen {
            true => Ok(()),
            false => Err(format!(
                "its classes, or the labels that it judges by, are not those of the first worker: {FILES}"
            )),
        }
    }

    /// What was found, as it is printed: all of it, once every range is reported. None before a worker came. `weights`
    /// and `arch` are how the network was named, if its architecture was; `baseline` normalizes the mean corruption
    /// error.
    pub fn report(&self, weights: &Path, arch: Option<&str>, baseline: Baseline) -> Option<Report> {
        let seen = self.seen.as_ref()?;
        let totals: Vec<Found> = self.found.iter().map(total).collect();
        let folders = seen.folders.iter().zip(totals);
        let (mut sets, mut corrupted) = (Vec::new(), BTreeMap::<u32, Vec<CorruptionErrors>>::new());
        for (folder, found) in folders {
            let Some((name, severity)) = &folder.corruption else {
                sets.push(self.set_report(folder, found, seen.outputs)?);
                continue;
            };
            let corruptions = corrupted.entry(folder.set).or_default();
            let error = (*severity, 1.0 - found.counts.top1_share());
            // Mildest first: a lower one begins a corruption of the same name in another group.
            let goes_on = |last: &&mut CorruptionErrors| {
                last.name == *name && last.errors.last().is_some_and(|(milder, _)| milder < severity)
            };
            match corruptions.last_mut().filter(goes_on) {
                Some(last) => last.errors.push(error),
                None => corruptions.push(CorruptionErrors { name: name.clone(), errors: vec![error] }),
            }
        }
        let corrupted = corrupted.into_iter().map(|(set, corruptions)| {
            let AskedSet { name, dir } = self.sets.get(set as usize)?.clone();
            let mean = mean_error(&corruptions, &baseline);
            Some(CorruptedReport { name, path: dir.display().to_string(), corruptions, mean })
        });
        let corrupted = corrupted.collect::<Option<_>>()?;
        let (weights, arch) = (weights.display().to_string(), arch.unwrap_or(&seen.arch).to_owned());
        Some(Report { weights, arch, sets, corrupted, baseline })
    }

    fn set_report(&self, folder: &Folder, found: Found, outputs: u64) -> Option<SetReport> {
        let AskedSet { name, dir } = self.sets.get(folder.set as usize)?.clone();
        let path = if folder.below.is_empty() { dir } else { dir.join(&folder.below) };
        let (path, classes, restricted) = (path.display().to_string(), folder.classes, folder.restricted);
        Some(SetReport { name, path, classes, outputs, restricted, found })
    }
}

/// The sum over ranges, in their order.
fn total(found: &BTreeMap<u64, Found>) -> Found {
    let mut ranges = found.values();
    let mut total = ranges.next().cloned().unwrap_or_default();
    ranges.for_each(|found| total.add(found));
    total
}

impl Work for Evaluation {
    const NAME: &'static str = "evaluation";
    const PAST: &'static str = "evaluated";
    type Seen = EvalSeen;
    type Report = Found;

    fn admit(&mut self, seen: EvalSeen) -> Result<Vec<u64>, String> {
        match &self.seen {
            Some(first) => self.compare(first, &seen)?,
            None => {
                if seen.folders.iter().any(|folder| folder.set as usize >= self.sets.len()) {
                    return Err("it sees more sets than it was told of".into());
                }
                self.found = vec![BTreeMap::new(); seen.folders.len()];
                self.seen = Some(seen.clone());
            }
        }
        Ok(seen.folders.iter().map(|folder| folder.samples).collect())
    }

    fn add(&mut self, piece: &Piece, report: Found) -> Result<u64, String> {
        let Some(found) = self.found.get_mut(piece.folder as usize) else {
            return Err(format!("it reports on folder {}, which there is not", piece.folder));
        };
        report.check(piece.len(), found.values().next())?;
        found.insert(piece.samples.start, report);
        Ok(piece.len())
    }

    fn describe(&self, piece: &Piece) -> String {
        let Piece { folder, samples } = piece;
        let folder = self.seen.as_ref().and_then(|seen| seen.folders.get(*folder as usize));
        let name = folder.map_or_else(|| "an unknown folder".to_owned(), |folder| self.name(folder));
        format!("images {} to {} of {name}", samples.start, samples.end.saturating_sub(1))
    }
}
