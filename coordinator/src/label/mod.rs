//! `coordinator label`: label maps of a data set, made by workers that come and go. Which of them makes which maps is
//! decided by [`relabel_core::labelling`]; this is the I/O around it, from the command line to the exit code.

mod service;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use relabel_config::LabelOptions;
use relabel_core::WorkerId;
use relabel_core::labelling::{LabelCommand, LabelEvent, LabelTally, Labelling, LabellingSettings};
use relabel_proto::{ToLabeller, v1};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tonic::service::Routes;

use crate::cli::LabelArgs;
use crate::launch::{self, Local, Task};
use crate::progress::{LabelProgress, Screen};
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
/// Where local workers' logs go, in the folder of the maps. Hidden, so that it is taken for no class.
const LOCAL: &str = ".label";

type Outbox = mpsc::Sender<Result<v1::LabelCoordinatorMessage, tonic::Status>>;

/// One thing for the driver to see to.
enum Input {
    /// A worker has come; what it is told goes to `outbox`.
    Join { worker: WorkerId, name: String, outbox: Outbox },
    /// Something for the core.
    Event(LabelEvent),
}

/// How a labelling ended.
enum Ended {
    Done(LabelTally),
    Failed(String),
    /// By a signal of this number.
    Stopped(u8),
}

/// Runs until every image has its map, or could not be read.
pub async fn run(args: LabelArgs, screen: Screen) -> Result<ExitCode> {
    let program = args.local.then(launch::worker_program).transpose()?;
    let options = args.options.absolute().context("cannot tell the current folder")?;
    check_names(&options)?;
    let entrance = Entrance::open(&args.security, args.listen(), args.local).await?;
    let (queue, inputs) = mpsc::channel(QUEUE);
    let (over, until_over) = tokio::sync::oneshot::channel::<()>();
    let service = entrance.only_for(Role::Worker, service::service(queue, options.clone()));
    let (address, invitation) = (entrance.address(), entrance.invitation());
    let home = entrance.for_children().cloned();
    let server = tokio::spawn(entrance.serve(Routes::new(service), DEAD_AFTER, async {
        // Dropped or sent, it is over.
        let _ = until_over.await;
    }));
    tracing::info!(
        "labelling {} into {}, listening on {address}",
        options.data.display(),
        options.out.display()
    );

    let mut local = match program.zip(home) {
        Some((program, home)) => {
            let folder = options.out.join(LOCAL);
            let workers = args.workers;
            Some(Local::start(program, Task::Label, workers, workers, args.threads, &home, &folder).await?)
        }
        None => {
            tracing::info!("waiting for workers: worker label {invitation}");
            None
        }
    };
    let settings = LabellingSettings { batch: options.batch.into(), dead_after: DEAD_AFTER };
    let mut driver = Driver {
        core: Labelling::new(settings),
        began: Instant::now(),
        workers: BTreeMap::new(),
        progress: LabelProgress::new(screen.clone()),
    };
    let ended = driver.drive(inputs, local.as_mut()).await?;
    driver.dismiss(&ended);
    if let Some(local) = &mut local {
        local.farewell(FAREWELL).await;
    }
    drop(over);
    if tokio::time::timeout(FAREWELL, server).await.is_err() {
        tracing::warn!("some workers have not left; they will find that the labelling is over");
    }
    driver.summary(ended, &options.out, &screen)
}

/// Names go to the workers as text.
fn check_names(options: &LabelOptions) -> Result<()> {
    let LabelOptions { data, out, weights, head, .. } = options;
    for path in [Some(data), Some(out), weights.as_ref(), head.as_ref()].into_iter().flatten() {
        ensure!(
            path.to_str().is_some(),
            "{} is not Unicode, which a name sent to workers must be",
            path.display()
        );
    }
    Ok(())
}

/// Owns the core and all that its commands act on.
struct Driver {
    core: Labelling,
    began: Instant,
    workers: BTreeMap<WorkerId, Outbox>,
    progress: LabelProgress,
}

impl Driver {
    async fn drive(
        &mut self,
        mut inputs: mpsc::Receiver<Input>,
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
                        LabelEvent::Joined { worker, name }
                    }
                    Input::Event(event) => event,
                },
                _ = tick.tick() => LabelEvent::Tick,
                _ = interrupt.recv() => return Ok(Ended::Stopped(2)),
                _ = terminate.recv() => return Ok(Ended::Stopped(15)),
                reason = watch(local.as_deref_mut()) => return Ok(Ended::Failed(reason)),
            };
            if let Some(ended) = self.carry_out(event) {
                return Ok(ended);
            }
        }
    }

    /// Passes an event to the core and does what it says. What comes of that (a worker that cannot be reached) is
    /// handled right after.
    fn carry_out(&mut self, event: LabelEvent) -> Option<Ended> {
        let mut pending = vec![event];
        while let Some(event) = pending.pop() {
            if let LabelEvent::Left { worker, .. } = &event {
                self.workers.remove(worker);
            }
            for command in self.core.handle(self.began.elapsed(), event) {
                match command {
                    LabelCommand::Hand { worker, range } => {
                        // The core was told of fewer images than 32 bits count.
                        let message = ToLabeller::Range(range.start as u32..range.end as u32);
                        let outbox = self.workers.get(&worker);
                        if outbox.is_none_or(|outbox| outbox.try_send(Ok(message.into())).is_err()) {
                            pending.push(LabelEvent::Left { worker, reason: "its connection broke".into() });
                        }
                    }
                    LabelCommand::Drop { worker, reason } => {
                        self.close(worker, tonic::Status::unavailable(reason))
                    }
                    LabelCommand::Refuse { worker, reason } => {
                        self.close(worker, tonic::Status::aborted(reason))
                    }
                    LabelCommand::Note(words) => tracing::info!("{words}"),
                    LabelCommand::Warn(words) => tracing::warn!("{words}"),
                    LabelCommand::Show(tally) => self.progress.show(&tally),
                    LabelCommand::End(Ok(tally)) => return Some(Ended::Done(tally)),
                    LabelCommand::End(Err(reason)) => return Some(Ended::Failed(reason)),
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
    fn dismiss(&mut self, ended: &Ended) {
        let reason = match ended {
            Ended::Failed(reason) => Some(reason.clone()),
            Ended::Done(_) | Ended::Stopped(_) => None,
        };
        for outbox in std::mem::take(&mut self.workers).into_values() {
            let _ = outbox.try_send(Ok(ToLabeller::Over(reason.clone()).into()));
        }
    }

    /// Lists what could not be read, and says how it ended.
    fn summary(&mut self, ended: Ended, out: &Path, screen: &Screen) -> Result<ExitCode> {
        self.progress.finish();
        for line in self.core.unreadable() {
            tracing::warn!("{line}");
        }
        let shown = out.display();
        match ended {
            Ended::Failed(reason) => bail!(reason),
            Ended::Stopped(signal) => {
                screen.line(&format!("stopped; go on in {shown} with the same command"));
                // As a shell has it.
                Ok(ExitCode::from(128 + signal))
            }
            Ended::Done(LabelTally { made, there, unreadable, .. }) => {
                let total = made + there;
                ensure!(
                    total > 0,
                    "{shown}: no label map was made, as none of {unreadable} images could be read"
                );
                let bad = match unreadable {
                    0 => String::new(),
                    n => format!("; {n} images could not be read and have none"),
                };
                let took = self.began.elapsed();
                screen.line(&format!(
                    "{shown}: {total} label maps, {made} of them made now in {took:.0?}{bad}"
                ));
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

async fn watch(local: Option<&mut Local>) -> String {
    match local {
        Some(local) => local.watch().await,
        None => std::future::pending().await,
    }
}
