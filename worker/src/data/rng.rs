//! Random numbers of the augmentation: one stream a sample, keyed by what the sample is and not by when
//! or where it is loaded, so that a crop does not depend on threads, ranks or restarts.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::order::below;

/// Keeps these streams apart from that of the sample order.
const TAG: &[u8; 16] = b"relabel augm. v1";

/// The random numbers of one sample in one epoch.
pub struct SampleRng(ChaCha8Rng);

impl SampleRng {
    /// ChaCha8 keyed by seed, epoch and sample in little-endian order and a tag, like the sample order.
    pub fn new(seed: u64, epoch: u32, sample: u32) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..12].copy_from_slice(&epoch.to_le_bytes());
        key[12..16].copy_from_slice(&sample.to_le_bytes());
        key[16..].copy_from_slice(TAG);
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in `[0, 1)`, with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in `[low, high)`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + self.unit() * (high - low)
    }

    /// Uniform in `0..bound`; `bound` is at least 1.
    pub fn below(&mut self, bound: u32) -> u32 {
        below(&mut self.0, bound)
    }

    /// A draw from the normal distribution of mean 0 and deviation 1, by Box and Muller.
    pub fn normal(&mut self) -> f64 {
        // 1 - unit lies in (0, 1], where the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_the_key_gives_another_stream() {
        let first = |seed, epoch, sample| SampleRng::new(seed, epoch, sample).0.next_u64();
        let draws = [first(1, 2, 3), first(2, 2, 3), first(1, 3, 3), first(1, 2, 4), first(3, 2, 1)];
        for (i, draw) in draws.iter().enumerate() {
            assert!(!draws[..i].contains(draw));
        }
        assert_eq!(draws[0], first(1, 2, 3));
    }

    #[test]
    fn draws_have_the_moments_of_their_distributions() {
        let mut rng = SampleRng::new(0, 0, 0);
        let draws = 100_000;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let uniform: Vec<f64> = (0..draws).map(|_| rng.uniform(2.0, 6.0)).collect();
        assert!((mean(&uniform) - 4.0).abs() < 0.02);
        assert!(uniform.iter().all(|value| (2.0..6.0).contains(value)));
        let normal: Vec<f64> = (0..draws).map(|_| rng.normal()).collect();
        let squares: Vec<f64> = normal.iter().map(|value| value * value).collect();
        let fourths: Vec<f64> = squares.iter().map(|square| square * square).collect();
        assert!(mean(&normal).abs() < 0.015);
        assert!((mean(&squares) - 1.0).abs() < 0.03);
        assert!((mean(&fourths) - 3.0).abs() < 0.2);
    }
}
