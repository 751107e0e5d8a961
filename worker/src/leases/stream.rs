//! The stream to `coordinator label` or `coordinator eval`. A thread of its own keeps it alive whatever the working thread
//! is doing.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use relabel_core::leases::{FromHolder, Piece};
use relabel_proto::security::Access;
use relabel_proto::v1::leases_client::LeasesClient;
use relabel_proto::{Invalid, LeaseHello, MAX_MESSAGE, ToHolder, VERSION, WireWork, sentence, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::session::{SessionError, connect, refusal};

/// Reports that may wait for the network.
const OUTBOX: usize = 16;
/// How long a worker that cannot go on waits for the coordinator to take note of why.
const LAST_WORDS: Duration = Duration::from_secs(5);

type Inbound = Streaming<v1::LeaseCoordinatorMessage>;

/// What the coordinator wants.
#[derive(Debug)]
pub(super) enum Order {
    /// See to these images.
    Range(Piece),
    /// It is over: all done or stopped, or failed for this reason.
    Over(Option<String>),
}

/// One end of the stream, for the working thread.
pub(super) struct Stream<W: WireWork> {
    orders: std_mpsc::Receiver<Result<Order, SessionError>>,
    reports: mpsc::Sender<v1::LeaseWorkerMessage>,
    over: Arc<AtomicBool>,
    work: PhantomData<W>,
}

impl<W: WireWork> Stream<W> {
    /// Reaches the coordinator by `access`, retrying for up to `patience`, and returns what it wants done.
    ///
    /// # Errors
    /// Nobody who answers, two who do not trust each other, and a refusal.
    pub(super) fn open(access: &Access, patience: Duration) -> Result<(Self, W::Options), SessionError> {
        let (orders_in, orders) = std_mpsc::channel();
        let (welcomed, welcome) = std_mpsc::channel();
        let (reports, outgoing) = mpsc::channel(OUTBOX);
        let over = Arc::new(AtomicBool::new(false));
        let task = Task::<W> {
            access: access.clone(),
            patience,
            reports: reports.clone(),
            orders: orders_in,
            over: over.clone(),
            work: PhantomData,
        };
        std::thread::Builder::new()
            .name("stream".into())
            .spawn(move || task.run(outgoing, &welcomed))
            .map_err(SessionError::Thread)?;
        let options = welcome.recv().map_err(|_| SessionError::Lost("its thread died".into()))??;
        Ok((Self { orders, reports, over, work: PhantomData }, options))
    }

    /// Queues a report. If the stream is broken it is dropped: the next order says so.
    pub(super) fn say(&self, message: FromHolder<W>) {
        let _ = self.reports.blocking_send(message.into());
    }

    /// Waits for the next order.
    ///
    /// # Errors
    /// The stream has ended.
    pub(super) fn next_order(&self) -> Result<Order, SessionError> {
        self.orders.recv().map_err(|_| SessionError::Lost("its stream ended".into()))?
    }

    /// Set once there is no use in going on with a range.
    pub(super) fn over(&self) -> &AtomicBool {
        &self.over
    }

    /// Says why this worker cannot go on, and whether others could, and waits until the coordinator has taken note.
    pub(super) fn last_words(&self, reason: String, hopeless: bool) {
        self.say(FromHolder::Fault { reason, hopeless });
        let until = Instant::now() + LAST_WORDS;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match self.orders.recv_timeout(left) {
                Ok(Ok(Order::Range(_))) => {}
                Ok(Ok(Order::Over(_)) | Err(_)) | Err(_) => return,
            }
        }
    }
}

/// What runs on the stream's thread.
struct Task<W> {
    access: Access,
    patience: Duration,
    reports: mpsc::Sender<v1::LeaseWorkerMessage>,
    orders: std_mpsc::Sender<Result<Order, SessionError>>,
    over: Arc<AtomicBool>,
    work: PhantomData<W>,
}

impl<W: WireWork> Task<W> {
    fn run(
        self,
        outgoing: mpsc::Receiver<v1::LeaseWorkerMessage>,
        welcomed: &std_mpsc::Sender<Result<W::Options, SessionError>>,
    ) {
        // Whoever waits for an answer on the other side may have ended already.
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(welcomed.send(Err(SessionError::Thread(error)))),
        };
        runtime.block_on(async {
            let (heartbeat, options, inbound) = match self.join(outgoing).await {
                Ok(joined) => joined,
                Err(error) => return drop(welcomed.send(Err(error))),
            };
            let _ = welcomed.send(Ok(options));
            let error = self.relay(inbound, heartbeat).await;
            self.over.store(true, Ordering::Relaxed);
            let _ = self.orders.send(Err(error));
        });
    }

    async fn join(
        &self,
        outgoing: mpsc::Receiver<v1::LeaseWorkerMessage>,
    ) -> Result<(Duration, W::Options, Inbound), SessionError> {
        let channel = connect(&self.access, tokio::time::Instant::now(), self.patience).await?;
        let mut client = LeasesClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let host =
            hostname::get().map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned());
        let (version, command) = (VERSION.into(), W::COMMAND.into());
        let hello = LeaseHello { version, host, pid: std::process::id(), command };
        // The channel is empty: this cannot wait, and the hello is the first message.
        let _ = self.reports.send(hello.into()).await;
        let request = self.access.request(ReceiverStream::new(outgoing));
        let refusal = |status| refusal(&self.access, status);
        let mut inbound = client.hold(request).await.map_err(refusal)?.into_inner();
        let first = inbound.message().await.map_err(refusal)?;
        let first = first.ok_or_else(|| SessionError::Lost("it ended the stream at once".into()))?;
        match relabel_proto::to_holder::<W>(first)? {
            ToHolder::Welcome { heartbeat, options } => Ok((heartbeat, options, inbound)),
            _ => Err(Invalid::Unexpected("an order before the welcome").into()),
        }
    }

    /// Passes orders on and sends signs of life until the stream ends; says why it did.
    async fn relay(&self, mut inbound: Inbound, heartbeat: Duration) -> SessionError {
        let mut beat = tokio::time::interval(heartbeat);
        loop {
            let message = tokio::select! {
                message = inbound.message() => message,
                _ = beat.tick() => {
                    // A full outbox holds reports, which are as good.
                    let _ = self.reports.try_send(FromHolder::<W>::Alive.into());
                    continue;
                }
            };
            let order = match message {
                Ok(Some(message)) => relabel_proto::to_holder::<W>(message),
                Ok(None) => return SessionError::Lost("it closed the stream".into()),
                Err(status) if status.code() == Code::Aborted => {
                    return SessionError::Refused(sentence(status.message()));
                }
                Err(status) => return SessionError::Lost(sentence(status.message())),
            };
            let order = match order {
                Ok(ToHolder::Range(range)) => Order::Range(range),
                Ok(ToHolder::Over(reason)) => {
                    self.over.store(true, Ordering::Relaxed);
                    Order::Over(reason)
                }
                Ok(ToHolder::Welcome { .. }) => return Invalid::Unexpected("a second welcome").into(),
                Err(invalid) => return invalid.into(),
            };
            if self.orders.send(Ok(order)).is_err() {
                return SessionError::Lost("the worker has ended".into());
            }
        }
    }
}
