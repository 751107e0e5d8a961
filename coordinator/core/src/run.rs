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
    Command, Event, FromWorker, Generation, Hello, Observation, Outcome, Position, Settings, Status,
    ToWorker, WorkerId, WorkerStatus, shards,
};

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
    /// Generations in a row that came to nothing.
    failed_formations: u32,
    duties: Duties,
    /// The next step whose numbers have not been shown.
    shown: Position,
    loss: Option<f64>,
    /// Mean training loss of the epoch as of the last step shown.
    epoch_loss: f64,
    epoch_began: Duration,
    stopping: Option<Stopping>,
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
            failed_formations: 0,
            duties: Duties::default(),
            shown: Position::default(),
            loss: None,
            epoch_loss: f64::NAN,
            epoch_began: Duration::ZERO,
            stopping: None,
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
            _ if matches!(self.phase, Phase::Ended) => {}
            Event::Said { worker, message } => self.said(worker, message),
            Event::Left { worker, reason } => self.lost(worker, &reason),
            Event::Stop { reason } => self.stop(reason),
            Event::Broken { reason } => self.fail(reason),
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
            FromWorker::Ready { generation, held } => self.ready(worker, generation, held),
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
                self.fail(format!("{who}: {reason}"));
            }
        }
    }

    /// A worker is gone, or as good as gone.
    fn lost(&mut self, worker: WorkerId, reason: &str) {
        let Some(member) = self.members.remove(worker) else { return };
        self.duties.forget(worker);
        let who = member.describe();
        match self.phase {
            Phase::Gathering { .. } => {
                self.warn(format!("{who} was lost: {reason}"));
                self.phase = Phase::Gathering { since: self.now };
            }
            _ => self.regroup(format!("{who} was lost: {reason}")),
        }
    }

    fn tick(&mut self) {
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
        if let Some(stopping) = &self.stopping
            && self.now.saturating_sub(stopping.since) > self.settings.stop_deadline
        {
            self.warn("the checkpoint did not come within the deadline for stopping".into());
            return self.interrupted();
        }
        if let Phase::Gathering { since } = self.phase
            && self.now.saturating_sub(since) > self.settings.wait_for_workers
            && let Some(missing) = self.members.missing(self.settings.workers)
        {
            self.fail(format!(
                "waited {:.0} s (cluster.wait_for_workers) for {missing}: start it with `worker --coordinator URL`",
                self.settings.wait_for_workers.as_secs_f64()
            ));
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
