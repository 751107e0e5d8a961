//! Steps, validation, and the way from one epoch to the next.

use super::{Phase, Run};
use crate::history::Fact;
use crate::membership::Holding;
use crate::validation::{Part, Validation};
use crate::{
    EpochSummary, Generation, Observation, Outcome, Position, StepReport, ToWorker, WorkerId, checkpoint,
    shards,
};

impl Run {
    /// All ranks hold the state of `position`: on they go.
    pub(super) fn begin(&mut self, position: Position) {
        if self.settings.test_only {
            return self.validate(position.epoch);
        }
        self.observe(Observation::Started { position });
        if position.epoch >= self.settings.epochs {
            self.save_and_finish();
        } else if position.step < self.steps_per_epoch() {
            self.train(position);
        } else if self.history.validated.contains_key(&position.epoch) {
            self.after_validation(position.epoch);
        } else {
            self.validate(position.epoch);
        }
    }

    fn train(&mut self, position: Position) {
        self.phase = Phase::Training { epoch: position.epoch };
        self.shown = position;
        if position.step == 0 {
            self.epoch_began = self.now;
            self.epoch_skipped = 0;
        }
        let generation = self.generation;
        // Before the order to train, so that the writer knows of it in time.
        self.assign_within_epoch(position);
        self.send_all(&ToWorker::Train { generation, epoch: position.epoch, first_step: position.step });
    }

    pub(super) fn progressed(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        position: Position,
        steps: &[StepReport],
    ) {
        let Phase::Training { epoch } = self.phase else { return };
        if generation != self.generation {
            return;
        }
        self.show(steps);
        if let Some(member) = self.members.get_mut(worker) {
            member.holding = Holding::At(position);
        }
        let end = Position { epoch, step: self.steps_per_epoch() };
        if self.members.iter().all(|(_, m)| m.holding == Holding::At(end)) {
            self.validate(epoch);
        }
    }

    /// Shows the steps that have not been shown; every rank reports the same numbers.
    pub(super) fn show(&mut self, steps: &[StepReport]) {
        for step in steps {
            if step.position < self.shown {
                continue;
            }
            self.shown = Position { epoch: step.position.epoch, step: step.position.step + 1 };
            self.loss = Some(step.loss);
            self.epoch_loss = step.epoch_loss_sum / step.epoch_samples.max(1) as f64;
            self.epoch_skipped += step.skipped;
            self.observe(Observation::Step(step.clone()));
        }
    }

    fn validate(&mut self, epoch: u32) {
        let samples = self.history.dataset.as_ref().map_or(0, |dataset| dataset.val_samples);
        let generation = self.generation;
        let mut validation = Validation::new(epoch);
        self.observe(Observation::Validating { epoch, done: 0, samples });
        let world = self.members.len();
        for (worker, rank) in self.members.by_rank().iter().map(|(id, m)| (*id, m.rank)).collect::<Vec<_>>() {
            let range = shards::deal(samples, world, rank.0);
            validation.ask(worker, &range);
            self.send(worker, ToWorker::Validate { generation, epoch, range });
        }
        self.phase = Phase::Validating(validation);
    }

    pub(super) fn validating(&mut self, worker: WorkerId, generation: Generation, done: u64) {
        let Phase::Validating(validation) = &mut self.phase else { return };
        if generation == self.generation {
            let (epoch, done, samples) = validation.progress(worker, done);
            self.observe(Observation::Validating { epoch, done, samples });
        }
    }

    pub(super) fn validated(&mut self, worker: WorkerId, generation: Generation, part: &Part) {
        let Phase::Validating(validation) = &mut self.phase else { return };
        if generation != self.generation {
            return;
        }
        let epoch = validation.epoch;
        let Some(sum) = validation.add(worker, part) else { return };
        let share = |count: u64| count as f64 / sum.samples.max(1) as f64;
        let (top1, top5) = (share(sum.top1), share(sum.top5));
        let val_loss = sum.loss_sum / sum.samples.max(1) as f64;
        if self.settings.test_only {
            let samples = sum.samples;
            self.observe(Observation::Tested { samples, val_loss, top1, top5 });
            return self.end(Outcome::Done);
        }
        self.persist(Fact::Validated { epoch, top1, top5 });
        let (best_epoch, best_top1) = self.history.best().unwrap_or((epoch, top1));
        self.observe(Observation::Epoch(EpochSummary {
            epoch,
            train_loss: self.epoch_loss,
            skipped: self.epoch_skipped,
            val_loss,
            top1,
            top5,
            best_top1,
            best_epoch,
            duration: self.now.saturating_sub(self.epoch_began),
        }));
        self.after_validation(epoch);
    }

    /// The epoch is complete: save it if that is due, and go on to the next.
    pub(super) fn after_validation(&mut self, epoch: u32) {
        let next = Position { epoch: epoch + 1, step: 0 };
        let best = self.history.best().is_some_and(|(best, _)| best == epoch);
        if checkpoint::due_after_epoch(epoch, best, &self.settings) {
            self.assign_checkpoint(next, best, self.history.validated.get(&epoch).copied());
        }
        if next.epoch >= self.settings.epochs {
            self.save_and_finish();
        } else {
            self.train(next);
        }
    }
}
