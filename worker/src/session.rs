//! The stream to the coordinator. A thread of its own (`session/link.rs`) keeps it alive with heartbeats, whatever the
//! training thread is doing, opens another where it breaks, hands orders over in their sequence, and makes a
//! collective that is under way give up as soon as its generation is over.

mod link;
mod shared;
mod signals;
mod stream;
#[cfg(test)]
mod tests;

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use relabel_core::{FromWorker, Generation, Hello, ToWorker};
use relabel_proto::security::{Access, Unreached};
use relabel_proto::{Welcome, sentence};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::collective::AbortHandle;
pub use link::Link;
pub use shared::{Place, Shared};

/// Pauses between attempts to reach the coordinator: from the first, doubling, to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));

/// Silence of the connection after which the coordinator counts as gone: the default of `cluster.dead_after`, which is
/// not known before it has answered.
const DEAD_AFTER: Duration = Duration::from_secs(4);

/// Reports that may wait for the network.
const OUTBOX: usize = 1024;

/// Why there is no session, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(
        "no coordinator answered at {url} within {} s (--connect-timeout): start it first, or name it with \
         --coordinator ({reason})",
        waited.as_secs()
    )]
    Unreachable { url: String, waited: Duration, reason: String },
    #[error("the coordinator refused this worker: {0}")]
    Refused(String),
    /// The worker has come, or come back, when nothing was left to do. No fault of anybody's.
    #[error("the run is over")]
    Over,
    #[error("{0}")]
    Mistrust(String),
    #[error("the coordinator sent a message that makes no sense: {0}")]
    Nonsense(#[from] relabel_proto::Invalid),
    #[error("the coordinator is gone ({0}); start it again with the same command, then this worker")]
    Lost(String),
    #[error(
        "the coordinator has been away for {} s (cluster.wait_for_coordinator): {reason}; start it again with the \
         same command, then this worker",
        waited.as_secs()
    )]
    Away { waited: Duration, reason: String },
    #[error("the session's thread could not be started: {0}")]
    Thread(#[source] std::io::Error),
}

/// One end of the stream, for the training thread.
pub struct Session {
    orders: std_mpsc::Receiver<Result<ToWorker, SessionError>>,
    reports: Reports,
    fence: Fence,
    shared: Shared,
}

/// A way to report that can be handed to other threads.
#[derive(Clone)]
pub struct Reports(mpsc::Sender<FromWorker>);

impl Reports {
    /// Queues a report. While the coordinator is away only what it cannot learn otherwise is kept for it: that a
    /// checkpoint is written, and faults. Where the session has ended the report is dropped; the next order says so.
    pub fn send(&self, message: FromWorker) {
        if let Err(mpsc::error::TrySendError::Full(message)) = self.0.try_send(message) {
            let _ = self.0.blocking_send(message);
        }
    }
}

/// Where the collective in use is known to the session, so that it can be aborted from there.
#[derive(Clone, Default)]
pub struct Fence(Arc<Mutex<FenceState>>);

#[derive(Default)]
struct FenceState {
    /// Generations up to this one are over.
    over: Option<(Generation, String)>,
    /// Generations up to this one are to end with the next step.
    draining: Generation,
    current: Option<(Generation, AbortHandle)>,
    /// By which the ranks of a generation find each other with NCCL: the newest that rank 0 has sent.
    nccl_id: Option<(Generation, Vec<u8>)>,
}

impl Fence {
    /// Makes `handle` the one that is aborted when `generation` ends, at once if it has ended already.
    pub fn guard(&self, generation: Generation, handle: AbortHandle) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((over, reason)) = &state.over
            && *over >= generation
        {
            handle.abort(reason.as_str());
        }
        state.current = Some((generation, handle));
    }

    /// Whether `generation` is to end with the next step that all ranks take.
    pub fn is_draining(&self, generation: Generation) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).draining >= generation
    }

    /// The id of NCCL of this generation, once the coordinator has passed it on. Here and not among the orders,
    /// because the rank that waits for it is carrying one out.
    pub fn nccl_id(&self, generation: Generation) -> Option<Vec<u8>> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.nccl_id.as_ref().filter(|(of, _)| *of == generation).map(|(_, id)| id.clone())
    }

    fn give_nccl_id(&self, generation: Generation, id: Vec<u8>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).nccl_id = Some((generation, id));
    }

    fn drain(&self, generation: Generation) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.draining = state.draining.max(generation);
    }

    fn end(&self, generation: Generation, reason: &str) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((current, handle)) = &state.current
            && *current <= generation
        {
            handle.abort(reason.to_owned());
        }
        state.over = Some((generation, reason.to_string()));
    }
}

impl Session {
    /// Reaches the coordinator by `access`, retrying with growing pauses for up to `patience`, and is seated.
    ///
    /// # Errors
    /// If nobody answers, the two do not trust each other, or the worker is refused (another token or version, a rank
    /// that is taken or does not exist, no free seat).
    pub fn open(access: &Access, hello: Hello, patience: Duration) -> Result<(Self, Welcome), SessionError> {
        let (session, link) = Self::with_link(access, hello);
        let (welcomed, welcome) = std_mpsc::channel();
        std::thread::Builder::new()
            .name("session".into())
            .spawn(move || link.run(patience, &welcomed))
            .map_err(SessionError::Thread)?;
        let welcome = welcome.recv().map_err(|_| SessionError::Lost("its thread died".into()))??;
        Ok((session, welcome))
    }

    /// A session and the other half of it, which is to be [kept](Link::keep_open) by the caller.
    pub fn with_link(access: &Access, hello: Hello) -> (Self, Link) {
        let (orders_in, orders) = std_mpsc::channel();
        let (outbox, reports) = mpsc::channel(OUTBOX);
        let (fence, shared) = (Fence::default(), Shared::default());
        let link = Link {
            access: access.clone(),
            hello,
            seat: None,
            reports,
            orders: orders_in,
            fence: fence.clone(),
            shared: shared.clone(),
        };
        (Self { orders, reports: Reports(outbox), fence, shared }, link)
    }

    /// Waits for the next order.
    pub fn next_order(&self) -> Result<ToWorker, SessionError> {
        self.orders.recv().map_err(|_| SessionError::Lost("its stream ended".into()))?
    }

    /// The next order within `patience`, if one comes.
    pub fn next_order_within(&self, patience: Duration) -> Result<Option<ToWorker>, SessionError> {
        match self.orders.recv_timeout(patience) {
            Ok(order) => order.map(Some),
            Err(std_mpsc::RecvTimeoutError::Timeout) => Ok(None),
            Err(std_mpsc::RecvTimeoutError::Disconnected) => {
                Err(SessionError::Lost("its stream ended".into()))
            }
        }
    }

    /// The next order if one is waiting.
    pub fn waiting_order(&self) -> Result<Option<ToWorker>, SessionError> {
        match self.orders.try_recv() {
            Ok(order) => order.map(Some),
            Err(std_mpsc::TryRecvError::Empty) => Ok(None),
            Err(std_mpsc::TryRecvError::Disconnected) => Err(SessionError::Lost("its stream ended".into())),
        }
    }

    pub fn reports(&self) -> &Reports {
        &self.reports
    }

    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// What the session's thread and the training thread know of each other.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }
}

/// Reaches the coordinator, retrying with growing pauses until `patience` has passed since `began`.
///
/// # Errors
/// Nobody answers, or the two do not trust each other, which would be the same at every attempt.
pub(crate) async fn connect(
    access: &Access,
    began: Instant,
    patience: Duration,
) -> Result<Channel, SessionError> {
    let url = access.url();
    let mut pause = PAUSES.0;
    loop {
        let reason = match access.connect(DEAD_AFTER, None).await {
            Ok(channel) => return Ok(channel),
            Err(Unreached::Mistrust(words)) => return Err(SessionError::Mistrust(words)),
            Err(Unreached::Absent(reason)) => reason,
        };
        if began.elapsed() + pause > patience {
            return Err(SessionError::Unreachable { url: url.to_owned(), waited: patience, reason });
        }
        tracing::warn!("no coordinator at {url} ({reason}); trying again in {pause:.1?}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Waits until the coordinator's host has an address, retrying like [`Session::open`]: a service's name may come
/// after its users. The socket address of its first record.
///
/// # Errors
/// A name that stays unknown for `patience`.
pub fn resolve(access: &Access, patience: Duration) -> Result<SocketAddr, SessionError> {
    let (url, (host, port)) = (access.url(), access.host_and_port());
    let began = Instant::now();
    let mut pause = PAUSES.0;
    loop {
        let reason = match (host, port).to_socket_addrs().map(|mut all| all.next()) {
            Ok(Some(address)) => return Ok(address),
            Ok(None) => "the name has no address".to_owned(),
            Err(error) => error.to_string(),
        };
        if began.elapsed() + pause > patience {
            return Err(SessionError::Unreachable { url: url.into(), waited: patience, reason });
        }
        tracing::warn!("{host} is not known ({reason}); trying again in {pause:.1?}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// What the status means that a stream could not be opened with.
pub(crate) fn refusal(access: &Access, status: Status) -> SessionError {
    if let Some(words) = access.mistrust(&status) {
        return SessionError::Mistrust(words);
    }
    match status.code() {
        Code::Unimplemented => SessionError::Refused(
            "it does something else: `worker` trains with `coordinator`, `worker label` labels with `coordinator \
             label`, and `worker eval` evaluates with `coordinator eval`"
                .into(),
        ),
        Code::NotFound => SessionError::Over,
        Code::Unavailable | Code::Unknown | Code::Cancelled => {
            SessionError::Lost(sentence(status.message()))
        }
        _ => SessionError::Refused(sentence(status.message())),
    }
}
