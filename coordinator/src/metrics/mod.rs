//! How training went, for people and their tools: `metrics.jsonl`, one JSON object a line, and `curves.svg`, the
//! same as a picture. They are a record, not the truth: the run never depends on them, and on resume the
//! lines that the run is about to write again are taken out.

mod curves;
pub mod prometheus;
pub mod tensorboard;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

pub(crate) const METRICS: &str = "metrics.jsonl";
const CURVES: &str = "curves.svg";

/// Training at one step, averaged since the point before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepPoint {
    /// From 0.
    pub epoch: u32,
    /// Step of the epoch, from 0.
    pub step: u64,
    /// Step of the run, from 0.
    pub global_step: u64,
    /// Mean loss an image, nats.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    #[serde(deserialize_with = "number")]
    pub lr: f64,
    /// All workers together.
    #[serde(deserialize_with = "number")]
    pub images_per_second: f64,
    /// Seconds a step that rank 0 waited for images.
    #[serde(deserialize_with = "number")]
    pub data_wait: f64,
    /// Images left out as unreadable (`data.on_error: skip`).
    #[serde(default)]
    pub skipped: u64,
    /// In fp16, what the loss of the next step is scaled by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// Unix time, seconds.
    #[serde(deserialize_with = "number")]
    pub time: f64,
}

/// An epoch and the validation after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochPoint {
    /// From 0.
    pub epoch: u32,
    /// Mean loss an image over the epoch, nats.
    #[serde(deserialize_with = "number")]
    pub train_loss: f64,
    /// Images left out as unreadable (`data.on_error: skip`).
    #[serde(default)]
    pub skipped: u64,
    /// Mean cross entropy of the validation images with their class, nats.
    #[serde(deserialize_with = "number")]
    pub val_loss: f64,
    /// Percent of the validation images whose class is scored first, 0 to 100.
    #[serde(deserialize_with = "number")]
    pub top1: f64,
    /// Percent of the validation images whose class is among the first five, 0 to 100.
    #[serde(deserialize_with = "number")]
    pub top5: f64,
    /// The best top1 so far, this epoch's among them.
    #[serde(deserialize_with = "number")]
    pub best_top1: f64,
    /// Training and validation, seconds.
    #[serde(deserialize_with = "number")]
    pub seconds: f64,
}

/// An evaluation without training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TestPoint {
    /// That were evaluated, each once.
    pub images: u64,
    /// Mean cross entropy of the images with their class, nats.
    #[serde(deserialize_with = "number")]
    pub val_loss: f64,
    /// Percent of the images whose class is scored first, 0 to 100.
    #[serde(deserialize_with = "number")]
    pub top1: f64,
    /// Percent of the images whose class is among the first five, 0 to 100.
    #[serde(deserialize_with = "number")]
    pub top5: f64,
}

/// JSON has no NaN and no infinity: they are written as null, and read back as NaN.
pub(crate) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Record {
    Step(StepPoint),
    Epoch(EpochPoint),
    Test(TestPoint),
}

impl Record {
    /// Whether a run that goes on with step `step` of `epoch` will not come by here again.
    fn is_before(&self, (epoch, step): (u32, u64)) -> bool {
        match self {
            Record::Step(point) => (point.epoch, point.step) < (epoch, step),
            Record::Epoch(point) => point.epoch < epoch,
            Record::Test(_) => true,
        }
    }
}

/// Why metrics cannot be kept. One line; training need not end for it.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("cannot {operation} {}: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot draw {}: {message}", path.display())]
    Draw { path: PathBuf, message: String },
}

/// Keeps the metrics of one run directory.
#[derive(Debug)]
pub struct Recorder {
    dir: PathBuf,
    file: File,
    steps: Vec<StepPoint>,
    epochs: Vec<EpochPoint>,
}

impl Recorder {
    /// Opens the metrics in `run_dir`, which has to exist. `keep_before` is the epoch and step that a resumed run
    /// does next, both from 0: what is recorded at or after it is removed, because it will be recorded again.
    /// None keeps everything that is there.
    ///
    /// # Errors
    /// The disk refused.
    pub fn open(run_dir: &Path, keep_before: Option<(u32, u64)>) -> Result<Self, MetricsError> {
        let path = run_dir.join(METRICS);
        let text = match std::fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(failed("read", &path)(source)),
        };
        let (mut steps, mut epochs) = (Vec::new(), Vec::new());
        let mut kept = String::with_capacity(text.len());
        for (index, line) in text.lines().enumerate() {
            match serde_json::from_str::<Record>(line) {
                Ok(record) if keep_before.is_some_and(|position| !record.is_before(position)) => continue,
                Ok(Record::Step(point)) => steps.push(point),
                Ok(Record::Epoch(point)) => epochs.push(point),
                Ok(Record::Test(_)) => {}
                // A crash tears the last line; any other was not written here.
                Err(error) => {
                    tracing::warn!("{} line {}: leaving it out: {error}", path.display(), index + 1);
                    continue;
                }
            }
            kept.push_str(line);
            kept.push('\n');
        }
        if kept != text {
            replace(&path, &kept)?;
        }
        let file = OpenOptions::new().append(true).create(true).open(&path).map_err(failed("open", &path))?;
        let recorder = Self { dir: run_dir.to_owned(), file, steps, epochs };
        if kept != text {
            recorder.draw()?;
        }
        Ok(recorder)
    }

    /// Writes a line; after an epoch the curves are drawn anew.
    ///
    /// # Errors
    /// The disk refused, or the curves cannot be drawn.
    pub fn record(&mut self, record: Record) -> Result<(), MetricsError> {
        self.write(&record)?;
        match record {
            Record::Step(point) => self.steps.push(point),
            Record::Epoch(point) => {
                self.epochs.push(point);
                self.draw()?;
            }
            Record::Test(_) => {}
        }
        Ok(())
    }

    /// Where the lines are.
    pub fn metrics_path(&self) -> PathBuf {
        self.dir.join(METRICS)
    }

    /// Where the picture is, after the first epoch.
    pub fn curves_path(&self) -> PathBuf {
        self.dir.join(CURVES)
    }

    /// Writes one line with one call, so that a reader that follows the file sees whole lines.
    fn write(&mut self, record: &Record) -> Result<(), MetricsError> {
        let written = serde_json::to_string(record)
            .map_err(io::Error::from)
            .and_then(|json| self.file.write_all(format!("{json}\n").as_bytes()));
        written.map_err(failed("append to", &self.metrics_path()))
    }

    fn draw(&self) -> Result<(), MetricsError> {
        let path = self.curves_path();
        let svg = curves::draw(&self.steps, &self.epochs)
            .map_err(|message| MetricsError::Draw { path: path.clone(), message })?;
        replace(&path, &svg)
    }
}

/// Replaces a file as a whole: a reader, and a crash, find the old text or the new.
fn replace(path: &Path, text: &str) -> Result<(), MetricsError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    File::create(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .map_err(failed("write", &new))?;
    std::fs::rename(&new, path).map_err(failed("replace", path))
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MetricsError {
    let path = path.to_owned();
    move |source| MetricsError::Io { operation, path, source }
}
