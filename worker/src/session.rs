//! The stream to the coordinator. A thread of its own keeps it alive with heartbeats, whatever the
//! training thread is doing, hands orders over in their sequence, and makes a collective that is under
//! way give up as soon as its generation is over.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use relabel_core::{FromWorker, Generation, Hello, ToWorker};
use relabel_proto::v1::session_client::SessionClient;
use relabel_proto::{MAX_MESSAGE, Told, Welcome, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::collective::AbortHandle;

/// Pauses between attempts to reach the coordinator: from the first, doubling, to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));

/// Reports that may wait for the network.
const OUTBOX: usize = 1024;

/// Why there is no session, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("`{url}` is not the address of a coordinator: it should look like http://host:4747 ({reason})")]
    Address { url: String, reason: String },
    #[error(
        "no coordinator answered at {url} within {} s (--connect-timeout): start it first, or name it with \
         --coordinator ({reason})",
        waited.as_secs()
    )]
    Unreachable { url: String, waited: Duration, reason: String },
    #[error("the coordinator refused this worker: {0}")]
    Refused(String),
    #[error("the coordinator sent a message that makes no sense: {0}")]
    Nonsense(#[from] relabel_proto::Invalid),
    #[error("the coordinator is gone ({0}); start it again with --resume, then this worker")]
    Lost(String),
    #[error("the session's thread could not be started: {0}")]
    Thread(#[source] std::io::Error),
}

/// One end of the stream, for the training thread.
pub struct Session {
    orders: std_mpsc::Receiver<Result<ToWorker, SessionError>>,
    reports: Reports,
    fence: Fence,
}

/// A way to report that can be handed to other threads.
#[derive(Clone)]
pub struct Reports(mpsc::Sender<v1::WorkerMessage>);

impl Reports {
    /// Queues a report. If the stream is broken the report is dropped: the next order says so.
    pub fn send(&self, message: FromWorker) {
        let _ = self.0.blocking_send(message.into());
    }
}

/// Where the collective in use is known to the session, so that it can be aborted from there.
#[derive(Clone, Default)]
pub struct Fence(Arc<Mutex<FenceState>>);

#[derive(Default)]
struct FenceState {
    /// Generations up to this one are over.
    over: Option<(Generation, String)>,
    current: Option<(Generation, AbortHandle)>,
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
    /// Reaches the coordinator at `url`, retrying with growing pauses for up to `patience`, and is seated.
    ///
    /// # Errors
    /// If the address is wrong, nobody answers, or the worker is refused (another version, a rank that is
    /// taken or does not exist, no free seat).
    pub fn open(url: &str, hello: Hello, patience: Duration) -> Result<(Self, Welcome), SessionError> {
        let endpoint = endpoint(url)?;
        let (orders_in, orders) = std_mpsc::channel();
        let (welcomed, welcome) = std_mpsc::channel();
        let (outbox, outgoing) = mpsc::channel(OUTBOX);
        let fence = Fence::default();
        let task = Task {
            url: url.to_string(),
            endpoint,
            patience,
            outbox: outbox.clone(),
            orders: orders_in,
            fence: fence.clone(),
        };
        std::thread::Builder::new()
            .name("session".into())
            .spawn(move || task.run(hello, outgoing, &welcomed))
            .map_err(SessionError::Thread)?;
        let welcome = welcome.recv().map_err(|_| SessionError::Lost("its thread died".into()))??;
        Ok((Self { orders, reports: Reports(outbox), fence }, welcome))
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
}

/// What runs on the session's thread.
struct Task {
    url: String,
    endpoint: Endpoint,
    patience: Duration,
    outbox: mpsc::Sender<v1::WorkerMessage>,
    orders: std_mpsc::Sender<Result<ToWorker, SessionError>>,
    fence: Fence,
}

impl Task {
    fn run(
        self,
        hello: Hello,
        outgoing: mpsc::Receiver<v1::WorkerMessage>,
        welcomed: &std_mpsc::Sender<Result<Welcome, SessionError>>,
    ) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = welcomed.send(Err(SessionError::Thread(error)));
                return;
            }
        };
        runtime.block_on(async {
            let (welcome, inbound) = match self.join(hello, outgoing).await {
                Ok(joined) => joined,
                Err(error) => {
                    let _ = welcomed.send(Err(error));
                    return;
                }
            };
            let heartbeat = heartbeat_interval(&welcome.config);
            let _ = welcomed.send(Ok(welcome));
            let error = self.relay(inbound, heartbeat).await;
            self.fence.end(Generation(u64::MAX), "the coordinator is gone");
            // The training thread may have ended already.
            let _ = self.orders.send(Err(error));
        });
    }

    async fn join(
        &self,
        hello: Hello,
        outgoing: mpsc::Receiver<v1::WorkerMessage>,
    ) -> Result<(Welcome, Streaming<v1::CoordinatorMessage>), SessionError> {
        let channel = connect(&self.endpoint, &self.url, self.patience).await?;
        let mut client = SessionClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        // The channel is empty: this cannot wait, and the Hello is the first message.
        let _ = self.outbox.send(hello.into()).await;
        let mut inbound = client.join(ReceiverStream::new(outgoing)).await.map_err(refusal)?.into_inner();
        let first = inbound.message().await.map_err(refusal)?;
        let first = first.ok_or_else(|| SessionError::Lost("it ended the stream at once".into()))?;
        match relabel_proto::to_worker(first)? {
            Told::Welcome(welcome) => Ok((welcome, inbound)),
            Told::Order(_) => Err(relabel_proto::Invalid::Unexpected("an order before the welcome").into()),
        }
    }

    /// Passes orders on and sends heartbeats until the stream ends; says why it did.
    async fn relay(
        &self,
        mut inbound: Streaming<v1::CoordinatorMessage>,
        heartbeat: Duration,
    ) -> SessionError {
        let mut beat = tokio::time::interval(heartbeat);
        loop {
            let message = tokio::select! {
                message = inbound.message() => message,
                _ = beat.tick() => {
                    // A full outbox holds reports, which are as good as a heartbeat.
                    let _ = self.outbox.try_send(FromWorker::Heartbeat.into());
                    continue;
                }
            };
            let order = match message {
                Ok(Some(message)) => relabel_proto::to_worker(message),
                Ok(None) => return SessionError::Lost("it closed the stream".into()),
                Err(status) if status.code() == Code::Aborted => {
                    return SessionError::Refused(status.message().to_string());
                }
                Err(status) => return SessionError::Lost(status.message().to_string()),
            };
            let order = match order {
                Ok(Told::Order(order)) => order,
                Ok(Told::Welcome(_)) => return relabel_proto::Invalid::Unexpected("a second welcome").into(),
                Err(invalid) => return invalid.into(),
            };
            match &order {
                ToWorker::Dissolve { generation, reason } => self.fence.end(*generation, reason),
                ToWorker::Finish { .. } => self.fence.end(Generation(u64::MAX), "the run is over"),
                _ => {}
            }
            if self.orders.send(Ok(order)).is_err() {
                return SessionError::Lost("the worker has ended".into());
            }
        }
    }
}

/// Reaches the coordinator, retrying with growing pauses for up to `patience`.
pub(crate) async fn connect(
    endpoint: &Endpoint,
    url: &str,
    patience: Duration,
) -> Result<Channel, SessionError> {
    let began = Instant::now();
    let mut pause = PAUSES.0;
    loop {
        let reason = match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(error) => root_cause(&error),
        };
        if began.elapsed() + pause > patience {
            return Err(SessionError::Unreachable { url: url.to_owned(), waited: patience, reason });
        }
        tracing::warn!("no coordinator at {url} ({reason}); trying again in {pause:.1?}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Where `url` leads, and how a stream there is kept alive.
///
/// # Errors
/// An address that cannot be.
pub(crate) fn endpoint(url: &str) -> Result<Endpoint, SessionError> {
    Ok(address(url)?
        .connect_timeout(Duration::from_secs(5))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(20))
        .keep_alive_while_idle(true))
}

/// Where `url` leads; one without a scheme is taken for `http://`, one without a port for the default one.
fn address(url: &str) -> Result<Endpoint, SessionError> {
    let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let wrong = |reason: String| SessionError::Address { url: url.into(), reason };
    let endpoint = Endpoint::from_shared(whole).map_err(|error| wrong(root_cause(&error)))?;
    match (endpoint.uri().scheme_str(), endpoint.uri().host()) {
        (Some("http"), Some(host)) if !host.is_empty() => match endpoint.uri().port_u16() {
            Some(_) => Ok(endpoint),
            None => Endpoint::from_shared(format!("http://{host}:{}", relabel_proto::DEFAULT_PORT))
                .map_err(|error| wrong(root_cause(&error))),
        },
        (Some("http"), _) => Err(wrong("it names no host".into())),
        (scheme, _) => Err(wrong(format!("{} is not supported", scheme.unwrap_or("no scheme")))),
    }
}

/// Waits until the host of `url` has an address, retrying like [`Session::open`]: a service's name may come
/// after its users. The socket address of its first record.
///
/// # Errors
/// An address that cannot be, or a name that stays unknown for `patience`.
pub fn resolve(url: &str, patience: Duration) -> Result<SocketAddr, SessionError> {
    let endpoint = address(url)?;
    let host = endpoint.uri().host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = endpoint.uri().port_u16().unwrap_or(relabel_proto::DEFAULT_PORT);
    let began = Instant::now();
    let mut pause = PAUSES.0;
    loop {
        let reason = match (host.as_str(), port).to_socket_addrs().map(|mut all| all.next()) {
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

/// How often to send a heartbeat. A configuration that cannot be read is the training thread's to report.
fn heartbeat_interval(config: &str) -> Duration {
    let config: relabel_config::Config = serde_json::from_str(config).unwrap_or_default();
    Duration::try_from_secs_f64(config.cluster.heartbeat).unwrap_or(Duration::from_secs(1))
}

/// What the status means that a stream could not be opened with.
pub(crate) fn refusal(status: Status) -> SessionError {
    match status.code() {
        Code::Unimplemented => SessionError::Refused(
            "it does something else: `worker` trains with `coordinator`, `worker label` labels with `coordinator \
             label`, and `worker eval` evaluates with `coordinator eval`"
                .into(),
        ),
        Code::Unavailable | Code::Unknown | Code::Cancelled => {
            SessionError::Lost(status.message().to_string())
        }
        _ => SessionError::Refused(status.message().to_string()),
    }
}

/// The innermost cause: the layers around it only say that something failed.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
