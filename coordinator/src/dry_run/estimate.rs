//! What a run will take: steps, time, memory and disk, as far as it can be told without starting it.

use std::path::{Path, PathBuf};

use relabel_config::{Config, OptimizerKind, parameters};
use relabel_core::{Position, shards};
use serde::Serialize;

use super::images::Count;
use crate::runs::{self, RunSummary};

/// A picture of `util.log_images` and its copy in TensorBoard's file, about.
const PICTURE: u64 = 2 * 250_000;

/// What can be told. Sizes are bytes, times are seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Estimate {
    /// Training and validation images, and classes; none where the data is not to be seen from here or is in tar files.
    pub train_images: Option<u64>,
    pub val_images: Option<u64>,
    pub classes: Option<u64>,
    pub steps_per_epoch: Option<u64>,
    /// Images of the last step of an epoch, where that is not a whole batch.
    pub last_batch: Option<u64>,
    /// Steps that are to be done.
    pub steps: Option<u64>,
    pub parameters: Option<u64>,
    /// Weights, gradients and the optimizer's state of one worker; activations and batches come on top.
    pub worker_state_bytes: Option<u64>,
    /// Batches that one worker's loader holds.
    pub worker_batches_bytes: Option<u64>,
    pub checkpoint_bytes: Option<u64>,
    pub checkpoints_written: Option<u64>,
    /// Of checkpoints that are kept, the one being written, and pictures.
    pub disk_bytes: Option<u64>,
    /// Free where the run directory will be.
    pub disk_free_bytes: Option<u64>,
    /// By the speed of the run named.
    pub seconds: Option<f64>,
    pub images_per_second: Option<f64>,
    pub speed_of: Option<PathBuf>,
}

/// Estimates a run of `workers` with `config` in `run_dir`, from `from` on. `train` and `val` are what the data set
/// holds.
pub(super) fn estimate(
    config: &Config,
    workers: u32,
    run_dir: &Path,
    from: Position,
    (train, val): (Option<Count>, Option<Count>),
) -> Estimate {
    let batch = u64::from(config.optim.batch_size);
    let mut estimate = Estimate {
        train_images: train.map(|train| train.images),
        val_images: val.map(|val| val.images),
        classes: train.or(val).map(|count| count.classes),
        disk_free_bytes: free(run_dir),
        ..Estimate::default()
    };
    if let Some(train) = train.filter(|train| train.images > 0) {
        let steps = shards::steps_per_epoch(train.images, config.optim.batch_size);
        let all = u64::from(config.optim.epochs) * steps;
        let done = u64::from(from.epoch) * steps + from.step;
        estimate.steps_per_epoch = Some(steps);
        estimate.last_batch = Some(train.images % batch).filter(|rest| *rest > 0);
        estimate.steps = Some(all.saturating_sub(done));
        estimate.checkpoints_written = Some(checkpoints(config, steps, from));
    }
    let known = estimate.classes.map(|classes| u32::try_from(classes).unwrap_or(u32::MAX));
    let classes = config.model.num_classes.or(known).filter(|classes| *classes > 0);
    estimate.parameters = classes.and_then(|classes| parameters(&config.model.arch, classes));
    if let Some(parameters) = estimate.parameters {
        let bytes = 4 * parameters;
        let moments = match config.optim.optimizer {
            OptimizerKind::Sgd => u64::from(config.optim.momentum > 0.0),
            OptimizerKind::AdamP => 2,
        };
        let average = u64::from(config.optim.ema.decay > 0.0);
        // The weights, and the gradients in one flat buffer.
        estimate.worker_state_bytes = Some((2 + moments + average) * bytes);
        estimate.checkpoint_bytes = Some((1 + moments + average) * bytes);
    }
    estimate.worker_batches_bytes = classes.map(|classes| {
        // Three ahead, the one in use and the one in the making: float images and targets.
        let image = 4 * (3 * u64::from(config.data.image_size).pow(2) + u64::from(classes));
        5 * batch.div_ceil(u64::from(workers.max(1))) * image
    });
    let kept = estimate.checkpoint_bytes.map(|one| {
        let files = u64::from(config.checkpoint.keep) + 2;
        let written = estimate.checkpoints_written.map_or(files, |written| files.min(written + 1));
        let pictures = u64::from(config.util.log_images) * u64::from(config.optim.epochs) * PICTURE;
        written * one + pictures
    });
    estimate.disk_bytes = kept;
    if let Some((run, speed)) = speed(config, run_dir) {
        estimate.images_per_second = Some(speed);
        estimate.speed_of = Some(run.path.clone());
        estimate.seconds = estimate.steps.zip(estimate.steps_per_epoch).map(|(steps, per_epoch)| {
            let epochs = steps as f64 / per_epoch as f64;
            let images = epochs * train.map_or(0, |train| train.images) as f64;
            images / speed + epochs * besides(&run)
        });
    }
    estimate
}

/// Checkpoints that will be written, without those that are kept as the best.
fn checkpoints(config: &Config, steps_per_epoch: u64, from: Position) -> u64 {
    let options = &config.checkpoint;
    let (epochs, first) = (config.optim.epochs, from.epoch);
    let ends = (first..epochs).filter(|epoch| {
        let last = epoch + 1 == epochs;
        last || options.every_epochs > 0 && (epoch + 1).is_multiple_of(options.every_epochs)
    });
    let inside = match options.every_steps {
        0 => 0,
        every => (steps_per_epoch.saturating_sub(1) / every) * u64::from(epochs.saturating_sub(first)),
    };
    ends.count() as u64 + inside
}

/// The newest run beside `run_dir` that trained this network on images of this size, and its images a second.
fn speed(config: &Config, run_dir: &Path) -> Option<(RunSummary, f64)> {
    let parent = match run_dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return None,
    };
    let (runs, _) = runs::list(parent).ok()?;
    let alike = runs.into_iter().filter_map(|run| {
        let theirs = run.config.as_ref()?;
        let same = theirs.model.arch == config.model.arch && theirs.data.image_size == config.data.image_size;
        let speed = run.last_step.as_ref()?.images_per_second;
        (same && speed.is_finite() && speed > 0.0).then_some((run, speed))
    });
    alike.max_by(|a, b| a.0.updated.total_cmp(&b.0.updated))
}

/// Seconds that an epoch of `run` took besides its steps, by its last one.
fn besides(run: &RunSummary) -> f64 {
    let seconds = || {
        let (epoch, step) = (run.last_epoch.as_ref()?, run.last_step.as_ref()?);
        let images = run.steps_per_epoch? as f64 * f64::from(run.config.as_ref()?.optim.batch_size);
        Some((epoch.seconds - images / step.images_per_second).max(0.0))
    };
    seconds().unwrap_or(0.0)
}

/// Free bytes of the file system of `path`, or of what will hold it.
fn free(path: &Path) -> Option<u64> {
    let absolute = std::path::absolute(path).ok()?;
    let there = absolute.ancestors().find(|path| path.exists())?;
    let stat = nix::sys::statvfs::statvfs(there).ok()?;
    Some(stat.blocks_available() as u64 * stat.fragment_size() as u64)
}
