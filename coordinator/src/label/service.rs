//! The gRPC side of a labelling: converts and validates, and puts events on the driver's queue. Decides nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use relabel_config::LabelOptions;
use relabel_core::WorkerId;
use relabel_core::labelling::LabelEvent;
use relabel_proto::v1::labelling_server::{Labelling, LabellingServer};
use relabel_proto::{LabelHello, MAX_MESSAGE, ToLabeller, VERSION, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{HEARTBEAT, Input};
use crate::security::limits::Paced;

/// How long a stream may stay open without its LabelHello.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// Messages that may wait for a worker: the welcome, a range, and the end.
const OUTBOX: usize = 4;

/// The service as tonic serves it.
pub(super) type Server = LabellingServer<LabellingService>;

/// The streams of all workers.
pub(super) struct LabellingService {
    queue: mpsc::Sender<Input>,
    options: LabelOptions,
    next_worker: AtomicU64,
}

/// The service that puts what workers say into `queue` and welcomes them with `options`.
pub(super) fn service(queue: mpsc::Sender<Input>, options: LabelOptions) -> Server {
    let service = LabellingService { queue, options, next_worker: AtomicU64::new(1) };
    LabellingServer::new(service).max_decoding_message_size(MAX_MESSAGE)
}

#[tonic::async_trait]
impl Labelling for LabellingService {
    type LabelStream = BoxStream<'static, Result<v1::LabelCoordinatorMessage, Status>>;

    async fn label(
        &self,
        request: Request<Streaming<v1::LabelWorkerMessage>>,
    ) -> Result<Response<Self::LabelStream>, Status> {
        let mut inbound = Paced::new(request.into_inner());
        let first = tokio::time::timeout(HELLO_DEADLINE, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no LabelHello came"))??
            .ok_or_else(|| Status::invalid_argument("the stream ended without a LabelHello"))?;
        let hello = relabel_proto::label_hello(first);
        let LabelHello { version, host, pid } =
            hello.map_err(|why| Status::invalid_argument(why.to_string()))?;
        if version != VERSION {
            return Err(Status::failed_precondition(format!(
                "the worker is version {version}, this coordinator is version {VERSION}: run the same build on every host"
            )));
        }
        let worker = WorkerId(self.next_worker.fetch_add(1, Ordering::Relaxed));
        let (outbox, orders) = mpsc::channel(OUTBOX);
        let welcome = ToLabeller::Welcome { heartbeat: HEARTBEAT, options: self.options.clone() };
        // It is empty.
        let _ = outbox.try_send(Ok(welcome.into()));
        let name = format!("a worker (process {pid} on {host})");
        let over = |_| Status::failed_precondition("the labelling is over");
        self.queue.send(Input::Join { worker, name, outbox }).await.map_err(over)?;
        tokio::spawn(listen(worker, inbound, self.queue.clone()));
        Ok(Response::new(ReceiverStream::new(orders).boxed()))
    }
}

/// Turns what a worker says into events, until its stream ends.
async fn listen(worker: WorkerId, mut inbound: Paced<v1::LabelWorkerMessage>, queue: mpsc::Sender<Input>) {
    let reason = loop {
        let message = match inbound.message().await {
            Ok(Some(message)) => relabel_proto::from_labeller(message),
            Ok(None) => break "it closed its stream".to_owned(),
            Err(status) => break format!("its connection broke ({})", status.message()),
        };
        match message {
            Ok(message) => {
                if queue.send(Input::Event(LabelEvent::Said { worker, message })).await.is_err() {
                    return;
                }
            }
            Err(invalid) => break format!("it sent a message that makes no sense: {invalid}"),
        }
    };
    // A closed queue means that it is over and nobody is left to care.
    let _ = queue.send(Input::Event(LabelEvent::Left { worker, reason })).await;
}
