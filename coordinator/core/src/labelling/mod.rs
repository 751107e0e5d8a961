//! Label maps made by several workers: who has which range of the data set's images.
//!
//! ```text
//!             a worker is free              its report
//!   waiting ────────────────────▶ handed out ──────────▶ done
//!      ▲                              │
//!      └── its worker left, is silent,┘
//!          or failed on it
//! ```
//!
//! [`Labelling::handle`] is all there is, as [`crate::Run::handle`] is for training: the driver passes events and the
//! time in, and carries the commands out. A map on the disk is the truth about an image, so nothing
//! is kept for a next start: ranges whose maps are all there are then soon done.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use crate::WorkerId;

/// Most images of a range: what is lost at most with a worker, and a small part of a large data set.
const LONGEST: u64 = 512;
/// Ranges of a data set that would do with shorter ones, so that the last to end keeps the others waiting little.
const RANGES: u64 = 64;
/// Workers that may fail on one range before it is taken for the range's fault, not theirs.
const FAULTS: u32 = 3;

/// What a labelling is told when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabellingSettings {
    /// Images in one forward pass, at least 1; ranges are whole batches.
    pub batch: u32,
    /// A worker that has said nothing for so long is lost.
    pub dead_after: Duration,
}

/// What a worker sees: the same for all, or their ranges would mean different images, and their maps different
/// things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Number of images.
    pub samples: u64,
    /// A hash over their class and file names in order, in hexadecimal.
    pub fingerprint: String,
    /// A hash over what the maps are made with, in hexadecimal.
    pub recipe: String,
}

/// What a worker did with a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeReport {
    /// The images, as they were handed out.
    pub range: Range<u64>,
    /// Maps that it made.
    pub made: u64,
    /// Maps that were there already.
    pub there: u64,
    /// A line for each image that could not be read.
    pub unreadable: Vec<String>,
}

/// What a worker says. Anything said counts as a sign of life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromLabeller {
    /// Nothing but that it is alive.
    Alive,
    /// It has opened the data and the annotator, and wants a range.
    Ready(Seen),
    /// It has done a range and wants the next.
    Done(RangeReport),
    /// It cannot go on, for this reason.
    Fault(String),
}

/// What can happen to a labelling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelEvent {
    /// A worker's stream has opened. `name` is for sentences: `process 4711 on node7`.
    Joined { worker: WorkerId, name: String },
    /// A worker has said something.
    Said { worker: WorkerId, message: FromLabeller },
    /// A worker's stream has ended.
    Left { worker: WorkerId, reason: String },
    /// Time has passed.
    Tick,
}

/// What is to be done about it, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelCommand {
    /// Give a worker these images.
    Hand { worker: WorkerId, range: Range<u64> },
    /// End a worker's stream: it may come back.
    Drop { worker: WorkerId, reason: String },
    /// End a worker's stream: it cannot take part.
    Refuse { worker: WorkerId, reason: String },
    /// Tell the log.
    Note(String),
    /// Tell the log, as something that is wrong.
    Warn(String),
    /// Show how far it is.
    Show(LabelTally),
    /// All is done, or cannot be.
    End(Result<LabelTally, String>),
}

/// How many images are done, and how they came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LabelTally {
    /// Images of the data set.
    pub samples: u64,
    /// Maps that were made.
    pub made: u64,
    /// Maps that were there already.
    pub there: u64,
    /// Images that could not be read.
    pub unreadable: u64,
}

impl LabelTally {
    /// Images that nobody has to see to any more.
    pub fn done(&self) -> u64 {
        self.made + self.there + self.unreadable
    }
}

#[derive(Debug, Clone)]
struct Labeller {
    name: String,
    last_heard: Duration,
    ready: bool,
    /// The range that it has, by number.
    has: Option<u64>,
}

/// One labelling.
#[derive(Debug, Clone)]
pub struct Labelling {
    settings: LabellingSettings,
    workers: BTreeMap<WorkerId, Labeller>,
    /// What the first worker saw.
    seen: Option<Seen>,
    /// Images of a range; the last one may have fewer.
    length: u64,
    /// Ranges by number that nobody has.
    waiting: BTreeSet<u64>,
    done: BTreeSet<u64>,
    /// Workers that have failed on a range.
    faults: BTreeMap<u64, u32>,
    tally: LabelTally,
    /// Lines about unreadable images, by range.
    unreadable: BTreeMap<u64, Vec<String>>,
    ended: bool,
}

impl Labelling {
    /// Nothing is known of the data until the first worker has opened it.
    pub fn new(settings: LabellingSettings) -> Self {
        Self {
            settings,
            workers: BTreeMap::new(),
            seen: None,
            length: 1,
            waiting: BTreeSet::new(),
            done: BTreeSet::new(),
            faults: BTreeMap::new(),
            tally: LabelTally::default(),
            unreadable: BTreeMap::new(),
            ended: false,
        }
    }

    /// A line for each image that could not be read, in the order of the images.
    pub fn unreadable(&self) -> impl Iterator<Item = &str> {
        self.unreadable.values().flatten().map(String::as_str)
    }

    /// Takes note of `event` at `now`, a time since some fixed moment, and says what is to be done.
    pub fn handle(&mut self, now: Duration, event: LabelEvent) -> Vec<LabelCommand> {
        let mut commands = Vec::new();
        if self.ended {
            return commands;
        }
        match event {
            LabelEvent::Joined { worker, name } => {
                self.workers.insert(worker, Labeller { name, last_heard: now, ready: false, has: None });
            }
            LabelEvent::Left { worker, reason } => self.lose(worker, &reason, &mut commands),
            LabelEvent::Said { worker, message } => {
                if let Some(labeller) = self.workers.get_mut(&worker) {
                    labeller.last_heard = now;
                }
                match message {
                    FromLabeller::Alive => {}
                    FromLabeller::Ready(seen) => self.ready(worker, seen, &mut commands),
                    FromLabeller::Done(report) => self.done(worker, report, &mut commands),
                    FromLabeller::Fault(reason) => self.fault(worker, &reason, &mut commands),
                }
            }
            LabelEvent::Tick => self.expire(now, &mut commands),
        }
        self.hand_out(&mut commands);
        commands
    }

    fn ready(&mut self, worker: WorkerId, seen: Seen, commands: &mut Vec<LabelCommand>) {
        let Some(labeller) = self.workers.get_mut(&worker) else { return };
        let first = self.seen.get_or_insert_with(|| seen.clone());
        let differs = if (first.samples, &first.fingerprint) != (seen.samples, &seen.fingerprint) {
            format!(
                "it sees other images than the first worker did ({} against {}): give every host the same data set",
                seen.samples, first.samples
            )
        } else if first.recipe != seen.recipe {
            "its weights are not those of the first worker: give every host the same files".to_owned()
        } else {
            labeller.ready = true;
            commands.push(LabelCommand::Note(format!("{} joined", labeller.name)));
            return self.plan(seen.samples, commands);
        };
        let name = self.workers.remove(&worker).map_or_else(String::new, |labeller| labeller.name);
        commands.push(LabelCommand::Warn(format!("{name} was refused: {differs}")));
        commands.push(LabelCommand::Refuse { worker, reason: differs });
    }

    /// Cuts the data set into ranges, once.
    fn plan(&mut self, samples: u64, commands: &mut Vec<LabelCommand>) {
        if self.tally.samples > 0 {
            return;
        }
        let batch = u64::from(self.settings.batch.max(1));
        self.length = samples.div_ceil(RANGES).clamp(1, LONGEST).next_multiple_of(batch);
        self.waiting = (0..samples.div_ceil(self.length)).collect();
        self.tally.samples = samples;
        if samples == 0 {
            self.end(Err("the data set has no images".into()), commands);
        }
    }

    fn range(&self, number: u64) -> Range<u64> {
        let first = number * self.length;
        first..first.saturating_add(self.length).min(self.tally.samples)
    }

    /// Takes a report, also a late one of a worker that was given up: its maps stand on the disk.
    fn done(&mut self, worker: WorkerId, report: RangeReport, commands: &mut Vec<LabelCommand>) {
        let number = report.range.start / self.length;
        let images = report.range.end.saturating_sub(report.range.start);
        let counted = [report.made, report.there, report.unreadable.len() as u64]
            .into_iter()
            .try_fold(0, u64::checked_add);
        let planned = !report.range.is_empty() && self.range(number) == report.range;
        if !planned || counted != Some(images) {
            let reason = format!("it reports images {:?} as none were handed out", report.range);
            self.lose(worker, &reason, commands);
            return commands.push(LabelCommand::Refuse { worker, reason });
        }
        if let Some(labeller) = self.workers.get_mut(&worker)
            && labeller.has == Some(number)
        {
            labeller.has = None;
        }
        if !self.done.insert(number) {
            return;
        }
        self.waiting.remove(&number);
        self.tally.made += report.made;
        self.tally.there += report.there;
        self.tally.unreadable += report.unreadable.len() as u64;
        if !report.unreadable.is_empty() {
            self.unreadable.insert(number, report.unreadable);
        }
        commands.push(LabelCommand::Show(self.tally));
        if self.tally.done() == self.tally.samples {
            self.end(Ok(self.tally), commands);
        }
    }

    fn fault(&mut self, worker: WorkerId, reason: &str, commands: &mut Vec<LabelCommand>) {
        let on = self.workers.get(&worker).and_then(|labeller| labeller.has);
        self.lose(worker, reason, commands);
        commands.push(LabelCommand::Drop { worker, reason: "its fault was noted".into() });
        let Some(number) = on else { return };
        let faults = self.faults.entry(number).or_default();
        *faults += 1;
        if *faults == FAULTS {
            let range = self.range(number);
            let last = range.end - 1;
            let words = format!("{FAULTS} workers failed on images {} to {last}: {reason}", range.start);
            self.end(Err(words), commands);
        }
    }

    /// Gives a worker up; what it had waits for another.
    fn lose(&mut self, worker: WorkerId, reason: &str, commands: &mut Vec<LabelCommand>) {
        let Some(labeller) = self.workers.remove(&worker) else { return };
        let again = match labeller.has {
            Some(number) if !self.done.contains(&number) => {
                self.waiting.insert(number);
                let Range { start, end } = self.range(number);
                format!("; images {start} to {} are handed out again", end - 1)
            }
            _ => String::new(),
        };
        commands.push(LabelCommand::Warn(format!("{} left: {reason}{again}", labeller.name)));
    }

    fn expire(&mut self, now: Duration, commands: &mut Vec<LabelCommand>) {
        let patience = self.settings.dead_after;
        let silent: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, labeller)| now.saturating_sub(labeller.last_heard) > patience)
            .map(|(&worker, _)| worker)
            .collect();
        for worker in silent {
            let reason = format!("it said nothing for {} s", patience.as_secs());
            self.lose(worker, &reason, commands);
            commands.push(LabelCommand::Drop { worker, reason });
        }
    }

    fn hand_out(&mut self, commands: &mut Vec<LabelCommand>) {
        if self.ended {
            return;
        }
        let free = |labeller: &Labeller| labeller.ready && labeller.has.is_none();
        while let Some(worker) = self.workers.iter().find(|(_, l)| free(l)).map(|(&worker, _)| worker) {
            let Some(number) = self.waiting.pop_first() else { return };
            if let Some(labeller) = self.workers.get_mut(&worker) {
                labeller.has = Some(number);
            }
            commands.push(LabelCommand::Hand { worker, range: self.range(number) });
        }
    }

    fn end(&mut self, outcome: Result<LabelTally, String>, commands: &mut Vec<LabelCommand>) {
        self.ended = true;
        commands.push(LabelCommand::End(outcome));
    }
}
