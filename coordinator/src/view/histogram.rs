//! Lengths of time, counted in buckets.

use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets in seconds, inclusive; what is longer than the last has a bucket of its own.
pub const BOUNDS: [f64; 28] = [
    0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7,
    1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 30.0, 60.0, 120.0,
];

/// How many values there were in each bucket.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Histogram {
    /// One a bound and one beyond the last; empty before the first value.
    pub counts: Vec<u64>,
    pub sum: f64,
    pub sum_of_squares: f64,
    pub min: f64,
    pub max: f64,
}

impl Histogram {
    /// Adds a value in seconds.
    pub fn add(&mut self, value: f64) {
        if self.counts.is_empty() {
            self.counts = vec![0; BOUNDS.len() + 1];
            (self.min, self.max) = (value, value);
        }
        let bucket = BOUNDS.partition_point(|bound| *bound < value);
        // A histogram that was read from another version may be shorter.
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.sum += value;
        self.sum_of_squares += value * value;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}
