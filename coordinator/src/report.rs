//! Shows what the core observes: log lines, progress, metrics, the picture of the curves, the summary.

use std::path::PathBuf;
use std::time::Instant;

use relabel_config::Config;
use relabel_core::{Observation, Outcome};

use crate::metrics::tensorboard::EventWriter;
use crate::metrics::{EpochPoint, MetricsError, Recorder, TestPoint};
use crate::progress::{EpochDone, Progress, Screen};
use crate::view::{Board, News};

/// What people and their tools see of a run.
pub struct Report {
    run_dir: PathBuf,
    config: Config,
    screen: Screen,
    board: Board,
    progress: Progress,
    /// None before the first step, and after metrics could not be written: training goes on without.
    recorder: Option<Recorder>,
    /// Likewise, and none where it is not wanted.
    tensorboard: Option<EventWriter>,
    best: Option<(u32, f64)>,
    began: Instant,
}

impl Report {
    pub fn new(run_dir: PathBuf, config: Config, screen: Screen) -> Self {
        let progress = Progress::new(screen.clone(), config.optim.epochs, config.util.print_freq);
        let board = Board::new(run_dir.clone(), config.clone(), screen.tail().clone());
        Self {
            run_dir,
            config,
            screen,
            board,
            progress,
            recorder: None,
            tensorboard: None,
            best: None,
            began: Instant::now(),
        }
    }

    /// Where readers find what was observed.
    pub fn board(&self) -> &Board {
        &self.board
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
                tracing::info!(
                    "{} training and {} validation images in {} classes; {steps_per_epoch} steps of {} images an epoch",
                    dataset.train_samples,
                    dataset.val_samples,
                    dataset.classes,
                    self.config.optim.batch_size
                );
            }
            Observation::Validating { epoch, done, samples } => {
                self.progress.validating(*epoch, *done, *samples)
            }
            Observation::Checkpoint(written) => {
                tracing::info!("checkpoint {} ({:.1} MB)", written.file, written.bytes as f64 / 1e6);
            }
            Observation::Started { .. }
            | Observation::Step(_)
            | Observation::Epoch(_)
            | Observation::Tested { .. } => {}
        }
        if let Some(news) = self.board.observe(observation) {
            self.tell(&news);
        }
    }

    /// Records and shows news.
    fn tell(&mut self, news: &News) {
        match news {
            News::Started { at, global_step } => self.open(Some((at.epoch, at.step)), *global_step),
            News::Test(_) => self.open(None, 0),
            _ => {}
        }
        if let Some(record) = news.record() {
            self.record(|recorder| recorder.record(record));
        }
        if let Some(writer) = &mut self.tensorboard
            && let Err(error) = writer.record(news)
        {
            tracing::error!("nothing more is written for TensorBoard: {error}");
            self.tensorboard = None;
        }
        match news {
            News::Step { done, .. } => self.progress.train_step(done),
            News::Epoch { point, best_epoch, .. } => self.epoch(point, *best_epoch),
            News::Test(point) => self.tested(point),
            News::Started { .. } | News::Decided(_) | News::Saved(_) | News::Ended(_) => {}
        }
    }

    /// Opens the metrics; what was recorded at or after `keep_before`, which is step `global_step` of the run, will be
    /// done again.
    fn open(&mut self, keep_before: Option<(u32, u64)>, global_step: u64) {
        let opened = Recorder::open(&self.run_dir, keep_before);
        self.recorder = self.kept(opened);
        if self.config.util.tensorboard {
            let options = serde_yaml_ng::to_string(&self.config).unwrap_or_default();
            let opened = EventWriter::create(&self.run_dir, global_step, &options);
            self.tensorboard =
                opened.map_err(|error| tracing::error!("nothing is written for TensorBoard: {error}")).ok();
        }
    }

    fn epoch(&mut self, point: &EpochPoint, best_epoch: u32) {
        let EpochPoint { epoch, train_loss, skipped, val_loss, top1, top5, best_top1, seconds } = *point;
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
    }

    fn tested(&mut self, point: &TestPoint) {
        self.progress.finish();
        let TestPoint { images, val_loss, top1, top5 } = point;
        let weights = &self.config.util.test_weight_file;
        self.screen.line(&format!(
            "{weights}: val loss {val_loss:.3}  top-1 {top1:.2}%  top-5 {top5:.2}%  ({images} images)"
        ));
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
                let (upload, here) = (&self.config.checkpoint.upload, self.run_dir.join(&best));
                // One that another machine has trained is on the object store alone.
                let best = match upload.is_empty() || here.exists() {
                    true => here.display().to_string(),
                    false => format!("{}/{best}", upload.trim_end_matches('/')),
                };
                line(format!("  best checkpoint  {best}"));
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
        self.board.end(outcome);
    }

    /// This coordinator ends, and the run does not.
    pub fn hand_over(&mut self) {
        self.progress.finish();
        let run_dir = self.run_dir.display();
        self.screen.line(&format!("made way for the coordinator that is started next in {run_dir}"));
    }
}
