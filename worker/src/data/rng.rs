//! Random numbers of the augmentation: one stream a sample and one a batch, keyed by what they are and not
//! by when or where they are loaded, so that a crop does not depend on threads, ranks or restarts.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::order::below;

/// Keep these streams apart from that of the sample order, and from each other.
const SAMPLE_TAG: &[u8; 16] = b"relabel augm. v1";
const BATCH_TAG: &[u8; 16] = b"relabel batch v1";

/// The random numbers of one sample, or of one global batch, in one epoch.
pub struct KeyedRng(ChaCha8Rng);

impl KeyedRng {
    /// Those of a sample.
    pub fn of_sample(seed: u64, epoch: u32, sample: u32) -> Self {
        Self::keyed(seed, epoch, sample, SAMPLE_TAG)
    }

    /// Those of the global batch of a step. An epoch has no more steps than samples, which u32 numbers.
    pub fn of_batch(seed: u64, epoch: u32, step: u64) -> Self {
        Self::keyed(seed, epoch, step as u32, BATCH_TAG)
    }

    /// ChaCha8 keyed by three numbers in little-endian order and a tag, like the sample order.
    fn keyed(seed: u64, epoch: u32, number: u32, tag: &[u8; 16]) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..12].copy_from_slice(&epoch.to_le_bytes());
        key[12..16].copy_from_slice(&number.to_le_bytes());
        key[16..].copy_from_slice(tag);
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

    /// A draw from the Beta distribution with both parameters `shape`, which is above 0: the share of one of
    /// two gamma variables in their sum.
    pub fn beta(&mut self, shape: f64) -> f64 {
        let (first, second) = (self.ln_gamma(shape), self.ln_gamma(shape));
        1.0 / (1.0 + (second - first).exp())
    }

    /// The logarithm of a draw from the gamma distribution of parameter `shape`, by Marsaglia and Tsang ("A Simple
    /// Method for Generating Gamma Variables", 2000). For small shapes the draw itself would underflow.
    fn ln_gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = (1.0 - self.unit()).ln() / shape;
            return self.ln_gamma(shape + 1.0) + boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            let ln_u = (1.0 - self.unit()).ln();
            if v > 0.0 && ln_u < 0.5 * x * x + d * (1.0 - v + v.ln()) {
                return (d * v).ln();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_the_key_gives_another_stream() {
        let first = |seed, epoch, sample| KeyedRng::of_sample(seed, epoch, sample).0.next_u64();
        let batch = KeyedRng::of_batch(1, 2, 3).0.next_u64();
        let draws = [first(1, 2, 3), first(2, 2, 3), first(1, 3, 3), first(1, 2, 4), first(3, 2, 1), batch];
        for (i, draw) in draws.iter().enumerate() {
            assert!(!draws[..i].contains(draw));
        }
        assert_eq!(draws[0], first(1, 2, 3));
    }

    #[test]
    fn draws_have_the_moments_of_their_distributions() {
        let mut rng = KeyedRng::of_sample(0, 0, 0);
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

    #[test]
    fn beta_draws_have_the_moments_of_their_distribution() {
        let mut rng = KeyedRng::of_batch(0, 0, 0);
        for shape in [0.01, 0.2, 1.0, 3.0, 200.0] {
            let draws: Vec<f64> = (0..100_000).map(|_| rng.beta(shape)).collect();
            let mean =
                |of: &dyn Fn(f64) -> f64| draws.iter().map(|&x| of(x)).sum::<f64>() / draws.len() as f64;
            assert!(draws.iter().all(|x| (0.0..=1.0).contains(x)));
            assert!((mean(&|x| x) - 0.5).abs() < 0.01, "{shape}");
            let variance = 1.0 / (4.0 * (2.0 * shape + 1.0));
            assert!((mean(&|x| (x - 0.5).powi(2)) / variance - 1.0).abs() < 0.03, "{shape}");
            // Kurtosis of a symmetric Beta: 3 - 6 / (2 * shape + 3).
            let kurtosis = mean(&|x| (x - 0.5).powi(4)) / variance.powi(2);
            assert!((kurtosis / (3.0 - 6.0 / (2.0 * shape + 3.0)) - 1.0).abs() < 0.05, "{shape}: {kurtosis}");
        }
    }
}
