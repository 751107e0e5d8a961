//! What people see of the run: sentences, decisions, and the status at one moment.

use std::time::Duration;

use super::{Phase, Run};
use crate::membership::Member;
use crate::{Observation, Rank, Status, WorkerState, WorkerStatus};

impl Run {
    pub(super) fn observe(&mut self, observation: Observation) {
        self.command(crate::Command::Observe(observation));
    }

    pub(super) fn note(&mut self, words: String) {
        self.observe(Observation::Note(words));
    }

    pub(super) fn warn(&mut self, words: String) {
        self.observe(Observation::Warning(words));
    }

    /// Notes a decision about who trains and from where, and its reason: in the log, and in the status.
    pub(super) fn decide(&mut self, words: String) {
        self.reason = words.clone();
        self.decisions.note(self.now, words.clone());
        self.note(words);
    }

    /// As [`Self::decide`], where something went wrong.
    pub(super) fn decide_after_a_loss(&mut self, words: String) {
        self.reason = words.clone();
        self.decisions.note(self.now, words.clone());
        self.warn(words);
    }

    /// The run as `coordinator status` shows it, with all its workers.
    pub fn status(&self, now: Duration) -> Status {
        self.status_from(now, Rank(0), usize::MAX)
    }

    /// The same with at most `most` workers, from rank `first` on.
    pub fn status_from(&self, now: Duration, first: Rank, most: usize) -> Status {
        let phase = match &self.phase {
            Phase::Reuniting { .. } => "reuniting",
            Phase::Gathering { .. } => "gathering",
            Phase::Forming { .. } => "forming",
            Phase::Training { .. } => "training",
            Phase::Validating(_) => "validating",
            Phase::Saving => "saving",
            Phase::Ended => "ended",
        };
        Status {
            phase: phase.into(),
            reason: self.reason.clone(),
            decisions: self.decisions.newest(now),
            generation: self.generation.0,
            lives: self.history.resumed + 1,
            position: self.shown.filter(|_| self.generation.0 > 0),
            steps_per_epoch: self.history.dataset.is_some().then(|| self.steps_per_epoch()),
            epochs: self.settings.epochs,
            world: self.settings.workers,
            min_workers: self.settings.min_workers,
            training: self.ring.len() as u32,
            loss: self.loss,
            best_top1: self.history.best().map(|(_, top1)| top1),
            checkpoint: self.history.newest().map(|written| written.file.clone()),
            checkpoints: self.history.checkpoints.clone(),
            seated: self.members.len(),
            workers: self
                .members
                .by_rank_from(first)
                .take(most)
                .map(|(id, m)| self.worker_status(id, m, now))
                .collect(),
        }
    }

    fn worker_status(&self, id: crate::WorkerId, m: &Member, now: Duration) -> WorkerStatus {
        let state = match (&m.leaving, self.ring.contains_key(&id)) {
            (Some(_), _) => WorkerState::Leaving,
            (None, true) => WorkerState::InRing,
            (None, false) if m.dataset.is_none() => WorkerState::Indexing,
            (None, false) => WorkerState::Waiting,
        };
        WorkerStatus {
            rank: m.rank,
            host: m.hello.host.clone(),
            pid: m.hello.pid,
            device: m.hello.device.clone(),
            silent: now.saturating_sub(m.last_heard),
            position: m.held,
            state,
            pace: self.stragglers.pace(id),
            slow: m.slow,
        }
    }
}
