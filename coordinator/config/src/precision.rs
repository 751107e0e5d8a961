//! In which numbers a network computes, and ranks send each other gradients.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::Compute;

/// What convolutions and matrix products compute in. Weights, optimizer state, BatchNorm's statistics, the loss and the
/// sums over ranks are float32 in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
#[value(rename_all = "lowercase")]
pub enum Precision {
    /// float32
    #[default]
    Fp32,
    /// float32 with factors rounded to 11 bits on a GPU; fp32 on a CPU
    Tf32,
    /// bfloat16
    Bf16,
    /// float16
    Fp16,
}

impl Precision {
    /// As options and flags have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
        }
    }
}

/// What `compute.precision` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrecisionChoice {
    /// On a CPU fp32, on a GPU what `compute.opt_level` says.
    #[default]
    Auto,
    Fp32,
    Tf32,
    Bf16,
    Fp16,
}

impl From<Precision> for PrecisionChoice {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => Self::Fp32,
            Precision::Tf32 => Self::Tf32,
            Precision::Bf16 => Self::Bf16,
            Precision::Fp16 => Self::Fp16,
        }
    }
}

impl PrecisionChoice {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Fp32 => Precision::Fp32.name(),
            Self::Tf32 => Precision::Tf32.name(),
            Self::Bf16 => Precision::Bf16.name(),
            Self::Fp16 => Precision::Fp16.name(),
        }
    }
}

/// What gradients are sent in, as `compute.wire` says. Sums are added up in float32 either way, and all ranks get the
/// same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[value(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// float32
    #[default]
    Fp32,
    /// bfloat16: half the bytes, each sum off by up to 1/256 for every rank that adds to it
    Bf16,
}

impl Wire {
    /// As options have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
        }
    }
}

impl Compute {
    /// What a worker on a GPU, or on a CPU, trains in.
    ///
    /// apex's O0 is fp32. Its O1, O2 and O3 are all fp16 here: they differ in which weights and statistics are kept in
    /// float32, and here all are.
    pub fn precision_on(&self, gpu: bool) -> Precision {
        match self.precision {
            PrecisionChoice::Auto if gpu && self.opt_level != "O0" => Precision::Fp16,
            PrecisionChoice::Auto | PrecisionChoice::Fp32 => Precision::Fp32,
            // No CPU multiplies in TF32.
            PrecisionChoice::Tf32 if gpu => Precision::Tf32,
            PrecisionChoice::Tf32 => Precision::Fp32,
            PrecisionChoice::Bf16 => Precision::Bf16,
            PrecisionChoice::Fp16 => Precision::Fp16,
        }
    }

    /// A line for the log of a worker that trains in something else than its options may be taken to say: on a CPU,
    /// with an `opt_level` that somebody chose, or with tf32.
    pub fn precision_note(&self, gpu: bool) -> Option<String> {
        let asked = match self.precision {
            _ if gpu => return None,
            PrecisionChoice::Auto if matches!(self.opt_level.as_str(), "O2" | "O3") => {
                format!("compute.opt_level {} is for GPUs", self.opt_level)
            }
            PrecisionChoice::Tf32 => "compute.precision tf32 is for GPUs".to_owned(),
            _ => return None,
        };
        Some(format!("{asked}: this worker trains in fp32 on its CPU; compute.precision bf16 is for both"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_fp32_on_a_cpu_and_the_opt_level_on_a_gpu() {
        let compute = |opt_level: &str, precision| Compute {
            opt_level: opt_level.into(),
            precision,
            ..Compute::default()
        };
        for (opt_level, on_gpu) in [
            ("O0", Precision::Fp32),
            ("O1", Precision::Fp16),
            ("O2", Precision::Fp16),
            ("O3", Precision::Fp16),
        ] {
            let auto = compute(opt_level, PrecisionChoice::Auto);
            assert_eq!((auto.precision_on(false), auto.precision_on(true)), (Precision::Fp32, on_gpu));
            assert_eq!(auto.precision_note(false).is_some(), matches!(opt_level, "O2" | "O3"), "{opt_level}");
            assert_eq!(auto.precision_note(true), None);
            // What is named is what is done, whatever the level.
            let named = compute(opt_level, PrecisionChoice::Bf16);
            assert_eq!(
                (named.precision_on(false), named.precision_on(true)),
                (Precision::Bf16, Precision::Bf16)
            );
            assert_eq!(named.precision_note(false), None);
        }
        let tf32 = compute("O1", PrecisionChoice::Tf32);
        assert_eq!((tf32.precision_on(false), tf32.precision_on(true)), (Precision::Fp32, Precision::Tf32));
        assert!(tf32.precision_note(false).is_some_and(|note| note.contains("tf32 is for GPUs")));
    }
}
