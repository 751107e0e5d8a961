//! What people see of the run: sentences, decisions, and the status at one moment.

use std::time::Duration;

use super::{Phase, Run};
use crate::membership::Member;
use crate::{Observation, Rank, Status, WorkerState, WorkerStatus};

/// Most workers in a row that are announced one by one as they come.
const ANNOUNCED: u32 = 16;

/// Longest that those that come in a crowd are only counted.
const CROWD: Duration = Duration::from_secs(2);

/// Workers that have come, for a log that says so in as few lines as is useful.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// Since the last tick; announced since nobody came for a tick; and not announced yet.
    since_tick: u32,
    announced: u32,
    counted: u32,
    /// When the crowd was last summed up.
    summed_up: Duration,
}

impl Run {
    /// Says that a worker has come. Ten thousand that come together are not ten thousand lines.
    pub(super) fn note_arrival(&mut self, member: &Member) {
        self.arrivals.since_tick += 1;
        if self.arrivals.announced >= ANNOUNCED {
            self.arrivals.counted += 1;
            return;
        }
        self.arrivals.announced += 1;
        self.arrivals.summed_up = self.now;
        let Member { rank, hello, .. } = member;
        let (who, device, world) = (member.describe(), &hello.device, self.settings.workers);
        self.note(match &hello.standing {
            Some(_) => format!("{who} is back on {device}"),
            None if rank.0 >= world => format!("{who} joined on {device}, to stand by"),
            None => format!("{who} joined as rank {rank} of {world} on {device}"),
        });
    }

    /// Says how many have come that were not announced, once no more come or for a while have.
    pub(super) fn sum_up_arrivals(&mut self) {
        let over = std::mem::take(&mut self.arrivals.since_tick) == 0;
        if over {
            self.arrivals.announced = 0;
        }
        if !over && self.now.saturating_sub(self.arrivals.summed_up) < CROWD {
            return;
        }
        self.arrivals.summed_up = self.now;
        let seats = self.settings.workers.saturating_add(self.settings.spares);
        match std::mem::take(&mut self.arrivals.counted) {
            0 => {}
            1 => self.note(format!("another worker came; {} of {seats} seats are taken", self.members.len())),
            more => {
                self.note(format!(
                    "{more} more workers came; {} of {seats} seats are taken",
                    self.members.len()
                ));
            }
        }
    }

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
