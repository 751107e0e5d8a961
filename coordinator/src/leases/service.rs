//! The gRPC side: converts and validates, and puts events on the driver's queue. Decides nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use relabel_core::WorkerId;
use relabel_core::leases::LeaseEvent;
use relabel_proto::v1::leases_server::{Leases, LeasesServer};
use relabel_proto::{Invalid, LeaseHello, MAX_MESSAGE, ToHolder, VERSION, WireWork, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{HEARTBEAT, Input};
use crate::security::limits::Paced;

/// How long a stream may stay open without its LeaseHello.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// Messages that may wait for a worker: the welcome, a range, and the end.
const OUTBOX: usize = 4;

/// The service as tonic serves it.
pub(super) type Server<W> = LeasesServer<LeasesService<W>>;

/// The streams of all workers.
pub(super) struct LeasesService<W: WireWork> {
    queue: mpsc::Sender<Input<W>>,
    options: W::Options,
    next_worker: AtomicU64,
}

/// The service that puts what workers say into `queue` and welcomes them with `options`.
pub(super) fn service<W: WireWork>(queue: mpsc::Sender<Input<W>>, options: W::Options) -> Server<W> {
    let service = LeasesService { queue, options, next_worker: AtomicU64::new(1) };
    LeasesServer::new(service).max_decoding_message_size(MAX_MESSAGE)
}

#[tonic::async_trait]
impl<W: WireWork> Leases for LeasesService<W> {
    type HoldStream = BoxStream<'static, Result<v1::LeaseCoordinatorMessage, Status>>;

    async fn hold(
        &self,
        request: Request<Streaming<v1::LeaseWorkerMessage>>,
    ) -> Result<Response<Self::HoldStream>, Status> {
        let mut inbound = Paced::new(request.into_inner());
        let first = tokio::time::timeout(HELLO_DEADLINE, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no LeaseHello came"))??
            .ok_or_else(|| Status::invalid_argument("the stream ended without a LeaseHello"))?;
        let invalid = |why: Invalid| Status::invalid_argument(why.to_string());
        let first = relabel_proto::lease_hello(first).map_err(invalid)?;
        if first.version != VERSION {
            return Err(Status::failed_precondition(format!(
                "the worker is version {}, this coordinator is version {VERSION}: run the same build on every host",
                first.version
            )));
        }
        let LeaseHello { host, pid, command, .. } = first.hello().map_err(invalid)?;
        let own = W::COMMAND;
        if command != own {
            return Err(Status::failed_precondition(format!(
                "it is `coordinator {own}`, which has work for `worker {own}`, not for `worker {command}`"
            )));
        }
        let worker = WorkerId(self.next_worker.fetch_add(1, Ordering::Relaxed));
        let (outbox, orders) = mpsc::channel(OUTBOX);
        let welcome = ToHolder::<W>::Welcome { heartbeat: HEARTBEAT, options: self.options.clone() };
        // It is empty.
        let _ = outbox.try_send(Ok(welcome.into()));
        let name = format!("a worker (process {pid} on {host})");
        let over = |_| Status::failed_precondition(format!("the {} is over", W::NAME));
        self.queue.send(Input::Join { worker, name, outbox }).await.map_err(over)?;
        tokio::spawn(listen(worker, inbound, self.queue.clone()));
        Ok(Response::new(ReceiverStream::new(orders).boxed()))
    }
}

/// Turns what a worker says into events, until its stream ends.
async fn listen<W: WireWork>(
    worker: WorkerId,
    mut inbound: Paced<v1::LeaseWorkerMessage>,
    queue: mpsc::Sender<Input<W>>,
) {
    let reason = loop {
        let message = match inbound.message().await {
            Ok(Some(message)) => relabel_proto::from_holder(message),
            Ok(None) => break "it closed its stream".to_owned(),
            Err(status) => break format!("its connection broke ({})", status.message()),
        };
        match message {
            Ok(message) => {
                if queue.send(Input::Event(LeaseEvent::Said { worker, message })).await.is_err() {
                    return;
                }
            }
            Err(invalid) => break format!("it sent a message that makes no sense: {invalid}"),
        }
    };
    // A closed queue means that it is over and nobody is left to care.
    let _ = queue.send(Input::Event(LeaseEvent::Left { worker, reason })).await;
}
