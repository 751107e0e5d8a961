//! Asks the system for images in shards before their turn, in the order in which they lie there: a disk, or whoever
//! serves the file, then sees one pass from beginning to end, and the shuffled reads find it in memory.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::data::index::Split;

/// Requests for each image loaded: more than one, so that a loader that has just begun catches up.
const PACE: usize = 4;

/// What one rank will read of an epoch in shard order.
pub(super) struct ReadAhead {
    /// The rank's samples, those of a shuffled buffer before those of the next, and within one as they lie in the shards.
    samples: Vec<u32>,
    /// How many of them have been asked for.
    asked: AtomicUsize,
    /// The most samples that the rank has in one buffer: how far to be ahead.
    ahead: usize,
}

impl ReadAhead {
    /// For a rank that loads the positions `own` of `order` one after the other, `buffer` (at least 1) being shuffled
    /// together.
    pub fn new(split: &Split, order: &[u32], own: impl Iterator<Item = Range<usize>>, buffer: usize) -> Self {
        let own: Vec<usize> = own.flatten().collect();
        let (mut samples, mut ahead) = (Vec::with_capacity(own.len()), 0);
        for part in own.chunk_by(|a, b| a / buffer == b / buffer) {
            let first = samples.len();
            samples.extend(part.iter().map(|position| order[*position]));
            samples[first..].sort_unstable_by_key(|sample| split.place(*sample));
            ahead = ahead.max(part.len());
        }
        Self { samples, asked: AtomicUsize::new(0), ahead }
    }

    /// What to ask for now that the rank's sample number `number` is loaded, counted from the first.
    pub fn due(&self, number: usize) -> &[u32] {
        let until = number.saturating_add(self.ahead).min(self.samples.len());
        let first = self.asked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |asked| {
            (asked < until).then(|| until.min(asked + PACE))
        });
        first.map_or(&[], |first| &self.samples[first..until.min(first + PACE)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::index::packing::Tar;

    /// Three shards of 40, 5 and 30 images in two classes, so that ids are not in the order of the places.
    fn split() -> (tempfile::TempDir, Split) {
        let folder = tempfile::tempdir().unwrap();
        for (shard, images) in [40, 5, 30].into_iter().enumerate() {
            let tar = (0..images).fold(Tar::new(), |tar, image| {
                tar.file(&format!("n{}/{shard}-{}.jpg", image % 2, 99 - image), b"an image")
            });
            std::fs::write(folder.path().join(format!("{shard}.tar")), tar.end()).unwrap();
        }
        let split = Split::open(folder.path(), None).unwrap();
        (folder, split)
    }

    #[test]
    fn each_sample_is_asked_for_once_in_one_pass_and_before_its_turn() {
        let (_folder, split) = split();
        for (buffer, batch, slice) in
            [(20, 8, 0..8), (20, 8, 3..6), (1, 8, 0..8), (1000, 7, 0..1), (16, 32, 8..24)]
        {
            let order = split.order(5, 1, buffer as u32);
            let ranges = |_: ()| {
                (0..75_usize.div_ceil(batch)).map(|step| {
                    let clip = |place: usize| (step * batch + place).min(75);
                    clip(slice.start)..clip(slice.end)
                })
            };
            let ahead = ReadAhead::new(&split, &order, ranges(()), buffer);
            let own: Vec<usize> = ranges(()).flatten().collect();
            let mut asked = Vec::new();
            for (number, position) in own.iter().enumerate() {
                asked.extend_from_slice(ahead.due(number));
                // Caught up when a third of a buffer has been read, it never falls behind again.
                if number > ahead.ahead / 3 {
                    assert!(asked.contains(&order[*position]), "{buffer} {slice:?} {number}");
                }
                assert!(asked.len() <= number + ahead.ahead);
            }
            assert!(ahead.due(own.len()).is_empty());
            let positions: Vec<usize> =
                asked.iter().map(|id| order.iter().position(|other| other == id).unwrap()).collect();
            let mut sorted = positions.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, own);
            for (pair, at) in asked.windows(2).zip(positions.windows(2)) {
                let forward = split.place(pair[0]) < split.place(pair[1]);
                assert!(at[0] / buffer < at[1] / buffer || (at[0] / buffer == at[1] / buffer && forward));
            }
        }
    }
}
