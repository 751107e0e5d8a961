//! What a rank does within an epoch: its steps, and its part of the validation.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use relabel_core::evaluation::counts::Counts;
use relabel_core::{FromWorker, Generation, Position, StepReport, shards, validation::Part};

use super::{Member, Next, TrainError, Trainer};
use crate::data::augment::{Augment, EvalTransform};
use crate::data::cutmix::CutMix;
use crate::data::loader::{Batch, EvalLoader, EvalPlan, TrainLoader, TrainPlan};
use crate::eval;
use crate::train::learner::{StepError, Stepped};
use crate::train::transfer::Tally;

/// Batches that loader threads may be ahead.
const PREFETCH: usize = 3;

/// Step reports that are kept for a new generation to ask for.
const RECENT: usize = 64;

/// Least time between two reports of progress.
const REPORT_EVERY: Duration = Duration::from_millis(50);

impl Trainer<'_> {
    /// Trains from `first` to the end of its epoch.
    pub(super) fn train(&mut self, generation: Generation, first: Position) -> Result<Next, TrainError> {
        let mut member = self.member(generation, "train")?;
        if first.step == 0 {
            self.tally = Tally::default();
        }
        self.held = Some(first);
        let mut loader = self.train_loader(first, &member.shard)?;
        let mut reported = Instant::now();
        let mut began = Instant::now();
        let mut waited = Duration::ZERO;
        loop {
            match self.heed_waiting()? {
                Next::Continue => {}
                next => return Ok(next),
            }
            let Some(batch) = loader.next() else { break };
            let batch = batch?;
            let position = Position { epoch: first.epoch, step: batch.step };
            let planned = self.planned(position.step);
            let stepped = match self.learner.step(&batch, planned, position, &mut *member.ring) {
                Ok(stepped) => stepped,
                Err(StepError::Collective(error)) => {
                    self.leave(&error.to_string());
                    return Ok(Next::Left);
                }
                Err(error) => return Err(TrainError::Step(error)),
            };
            self.account(position, &batch)?;
            loader.recycle(batch);

            let wait = loader.waited();
            self.stepped(position, stepped, began.elapsed(), wait.saturating_sub(waited));
            (began, waited) = (Instant::now(), wait);
            self.do_duties()?;
            // The last step is reported when this order has been carried out: another one follows it.
            if reported.elapsed() >= REPORT_EVERY && position.step + 1 < self.steps_per_epoch() {
                self.report(&member);
                reported = Instant::now();
            }
        }
        self.report(&member);
        self.formation = Some(member);
        Ok(Next::Continue)
    }

    fn member(&mut self, generation: Generation, order: &'static str) -> Result<Member, TrainError> {
        let member = self.formation.take().filter(|_| generation == self.generation);
        member.ok_or(TrainError::NoRing { order, generation })
    }

    fn train_loader(&self, first: Position, shard: &Range<u32>) -> Result<TrainLoader, TrainError> {
        let (config, inputs) = (&self.setup.config, &self.inputs);
        Ok(TrainLoader::start(TrainPlan {
            split: Arc::clone(&inputs.train),
            targets: Arc::clone(&inputs.targets),
            augment: Augment::from_config(&config.data),
            cutmix: CutMix::from_config(config),
            seed: config.compute.seed as u64,
            epoch: first.epoch,
            global_batch: config.optim.batch_size,
            first_step: first.step,
            slice: shard.clone(),
            on_error: config.data.on_error,
            threads: self.setup.loader_threads,
            prefetch: PREFETCH,
        })?)
    }

    /// Samples of the global batch of `step`: all but the last one of an epoch are full.
    fn planned(&self, step: u64) -> u64 {
        let batch = self.setup.config.optim.batch_size;
        let all = shards::positions(step, batch, self.inputs.train.len() as u64, &(0..batch));
        all.end - all.start
    }

    /// Names what was left out, and records what counted if that is wanted.
    fn account(&mut self, position: Position, batch: &Batch) -> Result<(), TrainError> {
        for (_, line) in &batch.skipped {
            tracing::warn!("left out of {position}: {line}");
        }
        if let Some(log) = &mut self.sample_log {
            let path = log.path().to_path_buf();
            log.append(position, &batch.sample_ids)
                .map_err(|source| TrainError::SampleLog { path, source })?;
        }
        Ok(())
    }

    fn stepped(&mut self, position: Position, stepped: Stepped, duration: Duration, data_wait: Duration) {
        self.tally.loss_sum += stepped.loss_sum;
        self.tally.samples += stepped.samples;
        self.held = Some(Position { step: position.step + 1, ..position });
        self.recent.push_back(StepReport {
            position,
            loss: stepped.loss_sum / stepped.samples.max(1) as f64,
            learning_rate: stepped.learning_rate,
            samples: stepped.samples,
            skipped: stepped.skipped,
            duration,
            data_wait,
            epoch_loss_sum: self.tally.loss_sum,
            epoch_samples: self.tally.samples,
        });
        self.unreported += 1;
        // What has not been reported is never dropped.
        while self.recent.len() > RECENT.max(self.unreported) {
            self.recent.pop_front();
        }
    }

    /// Says how far this rank is; rank 0 says what the steps were like, as they are the same on all.
    fn report(&mut self, member: &Member) {
        let Some(position) = self.held else { return };
        let steps = match member.reporter {
            true => self.recent.iter().skip(self.recent.len() - self.unreported).cloned().collect(),
            false => Vec::new(),
        };
        self.unreported = 0;
        self.session.reports().send(FromWorker::Progress { generation: self.generation, position, steps });
    }

    /// Evaluates samples `range` of the validation set.
    pub(super) fn validate(
        &mut self,
        generation: Generation,
        epoch: u32,
        range: Range<u64>,
    ) -> Result<Next, TrainError> {
        let member = self.member(generation, "validate")?;
        let (config, inputs) = (&self.setup.config, &self.inputs);
        let mut loader = EvalLoader::start(EvalPlan {
            split: Arc::clone(&inputs.val),
            class_ids: Arc::clone(&inputs.val_classes),
            transform: EvalTransform::from_config(&config.data),
            positions: range.start as usize..range.end as usize,
            batch: (config.util.val_batch_size as usize / member.ring.world() as usize).max(1),
            threads: self.setup.loader_threads,
            prefetch: PREFETCH,
        })?;
        let size = config.data.image_size;
        let mut counts = Counts::default();
        let mut reported = Instant::now();
        loop {
            match self.heed_waiting()? {
                Next::Continue => {}
                next => return Ok(next),
            }
            let Some(batch) = loader.next() else { break };
            let batch = batch?;
            counts += eval::count(self.learner.validated(), &batch, size)?;
            loader.recycle(batch);
            if reported.elapsed() >= REPORT_EVERY {
                self.session.reports().send(FromWorker::Validating { generation, done: counts.samples });
                reported = Instant::now();
            }
        }
        let Counts { top1, top5, loss_sum, .. } = counts;
        let part = Part { epoch, range, top1, top5, loss_sum };
        self.session.reports().send(FromWorker::Validated { generation, part });
        self.formation = Some(member);
        Ok(Next::Continue)
    }

    /// Follows the orders that have come, between two steps.
    fn heed_waiting(&mut self) -> Result<Next, TrainError> {
        while let Some(order) = self.session.waiting_order()? {
            match self.heed(order)? {
                Next::Continue => {}
                next => return Ok(next),
            }
        }
        Ok(Next::Continue)
    }
}
