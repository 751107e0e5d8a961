//! Checkpoints, and how a run ends.

use super::{HandingOver, Phase, Run, Stopping};
use crate::history::Fact;
use crate::membership::Member;
use crate::{Command, DutyId, Observation, Outcome, Position, Rank, ToWorker, WorkerId, Written, checkpoint};

impl Run {
    /// The lowest rank of the generation that holds a state, stays, and could write when it last tried.
    fn writer(&self) -> Option<WorkerId> {
        let rank = |id: &WorkerId, rank: &Rank| {
            let member = self.members.get(*id).filter(|m| m.held.is_some())?;
            Some((member.leaving.is_some(), self.failed_writers.contains(id), *rank, *id))
        };
        self.ring.iter().filter_map(|(id, place)| rank(id, place)).min().map(|(.., id)| id)
    }

    /// Orders the state of the first step boundary at or after `at` to be written.
    pub(super) fn assign_checkpoint(
        &mut self,
        at: Position,
        best: bool,
        top1: Option<f64>,
    ) -> Option<DutyId> {
        let writer = self.writer()?;
        let duty = self.duties.assign(writer, at, best.then(|| at.epoch.saturating_sub(1)));
        self.saved_at = self.now;
        self.send(writer, ToWorker::Checkpoint { duty, at, best, top1 });
        Some(duty)
    }

    /// Orders `writer` to write the state that it holds at `at`.
    pub(super) fn assign_to(&mut self, writer: WorkerId, at: Position) -> DutyId {
        let duty = self.duties.assign(writer, at, None);
        self.send(writer, ToWorker::Checkpoint { duty, at, best: false, top1: None });
        duty
    }

    /// Orders the next checkpoint within the epoch, unless one is still being written: a disk that
    /// cannot keep up makes checkpoints rarer, not the queue longer.
    pub(super) fn assign_within_epoch(&mut self, from: Position) {
        let next = checkpoint::next_within_epoch(from, self.steps_per_epoch(), &self.settings);
        if let Some(at) = next.filter(|_| self.duties.is_empty() && !self.is_going()) {
            self.assign_checkpoint(at, false, None);
        }
    }

    /// Does without the checkpoint of the end of an epoch, as more of them wait to be written than should be held in memory:
    /// a disk or an object store that cannot keep up makes these rarer too.
    pub(super) fn leave_out(&mut self, next: Position, best: bool) {
        self.warn(format!("the checkpoint of {next} is left out: those before it are still being written"));
        if best {
            // It counts as the best no longer: no file is going to hold it.
            self.persist(Fact::BestLost { epoch: next.epoch.saturating_sub(1) });
        }
    }

    /// Orders the checkpoint that is due by the clock, while training, if there is something new to write and nothing
    /// is being written.
    pub(super) fn save_if_time(&mut self) {
        let every = self.settings.checkpoint_every;
        let due = every.is_some_and(|every| self.now.saturating_sub(self.saved_at) >= every);
        let new = self.shown > self.history.newest().map(|written| written.position);
        if due && new && self.duties.is_empty() && !self.is_going() {
            self.assign_checkpoint(Position::default(), false, None);
        }
    }

    /// Somebody wants a checkpoint now.
    pub(super) fn save(&mut self, reason: &str) {
        if !matches!(self.phase, Phase::Training { .. } | Phase::Validating(_)) || self.settings.test_only {
            return self.note(format!("{reason}: there is nothing new to save at the moment"));
        }
        self.note(format!("{reason}: saving at the next step"));
        self.assign_checkpoint(Position::default(), false, None);
    }

    /// Too few are left to train: what they hold is written, while the others are waited for.
    pub(super) fn save_what_is_held(&mut self) {
        let saved = self.history.newest().map_or(self.beginning(), |written| written.position);
        match self.furthest() {
            Some((writer, at)) if at > saved && !self.duties.writes(at) && !self.settings.test_only => {
                self.note(format!("too few workers are left to train: saving {at}"));
                self.assign_to(writer, at);
            }
            _ => {}
        }
    }

    pub(super) fn checkpoint_written(&mut self, worker: WorkerId, duty: DutyId, written: Written) {
        // What was ordered before this coordinator was away counts too, if it is further than what is known.
        let earlier = self.duties.is_of_an_earlier_life(duty)
            && self.history.newest().is_none_or(|newest| newest.position < written.position);
        if !self.duties.close(duty, worker) && !earlier {
            return;
        }
        self.failed_writers.remove(&worker);
        self.persist(Fact::Committed { written: written.clone() });
        self.observe(Observation::Checkpoint(written));
        let mut files = checkpoint::retired(&self.history, self.settings.keep_checkpoints);
        if let Phase::Forming { position, .. } = self.phase {
            // It may be being restored, by a generation that knew of none further: the next to be written retires it.
            let read = self.history.checkpoints.iter().find(|written| written.position == position);
            files.retain(|file| read.is_none_or(|read| read.file != *file));
        }
        if !files.is_empty() {
            self.persist(Fact::Retired { files: files.clone() });
            self.send(worker, ToWorker::Remove { files });
        }
        match self.phase {
            Phase::Saving => self.save_and_finish(),
            _ if self.stopping.is_some() => self.stop_when_saved(),
            Phase::Training { .. } => {
                if let Some(shown) = self.shown {
                    self.assign_within_epoch(shown);
                }
            }
            Phase::Gathering { .. } => self.try_form(),
            _ => {}
        }
    }

    /// A checkpoint within training can be missed; what a run ends with cannot, and another writer tries.
    pub(super) fn checkpoint_failed(&mut self, worker: WorkerId, duty: DutyId, reason: &str) {
        let at = self.duties.at(duty);
        let Some(at) = at.filter(|_| self.duties.close(duty, worker)) else { return };
        let who = self.describe(worker);
        self.failed_writers.insert(worker);
        let kept = match self.history.newest() {
            Some(written) => format!("{} ({}) is intact", written.file, written.position),
            None => "there is none before it".into(),
        };
        let last = matches!(self.phase, Phase::Saving) || self.stopping.is_some();
        let another = self.writer().filter(|writer| !self.failed_writers.contains(writer));
        match (last, another) {
            (false, _) => {
                self.warn(format!(
                    "{who} could not write a checkpoint: {reason}; {kept}; training goes on, and the next one is tried \
                     when it is due"
                ));
                if let Phase::Training { epoch, .. } = self.phase {
                    self.assign_within_epoch(Position { epoch, ..self.shown.unwrap_or_default() });
                }
            }
            (true, Some(writer)) if self.stopping.as_ref().is_none_or(|stopping| !stopping.failed) => {
                self.warn(format!(
                    "{who} could not write the last checkpoint: {reason}; another worker tries"
                ));
                let duty = self.assign_to(writer, at);
                if let Some(stopping) = &mut self.stopping {
                    stopping.duty = Some(duty);
                }
            }
            (true, _) => {
                let before = self.stopping.take().filter(|stopping| stopping.failed);
                let before = before.map_or_else(String::new, |stopping| format!("{}; and ", stopping.reason));
                self.fail(format!(
                    "{before}a checkpoint could not be written: {reason}; {kept}; mend that, then carry on with --resume"
                ));
            }
        }
    }

    /// Ends the run once the state of its end is committed, and what is to be kept as the best.
    pub(super) fn save_and_finish(&mut self) {
        self.phase = Phase::Saving;
        self.reason = "the last checkpoint is being written".into();
        if self.is_complete() {
            if !self.duties.writes_the_best() {
                self.persist(Fact::Finished);
                self.end(Outcome::Done);
            }
        } else if self.duties.is_empty() {
            if self.stopping.is_some() {
                return self.stopped();
            }
            let end = Position { epoch: self.settings.epochs, step: 0 };
            if self.assign_checkpoint(end, false, None).is_none() {
                self.regroup("nobody is left to write the last checkpoint".into());
            }
        }
    }

    /// Whether the end of the run is saved.
    pub(super) fn is_complete(&self) -> bool {
        self.history.newest().is_some_and(|newest| newest.position.epoch >= self.settings.epochs)
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
            Phase::Gathering { .. } => {
                // Nobody is waited for any more.
                if let Phase::Gathering { asked, .. } = &self.phase {
                    let asked = asked.clone();
                    self.tell_to_leave(&asked, &format!("stopping: {reason}"));
                }
                self.stop_when_saved();
            }
            // No step is done that the checkpoint would not have.
            _ => {
                self.dissolve(format!("stopping: {reason}"));
                self.stop_when_saved();
            }
        }
    }

    /// Whether this coordinator is about to end, with the run or without it: no more is saved than it waits for.
    fn is_going(&self) -> bool {
        self.stopping.is_some() || self.handing_over.is_some()
    }

    /// Makes way for the coordinator that is started next, after a checkpoint: should the workers have been told to go
    /// as well, what they hold is not lost.
    pub(super) fn hand_over(&mut self, reason: &str) {
        if self.stopping.is_some() || self.handing_over.is_some() {
            // Whatever it waits for, it is about to end.
            return;
        }
        self.note(format!(
            "{reason}: making way for the coordinator that is started next; the workers train on"
        ));
        let holds =
            matches!(self.phase, Phase::Training { .. } | Phase::Validating(_)) && !self.settings.test_only;
        let duty = holds.then(|| self.assign_checkpoint(Position::default(), false, None)).flatten();
        self.handing_over = Some(HandingOver { duty, since: self.now });
    }

    /// Ends this coordinator, and not the run, once what it wanted saved before is, or has taken too long.
    pub(super) fn hand_over_if_saved(&mut self) {
        let Some(HandingOver { duty, since }) = self.handing_over.filter(|_| self.stopping.is_none()) else {
            return;
        };
        if matches!(self.phase, Phase::Ended) {
            return;
        }
        let saving = duty.is_some_and(|duty| self.duties.is_open(duty));
        // What those hold that leave may be all that there is; they are released once it is safe.
        let leaving = match &self.phase {
            Phase::Gathering { asked, .. } => {
                !asked.is_empty() || self.members.iter().any(|(_, m)| m.leaving.is_some() && !m.released)
            }
            _ => false,
        };
        let late = self.now.saturating_sub(since) >= self.settings.stop_deadline;
        if late || !(saving || leaving) {
            self.phase = Phase::Ended;
            self.command(Command::HandOver);
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
        if let Phase::Gathering { asked, .. } = &self.phase
            && !asked.is_empty()
        {
            return;
        }
        let saved = self.history.newest().map_or(self.beginning(), |written| written.position);
        match self.furthest().filter(|(_, at)| *at > saved) {
            Some((writer, at)) => {
                let duty = self.assign_to(writer, at);
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
        let held = self
            .members
            .iter()
            .filter_map(|(id, m)| Some((m.held?, m.leaving.is_none(), std::cmp::Reverse(m.rank), id)));
        held.max().map(|(position, .., id)| (id, position))
    }

    /// A worker cannot go on and neither can the run: it saves what it has trained, then the run fails.
    pub(super) fn fault(&mut self, worker: WorkerId, reason: String) {
        if self.stopping.as_ref().is_some_and(|stopping| stopping.failed) {
            // The first of them is being dealt with; what fails on all ranks alike comes from each.
            return;
        }
        let trained = |m: &Member| m.held.is_some_and(|at| at > Position::default());
        let holds = self.members.get(worker).is_some_and(trained);
        if !holds || !matches!(self.phase, Phase::Training { .. } | Phase::Validating(_)) {
            return self.fail(reason);
        }
        self.fail_once_saved(worker, reason);
    }

    /// Has `writer` write what it holds; then the run fails.
    fn fail_once_saved(&mut self, writer: WorkerId, reason: String) {
        self.warn(format!("{reason}; saving what has been trained"));
        let duty = self.assign_to(writer, Position::default());
        self.stopping = Some(Stopping { reason, failed: true, duty: Some(duty), since: self.now });
    }

    /// Nothing can be done any more but to save what is held.
    pub(super) fn give_up(&mut self, reason: String) {
        match self.furthest() {
            Some((writer, at)) if at > self.beginning() => self.fail_once_saved(writer, reason),
            _ => self.fail(reason),
        }
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
