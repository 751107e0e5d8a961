//! Which sample is trained on when: a pure function of seed and epoch. By whom is `relabel_core::shards`.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Keep the streams of the sample orders apart from each other and from those of `rng`, which have their own tag.
const TAG: &[u8; 16] = b"relabel order v1";
const SHARDS_TAG: &[u8; 16] = b"relabel shards 1";

/// The order in which epoch `epoch` visits the samples `0..samples`: a permutation, and a function of
/// its arguments alone.
///
/// It is the same on every platform and must stay so in every release, because a resumed run continues
/// inside of an epoch. So nothing here is left to a library's choice: the ChaCha stream cipher with 8
/// rounds, its 32-byte key made of `seed` and `epoch` in little-endian order, four zero bytes and
/// a fixed tag, gives 32-bit words; Fisher-Yates from the last position down exchanges position `i` with one
/// drawn uniformly from `0..=i`.
pub fn epoch_order(seed: u64, epoch: u32, samples: usize) -> Vec<u32> {
    debug_assert!(u32::try_from(samples).is_ok(), "the index numbers samples by u32");
    let mut order: Vec<u32> = (0..samples as u32).collect();
    shuffle(&mut stream(seed, epoch, TAG), &mut order);
    order
}

/// The order in which epoch `epoch` visits the samples of `shards`, each given in the order in which they lie there, so
/// that shards are read one after the other: the shards are shuffled, and of all their samples in a row the first
/// `buffer` (at least 1) are shuffled, then the next, and so on.
///
/// As [`epoch_order`] it is a permutation, a function of its arguments alone, and must stay so; its stream has a tag of
/// its own and shuffles the shards first.
pub fn shard_order(seed: u64, epoch: u32, mut shards: Vec<Vec<u32>>, buffer: usize) -> Vec<u32> {
    let mut rng = stream(seed, epoch, SHARDS_TAG);
    shuffle(&mut rng, &mut shards);
    let mut order = shards.concat();
    order.chunks_mut(buffer).for_each(|part| shuffle(&mut rng, part));
    order
}

fn stream(seed: u64, epoch: u32, tag: &[u8; 16]) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..12].copy_from_slice(&epoch.to_le_bytes());
    key[16..].copy_from_slice(tag);
    ChaCha8Rng::from_seed(key)
}

/// Fisher-Yates from the last position down. There are fewer than 2^32 `items`.
fn shuffle<T>(rng: &mut ChaCha8Rng, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        let j = below(rng, i as u32 + 1);
        items.swap(i, j as usize);
    }
}

/// A uniform draw from `0..bound`, `bound` at least 1, by Lemire's multiplication ("Fast Random Integer
/// Generation in an Interval", 2019): the high word of word * bound, with the few words drawn again
/// that would make some values likelier.
pub(super) fn below(rng: &mut ChaCha8Rng, bound: u32) -> u32 {
    let uneven = bound.wrapping_neg() % bound;
    loop {
        let product = u64::from(rng.next_u32()) * u64::from(bound);
        if product as u32 >= uneven {
            return (product >> 32) as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_a_permutation_that_depends_on_seed_and_epoch() {
        for samples in [0, 1, 2, 3, 1000] {
            let mut order = epoch_order(7, 3, samples);
            order.sort_unstable();
            assert_eq!(order, (0..samples as u32).collect::<Vec<_>>());
        }
        assert_eq!(epoch_order(7, 3, 1000), epoch_order(7, 3, 1000));
        assert_ne!(epoch_order(7, 3, 1000), epoch_order(7, 4, 1000));
        assert_ne!(epoch_order(7, 3, 1000), epoch_order(8, 3, 1000));
    }

    /// The number that must never change: a run resumed by a later release continues within an epoch.
    /// Computed apart from this code by a Python implementation of ChaCha8 and the loop described above.
    #[test]
    fn the_order_is_the_one_that_running_epochs_were_started_with() {
        assert_eq!(epoch_order(42, 1, 12), [4, 10, 6, 9, 7, 1, 2, 8, 11, 0, 5, 3]);
        assert_eq!(epoch_order(42, 1, 100)[..8], [82, 55, 74, 75, 54, 60, 83, 67]);
    }

    /// Five shards of 0 to 9 samples, whose ids are not in the order in which they lie.
    fn shards() -> Vec<Vec<u32>> {
        vec![vec![3, 1, 0, 2], vec![], (10..19).rev().collect(), vec![9, 4], (5..9).collect()]
    }

    #[test]
    fn shards_are_visited_one_after_the_other_and_each_sample_once() {
        let mut firsts = std::collections::BTreeSet::new();
        for (epoch, buffer) in (0..200).zip([1, 2, 3, 7, 19, 1000].into_iter().cycle()) {
            let order = shard_order(7, epoch, shards(), buffer);
            assert_eq!(order, shard_order(7, epoch, shards(), buffer));
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..19).collect::<Vec<_>>());
            // With a buffer of one image the shards are as they lie, and with more an image stays within its buffer.
            let rows = shard_order(7, epoch, shards(), 1);
            for (part, row) in order.chunks(buffer).zip(rows.chunks(buffer)) {
                let [mut part, mut row] = [part, row].map(<[u32]>::to_vec);
                part.sort_unstable();
                row.sort_unstable();
                assert_eq!(part, row);
            }
            let mut rest = &rows[..];
            while let Some(first) = rest.first() {
                let shard = shards().into_iter().find(|shard| shard.first() == Some(first)).unwrap();
                rest = rest.strip_prefix(&shard[..]).unwrap();
            }
            firsts.insert(rows[0]);
        }
        assert_eq!(firsts.into_iter().collect::<Vec<_>>(), [3, 5, 9, 18]);
        assert_ne!(shard_order(7, 3, shards(), 19), shard_order(8, 3, shards(), 19));
        assert_ne!(shard_order(7, 3, vec![(0..19).collect()], 19), epoch_order(7, 3, 19));
    }

    #[test]
    fn every_value_is_as_likely_at_every_position() {
        let mut seen = [[0_u32; 5]; 5];
        for epoch in 0..10_000 {
            for (position, sample) in epoch_order(1, epoch, 5).into_iter().enumerate() {
                seen[position][sample as usize] += 1;
            }
        }
        // 2000 expected, standard deviation 40.
        assert!(seen.iter().flatten().all(|&count| (1800..2200).contains(&count)), "{seen:?}");
    }
}
