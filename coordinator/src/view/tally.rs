//! What the core's observations add up to: the points of `metrics.jsonl`, the present speed and the time left, what
//! was decided and what was saved.

use std::collections::VecDeque;
use std::time::Duration;

use relabel_config::Config;
use relabel_core::{Dataset, EpochSummary, Observation, Position, StepReport, Written};

use super::{DecisionView, EpochView, Histogram, Totals};
use crate::metrics::{EpochPoint, Record, StepPoint, TestPoint};

/// Steps that the present speed is the mean of.
const RECENT: usize = 100;
/// Decisions that are kept.
const DECISIONS: usize = 300;
/// Points whose losses are kept.
const LOSSES: usize = 60;

/// Something that happened which readers record or show at once.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// Training goes on here, `global_step` steps after the run's first: what was told of it at or after this will be
    /// told again.
    Started { at: Position, global_step: u64 },
    /// A step was done; `point` where one is due.
    Step { done: StepDone, point: Option<StepPoint> },
    /// An epoch was validated. `steps` are the lengths of its steps, as far as this coordinator has seen them, and
    /// `global_step` its last step, counted from the run's first, 0.
    Epoch { point: EpochPoint, best_epoch: u32, steps: Histogram, global_step: u64 },
    /// A run that only evaluates has done so.
    Test(TestPoint),
    /// Something was decided.
    Decided(DecisionView),
    /// A checkpoint was committed.
    Saved(Written),
    /// The run is over; how, in words.
    Ended(String),
}

impl News {
    /// The line of `metrics.jsonl` that this gives, if it gives one.
    pub fn record(&self) -> Option<Record> {
        match self {
            News::Started { .. } | News::Decided(_) | News::Saved(_) | News::Ended(_) => None,
            News::Step { point, .. } => point.clone().map(Record::Step),
            News::Epoch { point, .. } => Some(Record::Epoch(point.clone())),
            News::Test(point) => Some(Record::Test(point.clone())),
        }
    }
}

/// A step as the progress shows it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepDone {
    /// From 0.
    pub epoch: u32,
    /// Steps of this epoch that are done.
    pub done: u64,
    /// Steps of an epoch.
    pub steps: u64,
    /// Mean loss of the global batch, nats.
    pub loss: f64,
    pub lr: f64,
    /// All workers together, over the newest steps.
    pub images_per_second: f64,
    /// Seconds until the last epoch is validated.
    pub left: Option<f64>,
}

/// The newest steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recent {
    pub images_per_second: f64,
    pub step_seconds: f64,
    pub data_wait_seconds: f64,
}

/// The observations of one coordinator's life, added up.
#[derive(Debug)]
pub struct Tally {
    epochs: u32,
    print_freq: u64,
    kept_checkpoints: usize,
    plan: Option<(u64, Dataset)>,
    /// The next step that is to be done.
    next: Option<Position>,
    /// Since the last point.
    window: Window,
    /// Length, wait for data, and images of the newest steps.
    recent: VecDeque<(Duration, Duration, u64)>,
    learning_rate: Option<f64>,
    loss_scale: Option<f64>,
    losses: VecDeque<f64>,
    /// Lengths of the steps of the epoch under way, and whether all of them were seen.
    epoch_steps: Histogram,
    whole_epoch: bool,
    /// Seconds that an epoch takes besides its steps.
    overhead: Option<f64>,
    validating: Option<(u64, u64)>,
    last_epoch: Option<EpochView>,
    best_epoch: Option<u32>,
    /// Newest checkpoints, and when they were committed.
    committed: VecDeque<(String, f64)>,
    decisions: VecDeque<DecisionView>,
    totals: Totals,
}

/// Sums since the last point of the metrics.
#[derive(Debug, Default)]
struct Window {
    steps: u64,
    samples: u64,
    /// Of those whose loss is a number.
    loss_samples: u64,
    loss_sum: f64,
    duration: Duration,
    data_wait: Duration,
    skipped: u64,
}

impl Tally {
    pub fn new(config: &Config) -> Self {
        Self {
            epochs: config.optim.epochs,
            print_freq: config.util.print_freq.max(1),
            kept_checkpoints: config.checkpoint.keep.max(1) as usize,
            plan: None,
            next: None,
            window: Window::default(),
            recent: VecDeque::new(),
            learning_rate: None,
            loss_scale: None,
            losses: VecDeque::new(),
            epoch_steps: Histogram::default(),
            whole_epoch: false,
            overhead: None,
            validating: None,
            last_epoch: None,
            best_epoch: None,
            committed: VecDeque::new(),
            decisions: VecDeque::new(),
            totals: Totals::default(),
        }
    }

    /// Adds an observation made at `time` (Unix time, seconds), and says what news it is.
    pub fn observe(&mut self, observation: &Observation, time: f64) -> Option<News> {
        match observation {
            Observation::Note(words) => return Some(self.decided(words, false, time)),
            Observation::Warning(words) => return Some(self.decided(words, true, time)),
            Observation::Planned { steps_per_epoch, dataset } => {
                self.plan = Some((*steps_per_epoch, dataset.clone()));
            }
            Observation::Started { position } => return Some(self.started(*position)),
            Observation::Step(step) => return Some(self.step(step, time)),
            Observation::Validating { done, samples, .. } => self.validating = Some((*done, *samples)),
            Observation::Epoch(summary) => return Some(self.epoch(summary)),
            Observation::Tested { samples, val_loss, top1, top5 } => {
                self.validating = None;
                return Some(News::Test(TestPoint {
                    images: *samples,
                    val_loss: *val_loss,
                    top1: 100.0 * top1,
                    top5: 100.0 * top5,
                }));
            }
            Observation::Checkpoint(written) => {
                self.totals.checkpoints += 1;
                self.committed.retain(|(known, _)| *known != written.file);
                self.committed.push_back((written.file.clone(), time));
                if self.committed.len() > self.kept_checkpoints {
                    self.committed.pop_front();
                }
                return Some(News::Saved(written.clone()));
            }
        }
        None
    }

    fn decided(&mut self, words: &str, warning: bool, time: f64) -> News {
        self.totals.warnings += u64::from(warning);
        let decision = DecisionView { time, words: words.to_owned(), warning };
        self.decisions.push_back(decision.clone());
        if self.decisions.len() > DECISIONS {
            self.decisions.pop_front();
        }
        News::Decided(decision)
    }

    fn started(&mut self, position: Position) -> News {
        self.window = Window::default();
        self.validating = None;
        self.next = Some(position);
        self.epoch_steps = Histogram::default();
        self.whole_epoch = position.step == 0;
        // The ring may be another, and so the speed.
        self.recent.clear();
        News::Started { at: position, global_step: self.global_step(position) }
    }

    fn step(&mut self, step: &StepReport, time: f64) -> News {
        let steps_per_epoch = self.steps_per_epoch();
        let window = &mut self.window;
        window.steps += 1;
        window.samples += step.samples;
        // Of a step whose update was left out, the loss is no number.
        if step.loss.is_finite() {
            window.loss_samples += step.samples;
            window.loss_sum += step.loss * step.samples as f64;
        }
        window.duration += step.duration;
        window.data_wait += step.data_wait;
        window.skipped += step.skipped;

        let totals = &mut self.totals;
        totals.steps += 1;
        totals.images += step.samples;
        totals.skipped += step.skipped;
        totals.step_seconds.add(step.duration.as_secs_f64());
        totals.data_wait_seconds += step.data_wait.as_secs_f64();

        self.recent.push_back((step.duration, step.data_wait, step.samples));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        if step.position.step == 0 {
            self.epoch_steps = Histogram::default();
            self.whole_epoch = true;
        }
        self.epoch_steps.add(step.duration.as_secs_f64());
        self.learning_rate = Some(step.learning_rate);
        self.loss_scale = step.loss_scale;
        self.validating = None;
        let done = step.position.step + 1;
        self.next = Some(Position { epoch: step.position.epoch, step: done });

        let due = done.is_multiple_of(self.print_freq) || done == steps_per_epoch;
        let point = due.then(|| self.point(step, time));
        let done = StepDone {
            epoch: step.position.epoch,
            done,
            steps: steps_per_epoch,
            loss: step.loss,
            lr: step.learning_rate,
            images_per_second: self.recent().map_or(f64::NAN, |recent| recent.images_per_second),
            left: self.left(),
        };
        News::Step { done, point }
    }

    /// The point that ends at `step`.
    fn point(&mut self, step: &StepReport, time: f64) -> StepPoint {
        let window = std::mem::take(&mut self.window);
        let loss = window.loss_sum / window.loss_samples as f64;
        self.losses.push_back(loss);
        if self.losses.len() > LOSSES {
            self.losses.pop_front();
        }
        StepPoint {
            epoch: step.position.epoch,
            step: step.position.step,
            global_step: self.global_step(step.position),
            loss,
            lr: step.learning_rate,
            images_per_second: window.samples as f64 / window.duration.as_secs_f64().max(1e-9),
            data_wait: window.data_wait.as_secs_f64() / window.steps as f64,
            skipped: window.skipped,
            loss_scale: step.loss_scale,
            time,
        }
    }

    fn epoch(&mut self, summary: &EpochSummary) -> News {
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
        let seconds = duration.as_secs_f64();
        let steps = std::mem::take(&mut self.epoch_steps);
        if std::mem::take(&mut self.whole_epoch) {
            self.overhead = Some((seconds - steps.sum).max(0.0));
        }
        self.totals.epochs += 1;
        self.validating = None;
        self.next = Some(Position { epoch: epoch + 1, step: 0 });
        self.best_epoch = Some(best_epoch);
        self.last_epoch = Some(EpochView { epoch, train_loss, val_loss, top1, top5, seconds });
        let (top1, top5, best_top1) = (100.0 * top1, 100.0 * top5, 100.0 * best_top1);
        let point = EpochPoint { epoch, train_loss, skipped, val_loss, top1, top5, best_top1, seconds };
        let end = self.global_step(Position { epoch: epoch + 1, step: 0 });
        News::Epoch { point, best_epoch, steps, global_step: end.saturating_sub(1) }
    }

    /// Steps of the run before the one at `position`.
    fn global_step(&self, position: Position) -> u64 {
        u64::from(position.epoch) * self.steps_per_epoch() + position.step
    }

    /// Steps of an epoch; 0 before that is known.
    fn steps_per_epoch(&self) -> u64 {
        self.plan.as_ref().map_or(0, |(steps, _)| *steps)
    }

    /// The newest steps, if there are any of this generation.
    pub fn recent(&self) -> Option<Recent> {
        if self.recent.is_empty() {
            return None;
        }
        let sum = |of: fn(&(Duration, Duration, u64)) -> f64| self.recent.iter().map(of).sum::<f64>();
        let (seconds, waits) = (sum(|step| step.0.as_secs_f64()), sum(|step| step.1.as_secs_f64()));
        let steps = self.recent.len() as f64;
        Some(Recent {
            images_per_second: sum(|step| step.2 as f64) / seconds.max(1e-9),
            step_seconds: seconds / steps,
            data_wait_seconds: waits / steps,
        })
    }

    /// Seconds until the last epoch is validated: the steps that are left at the present speed, and for each epoch
    /// what the last whole one took besides. None before there is a speed.
    pub fn left(&self) -> Option<f64> {
        let (next, recent) = (self.next?, self.recent()?);
        let steps = self.steps_per_epoch();
        let epochs = f64::from(self.epochs.saturating_sub(next.epoch));
        if epochs == 0.0 {
            return Some(0.0);
        }
        let steps_left = epochs * steps as f64 - next.step.min(steps) as f64;
        let validated = match self.validating {
            Some((done, samples)) if next.step >= steps => done as f64 / samples.max(1) as f64,
            _ => 0.0,
        };
        Some(steps_left * recent.step_seconds + (epochs - validated) * self.overhead.unwrap_or(0.0))
    }

    pub fn dataset(&self) -> Option<&Dataset> {
        self.plan.as_ref().map(|(_, dataset)| dataset)
    }

    pub fn learning_rate(&self) -> Option<f64> {
        self.learning_rate
    }

    /// In fp16, what the loss of the next step is scaled by.
    pub fn loss_scale(&self) -> Option<f64> {
        self.loss_scale
    }

    pub fn recent_losses(&self) -> Vec<f64> {
        self.losses.iter().copied().filter(|loss| loss.is_finite()).collect()
    }

    /// Images that the validation under way has come to, and those it is of.
    pub fn validating(&self) -> Option<(u64, u64)> {
        self.validating
    }

    pub fn last_epoch(&self) -> Option<&EpochView> {
        self.last_epoch.as_ref()
    }

    pub fn best_epoch(&self) -> Option<u32> {
        self.best_epoch
    }

    /// When the checkpoint `file` was committed, if this coordinator saw it.
    pub fn committed(&self, file: &str) -> Option<f64> {
        self.committed.iter().find(|(known, _)| known == file).map(|(_, time)| *time)
    }

    /// Oldest first.
    pub fn decisions(&self) -> impl Iterator<Item = &DecisionView> {
        self.decisions.iter()
    }

    pub fn totals(&self) -> &Totals {
        &self.totals
    }
}
