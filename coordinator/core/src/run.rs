//! The run: one value that every event changes and every command comes from.
//!
//! This file holds the state and says what each event means; what happens within a phase stands in
//! `run/forming.rs` (from workers to a generation), `run/dissolving.rs` (and back), `run/changing.rs` (newcomers,
//! those that leave, slow ranks), `run/reuniting.rs` (a coordinator that was away), `run/training.rs` (steps,
//! validation, epochs) and `run/saving.rs` (checkpoints and the end).

mod changing;
#[cfg(test)]
mod consistency;
mod dissolving;
mod forming;
mod reuniting;
mod saving;
mod showing;
mod training;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::checkpoint::Duties;
use crate::decision::Decisions;
use crate::history::{Fact, History};
use crate::membership::{Member, Membership};
use crate::straggler::Stragglers;
use crate::validation::Validation;
use crate::{
    Command, DutyId, Event, FromWorker, Generation, Hello, Outcome, Position, Rank, Rejection, Settings,
    StepReport, ToWorker, WorkerId, shards,
};

/// A gap between two ticks that says that this process stood still: ticks come several times a second.
const STALL: Duration = Duration::from_secs(1);

/// A training run. See the crate's documentation for the way it goes.
#[derive(Debug)]
pub struct Run {
    settings: Settings,
    history: History,
    members: Membership,
    phase: Phase,
    /// Why the run is in its phase, as words, and what was decided before.
    reason: String,
    decisions: Decisions,
    generation: Generation,
    /// The members of the newest generation by their ranks in it; those that are lost are taken out.
    ring: BTreeMap<WorkerId, Rank>,
    /// The same by rank.
    places: BTreeMap<Rank, WorkerId>,
    arrivals: showing::Arrivals,
    formations: Formations,
    /// Whether this life of the coordinator has shown what is to be trained.
    planned: bool,
    duties: Duties,
    /// Workers whose last checkpoint could not be written: others come first.
    failed_writers: BTreeSet<WorkerId>,
    /// When a checkpoint was last ordered.
    saved_at: Duration,
    stragglers: Stragglers,
    /// The next step whose numbers have not been shown; unknown to a coordinator that was away.
    shown: Option<Position>,
    /// What workers have said meanwhile that steps were like, each as far as it knows of them.
    heard: BTreeMap<Position, StepReport>,
    loss: Option<f64>,
    /// Mean training loss of the epoch as of the last step shown.
    epoch_loss: f64,
    epoch_skipped: u64,
    epoch_began: Duration,
    stopping: Option<Stopping>,
    /// This coordinator is to make way for another.
    handing_over: Option<HandingOver>,
    /// When time was last seen to pass.
    ticked: Duration,
    /// The time of the event being handled, and the commands that it has led to.
    now: Duration,
    commands: Vec<Command>,
}

#[derive(Debug)]
enum Phase {
    /// A restarted coordinator waits for a generation that trained on without it.
    Reuniting {
        since: Duration,
        world: u32,
    },
    /// Not everybody is here, or not all of those that were `asked` have left the ring and said what they hold.
    Gathering {
        since: Duration,
        asked: BTreeSet<WorkerId>,
    },
    /// The ranks build their ring and take the source's state.
    Forming {
        position: Position,
        waiting: BTreeSet<WorkerId>,
    },
    /// `done` have come to the end of the epoch.
    Training {
        epoch: u32,
        done: BTreeSet<WorkerId>,
    },
    Validating(Validation),
    /// Nothing is left but a checkpoint to be committed.
    Saving,
    Ended,
}

/// How the forming of generations goes.
#[derive(Debug, Default)]
struct Formations {
    /// Those in a row that came to nothing, and when the first of them did.
    failed: u32,
    failing_since: Duration,
    /// No generation is formed before.
    not_before: Duration,
    /// The newest generation whose ranks were told to leave their ring at once.
    dissolved: Generation,
    /// When the newest generation began to train.
    trained_at: Option<Duration>,
    /// In how many generations a worker was to blame for the end of the ring, since one last trained.
    blamed: BTreeMap<WorkerId, BTreeSet<Generation>>,
}

#[derive(Debug)]
struct Stopping {
    reason: String,
    /// The run ends as failed, with this reason, and not as interrupted.
    failed: bool,
    /// The checkpoint that it waits for.
    duty: Option<DutyId>,
    since: Duration,
}

#[derive(Debug, Clone, Copy)]
struct HandingOver {
    /// The checkpoint that it waits for.
    duty: Option<DutyId>,
    since: Duration,
}

impl Run {
    /// A run that goes on from what `history` says, an empty one from the beginning.
    pub fn new(settings: Settings, history: History) -> Self {
        let phase = match history.world {
            0 => Phase::Gathering { since: Duration::ZERO, asked: BTreeSet::new() },
            world => Phase::Reuniting { since: Duration::ZERO, world },
        };
        Self {
            members: Membership::new(settings.workers.saturating_add(settings.spares)),
            duties: Duties::new(history.resumed),
            generation: history.generation,
            stragglers: Stragglers::new(settings.stragglers),
            settings,
            history,
            phase,
            reason: "waiting for workers".into(),
            decisions: Decisions::default(),
            ring: BTreeMap::new(),
            places: BTreeMap::new(),
            arrivals: showing::Arrivals::default(),
            formations: Formations::default(),
            planned: false,
            failed_writers: BTreeSet::new(),
            saved_at: Duration::ZERO,
            shown: None,
            heard: BTreeMap::new(),
            loss: None,
            epoch_loss: f64::NAN,
            epoch_skipped: 0,
            epoch_began: Duration::ZERO,
            stopping: None,
            handing_over: None,
            ticked: Duration::ZERO,
            now: Duration::ZERO,
            commands: Vec::new(),
        }
    }

    /// Takes one event, which happened at `now` (time since the coordinator started, never going back),
    /// and returns what is to be done about it, in order.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Command> {
        self.now = now;
        match event {
            Event::Joined { worker, hello } => self.joined(worker, hello),
            // Even then: the command to end may be among those that could not be carried out.
            Event::Broken { reason } => self.fail(reason),
            _ if matches!(self.phase, Phase::Ended) => {}
            Event::Said { worker, message } => self.said(worker, message),
            Event::Left { worker, reason } => self.lost(worker, &reason),
            Event::Stop { reason } => self.stop(reason),
            Event::Save { reason } => self.save(&reason),
            Event::HandOver { reason } => self.hand_over(&reason),
            Event::Tick => self.tick(),
        }
        self.hand_over_if_saved();
        std::mem::take(&mut self.commands)
    }

    fn joined(&mut self, worker: WorkerId, hello: Hello) {
        let seat = self.seat(&hello);
        let rank = match seat {
            Ok(rank) => rank,
            Err(rejection) => return self.command(Command::Reject { worker, rejection }),
        };
        let standing = hello.standing.clone();
        let member = Member {
            rank,
            hello,
            dataset: None,
            held: standing.as_ref().and_then(|standing| standing.held),
            in_line: false,
            last_heard: self.now,
            unsettled: false,
            leaving: None,
            released: false,
            slow: false,
        };
        self.note_arrival(&member);
        let world = self.settings.workers;
        if let Phase::Gathering { since, .. } = &mut self.phase
            && self.members.len() == 0
        {
            // The first to come: from now on the others are waited for.
            *since = self.now;
        }
        self.members.insert(worker, member);
        self.command(Command::Welcome { worker, rank, world });
        if let Some(standing) = standing {
            self.is_back(worker, &standing);
        }
    }

    /// The seat of a worker that has come, or come back.
    fn seat(&mut self, hello: &Hello) -> Result<Rank, Rejection> {
        if matches!(self.phase, Phase::Ended | Phase::Saving) {
            return Err(Rejection::Over);
        }
        if let Some(standing) = &hello.standing
            && standing.run_id != self.settings.run_id
        {
            return Err(Rejection::OtherRun {
                here: self.settings.run_id.clone(),
                theirs: standing.run_id.clone(),
            });
        }
        // The same process: its old stream is dead, whether or not that has been noticed.
        if let Some(old) = self.members.of_instance(hello.instance) {
            let reason = "the same process has come by another connection".to_owned();
            // Should this one be the late one, the process comes again.
            self.command(Command::Expel { worker: old, reason: reason.clone(), back: true });
            self.lost(old, &reason);
        }
        match self.members.seat_for(hello) {
            // It brings what others have not.
            Err(Rejection::Full { .. }) if hello.standing.as_ref().is_some_and(|s| s.held.is_some()) => {
                self.make_room();
                self.members.seat_for(hello)
            }
            seat => seat,
        }
    }

    fn said(&mut self, worker: WorkerId, message: FromWorker) {
        let now = self.now;
        let Some(member) = self.members.get_mut(worker) else { return };
        member.last_heard = now;
        match message {
            FromWorker::Heartbeat => {}
            FromWorker::Indexed(dataset) => self.indexed(worker, dataset),
            FromWorker::NcclId { generation, id } => self.nccl_id(worker, generation, id),
            FromWorker::Ready { generation, held, epoch_loss } => {
                self.ready(worker, generation, held, epoch_loss);
            }
            FromWorker::RestoreFailed { generation, file, reason } => {
                self.restore_failed(worker, generation, file, reason);
            }
            FromWorker::Progress { generation, position, steps, pace } => {
                self.progressed(worker, generation, position, &steps, pace);
            }
            FromWorker::Held { generation, held, steps, reason, blamed } => {
                self.held(worker, generation, held, &steps, &reason, blamed);
            }
            FromWorker::Validating { generation, done } => self.validating(worker, generation, done),
            FromWorker::Validated { generation, part } => self.validated(worker, generation, &part),
            FromWorker::CheckpointWritten { duty, written } => self.checkpoint_written(worker, duty, written),
            FromWorker::CheckpointFailed { duty, reason } => self.checkpoint_failed(worker, duty, &reason),
            FromWorker::Fault { reason } => {
                let who = self.describe(worker);
                self.fault(worker, format!("{who}: {reason}"));
            }
            FromWorker::Leaving { reason } => self.wants_to_leave(worker, &reason),
        }
    }

    /// A worker is gone, or as good as gone.
    fn lost(&mut self, worker: WorkerId, reason: &str) {
        let Some(member) = self.members.remove(worker) else { return };
        let place = self.ring.remove(&worker);
        if let Some(rank) = place {
            self.places.remove(&rank);
        }
        let in_ring = place.is_some();
        self.stragglers.forget(worker);
        self.formations.blamed.remove(&worker);
        self.failed_writers.remove(&worker);
        for epoch in self.duties.forget(worker) {
            // It counts as the best no longer: no file holds it.
            self.persist(Fact::BestLost { epoch });
        }
        if self.stopping.as_ref().is_some_and(|stopping| stopping.failed) && !self.stop_is_saving() {
            // It alone was to save what it held.
            return self.stopped();
        }
        let who = member.describe();
        let words = match member.released {
            true => format!("{who} has left"),
            false => format!("{who} was lost: {reason}"),
        };
        let complete = self.is_complete();
        match &mut self.phase {
            Phase::Gathering { since, asked } => {
                *since = self.now;
                if asked.remove(&worker) && !asked.is_empty() {
                    // Its peers may be waiting for it in the ring.
                    let left = asked.clone();
                    self.tell_to_leave(&left, &words);
                }
                if member.released {
                    self.note(words)
                } else {
                    self.warn(words)
                }
                self.stop_when_saved();
                self.try_form();
            }
            // All is trained: nobody is needed but the one that writes.
            Phase::Saving if !in_ring || complete || !self.duties.is_empty() => {
                self.warn(words);
                self.save_and_finish();
            }
            Phase::Reuniting { .. } => self.warn(words),
            _ if in_ring => self.regroup(words),
            _ if member.released => self.note(words),
            _ => self.warn(words),
        }
    }

    fn tick(&mut self) {
        if self.now.saturating_sub(self.ticked) > STALL {
            // It was this process that stood still; what was said meanwhile is still to be read.
            self.members.iter_mut().for_each(|(_, member)| member.last_heard = self.now);
        }
        self.ticked = self.now;
        self.sum_up_arrivals();
        let silent: Vec<_> = self
            .members
            .iter()
            .filter(|(_, m)| self.now.saturating_sub(m.last_heard) > self.settings.dead_after)
            .map(|(id, _)| id)
            .collect();
        for worker in silent {
            let reason = format!("nothing heard of it for {:.1} s", self.settings.dead_after.as_secs_f64());
            self.command(Command::Expel { worker, reason: reason.clone(), back: true });
            self.lost(worker, &reason);
        }
        if self.stopping.is_some() && self.members.len() == 0 {
            return self.stopped();
        }
        if let Some(stopping) = &self.stopping
            && self.now.saturating_sub(stopping.since) > self.settings.stop_deadline
        {
            self.warn("the checkpoint did not come within the deadline for stopping".into());
            return self.stopped();
        }
        match &self.phase {
            Phase::Reuniting { since, .. } if self.now.saturating_sub(*since) > self.settings.reunite_for => {
                self.waited_for_reunion();
            }
            Phase::Gathering { since, .. }
                if self.now.saturating_sub(*since) > self.settings.wait_for_workers =>
            {
                self.waited_enough();
            }
            Phase::Gathering { .. } => self.try_form(),
            Phase::Training { .. } => self.consider_changes(),
            _ => {}
        }
    }

    fn steps_per_epoch(&self) -> u64 {
        let samples = self.history.dataset.as_ref().map_or(0, |dataset| dataset.train_samples);
        shards::steps_per_epoch(samples, self.settings.global_batch)
    }

    fn command(&mut self, command: Command) {
        self.commands.push(command);
    }

    fn send(&mut self, worker: WorkerId, message: ToWorker) {
        self.command(Command::Send { worker, message });
    }

    /// Says something to every rank of the generation, in the order of their ids.
    fn send_ring(&mut self, message: &ToWorker) {
        for worker in self.ring.keys().copied().collect::<Vec<_>>() {
            self.send(worker, message.clone());
        }
    }

    fn persist(&mut self, fact: Fact) {
        self.history.apply(&fact);
        self.command(Command::Persist(fact));
    }

    fn describe(&self, worker: WorkerId) -> String {
        self.members.get(worker).map(Member::describe).unwrap_or_default()
    }

    fn end(&mut self, outcome: Outcome) {
        self.show_heard();
        for worker in self.members.ids() {
            self.send(worker, ToWorker::Finish { outcome: outcome.clone() });
        }
        self.phase = Phase::Ended;
        self.reason = match &outcome {
            Outcome::Done => "all epochs are done".into(),
            Outcome::Interrupted { reason, .. } | Outcome::Failed { reason } => reason.clone(),
        };
        self.command(Command::End(outcome));
    }

    fn fail(&mut self, reason: String) {
        self.end(Outcome::Failed { reason });
    }
}
