//! Shows what the core observes: log lines, progress, metrics, the picture of the curves, the summary.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use relabel_config::Config;
use relabel_core::{EpochSummary, Observation, Outcome, Position, StepReport};

use crate::metrics::{EpochPoint, MetricsError, Recorder, StepPoint, TestPoint};
use crate::progress::{EpochDone, Progress, Screen, TrainStep};

/// What people and their tools see of a run.
pub struct Report {
    run_dir: PathBuf,
    config: Config,
    screen: Screen,
    progress: Progress,
    /// None before the first step, and after metrics could not be written: training goes on without.
    recorder: Option<Recorder>,
    steps_per_epoch: u64,
    window: Window,
    best: Option<(u32, f64)>,
    began: Instant,
}

/// Sums since the last point of the metrics.
#[derive(Default)]
struct Window {
    steps: u64,
    samples: u64,
    loss_sum: f64,
    duration: Duration,
    data_wait: Duration,
    skipped: u64,
}

impl Report {
    pub fn new(run_dir: PathBuf, config: Config, screen: Screen) -> Self {
        let progress = Progress::new(screen.clone(), config.optim.epochs, config.util.print_freq);
        Self {
            run_dir,
            config,
            screen,
            progress,
            recorder: None,
            steps_per_epoch: 0,
            window: Window::default(),
            best: None,
            began: Instant::now(),
        }
    }

    /// Shows one observation.
    pub fn observe(&mut self, observation: &Observation) {
        match observation {
            Observation::Note(words) => tracing::info!("{words}"),
            Observation::Warning(words) => tracing::warn!("{words}"),
            Observation::Planned { dataset, .. } if self.config.util.test_only => {
                tracing::info!("{} validation images in {} classes", dataset.val_samples, dataset.classes);
            }
            Observation::Planned { steps_per_epoch, dataset } => {
                self.steps_per_epoch = *steps_per_epoch;
                tracing::info!(
                    "{} training and {} validation images in {} classes; {steps_per_epoch} steps of {} images an epoch",
                    dataset.train_samples,
                    dataset.val_samples,
                    dataset.classes,
                    self.config.optim.batch_size
                );
            }
            Observation::Started { position } => self.started(*position),
            Observation::Step(step) => self.step(step),
            Observation::Validating { epoch, done, samples } => {
                self.progress.validating(*epoch, *done, *samples)
            }
            Observation::Epoch(summary) => self.epoch(summary),
            Observation::Tested { samples, val_loss, top1, top5 } => {
                self.tested(TestPoint {
                    images: *samples,
                    val_loss: *val_loss,
                    top1: 100.0 * top1,
                    top5: 100.0 * top5,
                });
            }
            Observation::Checkpoint(written) => {
                tracing::info!("checkpoint {} ({:.1} MB)", written.file, written.bytes as f64 / 1e6);
            }
        }
    }

    /// What was recorded at or after `position` will be done again.
    fn started(&mut self, position: Position) {
        self.window = Window::default();
        let opened = Recorder::open(&self.run_dir, Some((position.epoch, position.step)));
        self.recorder = self.kept(opened);
    }

    fn step(&mut self, step: &StepReport) {
        let window = &mut self.window;
        window.steps += 1;
        window.samples += step.samples;
        window.loss_sum += step.loss * step.samples as f64;
        window.duration += step.duration;
        window.data_wait += step.data_wait;
        window.skipped += step.skipped;
        let rate = window.samples as f64 / window.duration.as_secs_f64().max(1e-9);
        let done = step.position.step + 1;
        self.progress.train_step(&TrainStep {
            epoch: step.position.epoch,
            done,
            steps: self.steps_per_epoch,
            loss: step.loss,
            lr: step.learning_rate,
            images_per_second: rate,
            batch_size: self.config.optim.batch_size,
        });
        if !done.is_multiple_of(self.config.util.print_freq) && done != self.steps_per_epoch {
            return;
        }
        let window = std::mem::take(&mut self.window);
        let point = StepPoint {
            epoch: step.position.epoch,
            step: step.position.step,
            global_step: u64::from(step.position.epoch) * self.steps_per_epoch + step.position.step,
            loss: window.loss_sum / window.samples.max(1) as f64,
            lr: step.learning_rate,
            images_per_second: rate,
            data_wait: window.data_wait.as_secs_f64() / window.steps as f64,
            skipped: window.skipped,
            time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        };
        self.record(|recorder| recorder.step(point));
    }

    fn epoch(&mut self, summary: &EpochSummary) {
        let EpochSummary {
            epoch,
            train_loss,
            skipped,
            val_loss,
            top1,
            top5,
            best_top1,
            best_epoch,
            duration,
        } = *summary;
        let (top1, top5, best_top1) = (100.0 * top1, 100.0 * top5, 100.0 * best_top1);
        let seconds = duration.as_secs_f64();
        self.best = Some((best_epoch, best_top1));
        let best = (best_top1, best_epoch);
        self.progress.epoch_done(&EpochDone { epoch, train_loss, val_loss, top1, top5, best, seconds });
        if skipped > 0 {
            let logs = self.run_dir.join("logs");
            tracing::warn!(
                "{skipped} unreadable images were left out of epoch {}; the workers' logs name them ({}, with --local)",
                epoch + 1,
                logs.display()
            );
        }
        let point = EpochPoint { epoch, train_loss, skipped, val_loss, top1, top5, best_top1, seconds };
        self.record(|recorder| recorder.epoch(point));
    }

    fn tested(&mut self, point: TestPoint) {
        self.progress.finish();
        let TestPoint { images, val_loss, top1, top5 } = point;
        let weights = &self.config.util.test_weight_file;
        self.screen.line(&format!(
            "{weights}: val loss {val_loss:.3}  top-1 {top1:.2}%  top-5 {top5:.2}%  ({images} images)"
        ));
        let opened = Recorder::open(&self.run_dir, None);
        self.recorder = self.kept(opened);
        self.record(|recorder| recorder.test(point));
    }

    fn record(&mut self, write: impl FnOnce(&mut Recorder) -> Result<(), MetricsError>) {
        let written = match &mut self.recorder {
            Some(recorder) => write(recorder),
            None => return,
        };
        if self.kept(written).is_none() {
            self.recorder = None;
        }
    }

    /// Metrics are a record, not the truth: that they cannot be written is said, and training goes on.
    fn kept<T>(&self, result: Result<T, MetricsError>) -> Option<T> {
        result.map_err(|error| tracing::error!("metrics are no longer recorded: {error}")).ok()
    }

    /// Says how the run ended, and where everything is.
    pub fn end(&mut self, outcome: &Outcome) {
        self.progress.finish();
        let line = |words: String| self.screen.line(&words);
        match outcome {
            Outcome::Done if self.config.util.test_only => {
                line(format!("done: evaluated once, {:.0?}", self.began.elapsed()));
                if let Some(recorder) = &self.recorder {
                    line(format!("  metrics          {}", recorder.metrics_path().display()));
                }
            }
            Outcome::Interrupted { reason, .. } if self.config.util.test_only => {
                line(format!("stopped ({reason}) before the evaluation was complete"));
            }
            Outcome::Done => {
                let best = self.best.map_or_else(String::new, |(epoch, top1)| {
                    format!(", best top-1 {top1:.1}% at epoch {}", epoch + 1)
                });
                line(format!(
                    "done: {} epochs{best}, {:.0?}",
                    self.config.optim.epochs,
                    self.began.elapsed()
                ));
                let best = format!(
                    "checkpoints/{}-best.safetensors",
                    relabel_config::file_stem(&self.config.model.arch)
                );
                line(format!("  best checkpoint  {}", self.run_dir.join(best).display()));
                if let Some(recorder) = &self.recorder {
                    line(format!("  metrics          {}", recorder.metrics_path().display()));
                    line(format!("  curves           {}", recorder.curves_path().display()));
                }
            }
            Outcome::Interrupted { reason, saved: Some(position) } => {
                let run_dir = self.run_dir.display();
                line(format!("stopped ({reason}); go on from {position} with: --resume --run-dir {run_dir}"));
            }
            Outcome::Interrupted { reason, saved: None } => {
                line(format!("stopped ({reason}) before there was anything to save"));
            }
            Outcome::Failed { reason } => line(format!("error: {reason}")),
        }
    }
}
