//! Steps, validation, and the way from one epoch to the next.

use std::collections::BTreeSet;

use super::{Phase, Run};
use crate::history::Fact;
use crate::validation::{Part, Validation};
use crate::{
    EpochSummary, Generation, Observation, Outcome, Pace, Position, StepReport, ToWorker, WorkerId,
    checkpoint, shards,
};

impl Run {
    /// All ranks hold the state of `position`: on they go.
    pub(super) fn begin(&mut self, position: Position) {
        if self.settings.test_only {
            return self.validate(position.epoch);
        }
        self.observe(Observation::Started { position: self.next_to_show(position) });
        if position.epoch >= self.settings.epochs {
            self.save_and_finish();
        } else if position.step < self.steps_per_epoch() {
            self.train(position);
        } else {
            self.begin_at_the_end(position.epoch);
        }
    }

    /// What is done next by those who hold the state of `position`: an epoch that is validated is not come by again.
    pub(super) fn next_to_show(&self, position: Position) -> Position {
        let over =
            position.step >= self.steps_per_epoch() && self.history.validated.contains_key(&position.epoch);
        if over { Position { epoch: position.epoch + 1, step: 0 } } else { position }
    }

    /// All ranks hold the state of the end of `epoch`.
    pub(super) fn begin_at_the_end(&mut self, epoch: u32) {
        if self.history.validated.contains_key(&epoch) && !self.settings.test_only {
            self.after_validation(epoch);
        } else {
            self.validate(epoch);
        }
    }

    fn train(&mut self, position: Position) {
        self.phase = Phase::Training { epoch: position.epoch, done: BTreeSet::new() };
        if self.shown.replace(position).is_none() {
            // Nothing has been shown since this coordinator was away.
            self.observe(Observation::Started { position });
        }
        if position.step == 0 {
            self.epoch_began = self.now;
            self.epoch_skipped = 0;
        }
        let generation = self.generation;
        // Before the order to train, so that the writer knows of it in time.
        self.assign_within_epoch(position);
        self.send_ring(&ToWorker::Train { generation, epoch: position.epoch, first_step: position.step });
    }

    pub(super) fn progressed(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        position: Position,
        steps: &[StepReport],
        pace: Pace,
    ) {
        if generation != self.generation || !self.ring.contains_key(&worker) {
            return;
        }
        let end = self.steps_per_epoch();
        // A reporter that was given another's state at the end of an epoch does not know what led to it.
        let leads_there =
            steps.last().is_some_and(|step| self.after(step.position) == self.as_saved(position));
        let Phase::Training { epoch, done } = &mut self.phase else {
            match self.phase {
                // The steps before the generation ends in good order.
                Phase::Gathering { .. } => self.hear(steps),
                // What one that is back has done meanwhile: it says it once, and may be back before the others are.
                Phase::Reuniting { .. } if leads_there => self.hear(steps),
                _ => {}
            }
            return;
        };
        let epoch = *epoch;
        if position == (Position { epoch, step: end }) {
            done.insert(worker);
        }
        let complete = done.len() == self.ring.len();
        if self.shown.is_some() || leads_there {
            self.show(steps);
        }
        self.stragglers.note(worker, pace);
        if pace.steps > 0 {
            // The ring moves: whoever was to blame for an earlier one is no longer.
            self.formations.blamed.clear();
        }
        if let Some(member) = self.members.get_mut(worker) {
            member.held = Some(position);
        }
        if complete {
            self.validate(epoch);
        }
    }

    /// Where the step that begins at `position` leads to.
    fn after(&self, position: Position) -> Position {
        self.as_saved(Position { step: position.step.saturating_add(1), ..position })
    }

    /// Shows the steps before a generation ended. A coordinator that was away waits with that until all have been asked:
    /// none of them may know of all steps.
    pub(super) fn hear(&mut self, steps: &[StepReport]) {
        match self.shown {
            Some(_) => self.show(steps),
            None => self.heard.extend(steps.iter().map(|step| (step.position, step.clone()))),
        }
    }

    /// Shows what has been heard.
    pub(super) fn show_heard(&mut self) {
        let steps: Vec<_> = std::mem::take(&mut self.heard).into_values().collect();
        self.show(&steps);
    }

    /// Shows the steps that have not been shown; every rank reports the same numbers.
    pub(crate) fn show(&mut self, steps: &[StepReport]) {
        // A worker that was given another's state has not done the steps that led to it.
        let gap = steps.windows(2).rposition(|pair| self.after(pair[0].position) != pair[1].position);
        let steps = match (self.shown, gap) {
            (None, Some(gap)) => &steps[gap + 1..],
            _ => steps,
        };
        // An epoch that is validated has been shown as a whole, in an earlier life of this coordinator.
        let known = |step: &&StepReport| self.history.validated.contains_key(&step.position.epoch);
        let known = if self.shown.is_none() { steps.iter().take_while(known).count() } else { 0 };
        let steps = &steps[known..];
        for step in steps {
            match self.shown {
                Some(shown) if step.position < shown => continue,
                Some(_) => {}
                // The first that comes after this coordinator was away.
                None => self.observe(Observation::Started { position: step.position }),
            }
            self.shown = Some(Position { epoch: step.position.epoch, step: step.position.step + 1 });
            self.loss = Some(step.loss);
            self.epoch_loss = step.epoch_loss_sum / step.epoch_samples.max(1) as f64;
            self.epoch_skipped += step.skipped;
            if !step.loss.is_finite() {
                self.warn(format!(
                    "the loss of {} was {}: its update was left out",
                    step.position, step.loss
                ));
            }
            self.observe(Observation::Step(step.clone()));
        }
    }

    fn validate(&mut self, epoch: u32) {
        let samples = self.history.dataset.as_ref().map_or(0, |dataset| dataset.val_samples);
        let generation = self.generation;
        let mut validation = Validation::new(epoch);
        self.observe(Observation::Validating { epoch, done: 0, samples });
        let world = self.ring.len() as u32;
        for (worker, rank) in self.ring.clone() {
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
        let saved =
            self.history.newest().is_some_and(|newest| newest.position == next) || self.duties.writes(next);
        let last = next.epoch >= self.settings.epochs;
        if checkpoint::due_after_epoch(epoch, best, &self.settings) && !saved {
            if self.duties.are_waiting() && !last {
                self.leave_out(next, best);
            } else {
                self.assign_checkpoint(next, best, self.history.validated.get(&epoch).copied());
            }
        }
        if last {
            self.save_and_finish();
        } else if let Some(reason) = self.change_due() {
            // Between two epochs nobody has to be waited for.
            self.decide(reason.clone());
            self.dissolve(reason);
        } else {
            self.train(next);
        }
    }
}
