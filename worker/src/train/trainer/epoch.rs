//! What a rank does within an epoch: its steps, and its part of the validation.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use relabel_config::NonFinite;
use relabel_core::evaluation::counts::Counts;
use relabel_core::{FromWorker, Generation, Position, Rank, StepReport, ToWorker, shards, validation::Part};

use super::{Member, Next, TrainError, Trainer};
use crate::data::augment::{Augment, EvalTransform};
use crate::data::cutmix::CutMix;
use crate::data::loader::{Batch, EvalLoader, EvalPlan, TrainLoader, TrainPlan};
use crate::eval;
use crate::train::feed::Feed;
use crate::train::samples::SampleLog;
use crate::train::step::{Ask, StepError, Stepped, Update};
use crate::train::transfer::Tally;

/// Batches that loader threads may be ahead.
const PREFETCH: usize = 3;

/// Step reports that are kept for a new generation to ask for.
const RECENT: usize = 64;

/// Least time between two reports of progress: of the rank that says what the steps were like, and of the others.
const REPORT_EVERY: Duration = Duration::from_millis(50);
const OTHERS_REPORT_EVERY: Duration = Duration::from_secs(1);

impl Trainer<'_> {
    /// Trains from `first` to the end of its epoch.
    pub(super) fn train(&mut self, generation: Generation, first: Position) -> Result<Next, TrainError> {
        let mut member = self.member(generation, "train")?;
        if first.step == 0 {
            self.tally = Tally::default();
            if member.reporter {
                self.pictures.draw(first.epoch);
            }
        }
        self.hold(Some(first));
        let mut feed = Feed::new(self.train_loader(first, &member.shard)?, self.learner.form())?;
        let report_every = if member.reporter { REPORT_EVERY } else { OTHERS_REPORT_EVERY };
        let mut reported = Instant::now();
        let mut began = Instant::now();
        let mut waited = Duration::ZERO;
        loop {
            match self.heed_while_training(generation)? {
                Next::Continue => {}
                next => return Ok(next),
            }
            let Some(fed) = feed.next() else { break };
            let (batch, sent) = fed?;
            let position = Position { epoch: first.epoch, step: batch.step };
            self.note_samples(position, &batch)?;
            let ask = self.ask(generation, position);
            let stepped = match self.learner.step_with(&batch, &sent, ask, &mut *member.ring) {
                Ok(stepped) => stepped,
                Err(StepError::Collective(error)) => {
                    drop(member);
                    self.leave(&error.to_string(), error.blamed().map(Rank));
                    return Ok(Next::Left);
                }
                Err(loss @ StepError::NotFinite { .. }) => {
                    let samples = self.whole_batch(position);
                    return Err(TrainError::NotFinite { loss, samples });
                }
                Err(error) => return Err(TrainError::Step(error)),
            };
            self.note_step(position)?;
            feed.recycle(batch);

            let wait = feed.waited();
            self.stepped(position, stepped, began.elapsed(), wait.saturating_sub(waited));
            (began, waited) = (Instant::now(), wait);
            self.do_duties()?;
            if stepped.leaving {
                drop(member);
                self.leave("the generation ends in good order", None);
                return Ok(Next::Left);
            }
            // The last step is reported when this order has been carried out: another one follows it.
            if reported.elapsed() >= report_every && position.step + 1 < self.steps_per_epoch() {
                self.report(member.reporter);
                reported = Instant::now();
            }
        }
        self.report(member.reporter);
        self.formation = Some(member);
        Ok(Next::Continue)
    }

    /// What is asked of the step at `position`.
    fn ask(&self, generation: Generation, position: Position) -> Ask {
        let optim = &self.setup.config.optim;
        let leave = self.session.fence().is_draining(generation) || self.session.shared().leaving().is_some();
        let may_skip = optim.non_finite == NonFinite::Skip && self.tally.left_out < optim.non_finite_steps;
        Ask { position, planned: self.planned(position.step), leave, may_skip }
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
            shuffle_buffer: config.data.shuffle_buffer,
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

    /// The ids of the samples that all ranks together take into the step at `position`.
    fn whole_batch(&self, position: Position) -> Vec<u32> {
        let batch = self.setup.config.optim.batch_size;
        let (train, config) = (&self.inputs.train, &self.setup.config);
        let positions = shards::positions(position.step, batch, train.len() as u64, &(0..batch));
        let order = train.order(config.compute.seed as u64, position.epoch, config.data.shuffle_buffer);
        order[positions.start as usize..positions.end as usize].to_vec()
    }

    /// Names what was left out, and records what goes into the step if that is wanted.
    fn note_samples(&mut self, position: Position, batch: &Batch) -> Result<(), TrainError> {
        for (_, line) in &batch.skipped {
            tracing::warn!("left out of {position}: {line}");
        }
        let generation = self.generation;
        self.record(|log| log.begun(generation, position, &batch.sample_ids))
    }

    /// Records that the step is done.
    fn note_step(&mut self, position: Position) -> Result<(), TrainError> {
        let generation = self.generation;
        self.record(|log| log.done(generation, position))
    }

    fn record(
        &mut self,
        write: impl FnOnce(&mut SampleLog) -> std::io::Result<()>,
    ) -> Result<(), TrainError> {
        let Some(log) = &mut self.sample_log else { return Ok(()) };
        let path = log.path().to_path_buf();
        write(log).map_err(|source| TrainError::SampleLog { path, source })
    }

    fn stepped(&mut self, position: Position, stepped: Stepped, duration: Duration, data_wait: Duration) {
        if stepped.update == Update::NoLoss {
            self.tally.left_out += 1;
            tracing::warn!("the loss of {position} is {}: its update is left out", stepped.loss_sum);
        } else {
            self.tally.loss_sum += stepped.loss_sum;
            self.tally.samples += stepped.samples;
            self.tally.left_out = 0;
        }
        if let (Update::Overflow, Some(scale)) = (stepped.update, stepped.loss_scale) {
            // Usual in the first steps of a run, and every few thousand later.
            tracing::info!(
                "the gradient of {position} overflowed in fp16: its update is left out, the loss is scaled by {scale}"
            );
        }
        self.hold(Some(Position { step: position.step + 1, ..position }));
        self.pace.steps += 1;
        self.pace.data += data_wait;
        self.pace.peers += stepped.waited;
        self.pace.compute += duration.saturating_sub(data_wait).saturating_sub(stepped.waited);
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
            loss_scale: stepped.loss_scale.map(f64::from),
        });
        self.unreported += 1;
        // What has not been reported is never dropped.
        while self.recent.len() > RECENT.max(self.unreported) {
            self.recent.pop_front();
        }
    }

    /// Says how far this rank is; the first one says what the steps were like, as they are the same on all. A
    /// coordinator that is away is told when it is back, and again what may have been on its way.
    pub(super) fn report(&mut self, reporter: bool) {
        let (Some(position), Some(stream)) = (self.held, self.session.shared().stream()) else { return };
        if self.reported_to.replace(stream).is_some_and(|before| before != stream) {
            self.unreported = self.recent.len();
        }
        let steps = match reporter {
            true => self.recent.iter().skip(self.recent.len() - self.unreported).cloned().collect(),
            false => Vec::new(),
        };
        self.unreported = 0;
        let (generation, pace) = (self.generation, std::mem::take(&mut self.pace));
        self.session.reports().send(FromWorker::Progress { generation, position, steps, pace });
    }

    /// Evaluates samples `range` of the validation set.
    pub(super) fn validate(
        &mut self,
        generation: Generation,
        epoch: u32,
        range: Range<u64>,
    ) -> Result<Next, TrainError> {
        let member = self.member(generation, "validate")?;
        // The coordinator may have been away when the epoch came to its end.
        self.report(member.reporter);
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
                Next::Order(order) => {
                    self.formation = Some(member);
                    return Ok(Next::Order(order));
                }
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

    /// As [`Self::heed_waiting`] within the epoch that is trained: to end with a step is what the next step does, if there
    /// is one, and to train is what is being done.
    fn heed_while_training(&mut self, generation: Generation) -> Result<Next, TrainError> {
        let end = self.steps_per_epoch();
        while let Some(order) = self.session.waiting_order()? {
            let has_next_step = self.held.is_some_and(|held| held.step < end);
            match order {
                ToWorker::Drain { .. } if has_next_step => continue,
                ToWorker::Train { generation: again, .. } if again == generation => continue,
                order => match self.heed(order)? {
                    Next::Continue => {}
                    next => return Ok(next),
                },
            }
        }
        Ok(Next::Continue)
    }
}
