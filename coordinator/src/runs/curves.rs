//! The curves of a run, read from its `metrics.jsonl`.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use serde::Serialize;

use crate::metrics::{EpochPoint, METRICS, Record, StepPoint};

/// The curves of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Curves {
    /// Means of neighbouring points where there are more than were asked for.
    pub steps: Vec<StepPoint>,
    pub epochs: Vec<EpochPoint>,
}

impl Curves {
    /// Reads the metrics in `run_dir`; there are none before the first point. Lines that are torn, or of another
    /// version, are left out. At most `points` points of steps are given.
    pub fn read(run_dir: &Path, points: usize) -> Self {
        let Ok(file) = File::open(run_dir.join(METRICS)) else { return Self::default() };
        let mut curves = Self::default();
        for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
            match serde_json::from_slice(&line) {
                Ok(Record::Step(point)) => curves.steps.push(point),
                Ok(Record::Epoch(point)) => curves.epochs.push(point),
                Ok(Record::Test(_)) | Err(_) => {}
            }
        }
        let group = curves.steps.len().div_ceil(points.max(1)).max(1);
        if group > 1 {
            curves.steps = curves.steps.chunks(group).map(mean).collect();
        }
        curves
    }
}

/// One point for a group of neighbours, which is not empty: means, at the place of the last.
fn mean(group: &[StepPoint]) -> StepPoint {
    let mean = |of: fn(&StepPoint) -> f64| group.iter().map(of).sum::<f64>() / group.len() as f64;
    StepPoint {
        loss: mean(|point| point.loss),
        lr: mean(|point| point.lr),
        images_per_second: mean(|point| point.images_per_second),
        data_wait: mean(|point| point.data_wait),
        skipped: group.iter().map(|point| point.skipped).sum(),
        ..group[group.len() - 1].clone()
    }
}

/// The last step and the last epoch that a run's metrics have, as far as its last lines tell.
pub fn newest(run_dir: &Path) -> (Option<StepPoint>, Option<EpochPoint>) {
    /// Some thousands of lines: a file may have millions.
    const WINDOW: u64 = 512 * 1024;
    let read = || {
        let mut file = File::open(run_dir.join(METRICS))?;
        let from = file.metadata()?.len().saturating_sub(WINDOW);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(WINDOW).read_to_end(&mut bytes)?;
        std::io::Result::Ok(bytes)
    };
    let (mut step, mut epoch) = (None, None);
    for line in read().unwrap_or_default().split(|byte| *byte == b'\n') {
        match serde_json::from_slice(line) {
            Ok(Record::Step(point)) => step = Some(point),
            Ok(Record::Epoch(point)) => epoch = Some(point),
            Ok(Record::Test(_)) | Err(_) => {}
        }
    }
    (step, epoch)
}
