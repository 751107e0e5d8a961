//! ImageNet-C (Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
//! Perturbations"): the error for each corruption over its severities, divided by AlexNet's, and the mean.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// AlexNet's mean errors over the five severities, as the authors' program has them
/// (github.com/hendrycks/robustness).
const ALEXNET: [(&str, f64); 15] = [
    ("gaussian_noise", 0.886428),
    ("shot_noise", 0.894468),
    ("impulse_noise", 0.922640),
    ("defocus_blur", 0.819880),
    ("glass_blur", 0.826268),
    ("motion_blur", 0.785948),
    ("zoom_blur", 0.798360),
    ("snow", 0.866816),
    ("frost", 0.826572),
    ("fog", 0.819324),
    ("brightness", 0.564592),
    ("contrast", 0.853204),
    ("elastic_transform", 0.646056),
    ("pixelate", 0.717840),
    ("jpeg_compression", 0.606500),
];

/// Severities of a corruption that the published baseline is the mean of.
const SEVERITIES: usize = 5;

/// Why baseline errors cannot be used. One line.
#[derive(Debug, thiserror::Error)]
#[error("{}: not baseline errors, a JSON object of a mean error in (0, 1], or a list of errors by severity, for \
         each corruption ({reason})", path.display())]
pub struct BaselineError {
    path: PathBuf,
    reason: String,
}

/// Mean errors of another network, in (0, 1], by corruption.
#[derive(Debug, Clone, PartialEq)]
pub struct Baseline {
    /// Where the numbers are from, for people.
    pub origin: String,
    errors: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Errors {
    Mean(f64),
    BySeverity(Vec<f64>),
}

impl Baseline {
    /// AlexNet, as published.
    pub fn alexnet() -> Self {
        let errors = ALEXNET.iter().map(|&(name, error)| (name.to_owned(), error)).collect();
        Self { origin: "AlexNet's errors".to_owned(), errors }
    }

    /// The errors in the file `path` with the content `text`: `{"gaussian_noise": 0.886, ...}` or
    /// `{"gaussian_noise": [0.7, 0.8, ...], ...}`.
    ///
    /// # Errors
    /// Something else in it, or errors out of their range.
    pub fn parse(path: &Path, text: &str) -> Result<Self, BaselineError> {
        let errors = Self::errors(text);
        let errors = errors.map_err(|reason| BaselineError { path: path.to_path_buf(), reason })?;
        Ok(Self { origin: format!("the errors in {}", path.display()), errors })
    }

    fn errors(text: &str) -> Result<BTreeMap<String, f64>, String> {
        let given: BTreeMap<String, Errors> =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mean = |(name, errors): (String, Errors)| {
            let mean = match errors {
                Errors::Mean(mean) => mean,
                Errors::BySeverity(errors) => errors.iter().sum::<f64>() / errors.len() as f64,
            };
            match mean > 0.0 && mean <= 1.0 {
                true => Ok((name, mean)),
                false => Err(format!("{name} has {mean}")),
            }
        };
        given.into_iter().map(mean).collect()
    }
}

/// The errors of a network for one corruption.
#[derive(Debug, Clone, PartialEq)]
pub struct CorruptionErrors {
    pub name: String,
    /// Severity and share of wrong first answers, in [0, 1].
    pub errors: Vec<(u32, f64)>,
}

impl CorruptionErrors {
    /// Mean over the severities.
    pub fn mean(&self) -> f64 {
        self.errors.iter().map(|(_, error)| error).sum::<f64>() / self.errors.len() as f64
    }

    /// The corruption error: the mean over that of the baseline. None where the baseline has none, or
    /// where severities are missing, as the mean is then another.
    pub fn normalized(&self, baseline: &Baseline) -> Option<f64> {
        let error = baseline.errors.get(&self.name)?;
        (self.errors.len() == SEVERITIES).then(|| self.mean() / error)
    }
}

/// The mean over corruptions, and how it was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct MeanError {
    /// Mean of the errors as they are, in [0, 1].
    pub mean: f64,
    /// The mean corruption error, over the corruptions that the baseline has: 1 is as bad as the
    /// baseline. None if one that the baseline has is missing.
    pub normalized: Option<f64>,
    /// Corruptions of the baseline that were not evaluated at every severity.
    pub missing: Vec<String>,
}

/// Means over corruptions. Those that the baseline does not have, as ImageNet-C's extra ones, take part in the
/// unnormalized mean only.
pub fn mean_error(corruptions: &[CorruptionErrors], baseline: &Baseline) -> MeanError {
    let mean = corruptions.iter().map(CorruptionErrors::mean).sum::<f64>() / corruptions.len() as f64;
    let normalized: BTreeMap<&str, f64> =
        corruptions.iter().filter_map(|c| Some((c.name.as_str(), c.normalized(baseline)?))).collect();
    let missing: Vec<String> =
        baseline.errors.keys().filter(|name| !normalized.contains_key(name.as_str())).cloned().collect();
    let sum = normalized.values().sum::<f64>();
    MeanError { mean, normalized: missing.is_empty().then(|| sum / normalized.len() as f64), missing }
}
