//! Work on ranges of images by workers that come and go. Which of them has which range is decided by
//! [`relabel_core::leases`]; this is the I/O around it, for `coordinator label` ([`label`]) and `coordinator eval`
//! ([`eval`]), from the command line to the exit code.

pub(crate) mod eval;
pub(crate) mod label;
mod service;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use relabel_core::WorkerId;
use relabel_core::leases::{LeaseCommand, LeaseEvent, LeaseSettings, LeaseTally, Leases};
use relabel_proto::{ToHolder, WireWork, v1};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tonic::service::Routes;

use crate::cli::LeaseArgs;
use crate::launch::{self, Local, Task};
use crate::progress::{LeaseProgress, Screen};
use crate::run::watch;
use crate::security::{Entrance, Role};

/// Between two signs of life of a worker.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// A worker that is silent for so long has lost its range.
const DEAD_AFTER: Duration = Duration::from_secs(20);
/// Between two looks for silent workers.
const TICK: Duration = Duration::from_secs(1);
/// How long workers may take to leave when all is over.
const FAREWELL: Duration = Duration::from_secs(10);
/// Events that may wait; senders wait when it is full.
const QUEUE: usize = 1024;

type Outbox = mpsc::Sender<Result<v1::LeaseCoordinatorMessage, tonic::Status>>;

/// One thing for the driver to see to.
enum Input<W: WireWork> {
    /// A worker has come; what it is told goes to `outbox`.
    Join { worker: WorkerId, name: String, outbox: Outbox },
    /// Something for the core.
    Event(LeaseEvent<W>),
}

/// What is to be done by workers.
struct Job<W: WireWork> {
    work: W,
    options: W::Options,
    /// Images in one forward pass.
    batch: u32,
    /// What it is about, for the log: `labelling X into Y`.
    intro: String,
}

/// How a job ended, where it did not fail.
enum Ended {
    Done,
    /// By a signal of this number.
    Stopped(u8),
}

/// What is left of a job.
struct Outcome<W> {
    /// What kept it from being done, if anything.
    ended: Result<Ended>,
    work: W,
    tally: LeaseTally,
    took: Duration,
}

impl Ended {
    /// As a shell has it.
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Done => ExitCode::SUCCESS,
            Self::Stopped(signal) => ExitCode::from(128 + signal),
        }
    }
}

/// Runs until every image is seen to. The logs of local workers go to `logs/` in `folder`.
///
/// # Errors
/// What keeps it from beginning.
async fn run<W: WireWork>(
    job: Job<W>,
    args: &LeaseArgs,
    folder: &Path,
    screen: &Screen,
) -> Result<Outcome<W>> {
    let program = args.local.then(launch::worker_program).transpose()?;
    let entrance = Entrance::open(&args.security, args.listen(), args.local).await?;
    let (queue, inputs) = mpsc::channel(QUEUE);
    let (over, until_over) = tokio::sync::oneshot::channel::<()>();
    let service = entrance.only_for(Role::Worker, service::service::<W>(queue, job.options));
    let (address, invitation) = (entrance.address(), entrance.invitation());
    let home = entrance.for_children().cloned();
    let server = tokio::spawn(entrance.serve(Routes::new(service), DEAD_AFTER, async {
        // Dropped or sent, it is over.
        let _ = until_over.await;
    }));
    tracing::info!("{}, listening on {address}", job.intro);

    let mut local = match program.zip(home) {
        Some((program, home)) => {
            let (task, workers) = (Task::Lease(W::COMMAND), args.workers);
            Some(Local::start(program, task, workers, workers, args.threads, &home, folder).await?)
        }
        None => {
            tracing::info!("waiting for workers: worker {} {invitation}", W::COMMAND);
            None
        }
    };
    let settings = LeaseSettings {
        batch: job.batch,
        dead_after: DEAD_AFTER,
        wait_for_workers: Duration::from_secs(args.wait_for_workers),
    };
    let mut driver = Driver {
        core: Leases::new(job.work, settings),
        began: Instant::now(),
        workers: BTreeMap::new(),
        progress: LeaseProgress::new(screen.clone(), W::PAST),
    };
    let ended = driver.drive(inputs, local.as_mut()).await;
    driver.dismiss(ended.as_ref().err());
    if let Some(local) = &mut local {
        local.farewell(FAREWELL).await;
    }
    drop(over);
    if tokio::time::timeout(FAREWELL, server).await.is_err() {
        tracing::warn!("some workers have not left; they will find that the {} is over", W::NAME);
    }
    driver.progress.finish();
    let (tally, took) = (driver.core.tally(), driver.began.elapsed());
    Ok(Outcome { ended, work: driver.core.into_work(), tally, took })
}

/// Names go to the workers as text.
fn check_names<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    for path in paths {
        ensure!(
            path.to_str().is_some(),
            "{} is not Unicode, which a name sent to workers must be",
            path.display()
        );
    }
    Ok(())
}

/// Owns the core and all that its commands act on.
struct Driver<W: WireWork> {
    core: Leases<W>,
    began: Instant,
    workers: BTreeMap<WorkerId, Outbox>,
    progress: LeaseProgress,
}

impl<W: WireWork> Driver<W> {
    /// Runs until it is over.
    ///
    /// # Errors
    /// What keeps it from being done.
    async fn drive(
        &mut self,
        mut inputs: mpsc::Receiver<Input<W>>,
        mut local: Option<&mut Local>,
    ) -> Result<Ended> {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut tick = tokio::time::interval(TICK);
        loop {
            let event = tokio::select! {
                Some(input) = inputs.recv() => match input {
                    Input::Join { worker, name, outbox } => {
                        self.workers.insert(worker, outbox);
                        LeaseEvent::Joined { worker, name }
                    }
                    Input::Event(event) => event,
                },
                _ = tick.tick() => LeaseEvent::Tick,
                _ = interrupt.recv() => return Ok(Ended::Stopped(2)),
                _ = terminate.recv() => return Ok(Ended::Stopped(15)),
                reason = watch(local.as_deref_mut()) => bail!(reason),
            };
            match self.carry_out(event) {
                Some(Ok(())) => return Ok(Ended::Done),
                Some(Err(reason)) => bail!(reason),
                None => {}
            }
        }
    }

    /// Passes an event to the core and does what it says. What comes of that (a worker that cannot be reached) is
    /// handled right after.
    fn carry_out(&mut self, event: LeaseEvent<W>) -> Option<Result<(), String>> {
        let mut pending = vec![event];
        while let Some(event) = pending.pop() {
            if let LeaseEvent::Left { worker, .. } = &event {
                self.workers.remove(worker);
            }
            for command in self.core.handle(self.began.elapsed(), event) {
                match command {
                    LeaseCommand::Hand { worker, piece } => {
                        let message = ToHolder::<W>::Range(piece);
                        let outbox = self.workers.get(&worker);
                        if outbox.is_none_or(|outbox| outbox.try_send(Ok(message.into())).is_err()) {
                            pending.push(LeaseEvent::Left { worker, reason: "its connection broke".into() });
                        }
                    }
                    LeaseCommand::Drop { worker, reason } => {
                        self.close(worker, tonic::Status::unavailable(reason))
                    }
                    LeaseCommand::Refuse { worker, reason } => {
                        self.close(worker, tonic::Status::aborted(reason))
                    }
                    LeaseCommand::Note(words) => tracing::info!("{words}"),
                    LeaseCommand::Warn(words) => tracing::warn!("{words}"),
                    LeaseCommand::Show(tally) => self.progress.show(&tally),
                    LeaseCommand::End(outcome) => return Some(outcome),
                }
            }
        }
        None
    }

    /// Ends a worker's stream; one that is gone already needs no words.
    fn close(&mut self, worker: WorkerId, status: tonic::Status) {
        if let Some(outbox) = self.workers.remove(&worker) {
            let _ = outbox.try_send(Err(status));
        }
    }

    /// Tells all workers that it is over.
    fn dismiss(&mut self, error: Option<&anyhow::Error>) {
        let reason = error.map(|error| format!("{error:#}"));
        for outbox in std::mem::take(&mut self.workers).into_values() {
            let _ = outbox.try_send(Ok(ToHolder::<W>::Over(reason.clone()).into()));
        }
    }
}
