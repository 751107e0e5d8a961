//! Who consumes what. One global batch after the other, cut into one contiguous shard a rank.
//!
//! Epoch e has one order of the samples, a function of the seed and e. Its global step s consumes
//! positions `s*G .. min((s+1)*G, N)` of that order, with G the global batch and N the number of
//! samples: nothing padded, nothing dropped. A rank's shard is a range of `0..G`, the same in every
//! step of a generation; of the short last batch it takes what its shard finds there, perhaps nothing.

use std::ops::Range;

/// Steps of an epoch: the last one may be short.
pub fn steps_per_epoch(samples: u64, global_batch: u32) -> u64 {
    samples.div_ceil(u64::from(global_batch))
}

/// Deals `0..total` to `world` ranks in contiguous ranges whose lengths differ by at most one.
pub fn deal(total: u64, world: u32, rank: u32) -> Range<u64> {
    let cut = |r: u32| (u128::from(total) * u128::from(r) / u128::from(world)) as u64;
    cut(rank)..cut(rank + 1)
}

/// Positions in the epoch's order that `shard` of the global batch stands for in `step`.
pub fn positions(step: u64, global_batch: u32, samples: u64, shard: &Range<u32>) -> Range<u64> {
    // A step beyond the epoch has nothing to consume, however far beyond.
    let first = step.saturating_mul(u64::from(global_batch));
    let clip = |p: u32| first.saturating_add(u64::from(p)).min(samples);
    clip(shard.start)..clip(shard.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_is_consumed_once_in_order() {
        for (samples, batch, world) in [(1000, 64, 3), (64, 64, 2), (65, 64, 7), (5, 64, 2), (1281, 256, 5)] {
            let mut seen = Vec::new();
            for step in 0..steps_per_epoch(samples, batch) {
                for rank in 0..world {
                    let shard = deal(u64::from(batch), world, rank);
                    let shard = shard.start as u32..shard.end as u32;
                    seen.extend(positions(step, batch, samples, &shard));
                }
            }
            assert_eq!(
                seen,
                (0..samples).collect::<Vec<_>>(),
                "{samples} samples, batch {batch}, world {world}"
            );
        }
    }

    #[test]
    fn a_shard_beyond_the_short_last_batch_is_empty() {
        assert_eq!(positions(2, 4, 10, &(0..2)), 8..10);
        assert!(positions(2, 4, 10, &(2..4)).is_empty());
        assert_eq!(positions(2, 4, 11, &(2..4)), 10..11);
        assert!(positions(u64::MAX, 4, 11, &(0..4)).is_empty());
        assert_eq!([10, 8, 0].map(|samples| steps_per_epoch(samples, 4)), [3, 2, 0]);
    }

    #[test]
    fn shards_differ_by_at_most_one() {
        for world in 1..9 {
            let lengths: Vec<_> = (0..world).map(|r| deal(100, world, r)).map(|s| s.end - s.start).collect();
            assert!(lengths.iter().max().unwrap() - lengths.iter().min().unwrap() <= 1, "{lengths:?}");
            assert_eq!(lengths.iter().sum::<u64>(), 100);
        }
    }
}
