//! The run: one value that every event changes and every command comes from.
//!
//! This file holds the state and says what each event means; what happens within a phase stands in
//! `run/forming.rs` (from workers to a generation), `run/training.rs` (steps, validation, epochs) and
//! `run/saving.rs` (checkpoints and the end).

mod forming;
mod saving;
mod training;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::checkpoint::Duties;
use crate::history::{Fact, History};
use crate::membership::{Holding, Member, Membership};
use crate::validation::Validation;
use crate::{
    Command, DutyId, Event, FromWorker, Generation, Hello, Observation, Outcome, Position, Settings, Status,
    ToWorker, WorkerId, WorkerStatus, shards,
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
    /// Why the run is in its phase, as words.
    reason: String,
    generation: Generation,
    /// Whether this life of the coordinator has shown what is to be trained.
    planned: bool,
    /// Generations in a row that came to nothing.
    failed_formations: u32,
    duties: Duties,
    /// The next step whose numbers have not been shown.
    shown: Position,
    loss: Option<f64>,
    /// Mean training loss of the epoch as of the last step shown.
    epoch_loss: f64,
    epoch_skipped: u64,
    epoch_began: Duration,
    stopping: Option<Stopping>,
    /// When time was last seen to pass.
    ticked: Duration,
    /// The time of the event being handled, and the commands that it has led to.
    now: Duration,
    commands: Vec<Command>,
}

#[derive(Debug)]
enum Phase {
    /// Not everybody is here, or not everybody has said what they hold.
    Gathering {
        since: Duration,
    },
    /// The ranks build their ring and take the source's state.
    Forming {
        position: Position,
        waiting: BTreeSet<WorkerId>,
    },
    Training {
        epoch: u32,
    },
    Validating(Validation),
    /// Nothing is left but a checkpoint to be committed.
    Saving,
    Ended,
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

impl Run {
    /// A run that goes on from what `history` says, an empty one from the beginning.
    pub fn new(settings: Settings, history: History) -> Self {
        Self {
            settings,
            history,
            members: Membership::default(),
            phase: Phase::Gathering { since: Duration::ZERO },
            reason: "waiting for workers".into(),
            generation: Generation::default(),
            planned: false,
            failed_formations: 0,
            duties: Duties::default(),
            shown: Position::default(),
            loss: None,
            epoch_loss: f64::NAN,
            epoch_skipped: 0,
            epoch_began: Duration::ZERO,
            stopping: None,
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
            Event::Tick => self.tick(),
        }
        std::mem::take(&mut self.commands)
    }

    fn joined(&mut self, worker: WorkerId, hello: Hello) {
        let world = self.settings.workers;
        let seat = match self.phase {
            Phase::Ended | Phase::Saving => Err(crate::Rejection::Over),
            _ => self.members.seat_for(&hello, world),
        };
        let rank = match seat {
            Ok(rank) => rank,
            Err(rejection) => return self.command(Command::Reject { worker, rejection }),
        };
        let member = Member { rank, hello, dataset: None, holding: Holding::Nothing, last_heard: self.now };
        self.note(format!(
            "{} joined as rank {rank} of {world} on {}",
            member.describe(),
            member.hello.device
        ));
        self.members.insert(worker, member);
        self.command(Command::Welcome { worker, rank, world });
    }

    fn said(&mut self, worker: WorkerId, message: FromWorker) {
        let now = self.now;
        let Some(member) = self.members.get_mut(worker) else { return };
        member.last_heard = now;
        match message {
            FromWorker::Heartbeat => {}
            FromWorker::Indexed(dataset) => self.indexed(worker, dataset),
            FromWorker::Ready { generation, held, epoch_loss } => {
                self.ready(worker, generation, held, epoch_loss);
            }
            FromWorker::RestoreFailed { generation, file, reason } => {
                self.restore_failed(worker, generation, file, reason);
            }
            FromWorker::Progress { generation, position, steps } => {
                self.progressed(worker, generation, position, &steps);
            }
            FromWorker::Held { generation, held, steps, reason } => {
                self.held(worker, generation, held, &steps, &reason);
            }
            FromWorker::Validating { generation, done } => self.validating(worker, generation, done),
            FromWorker::Validated { generation, part } => self.validated(worker, generation, &part),
            FromWorker::CheckpointWritten { duty, written } => self.checkpoint_written(worker, duty, written),
            FromWorker::CheckpointFailed { duty, reason } => self.checkpoint_failed(worker, duty, &reason),
            FromWorker::Fault { reason } => {
                let who = self.members.get(worker).map(Member::describe).unwrap_or_default();
                self.fault(worker, format!("{who}: {reason}"));
            }
        }
    }

    /// A worker is gone, or as good as gone.
    fn lost(&mut self, worker: WorkerId, reason: &str) {
        let Some(member) = self.members.remove(worker) else { return };
        for epoch in self.duties.forget(worker) {
            // It counts as the best no longer: no file holds it.
            self.persist(Fact::BestLost { epoch });
        }
        if self.stopping.as_ref().is_some_and(|stopping| stopping.failed) && !self.stop_is_saving() {
            // It alone was to save what it held.
            return self.stopped();
        }
        let who = member.describe();
        match self.phase {
            Phase::Gathering { .. } => {
                self.warn(format!("{who} was lost: {reason}"));
                self.phase = Phase::Gathering { since: self.now };
                self.stop_when_saved();
            }
            // All is trained: nobody is needed but the one that writes.
            Phase::Saving if !self.duties.is_empty() => self.warn(format!("{who} was lost: {reason}")),
            _ => self.regroup(format!("{who} was lost: {reason}")),
        }
    }

    fn tick(&mut self) {
        if self.now.saturating_sub(self.ticked) > STALL {
            // It was this process that stood still; what was said meanwhile is still to be read.
            self.members.iter_mut().for_each(|(_, member)| member.last_heard = self.now);
        }
        self.ticked = self.now;
        let silent: Vec<_> = self
            .members
            .iter()
            .filter(|(_, m)| self.now.saturating_sub(m.last_heard) > self.settings.dead_after)
            .map(|(id, _)| id)
            .collect();
        for worker in silent {
            let reason = format!("nothing heard of it for {:.1} s", self.settings.dead_after.as_secs_f64());
            self.command(Command::Expel { worker, reason: reason.clone() });
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
        if let Phase::Gathering { since } = self.phase
            && self.now.saturating_sub(since) > self.settings.wait_for_workers
        {
            self.waited_enough();
        }
    }

    /// Nobody has come, or said what it holds, for `cluster.wait_for_workers`.
    fn waited_enough(&mut self) {
        let seconds = self.settings.wait_for_workers.as_secs_f64();
        if let Some(missing) = self.members.missing(self.settings.workers) {
            return self.fail(format!(
                "waited {seconds:.0} s (cluster.wait_for_workers) for {missing}: start it with `worker --coordinator URL`"
            ));
        }
        let silent = self.members.iter().filter(|(_, m)| matches!(m.holding, Holding::Asked));
        for worker in silent.map(|(id, _)| id).collect::<Vec<_>>() {
            let reason =
                format!("it has not said for {seconds:.0} s (cluster.wait_for_workers) what it holds");
            self.command(Command::Expel { worker, reason: reason.clone() });
            self.lost(worker, &reason);
        }
    }

    fn steps_per_epoch(&self) -> u64 {
        let samples = self.history.dataset.as_ref().map_or(0, |dataset| dataset.train_samples);
        shards::steps_per_epoch(samples, self.settings.global_batch)
    }

    /// The run as `coordinator status` shows it.
    pub fn status(&self, now: Duration) -> Status {
        let phase = match &self.phase {
            Phase::Gathering { .. } => "gathering",
            Phase::Forming { .. } => "forming",
            Phase::Training { .. } => "training",
            Phase::Validating(_) => "validating",
            Phase::Saving => "saving",
            Phase::Ended => "ended",
        };
        let position = |member: &Member| match member.holding {
            Holding::At(position) => Some(position),
            _ => None,
        };
        Status {
            phase: phase.into(),
            reason: self.reason.clone(),
            generation: self.generation.0,
            position: (self.generation.0 > 0).then_some(self.shown),
            steps_per_epoch: self.history.dataset.is_some().then(|| self.steps_per_epoch()),
            epochs: self.settings.epochs,
            world: self.settings.workers,
            loss: self.loss,
            best_top1: self.history.best().map(|(_, top1)| top1),
            checkpoint: self.history.newest().map(|written| written.file.clone()),
            workers: self
                .members
                .by_rank()
                .into_iter()
                .map(|(_, m)| WorkerStatus {
                    rank: m.rank,
                    host: m.hello.host.clone(),
                    pid: m.hello.pid,
                    device: m.hello.device.clone(),
                    silent: now.saturating_sub(m.last_heard),
                    position: position(m),
                })
                .collect(),
        }
    }

    fn command(&mut self, command: Command) {
        self.commands.push(command);
    }

    fn send(&mut self, worker: WorkerId, message: ToWorker) {
        self.command(Command::Send { worker, message });
    }

    fn send_all(&mut self, message: &ToWorker) {
        for worker in self.members.ids() {
            self.send(worker, message.clone());
        }
    }

    fn persist(&mut self, fact: Fact) {
        self.history.apply(&fact);
        self.command(Command::Persist(fact));
    }

    fn observe(&mut self, observation: Observation) {
        self.command(Command::Observe(observation));
    }

    fn note(&mut self, words: String) {
        self.observe(Observation::Note(words));
    }

    fn warn(&mut self, words: String) {
        self.observe(Observation::Warning(words));
    }

    fn end(&mut self, outcome: Outcome) {
        self.send_all(&ToWorker::Finish { outcome: outcome.clone() });
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
