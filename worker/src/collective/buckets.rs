//! Cuts a flat gradient buffer into buckets, and knows which of them are complete while the backward pass fills it.
//!
//! Buckets bound what one operation moves, so that a first part is on its way while the rest is still being computed.
//! All ranks reduce them in one order, which follows from the model alone: that of the backward pass, the last gradients
//! first. So what the ranks sum together does not depend on which of them is ahead.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Bytes at which a bucket is full: 25 MiB, as in PyTorch's DistributedDataParallel.
pub const BUCKET_BYTES: usize = 25 << 20;

/// Bytes at which the first bucket is full, so that communication begins early, as there; and the last one, which is
/// complete when the backward pass has ended and has nothing to hide behind.
pub const END_BYTES: usize = 1 << 20;

/// How a flat buffer of gradients is cut: each bucket holds whole gradients that lie next to each other.
///
/// It is a function of the gradients' lengths, so that it is the same on every rank. The sum of an element is the same
/// on all ranks however the buffer is cut, but with more than two of them its last bit depends on the cut, which decides
/// in which order the ranks' values are added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    /// The gradients of each bucket, and the elements of the buffer that they are, in the order of reduction.
    parts: Vec<(Range<usize>, Range<usize>)>,
}

impl Buckets {
    /// Cuts a buffer that holds one f32 gradient of each of `lengths` after the other. A bucket is full once it has
    /// `full_bytes`, the first and the last once they have `end_bytes`, and takes no further gradient.
    pub fn new(lengths: &[usize], end_bytes: usize, full_bytes: usize) -> Self {
        let offsets: Vec<usize> = lengths
            .iter()
            .scan(0, |end, length| {
                *end += length;
                Some(*end)
            })
            .collect();
        let offset = |gradient: usize| gradient.checked_sub(1).map_or(0, |before| offsets[before]);
        let bytes =
            |gradients: Range<usize>| (offset(gradients.end) - offset(gradients.start)) * size_of::<f32>();
        let (mut parts, mut end) = (Vec::new(), lengths.len());
        let last = (0..lengths.len()).find(|&n| bytes(0..n + 1) >= end_bytes).map_or(end, |n| n + 1);
        while end > 0 {
            let full = if parts.is_empty() { end_bytes } else { full_bytes };
            let floor = if end > last { last } else { 0 };
            let start = (floor..end).rev().find(|&start| bytes(start..end) >= full).unwrap_or(floor);
            parts.push((start..end, offset(start)..offset(end)));
            end = start;
        }
        Self { parts }
    }

    /// The elements of the buffer that each bucket consists of, in the order in which they are reduced.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.parts.iter().map(|(_, elements)| elements.clone())
    }

    /// The bucket that a gradient is in.
    fn of(&self, gradient: usize) -> Option<usize> {
        self.parts.iter().position(|(gradients, _)| gradients.contains(&gradient))
    }
}

/// Which buckets of one step are complete: told by the backward pass, asked by who reduces them.
#[derive(Debug)]
pub struct Ready {
    buckets: Buckets,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Gradients that are there.
    arrived: Vec<bool>,
    /// By bucket, how many gradients are still missing, and since when none is.
    missing: Vec<(usize, Option<Instant>)>,
    /// A gradient that came again, after others may have been sent what it was before.
    again: Option<usize>,
    over: Option<Over>,
}

/// How it ended.
#[derive(Debug, Clone, Copy)]
enum Over {
    Complete(Instant),
    GivenUp,
}

impl Ready {
    /// Nothing is there yet.
    pub fn new(buckets: Buckets) -> Self {
        let missing: Vec<_> = buckets.parts.iter().map(|(gradients, _)| (gradients.len(), None)).collect();
        let gradients = buckets.parts.iter().map(|(gradients, _)| gradients.end).max().unwrap_or(0);
        let state = State { arrived: vec![false; gradients], missing, ..State::default() };
        Self { buckets, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The backward pass adds nothing more to this gradient.
    pub fn arrived(&self, gradient: usize) {
        let Some(bucket) = self.buckets.of(gradient) else { return };
        let mut state = self.state();
        if std::mem::replace(&mut state.arrived[gradient], true) {
            state.again.get_or_insert(gradient);
            return;
        }
        let (missing, complete) = &mut state.missing[bucket];
        *missing -= 1;
        if *missing == 0 {
            *complete = Some(Instant::now());
            self.changed.notify_all();
        }
    }

    /// Whatever has not arrived by now stays as it is: everything is complete.
    pub fn complete(&self) {
        self.end(Over::Complete(Instant::now()));
    }

    /// What is not complete will not be reduced.
    pub fn give_up(&self) {
        self.end(Over::GivenUp);
    }

    /// Waits until a bucket is complete, and says since when it is; none where it has been given up. What comes after
    /// the last bucket is complete when everything is.
    pub fn wait(&self, bucket: usize) -> Option<Instant> {
        let mut state = self.state();
        loop {
            let complete = state.missing.get(bucket).and_then(|(_, complete)| *complete);
            match (complete, state.over) {
                (_, Some(Over::GivenUp)) => return None,
                (Some(since), _) | (None, Some(Over::Complete(since))) => return Some(since),
                (None, None) => {}
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A gradient that arrived twice, if there is one: what was reduced may not have been all of it.
    pub fn again(&self) -> Option<usize> {
        self.state().again
    }

    fn end(&self, over: Over) {
        self.state().over.get_or_insert(over);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics, so that the state is a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn ranges(lengths: &[usize], end_bytes: usize, full_bytes: usize) -> Vec<Range<usize>> {
        Buckets::new(lengths, end_bytes, full_bytes).ranges().collect()
    }

    #[test]
    fn the_last_gradients_come_first_and_both_ends_are_small() {
        let lengths = [1, 1, 4, 4, 4, 4, 4, 1, 1];
        assert_eq!(ranges(&lengths, 8, 32), [22..24, 14..22, 6..14, 2..6, 0..2]);
        // One gradient is never cut, however large it is.
        assert_eq!(ranges(&[1, 1, 90, 1, 1], 8, 32), [92..94, 2..92, 0..2]);
        assert_eq!(ranges(&[1, 90], 8, 32), [1..91, 0..1]);
        assert_eq!(ranges(&[90], 8, 32), [Range { start: 0, end: 90 }]);
        assert_eq!(ranges(&[1, 1], 800, 3200), [Range { start: 0, end: 2 }], "both ends are one");
        assert_eq!(ranges(&[1, 1], 0, 0), [1..2, 0..1]);
        assert_eq!(ranges(&[], 8, 32), []);
    }

    #[test]
    fn a_cut_covers_the_buffer_once_from_its_end_to_its_beginning() {
        for seed in 0..200_usize {
            let lengths: Vec<usize> = (0..seed % 40).map(|n| (n * 7919 + seed * 104_729) % 500).collect();
            let cut = ranges(&lengths, 4 * (seed % 7) * 50, 4 * (seed % 11) * 100);
            let mut end = lengths.iter().sum::<usize>();
            for range in cut {
                assert_eq!(range.end, end, "{lengths:?}");
                end = range.start;
            }
            assert_eq!(end, 0, "{lengths:?}");
        }
    }

    #[test]
    fn a_bucket_is_complete_when_its_last_gradient_has_arrived() {
        // Gradients 3 and 4, then 1 and 2, then 0.
        let ready = Ready::new(Buckets::new(&[4, 2, 2, 2, 2], 16, 16));
        std::thread::scope(|scope| {
            let (said, heard) = mpsc::channel();
            let ready = &ready;
            scope.spawn(move || {
                for bucket in 0.. {
                    let Some(since) = ready.wait(bucket) else { break };
                    said.send((bucket, since)).unwrap();
                }
            });
            // Nothing can be heard of what is not complete, so that an order that is wrong would be seen.
            for gradient in [2, 3, 1] {
                ready.arrived(gradient);
                assert!(heard.try_recv().is_err());
            }
            ready.arrived(4);
            let (first, second) = (heard.recv().unwrap(), heard.recv().unwrap());
            assert_eq!((first.0, second.0), (0, 1));
            assert!(first.1 >= second.1, "the second bucket was complete before the first");
            ready.give_up();
        });
        assert!(ready.wait(2).is_none());
        assert_eq!(ready.again(), None);
    }

    #[test]
    fn a_gradient_that_never_comes_blocks_nothing_and_one_that_comes_twice_is_told() {
        let ready = Ready::new(Buckets::new(&[2, 2, 2], 8, 8));
        ready.arrived(1);
        ready.arrived(1);
        // What no bucket holds.
        ready.arrived(3);
        ready.complete();
        ready.give_up();
        for bucket in 0..=3 {
            assert!(ready.wait(bucket).is_some(), "{bucket}: what comes first counts");
        }
        assert_eq!(ready.again(), Some(1));
    }
}
