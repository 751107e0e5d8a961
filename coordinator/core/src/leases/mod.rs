//! Ranges of samples for workers that come and go: who has which of them.
//!
//! ```text
//!             a worker is free              its report
//!   waiting ────────────────────▶ handed out ──────────▶ done
//!      ▲                              │
//!      └── its worker left, is silent,┘
//!          or failed on it
//! ```
//!
//! [`Leases::handle`] is all there is, as [`crate::Run::handle`] is for training: the driver passes events and the
//! time in, and carries the commands out. What is done with the samples is its [`Work`]: label maps are made of them
//! ([`crate::labelling`]), or a network is evaluated on them ([`crate::evaluation`]). A range counts once, with the
//! first report of it, whoever that is from.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::ops::Range;
use std::time::Duration;

use crate::WorkerId;

/// Most images of a range: what is lost at most with a worker, and a small part of a large data set.
const LONGEST: u64 = 512;
/// Ranges of a folder that would do with shorter ones, so that the last to end keeps the others waiting little.
const RANGES: u64 = 64;
/// Workers that may fail on one range before it is taken for the range's fault, not theirs.
const FAULTS: u32 = 3;

/// Images of a range in a folder of `samples`, but for its last one: whole batches of `batch`, at least 1.
pub fn range_length(samples: u64, batch: u32) -> u64 {
    samples.div_ceil(RANGES).clamp(1, LONGEST).next_multiple_of(batch.max(1).into())
}

/// What is done with the samples: what the workers must agree on, and what becomes of their reports.
pub trait Work: Debug + Clone + PartialEq {
    /// What it is called, for sentences: `labelling`.
    const NAME: &'static str;
    /// What it has done with an image: `labelled`.
    const PAST: &'static str;
    /// What a worker sees. It has to be the same for all, or their ranges would mean different images, and their
    /// reports different things.
    type Seen: Debug + Clone + PartialEq;
    /// What comes of a range.
    type Report: Debug + Clone + PartialEq;

    /// Takes note of what a worker sees, and returns the number of samples by folder.
    ///
    /// # Errors
    /// How it differs from what the first worker saw.
    fn admit(&mut self, seen: Self::Seen) -> Result<Vec<u64>, String>;

    /// Adds the first report on a range. Returns how many of its samples took time, for the speed that is shown.
    ///
    /// # Errors
    /// Why nothing is added of what makes no sense.
    fn add(&mut self, piece: &Piece, report: Self::Report) -> Result<u64, String>;

    /// The name of a range, for sentences.
    fn describe(&self, piece: &Piece) -> String {
        format!("images {} to {}", piece.samples.start, piece.samples.end.saturating_sub(1))
    }
}

/// A range of the samples of one folder of class folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The folder, by its number in what the workers see.
    pub folder: u32,
    /// Its samples, by their number in the order of class folders and file names.
    pub samples: Range<u64>,
}

impl Piece {
    /// Number of samples.
    pub fn len(&self) -> u64 {
        self.samples.end.saturating_sub(self.samples.start)
    }

    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }
}

/// What is known before the first worker comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseSettings {
    /// Images in one forward pass, at least 1; ranges are whole batches.
    pub batch: u32,
    /// A worker that has said nothing for so long is lost.
    pub dead_after: Duration,
    /// Without any worker for so long it is given up.
    pub wait_for_workers: Duration,
}

/// What a worker says. Anything said counts as a sign of life.
#[derive(Debug, Clone, PartialEq)]
pub enum FromHolder<W: Work> {
    /// Nothing but that it is alive.
    Alive,
    /// It has opened everything, and wants a range.
    Ready(W::Seen),
    /// It has done a range, as it was handed out, and wants the next.
    Done { piece: Piece, report: W::Report },
    /// It cannot go on, for this reason. With `hopeless` no other worker could either.
    Fault { reason: String, hopeless: bool },
}

/// What can happen.
#[derive(Debug, Clone, PartialEq)]
pub enum LeaseEvent<W: Work> {
    /// A worker's stream has opened. `name` is for sentences: `process 4711 on node7`.
    Joined { worker: WorkerId, name: String },
    /// A worker has said something.
    Said { worker: WorkerId, message: FromHolder<W> },
    /// A worker's stream has ended.
    Left { worker: WorkerId, reason: String },
    /// Time has passed.
    Tick,
}

/// What is to be done about it, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseCommand {
    /// Give a worker this range.
    Hand { worker: WorkerId, piece: Piece },
    /// End a worker's stream: it may come back.
    Drop { worker: WorkerId, reason: String },
    /// End a worker's stream: it cannot take part.
    Refuse { worker: WorkerId, reason: String },
    /// Tell the log.
    Note(String),
    /// Tell the log, as something that is wrong.
    Warn(String),
    /// Show how far it is.
    Show(LeaseTally),
    /// All is done, or cannot be.
    End(Result<(), String>),
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeaseTally {
    /// Samples of all folders.
    pub samples: u64,
    /// Samples that nobody has to see to any more.
    pub done: u64,
    /// Those of them that took time.
    pub worked: u64,
}

#[derive(Debug, Clone)]
struct Holder {
    name: String,
    last_heard: Duration,
    ready: bool,
    /// The range that it has, by number.
    has: Option<usize>,
}

/// All ranges of some work, and the workers that have them.
#[derive(Debug, Clone)]
pub struct Leases<W: Work> {
    work: W,
    settings: LeaseSettings,
    holders: BTreeMap<WorkerId, Holder>,
    /// When a worker was there last, and how it left; the beginning, and none, where none has come.
    last_there: (Duration, Option<String>),
    /// All ranges, in the order in which they are handed out; none before the first worker is ready.
    pieces: Vec<Piece>,
    /// Ranges by number that nobody has.
    waiting: BTreeSet<usize>,
    done: BTreeSet<usize>,
    /// Workers that have failed on a range.
    faults: BTreeMap<usize, u32>,
    tally: LeaseTally,
    ended: bool,
}

impl<W: Work> Leases<W> {
    /// Nothing is known of the samples until the first worker has opened them.
    pub fn new(work: W, settings: LeaseSettings) -> Self {
        Self {
            work,
            settings,
            holders: BTreeMap::new(),
            last_there: (Duration::ZERO, None),
            pieces: Vec::new(),
            waiting: BTreeSet::new(),
            done: BTreeSet::new(),
            faults: BTreeMap::new(),
            tally: LeaseTally::default(),
            ended: false,
        }
    }

    /// What has been reported so far.
    pub fn work(&self) -> &W {
        &self.work
    }

    /// The same, when it is over.
    pub fn into_work(self) -> W {
        self.work
    }

    /// How far it is.
    pub fn tally(&self) -> LeaseTally {
        self.tally
    }

    /// Takes note of `event` at `now`, a time since some fixed moment, and says what is to be done.
    pub fn handle(&mut self, now: Duration, event: LeaseEvent<W>) -> Vec<LeaseCommand> {
        let mut commands = Vec::new();
        if self.ended {
            return commands;
        }
        if !self.holders.is_empty() {
            self.last_there.0 = now;
        }
        match event {
            LeaseEvent::Joined { worker, name } => {
                self.holders.insert(worker, Holder { name, last_heard: now, ready: false, has: None });
            }
            LeaseEvent::Left { worker, reason } => self.lose(worker, &reason, &mut commands),
            LeaseEvent::Said { worker, message } => {
                if let Some(holder) = self.holders.get_mut(&worker) {
                    holder.last_heard = now;
                }
                match message {
                    FromHolder::Alive => {}
                    FromHolder::Ready(seen) => self.ready(worker, seen, &mut commands),
                    FromHolder::Done { piece, report } => self.done(worker, &piece, report, &mut commands),
                    FromHolder::Fault { reason, hopeless } => {
                        self.fault(worker, reason, hopeless, &mut commands);
                    }
                }
            }
            LeaseEvent::Tick => self.expire(now, &mut commands),
        }
        self.hand_out(&mut commands);
        commands
    }

    fn ready(&mut self, worker: WorkerId, seen: W::Seen, commands: &mut Vec<LeaseCommand>) {
        let Some(holder) = self.holders.get_mut(&worker) else { return };
        match self.work.admit(seen) {
            Ok(folders) => {
                holder.ready = true;
                commands.push(LeaseCommand::Note(format!("{} joined", holder.name)));
                if self.pieces.is_empty() {
                    self.plan(&folders, commands);
                }
            }
            Err(differs) => self.refuse(worker, differs, commands),
        }
    }

    /// Cuts the folders into ranges.
    fn plan(&mut self, folders: &[u64], commands: &mut Vec<LeaseCommand>) {
        for (folder, &samples) in (0..).zip(folders) {
            let length = range_length(samples, self.settings.batch);
            let firsts = (0..samples.div_ceil(length)).map(|number| number * length);
            let pieces = firsts.map(|first| first..first.saturating_add(length).min(samples));
            self.pieces.extend(pieces.map(|samples| Piece { folder, samples }));
        }
        self.waiting = (0..self.pieces.len()).collect();
        self.tally.samples = folders.iter().sum();
        if self.pieces.is_empty() {
            self.end(Err("there are no images".into()), commands);
        }
    }

    /// Takes a report, also a late one of a worker that was given up.
    fn done(&mut self, worker: WorkerId, piece: &Piece, report: W::Report, commands: &mut Vec<LeaseCommand>) {
        let order = |planned: &Piece| (planned.folder, planned.samples.start);
        let place = self.pieces.binary_search_by_key(&order(piece), order).ok();
        let Some(number) = place.filter(|&number| self.pieces[number] == *piece) else {
            let what = self.work.describe(piece);
            return self.refuse(worker, format!("it reports {what}, which were not handed out"), commands);
        };
        if !self.done.contains(&number) {
            match self.work.add(piece, report) {
                Ok(worked) => self.tally.worked += worked,
                Err(reason) => return self.refuse(worker, reason, commands),
            }
            self.done.insert(number);
            self.waiting.remove(&number);
            self.tally.done += piece.len();
            commands.push(LeaseCommand::Show(self.tally));
        }
        if let Some(holder) = self.holders.get_mut(&worker)
            && holder.has == Some(number)
        {
            holder.has = None;
        }
        if self.done.len() == self.pieces.len() {
            self.end(Ok(()), commands);
        }
    }

    fn fault(&mut self, worker: WorkerId, reason: String, hopeless: bool, commands: &mut Vec<LeaseCommand>) {
        let on = self.holders.get(&worker).and_then(|holder| holder.has);
        self.lose(worker, &reason, commands);
        if hopeless {
            return self.end(Err(reason), commands);
        }
        commands.push(LeaseCommand::Drop { worker, reason: "its fault was noted".into() });
        let Some(number) = on else { return };
        let faults = self.faults.entry(number).or_default();
        *faults += 1;
        if *faults == FAULTS {
            let what = self.work.describe(&self.pieces[number]);
            self.end(Err(format!("{FAULTS} workers failed on {what}: {reason}")), commands);
        }
    }

    /// Gives a worker up that may not come back.
    fn refuse(&mut self, worker: WorkerId, reason: String, commands: &mut Vec<LeaseCommand>) {
        self.give_up(worker, "was refused", &reason, commands);
        commands.push(LeaseCommand::Refuse { worker, reason });
    }

    fn lose(&mut self, worker: WorkerId, reason: &str, commands: &mut Vec<LeaseCommand>) {
        self.give_up(worker, "left", reason, commands);
    }

    /// Forgets a worker; what it had waits for another.
    fn give_up(&mut self, worker: WorkerId, how: &str, reason: &str, commands: &mut Vec<LeaseCommand>) {
        let Some(holder) = self.holders.remove(&worker) else { return };
        let again = match holder.has {
            Some(number) if !self.done.contains(&number) => {
                self.waiting.insert(number);
                format!("; {} are handed out again", self.work.describe(&self.pieces[number]))
            }
            _ => String::new(),
        };
        commands.push(LeaseCommand::Warn(format!("{} {how}: {reason}{again}", holder.name)));
        self.last_there.1 = Some(reason.to_owned());
    }

    fn expire(&mut self, now: Duration, commands: &mut Vec<LeaseCommand>) {
        let patience = self.settings.dead_after;
        let silent: Vec<WorkerId> = self
            .holders
            .iter()
            .filter(|(_, holder)| now.saturating_sub(holder.last_heard) > patience)
            .map(|(&worker, _)| worker)
            .collect();
        for worker in silent {
            let reason = format!("it said nothing for {} s", patience.as_secs());
            self.lose(worker, &reason, commands);
            commands.push(LeaseCommand::Drop { worker, reason });
        }
        let wait = self.settings.wait_for_workers;
        let (since, left) = &self.last_there;
        if self.holders.is_empty() && now.saturating_sub(*since) > wait {
            let (wait, LeaseTally { samples, done, .. }) = (wait.as_secs(), self.tally);
            let words = match left {
                None => format!("no worker came within {wait} s (--wait-for-workers)"),
                Some(reason) => format!(
                    "no worker is left (the last one: {reason}), and none came within {wait} s \
                     (--wait-for-workers); {done} of {samples} images are done"
                ),
            };
            self.end(Err(words), commands);
        }
    }

    fn hand_out(&mut self, commands: &mut Vec<LeaseCommand>) {
        if self.ended {
            return;
        }
        let free = |holder: &Holder| holder.ready && holder.has.is_none();
        while let Some(worker) = self.holders.iter().find(|(_, h)| free(h)).map(|(&worker, _)| worker) {
            let Some(number) = self.waiting.pop_first() else { return };
            if let Some(holder) = self.holders.get_mut(&worker) {
                holder.has = Some(number);
            }
            commands.push(LeaseCommand::Hand { worker, piece: self.pieces[number].clone() });
        }
    }

    fn end(&mut self, outcome: Result<(), String>, commands: &mut Vec<LeaseCommand>) {
        self.ended = true;
        commands.push(LeaseCommand::End(outcome));
    }
}
