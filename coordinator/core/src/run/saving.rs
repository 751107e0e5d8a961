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
            _ if self.stopping.is_some() => self.stop_when_saved(),
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
        self.stopping = Some(Stopping { reason: reason.clone(), failed: false, duty: None, since: self.now });
        match self.phase {
            // All is trained: what is being written is the end.
            Phase::Saving => {}
            // What only evaluates has nothing to save.
            _ if self.settings.test_only => self.stopped(),
            Phase::Gathering { .. } => self.stop_when_saved(),
            // No step is done that the checkpoint would not have.
            _ => {
                self.dissolve(format!("stopping: {reason}"));
                self.stop_when_saved();
            }
        }
    }

    /// Whether the checkpoint that a stop waits for is still to come.
    pub(super) fn stop_is_saving(&self) -> bool {
        let duty = self.stopping.as_ref().and_then(|stopping| stopping.duty);
        duty.is_some_and(|duty| self.duties.is_open(duty))
    }

    /// Once everybody has said what they hold, has the furthest of it written; once that is committed, or
    /// there is nothing that is not, ends the run.
    pub(super) fn stop_when_saved(&mut self) {
        let Some(stopping) = &self.stopping else { return };
        if self.stop_is_saving() {
            return;
        }
        if stopping.failed {
            return self.stopped();
        }
        if self.members.iter().any(|(_, m)| matches!(m.holding, Holding::Asked)) {
            return;
        }
        let beginning = Position { epoch: self.settings.start_epoch, step: 0 };
        let saved = self.history.newest().map_or(beginning, |written| written.position);
        match self.furthest().filter(|(_, at)| *at > saved) {
            Some((writer, at)) => {
                let duty = self.duties.assign(writer, None);
                self.send(writer, ToWorker::Checkpoint { duty, at, best: false, top1: None });
                if let Some(stopping) = &mut self.stopping {
                    stopping.duty = Some(duty);
                }
            }
            // What else is being written is not further.
            None => self.stopped(),
        }
    }

    /// The worker that has gone furthest, of several the one of the lowest rank, and where that is.
    pub(super) fn furthest(&self) -> Option<(WorkerId, Position)> {
        let held = self.members.iter().filter_map(|(id, m)| match m.holding {
            Holding::At(position) => Some((position, std::cmp::Reverse(m.rank), id)),
            _ => None,
        });
        held.max().map(|(position, _, id)| (id, position))
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
