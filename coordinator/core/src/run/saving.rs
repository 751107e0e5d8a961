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
    pub(super) fn assign_checkpoint(&mut self, at: Position, best: bool, top1: Option<f64>) {
        if let Some(writer) = self.writer() {
            let duty = self.duties.assign(writer);
            self.send(writer, ToWorker::Checkpoint { duty, at, best, top1 });
        }
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
            _ if self.stopping.is_some() && self.duties.is_empty() => self.interrupted(),
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
        self.fail(format!(
            "a checkpoint could not be written: {reason}; {kept}; mend that, then carry on with --resume"
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
            return self.interrupted();
        }
        self.persist(Fact::Finished);
        self.end(Outcome::Done);
    }

    pub(super) fn stop(&mut self, reason: String) {
        if self.stopping.is_some() {
            // Asked twice: no more waiting.
            return self.interrupted();
        }
        self.note(format!("stopping: {reason}"));
        self.stopping = Some(Stopping { reason, since: self.now });
        // What only evaluates has nothing to save.
        if self.writer().is_some() && !self.settings.test_only {
            self.assign_checkpoint(self.shown, false, None);
        } else {
            self.interrupted();
        }
    }

    pub(super) fn interrupted(&mut self) {
        let reason = self.stopping.take().map_or_else(String::new, |stopping| stopping.reason);
        let saved = self.history.newest().map(|written| written.position);
        self.end(Outcome::Interrupted { reason, saved });
    }
}
