//! What runs on the session's thread: one stream after the other, for as long as the worker lives.
//!
//! A stream that breaks is opened anew, for up to `cluster.wait_for_coordinator`, while the training thread trains on;
//! the Hello of the new one says where it stands. A signal to leave is passed on to the coordinator, which lets the
//! worker go once nothing is lost without it; `cluster.drain_deadline` later it goes in any case.

use std::sync::mpsc as std_mpsc;
use std::time::Duration;

use relabel_config::Config;
use relabel_core::{Dataset, FromWorker, Generation, Hello, Rank, Standing, ToWorker};
use relabel_proto::security::Access;
use relabel_proto::{Told, Welcome, sentence};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Code;

use super::signals::{SIGTERM, Signals, exit_code, leaving, signal_name};
use super::stream::{self, Broken, Stream};
use super::{Fence, SessionError, Shared, connect, refusal};

/// Pauses between attempts to find a coordinator that was there: from the first, doubling, to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// The same after the coordinator has put this worker out: it may be that nothing has changed since.
const PAUSES_OUTSIDE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// The half of a [`Session`](super::Session) that is in touch with the coordinator.
pub struct Link {
    pub(super) access: Access,
    pub(super) hello: Hello,
    /// The seat that it was given last.
    pub(super) seat: Option<Rank>,
    pub(super) reports: mpsc::Receiver<FromWorker>,
    pub(super) orders: std_mpsc::Sender<Result<ToWorker, SessionError>>,
    pub(super) fence: Fence,
    pub(super) shared: Shared,
}

/// Where the answer to the first Hello goes.
type Welcomed = std_mpsc::Sender<Result<Welcome, SessionError>>;

/// What of the run's options concerns the session.
pub(super) struct Terms {
    run_id: String,
    heartbeat: Duration,
    away: Duration,
    drain: Duration,
    /// After which a connection without a sign of life is dead.
    silence: Duration,
}

/// What is told on every new stream.
#[derive(Default)]
pub(super) struct Kept {
    dataset: Option<Dataset>,
    /// Reports that must not be lost, in their order.
    reports: Vec<FromWorker>,
}

impl Link {
    /// [Keeps](Self::keep_open) a stream open on this thread.
    pub(super) fn run(self, patience: Duration, welcomed: &Welcomed) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = welcomed.send(Err(SessionError::Thread(error)));
                return;
            }
        };
        runtime.block_on(self.keep_open(patience, welcomed));
    }

    /// Reaches the coordinator within `patience`, says to `welcomed` how that went, and keeps a stream to it open until
    /// that is not possible any more, which is the last that the session is told.
    pub async fn keep_open(mut self, patience: Duration, welcomed: &Welcomed) {
        let begun = self.begin(patience).await;
        let (welcome, stream, signals) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                let _ = welcomed.send(Err(error));
                return;
            }
        };
        let terms = Terms::of(&welcome);
        let _ = welcomed.send(Ok(welcome));
        let error = self.keep(stream, signals, &terms).await;
        self.fence.end(Generation(u64::MAX), "the coordinator is gone");
        // The training thread may have ended already.
        let _ = self.orders.send(Err(error));
    }

    /// The first stream; and from then on signals are this worker's to heed.
    async fn begin(&mut self, patience: Duration) -> Result<(Welcome, Stream, Signals), SessionError> {
        let began = Instant::now();
        let (welcome, stream) = loop {
            let channel = connect(&self.access, began, patience).await?;
            let status = match stream::open(&self.access, channel, self.hello.clone()).await? {
                Ok(opened) => break opened,
                Err(status) => status,
            };
            // A coordinator that makes way for another says so.
            if status.code() != Code::Unavailable || began.elapsed() + PAUSES.1 > patience {
                return Err(refusal(&self.access, status));
            }
            tracing::warn!("no seat yet ({}); trying again in {:.1?}", sentence(status.message()), PAUSES.1);
            tokio::time::sleep(PAUSES.1).await;
        };
        let signals = Signals::listen().map_err(SessionError::Thread)?;
        self.seat = Some(welcome.rank);
        self.shared.opened();
        Ok((welcome, stream, signals))
    }

    /// Keeps a stream open until that is not possible any more; says why.
    async fn keep(&mut self, mut stream: Stream, mut signals: Signals, terms: &Terms) -> SessionError {
        let mut kept = Kept::default();
        let mut put_out = 0;
        loop {
            let (reason, outside) = match self.relay(&mut stream, &mut signals, &mut kept, terms).await {
                Broken::ForGood(error) => return error,
                Broken::Away { reason, outside } => (reason, outside),
            };
            self.shared.broken();
            drop(stream);
            put_out = if outside { put_out + 1 } else { 0 };
            let pauses = if outside { PAUSES_OUTSIDE } else { PAUSES };
            let first = pauses.0.saturating_mul(1 << u32::min(put_out, 8)).min(pauses.1);
            match outside {
                true => tracing::warn!(
                    "the coordinator has put this worker out ({reason}); coming back in {first:.1?}"
                ),
                false => tracing::warn!("the coordinator is away ({reason}): going on, and looking for it"),
            }
            stream = match self.reopen((first, pauses.1), &mut signals, &mut kept, terms).await {
                Ok(stream) => stream,
                Err(error) => return error,
            };
            tracing::info!("in touch with the coordinator again");
        }
    }

    /// Passes orders, reports and heartbeats on until the stream ends; says why it did.
    pub(super) async fn relay(
        &mut self,
        stream: &mut Stream,
        signals: &mut Signals,
        kept: &mut Kept,
        terms: &Terms,
    ) -> Broken {
        let mut beat = tokio::time::interval(terms.heartbeat);
        let mut over = false;
        loop {
            let message = tokio::select! {
                // What comes at its own pace first: a flood of one kind holds up none of the others.
                biased;
                signal = signals.next() => {
                    self.told_to_leave(signal, terms);
                    if let Err(broken) = stream.put(leaving(signal)) {
                        // The next stream begins with it.
                        return broken;
                    }
                    continue;
                }
                _ = beat.tick() => {
                    // A full wire holds reports, which are as good as a heartbeat.
                    let _ = stream.put(FromWorker::Heartbeat);
                    continue;
                }
                message = stream.inbound.message() => message,
                report = self.reports.recv() => {
                    let Some(report) = report else {
                        return Broken::ForGood(SessionError::Lost("the worker has ended".into()));
                    };
                    if let FromWorker::Indexed(dataset) = &report {
                        kept.dataset = Some(dataset.clone());
                    }
                    if let Err(broken) = stream.put(report.clone()) {
                        kept.take(report);
                        return broken;
                    }
                    continue;
                }
            };
            let order = match message {
                Ok(Some(message)) => relabel_proto::to_worker(message),
                Ok(None) | Err(_) if over => {
                    return Broken::ForGood(SessionError::Lost("the run is over".into()));
                }
                Ok(None) => return Broken::away("it closed the stream"),
                Err(status) => return Broken::by(&status),
            };
            let order = match order {
                Ok(Told::Order(order)) => order,
                Ok(Told::Welcome(_)) => {
                    return Broken::ForGood(relabel_proto::Invalid::Unexpected("a second welcome").into());
                }
                Err(invalid) => return Broken::ForGood(invalid.into()),
            };
            if let ToWorker::NcclId { generation, id } = order {
                self.fence.give_nccl_id(generation, id);
                continue;
            }
            over = matches!(order, ToWorker::Finish { .. } | ToWorker::Release { .. });
            match &order {
                ToWorker::Dissolve { generation, reason } => self.fence.end(*generation, reason),
                ToWorker::Drain { generation, .. } => self.fence.drain(*generation),
                ToWorker::Finish { .. } => self.fence.end(Generation(u64::MAX), "the run is over"),
                // It reads the names of its images, and no orders.
                ToWorker::Release { reason } if !self.shared.is_followed() => self.exit(reason),
                _ => {}
            }
            if self.orders.send(Ok(order)).is_err() {
                return Broken::ForGood(SessionError::Lost("the worker has ended".into()));
            }
        }
    }

    /// Looks for the coordinator until it is there again.
    async fn reopen(
        &mut self,
        (first, longest): (Duration, Duration),
        signals: &mut Signals,
        kept: &mut Kept,
        terms: &Terms,
    ) -> Result<Stream, SessionError> {
        let began = Instant::now();
        let mut pause = first;
        loop {
            let standing = self.standing(terms);
            // Its seat is only its own once it has a place in the run.
            let rank = if standing.is_some() { self.seat } else { self.hello.rank };
            let hello = Hello { rank, standing, ..self.hello.clone() };
            let access = self.access.clone();
            let silence = terms.silence;
            let attempt = async move {
                tokio::time::sleep(pause).await;
                stream::attempt(&access, silence, hello).await
            };
            tokio::pin!(attempt);
            let opened = loop {
                if self.shared.leaving().is_some() && !self.shared.place().is_some_and(|place| place.in_ring)
                {
                    self.exit("the coordinator is away");
                }
                tokio::select! {
                    biased;
                    opened = &mut attempt => break opened,
                    report = self.reports.recv() => match report {
                        Some(report) => kept.take(report),
                        None => return Err(SessionError::Lost("the worker has ended".into())),
                    },
                    signal = signals.next() => self.told_to_leave(signal, terms),
                }
            };
            let reason = match opened {
                Ok((welcome, stream)) if welcome.run_id == terms.run_id => {
                    self.seat = Some(welcome.rank);
                    self.catch_up(&stream, kept);
                    self.shared.opened();
                    return Ok(stream);
                }
                Ok((welcome, _)) => {
                    return Err(SessionError::Refused(format!(
                        "it owns run {} by now, and this worker is of run {}",
                        welcome.run_id, terms.run_id
                    )));
                }
                Err(Broken::ForGood(error)) => return Err(error),
                Err(Broken::Away { reason, .. }) => reason,
            };
            if began.elapsed() > terms.away {
                return Err(SessionError::Away { waited: terms.away, reason });
            }
            pause = (pause * 2).clamp(PAUSES.0, longest);
        }
    }

    /// Tells a coordinator that was away what it has missed.
    pub(super) fn catch_up(&self, stream: &Stream, kept: &mut Kept) {
        let indexed = kept.dataset.clone().map(FromWorker::Indexed);
        let leaving = self.shared.leaving().map(leaving);
        for report in indexed.into_iter().chain(kept.reports.drain(..)).chain(leaving) {
            // The wire is empty, and holds many more than these.
            let _ = stream.put(report);
        }
    }

    fn standing(&self, terms: &Terms) -> Option<Standing> {
        let place = self.shared.place()?;
        Some(Standing {
            run_id: terms.run_id.clone(),
            generation: place.generation,
            rank: place.rank,
            world: place.world,
            in_ring: place.in_ring,
            held: place.held,
        })
    }

    /// The first signal has the worker leave in good order, the second at once.
    fn told_to_leave(&self, signal: u8, terms: &Terms) {
        if self.shared.leaving().is_some() {
            self.exit("told so twice");
        }
        self.shared.leave(signal);
        let deadline = terms.drain;
        tracing::info!(
            "told to leave ({}): at the next step, within {} s (cluster.drain_deadline)",
            signal_name(signal),
            deadline.as_secs_f64()
        );
        tokio::spawn(async move {
            tokio::time::sleep(deadline).await;
            tracing::warn!("leaving without having been let go within {} s", deadline.as_secs_f64());
            std::process::exit(exit_code(signal));
        });
    }

    /// Ends the process where the training thread cannot be asked to.
    fn exit(&self, reason: &str) -> ! {
        tracing::info!("leaving: {reason}");
        std::process::exit(exit_code(self.shared.leaving().unwrap_or(SIGTERM)))
    }
}

impl Kept {
    /// Keeps a report for the next stream, if the coordinator could not know otherwise.
    fn take(&mut self, report: FromWorker) {
        match report {
            FromWorker::Indexed(dataset) => self.dataset = Some(dataset),
            FromWorker::CheckpointWritten { .. } | FromWorker::Fault { .. } => self.reports.push(report),
            _ => {}
        }
    }
}

impl Terms {
    /// A configuration that cannot be read is the training thread's to report.
    pub(super) fn of(welcome: &Welcome) -> Self {
        let config: Config = serde_json::from_str(&welcome.config).unwrap_or_default();
        let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(1));
        Self {
            run_id: welcome.run_id.clone(),
            heartbeat: seconds(config.cluster.heartbeat),
            away: seconds(config.cluster.wait_for_coordinator),
            drain: seconds(config.cluster.drain_deadline),
            silence: seconds(config.cluster.dead_after),
        }
    }
}
