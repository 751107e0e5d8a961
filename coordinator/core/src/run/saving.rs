//! Checkpoints, and how a run ends.

use super::{Phase, Run, Stopping};
use crate::history::Fact;
use crate::membership::{Holding, Member};
use crate::{DutyId, Observation, Outcome, Position, ToWorker, WorkerId, Written, checkpoint};

impl Run {
    /// The lowest rank that holds a state to write.
    fn writer(&self) -> Option<WorkerId> {
        let holds = |m: &Member| matches!(m.holding, Holding::At(_));
        self.members.by_rank().into_iter().find(|(_, m)| holds(m)).map(|(id, _)| id)
    }

    /// Orders the state of the first step boundary at or after `at` to be written.
    pub(super) fn assign_checkpoint(
        &mut self,
        at: Position,
        best: bool,
        top1: Option<f64>,
    ) -> Option<DutyId> {
        let writer = self.writer()?;
        let duty = self.duties.assign(writer, best.then(|| at.epoch.saturating_sub(1)));
        self.send(writer, ToWorker::Checkpoint { duty, at, best, top1 });
        Some(duty)
    }

    /// Orders the next checkpoint within the epoch, unless one is still being written: a disk that
    /// cannot keep up makes checkpoints rarer, not the queue longer.
    pub(super) fn assign_within_epoch(&mut self, from: Position) {
        let next = checkpoint::next_within_epoch(from, self.steps_per_epoch(), &self.settings);
        if let Some(at) = next.filter(|_| self.duties.is_empty() && self.stopping.is_none()) {
            self.assign_checkpoint(at, false, None);
        }
    }

    pub(super) fn checkpoint_written(&mut self, worker: WorkerId, duty: DutyId, written: Written) {
        if !self.duties.close(duty, worker) {
            return;
        }
        self.persist(Fact::Committed { written: written.clone() });
        self.observe(Observation::Checkpoint(written));
        let files = checkpoint::retired(&self.history, self.settings.keep_checkpoints);
        if !files.is_empty() {
            self.persist(Fact::Retired { files: files.clone() });
            self.send(worker, ToWorker::Remove { files });
        }
        match self.phase {
            Phase::Saving => self.save_and_finish(),
            _ if self.stopping.as_ref().is_some_and(|stopping| stopping.duty == Some(duty)) => self.stopped(),
            Phase::Training { .. } => self.assign_within_epoch(self.shown),
            _ => {}
        }
    }

    pub(super) fn checkpoint_failed(&mut self, worker: WorkerId, duty: DutyId, reason: &str) {
        if !self.duties.close(duty, worker) {
            return;
        }
        let kept = match self.history.newest() {
            Some(written) => format!("{} ({}) is intact", written.file, written.position),
            None => "there is none before it".into(),
        };
        let before = self.stopping.take().filter(|stopping| stopping.failed);
        let before = before.map_or_else(String::new, |stopping| format!("{}; and ", stopping.reason));
        self.fail(format!(
            "{before}a checkpoint could not be written: {reason}; {kept}; mend that, then carry on with --resume"
        ));
    }

    /// Ends the run once nothing is left to be committed.
    pub(super) fn save_and_finish(&mut self) {
        self.phase = Phase::Saving;
        self.reason = "the last checkpoint is being written".into();
        if !self.duties.is_empty() {
            return;
        }
        let complete =
            self.history.newest().is_some_and(|newest| newest.position.epoch >= self.settings.epochs);
        if self.stopping.is_some() && !complete {
            return self.stopped();
        }
        self.persist(Fact::Finished);
        self.end(Outcome::Done);
    }

    pub(super) fn stop(&mut self, reason: String) {
        if self.stopping.is_some() {
            // Asked twice: no more waiting.
            return self.stopped();
        }
        self.note(format!("stopping: {reason}"));
        // What only evaluates has nothing to save.
        let saves = !self.settings.test_only;
        let duty = if saves { self.assign_checkpoint(self.shown, false, None) } else { None };
        self.stopping = Some(Stopping { reason, failed: false, duty, since: self.now });
        if duty.is_none() {
            self.stopped();
        }
    }

    /// Whether the checkpoint that a stop waits for is still to come.
    pub(super) fn stop_is_saving(&self) -> bool {
        let duty = self.stopping.as_ref().and_then(|stopping| stopping.duty);
        duty.is_some_and(|duty| self.duties.is_open(duty))
    }

    /// Has a stop's checkpoint written by somebody else if its writer is lost.
    pub(super) fn save_after_all(&mut self) {
        if self.stopping.is_none() || self.stop_is_saving() {
            return;
        }
        let duty = self.assign_checkpoint(Position::default(), false, None);
        if let Some(stopping) = &mut self.stopping {
            stopping.duty = duty;
        }
    }

    /// A worker cannot go on and neither can the run: it saves what it has trained, then the run fails.
    pub(super) fn fault(&mut self, worker: WorkerId, reason: String) {
        if self.stopping.as_ref().is_some_and(|stopping| stopping.failed) {
            // The first of them is being dealt with; what fails on all ranks alike comes from each.
            return;
        }
        let trained = |m: &Member| matches!(m.holding, Holding::At(at) if at > Position::default());
        let holds = self.members.get(worker).is_some_and(trained);
        if !holds || !matches!(self.phase, Phase::Training { .. } | Phase::Validating(_)) {
            return self.fail(reason);
        }
        self.warn(format!("{reason}; saving what has been trained"));
        let duty = self.duties.assign(worker, None);
        self.stopping = Some(Stopping { reason, failed: true, duty: Some(duty), since: self.now });
        self.send(worker, ToWorker::Checkpoint { duty, at: Position::default(), best: false, top1: None });
    }

    /// Ends a run that was stopping, saved or not.
    pub(super) fn stopped(&mut self) {
        let Some(Stopping { reason, failed, .. }) = self.stopping.take() else { return };
        let saved = self.history.newest().map(|written| written.position);
        match (failed, saved) {
            (false, saved) => self.end(Outcome::Interrupted { reason, saved }),
            (true, None) => self.fail(reason),
            (true, Some(at)) => {
                self.fail(format!("{reason} (saved: mend that, then carry on from {at} with --resume)"));
            }
        }
    }
}
