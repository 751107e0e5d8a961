//! When a checkpoint is due, who writes it, and which old ones go.

use std::collections::BTreeMap;

use crate::{DutyId, History, Position, Settings, WorkerId};

/// Orders to write a checkpoint that have not been answered. The state is the same on every rank after
/// every step, so any worker could write; the lowest rank that holds it does, rank 0 as a rule, which reads it back on a
/// resume.
#[derive(Debug, Clone)]
pub(crate) struct Duties {
    last: u64,
    open: BTreeMap<DutyId, Duty>,
}

#[derive(Debug, Clone, Copy)]
struct Duty {
    writer: WorkerId,
    at: Position,
    /// The epoch whose state is to be kept as the best.
    best: Option<u32>,
}

impl Duties {
    /// Of a coordinator that has been `resumed` so often: what was ordered in another of its lives has other numbers.
    pub fn new(resumed: u32) -> Self {
        Self { last: u64::from(resumed) << 32, open: BTreeMap::new() }
    }

    /// `best` is the epoch whose state is to be kept as the best, if this is one.
    pub fn assign(&mut self, writer: WorkerId, at: Position, best: Option<u32>) -> DutyId {
        self.last += 1;
        self.open.insert(DutyId(self.last), Duty { writer, at, best });
        DutyId(self.last)
    }

    /// Whether a duty of an earlier life of the coordinator may have this number.
    pub fn is_of_an_earlier_life(&self, duty: DutyId) -> bool {
        duty.0 >> 32 < self.last >> 32
    }

    /// The state that a duty asks for.
    pub fn at(&self, duty: DutyId) -> Option<Position> {
        self.open.get(&duty).map(|open| open.at)
    }

    /// Whether `writer`, which holds the state of `held`, has anything to write now: not what lies ahead of it.
    pub fn burdens(&self, writer: WorkerId, held: Option<Position>) -> bool {
        self.open.values().any(|open| open.writer == writer && Some(open.at) <= held)
    }

    /// Whether the state of `at`, asked for by its position, is being written.
    pub fn writes(&self, at: Position) -> bool {
        self.open.values().any(|open| open.at == at)
    }

    /// Takes an answered duty off the list; false if there is no such duty of this writer.
    pub fn close(&mut self, duty: DutyId, writer: WorkerId) -> bool {
        match self.open.get(&duty) {
            Some(open) if open.writer == writer => self.open.remove(&duty).is_some(),
            _ => false,
        }
    }

    /// Forgets what a lost worker was to write; returns the epochs among it that were to be kept as the best.
    pub fn forget(&mut self, writer: WorkerId) -> Vec<u32> {
        let lost: Vec<_> = self.open.values().filter(|open| open.writer == writer).copied().collect();
        self.open.retain(|_, open| open.writer != writer);
        lost.into_iter().filter_map(|duty| duty.best).collect()
    }

    /// Forgets what nobody is going to write: the states that `lie_ahead` of a writer that trains no more.
    pub fn forget_what_lies_ahead(&mut self, lie_ahead: impl Fn(WorkerId, Position) -> bool) {
        self.open.retain(|_, open| !lie_ahead(open.writer, open.at));
    }

    #[cfg(test)]
    pub fn writers(&self) -> Vec<WorkerId> {
        self.open.values().map(|open| open.writer).collect()
    }

    pub fn is_open(&self, duty: DutyId) -> bool {
        self.open.contains_key(&duty)
    }

    /// Whether one waits for another to be written. Each that waits is a copy of the state in its writer's memory.
    pub fn are_waiting(&self) -> bool {
        self.open.len() > 1
    }

    /// Whether a state is being written that is to be kept as the best.
    pub fn writes_the_best(&self) -> bool {
        self.open.values().any(|open| open.best.is_some())
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// The next position within the epoch, after `from`, whose state is to be saved.
pub(crate) fn next_within_epoch(
    from: Position,
    steps_per_epoch: u64,
    settings: &Settings,
) -> Option<Position> {
    let every = settings.checkpoint_every_steps;
    if every == 0 {
        return None;
    }
    let step = (from.step / every + 1) * every;
    (step < steps_per_epoch).then_some(Position { epoch: from.epoch, step })
}

/// Whether the end of `epoch` is to be saved.
pub(crate) fn due_after_epoch(epoch: u32, is_best: bool, settings: &Settings) -> bool {
    let every = settings.checkpoint_every_epochs;
    is_best || epoch + 1 >= settings.epochs || (every > 0 && (epoch + 1).is_multiple_of(every))
}

/// Committed files beyond the newest `keep`, oldest first.
pub(crate) fn retired(history: &History, keep: usize) -> Vec<String> {
    let excess = history.checkpoints.len().saturating_sub(keep.max(1));
    history.checkpoints[..excess].iter().map(|written| written.file.clone()).collect()
}
