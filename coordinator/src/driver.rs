//! The one task that owns the core: events in from a queue, commands out in order.
//!
//! Whatever happens — a worker's word, a lost socket, a signal, the passing of time — becomes an
//! [`Event`] on one queue, so the core sees one order of things. What it answers is carried out here
//! before the next event is taken; a fact is on the disk before anything that follows from it is sent.

use std::collections::BTreeMap;
use std::time::Duration;

use relabel_core::{Command, Event, Fact, Hello, Outcome, Rank, Rejection, Run, Status, ToWorker, WorkerId};
use relabel_proto::{MOST_WORKERS, Welcome, v1};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::inbox::{Inbox, Next};
use crate::journal::Journal;
use crate::mirror::News;
use crate::report::Report;
use crate::view::{Board, View};

/// Events that may wait for the driver; senders wait when it is full.
const QUEUE: usize = 4096;

/// Between two ticks: a small part of the shortest time that anything waits for.
const TICK: Duration = Duration::from_millis(200);

type Outbox = mpsc::Sender<Result<v1::CoordinatorMessage, tonic::Status>>;

/// One thing for the driver to see to.
pub enum Input {
    /// Something for the core.
    Event(Event),
    /// A worker asks to be seated; the answer goes to `seated`, orders go to `outbox`.
    Join { worker: WorkerId, hello: Hello, outbox: Outbox, seated: oneshot::Sender<Result<(), Rejection>> },
    /// Somebody asks how the run is doing, and at most `most` workers from rank `first` on.
    Status { first: Rank, most: usize, reply: oneshot::Sender<Status> },
}

/// The way in.
#[derive(Clone)]
pub struct Queue {
    inputs: mpsc::Sender<Input>,
    board: Board,
}

/// The driver has ended.
#[derive(Debug)]
pub struct Closed;

impl Queue {
    /// Puts `input` into the queue if there is room at once.
    pub fn try_put(&self, input: Input) -> Result<(), Closed> {
        self.inputs.try_send(input).map_err(|_| Closed)
    }

    /// Waits for a place in the queue.
    pub async fn put(&self, input: Input) -> Result<(), Closed> {
        self.inputs.send(input).await.map_err(|_| Closed)
    }

    /// What the core says of the run now, and of at most `most` workers from rank `first` on.
    pub async fn status(&self, first: Rank, most: usize) -> Result<Status, Closed> {
        let (reply, status) = oneshot::channel();
        self.put(Input::Status { first, most, reply }).await?;
        status.await.map_err(|_| Closed)
    }

    /// The run as it is now. Its workers are asked for page by page, as other callers do, so that nobody has to wait
    /// for all of a large run's.
    pub async fn view(&self) -> Result<View, Closed> {
        let page = MOST_WORKERS as usize;
        let mut status = self.status(Rank(0), page).await?;
        while let Some(last) = status.workers.last().map(|worker| worker.rank)
            && status.workers.len() < status.seated as usize
        {
            let next = self.status(Rank(last.0.saturating_add(1)), page).await?.workers;
            // Some have left between two pages.
            if next.is_empty() {
                break;
            }
            status.workers.extend(next);
        }
        Ok(self.board.view(&status))
    }

    /// What was observed of the run so far, and what is being.
    pub fn board(&self) -> &Board {
        &self.board
    }
}

/// What every worker is welcomed with, besides its rank.
pub struct Terms {
    pub run_id: String,
    pub run_dir: String,
    /// The run's options as JSON.
    pub config: String,
}

/// Why there is nothing left to drive.
pub enum Ended {
    Run(Outcome),
    /// The run goes on, under another coordinator.
    HandedOver,
}

/// Owns the core and all that its commands act on.
pub struct Driver {
    run: Run,
    inbox: Inbox<Input>,
    began: Instant,
    terms: Terms,
    journal: Journal<Fact>,
    report: Report,
    /// None where the run goes to no object store.
    news: Option<News>,
    workers: BTreeMap<WorkerId, Outbox>,
    /// Newcomers that the core has not answered yet.
    joining: BTreeMap<WorkerId, (Outbox, oneshot::Sender<Result<(), Rejection>>)>,
}

impl Driver {
    pub fn new(run: Run, terms: Terms, journal: Journal<Fact>, report: Report) -> (Self, Queue) {
        let (sender, inputs) = mpsc::channel(QUEUE);
        let board = report.board().clone();
        board.name(&terms.run_id, &terms.run_dir);
        let driver = Self {
            run,
            inbox: Inbox::new(inputs, TICK),
            began: Instant::now(),
            terms,
            journal,
            report,
            news: None,
            workers: BTreeMap::new(),
            joining: BTreeMap::new(),
        };
        (driver, Queue { inputs: sender, board })
    }

    /// Has each fact told to what brings the run to an object store.
    pub fn mirrored(self, news: Option<News>) -> Self {
        Self { news, ..self }
    }

    /// Runs until the core ends the run or hands it over. The workers' streams end when the driver is dropped.
    pub async fn drive(mut self) -> Ended {
        loop {
            let event = match self.inbox.next().await {
                Next::Tick => Event::Tick,
                Next::Input(Some(Input::Event(event))) => event,
                Next::Input(Some(Input::Join { worker, hello, outbox, seated })) => {
                    self.joining.insert(worker, (outbox, seated));
                    Event::Joined { worker, hello }
                }
                Next::Input(Some(Input::Status { first, most, reply })) => {
                    // Nobody waits for it any more if the caller has gone.
                    let _ = reply.send(self.run.status_from(self.began.elapsed(), first, most));
                    continue;
                }
                Next::Input(None) => {
                    let reason = "nothing is left that could send events".into();
                    return Ended::Run(Outcome::Failed { reason });
                }
            };
            if let Event::Left { worker, .. } = &event {
                self.workers.remove(worker);
            }
            if let Some(ended) = self.carry_out(event) {
                match &ended {
                    Ended::Run(outcome) => self.report.end(outcome),
                    Ended::HandedOver => self.report.hand_over(),
                }
                return ended;
            }
        }
    }

    /// Hands one event to the core and does what it says. An event that this gives rise to (a worker
    /// that cannot be reached, a journal that cannot be written) is handled right after.
    fn carry_out(&mut self, event: Event) -> Option<Ended> {
        let mut pending = vec![event];
        let mut ended = None;
        while let Some(event) = pending.pop() {
            for command in self.run.handle(self.began.elapsed(), event) {
                match command {
                    Command::Welcome { worker, rank, world } => {
                        pending.extend(self.welcome(worker, rank, world))
                    }
                    Command::Reject { worker, rejection } => {
                        if let Some((_, seated)) = self.joining.remove(&worker) {
                            tracing::warn!("a worker was refused: {rejection}");
                            let _ = seated.send(Err(rejection));
                        }
                    }
                    Command::Send { worker, message } => pending.extend(self.send(worker, message)),
                    Command::Expel { worker, reason, back } => {
                        if let Some(outbox) = self.workers.remove(&worker) {
                            let status =
                                if back { tonic::Status::aborted } else { tonic::Status::permission_denied };
                            let _ = outbox.try_send(Err(status(reason)));
                        }
                    }
                    Command::Persist(fact) => {
                        if let Err(error) = self.journal.append(&fact) {
                            // What follows from this fact must not happen; the rest is dropped with it.
                            pending = vec![Event::Broken { reason: error.to_string() }];
                            break;
                        }
                        if let Some(news) = &self.news {
                            news.noted(&fact);
                        }
                    }
                    Command::Observe(observation) => self.report.observe(&observation),
                    Command::End(outcome) => ended = Some(Ended::Run(outcome)),
                    Command::HandOver => ended = Some(Ended::HandedOver),
                }
            }
        }
        ended
    }

    fn welcome(&mut self, worker: WorkerId, rank: Rank, world: u32) -> Option<Event> {
        let (outbox, seated) = self.joining.remove(&worker)?;
        let Terms { run_id, run_dir, config } = &self.terms;
        let welcome =
            Welcome { rank, world, run_id: run_id.clone(), config: config.clone(), run_dir: run_dir.clone() };
        let greeted = outbox.try_send(Ok(relabel_proto::welcome(welcome))).is_ok();
        self.workers.insert(worker, outbox);
        let reason = "it was gone before it was seated".into();
        (seated.send(Ok(())).is_err() || !greeted).then_some(Event::Left { worker, reason })
    }

    fn send(&mut self, worker: WorkerId, message: ToWorker) -> Option<Event> {
        let outbox = self.workers.get(&worker)?;
        let reason = match outbox.try_send(Ok(message.into())) {
            Ok(()) => return None,
            Err(mpsc::error::TrySendError::Full(_)) => "it does not read its orders",
            Err(mpsc::error::TrySendError::Closed(_)) => "its connection broke",
        };
        self.workers.remove(&worker);
        Some(Event::Left { worker, reason: reason.into() })
    }
}
