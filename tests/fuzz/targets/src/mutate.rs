//! Mutations of an input as libFuzzer does them, without its sense for what is new: for tests with no special
//! flags. The same seed gives the same mutations.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Numbers at which something ends or turns over.
const EDGES: [u64; 14] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    u64::MAX / 2,
    u64::MAX,
];

/// One of `corpus`, which is not empty, with one to eight changes.
pub fn mutated(corpus: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut bytes = corpus[rng.random_range(0..corpus.len())].clone();
    for _ in 0..1 << rng.random_range(0..4) {
        let at = rng.random_range(0..=bytes.len());
        let length = rng.random_range(0..=(bytes.len() - at).min(64));
        match rng.random_range(0..8) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            2 if at < bytes.len() => bytes[at] = rng.random(),
            3 => drop(bytes.drain(at..at + length)),
            4 => {
                let again = bytes[at..at + length].to_vec();
                bytes.splice(at..at, again);
            }
            5 => {
                let edge = EDGES[rng.random_range(0..EDGES.len())];
                let mut edge = edge.to_le_bytes();
                let width = [1, 2, 4, 8][rng.random_range(0..4)];
                if rng.random() {
                    edge[..width].reverse();
                }
                let end = bytes.len().min(at + width);
                bytes[at..end].copy_from_slice(&edge[..end - at]);
            }
            6 => {
                // The rest of another input.
                let other = &corpus[rng.random_range(0..corpus.len())];
                let from = rng.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}
