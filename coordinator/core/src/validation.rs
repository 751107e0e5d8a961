//! One validation: the set is dealt to the ranks, each sample once, and the counts are added up.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::WorkerId;
use crate::evaluation::counts::Counts;

/// What one rank found on its part of the validation set. Counts and sums, so that they add up exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    pub epoch: u32,
    /// Samples that were evaluated: the ones that were asked for.
    pub range: Range<u64>,
    /// Samples whose class was the first, and among the first five.
    pub top1: u64,
    pub top5: u64,
    /// Sum of the cross entropies.
    pub loss_sum: f64,
}

/// A validation under way.
#[derive(Debug, Clone)]
pub(crate) struct Validation {
    pub epoch: u32,
    awaited: BTreeSet<(WorkerId, u64, u64)>,
    /// Samples that were asked for, and that each worker says it has done.
    samples: u64,
    done: BTreeMap<WorkerId, u64>,
    sum: Counts,
}

impl Validation {
    pub fn new(epoch: u32) -> Self {
        Self { epoch, awaited: BTreeSet::new(), samples: 0, done: BTreeMap::new(), sum: Counts::default() }
    }

    /// Notes that `worker` was asked for `range`.
    pub fn ask(&mut self, worker: WorkerId, range: &Range<u64>) {
        self.awaited.insert((worker, range.start, range.end));
        self.samples += range.end - range.start;
    }

    #[cfg(test)]
    pub fn is_open(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// Notes how far a worker has come; returns the epoch, samples done by all, and samples asked for.
    pub fn progress(&mut self, worker: WorkerId, done: u64) -> (u32, u64, u64) {
        self.done.insert(worker, done);
        (self.epoch, self.done.values().sum::<u64>().min(self.samples), self.samples)
    }

    /// Adds a part. The sum is returned with the last one; a part that was not asked for, or that was
    /// counted already, changes nothing.
    pub fn add(&mut self, worker: WorkerId, part: &Part) -> Option<Counts> {
        if part.epoch != self.epoch || !self.awaited.remove(&(worker, part.range.start, part.range.end)) {
            return None;
        }
        let Part { range, top1, top5, loss_sum, .. } = part;
        let samples = range.end - range.start;
        self.sum += Counts { samples, top1: *top1, top5: *top5, loss_sum: *loss_sum };
        self.awaited.is_empty().then_some(self.sum)
    }
}
