//! The gRPC side: converts and validates, puts events on the driver's queue, and waits for its answers.
//! Decides nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use relabel_core::{Event, Outcome, Rank, Rejection, WorkerId};
use relabel_proto::v1::admin_server::{Admin, AdminServer};
use relabel_proto::v1::session_server::{Session, SessionServer};
use relabel_proto::{MAX_MESSAGE, MOST_WORKERS, VERSION, v1};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::driver::{Input, Queue};
use crate::security::limits::Paced;

/// How long a stream may stay open without its Hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// Orders that may wait for a worker to read them. One that is this far behind counts as lost.
const OUTBOX: usize = 1024;

/// The sessions of all workers.
pub struct SessionService {
    queue: Queue,
    next_worker: AtomicU64,
}

/// The operator's calls.
pub struct AdminService {
    queue: Queue,
    run_id: String,
    run_dir: String,
}

/// Both services, as tonic serves them.
pub fn services(
    queue: &Queue,
    run_id: &str,
    run_dir: &str,
) -> (SessionServer<SessionService>, AdminServer<AdminService>) {
    let session = SessionService { queue: queue.clone(), next_worker: AtomicU64::new(1) };
    let admin = AdminService { queue: queue.clone(), run_id: run_id.into(), run_dir: run_dir.into() };
    let session = SessionServer::new(session).max_decoding_message_size(MAX_MESSAGE);
    (session, AdminServer::new(admin).max_decoding_message_size(MAX_MESSAGE))
}

#[tonic::async_trait]
impl Session for SessionService {
    type JoinStream = BoxStream<'static, Result<v1::CoordinatorMessage, Status>>;

    async fn join(
        &self,
        request: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let mut inbound = Paced::new(request.into_inner());
        let first = tokio::time::timeout(HELLO_DEADLINE, inbound.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello came"))??
            .ok_or_else(|| Status::invalid_argument("the stream ended without a Hello"))?;
        let first = relabel_proto::hello(first).map_err(invalid)?;
        if first.version != VERSION {
            return Err(Status::failed_precondition(format!(
                "the worker is version {}, this coordinator is version {VERSION}: run the same build on every host",
                first.version
            )));
        }
        let hello = first.hello().map_err(invalid)?;

        let worker = WorkerId(self.next_worker.fetch_add(1, Ordering::Relaxed));
        let (outbox, orders) = mpsc::channel(OUTBOX);
        let (seated, seat) = oneshot::channel();
        self.queue
            .put(Input::Join { worker, hello, outbox, seated })
            .await
            .map_err(|_| ended(&self.queue))?;
        seat.await.map_err(|_| ended(&self.queue))?.map_err(refused)?;
        tokio::spawn(listen(worker, inbound, self.queue.clone()));
        Ok(Response::new(ReceiverStream::new(orders).boxed()))
    }
}

/// Turns what a worker says into events, until its stream ends.
async fn listen(worker: WorkerId, mut inbound: Paced<v1::WorkerMessage>, queue: Queue) {
    let reason = loop {
        let message = match inbound.message().await {
            Ok(Some(message)) => relabel_proto::from_worker(message),
            Ok(None) => break "it closed its stream".to_string(),
            Err(status) => break format!("its connection broke ({})", status.message()),
        };
        match message {
            Ok(message) => {
                if queue.put(Input::Event(Event::Said { worker, message })).await.is_err() {
                    return;
                }
            }
            Err(invalid) => break format!("it sent a message that makes no sense: {invalid}"),
        }
    };
    // A closed queue means that the run is over and nobody is left to care.
    let _ = queue.put(Input::Event(Event::Left { worker, reason })).await;
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        let v1::StatusRequest { first, most } = request.into_inner();
        let most = most.unwrap_or(MOST_WORKERS).min(MOST_WORKERS) as usize;
        let status = self.queue.status(Rank(first), most).await.map_err(|_| ended(&self.queue))?;
        let mut view = (first == 0).then(|| self.queue.board().view(&status));
        let mut reply = relabel_proto::status(status, self.run_id.clone(), self.run_dir.clone());
        if let Some(view) = &mut view {
            // The reply has them already.
            view.workers.clear();
            reply.view = serde_json::to_string(view).map_err(|error| Status::internal(error.to_string()))?;
        }
        Ok(Response::new(reply))
    }

    async fn stop(&self, request: Request<v1::StopRequest>) -> Result<Response<v1::StopReply>, Status> {
        let reason = reason(request.into_inner().reason);
        self.queue.put(Input::Event(Event::Stop { reason })).await.map_err(|_| ended(&self.queue))?;
        Ok(Response::new(v1::StopReply {}))
    }

    async fn save(&self, request: Request<v1::SaveRequest>) -> Result<Response<v1::SaveReply>, Status> {
        let reason = reason(request.into_inner().reason);
        self.queue.put(Input::Event(Event::Save { reason })).await.map_err(|_| ended(&self.queue))?;
        Ok(Response::new(v1::SaveReply {}))
    }
}

/// The reason that a caller gave, or what stands for it.
fn reason(given: String) -> String {
    if given.is_empty() { "asked by an operator".into() } else { relabel_proto::sentence(&given) }
}

fn invalid(error: relabel_proto::Invalid) -> Status {
    Status::invalid_argument(error.to_string())
}

/// What is to be said of the run once its driver has ended.
fn ended(queue: &Queue) -> Status {
    match queue.board().outcome() {
        Some(Outcome::Failed { reason }) => {
            Status::failed_precondition(format!("the run has failed: {reason}"))
        }
        Some(Outcome::Done | Outcome::Interrupted { .. }) => refused(Rejection::Over),
        None => Status::unavailable("this coordinator has made way for the one that is started next"),
    }
}

fn refused(rejection: Rejection) -> Status {
    let words = rejection.to_string();
    match rejection {
        Rejection::RankOutside { .. } => Status::out_of_range(words),
        Rejection::RankTaken { .. } => Status::already_exists(words),
        Rejection::Full { .. } => Status::resource_exhausted(words),
        Rejection::OtherRun { .. } => Status::failed_precondition(words),
        Rejection::Over => Status::not_found(words),
    }
}
