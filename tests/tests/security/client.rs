//! A client of the real protocol within the test: a worker as a stranger would write one, and the operator's calls.

use std::time::Duration;

use relabel_proto::security::{Access, AccessToken, TlsArgs};
use relabel_proto::v1::admin_client::AdminClient;
use relabel_proto::v1::session_client::SessionClient;
use relabel_proto::v1::{
    CoordinatorMessage, Hello, StatusReply, StatusRequest, StopRequest, WorkerMessage,
    worker_message::Message,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Long enough for any machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The way to a port of this host, with a token.
pub fn access(port: u16, token: Option<&str>) -> Access {
    let token = token.map(|text| AccessToken::new(text, String::new).unwrap());
    Access::new(&format!("http://127.0.0.1:{port}"), &TlsArgs::default(), token).unwrap()
}

/// Both directions of a worker's stream.
pub struct Worker {
    pub say: mpsc::Sender<WorkerMessage>,
    pub hear: Streaming<CoordinatorMessage>,
}

pub fn hello() -> Hello {
    Hello {
        version: relabel_proto::VERSION.into(),
        host: "somewhere".into(),
        pid: 1,
        device: "cpu".into(),
        ring_address: "127.0.0.1:1".into(),
        instance: 7,
        ..Default::default()
    }
}

pub fn said(message: Message) -> WorkerMessage {
    WorkerMessage { message: Some(message) }
}

/// Joins, and is welcomed or refused. `dead_after` is that of the connection.
pub async fn join(access: &Access, hello: Hello, dead_after: Duration) -> Result<Worker, Status> {
    let channel =
        access.connect(dead_after, None).await.map_err(|error| Status::unavailable(error.to_string()))?;
    let (say, outgoing) = mpsc::channel(16);
    say.send(said(Message::Hello(hello))).await.unwrap();
    let mut client = SessionClient::new(channel);
    let mut hear = client.join(access.request(ReceiverStream::new(outgoing))).await?.into_inner();
    hear.message().await?.expect("a welcome");
    Ok(Worker { say, hear })
}

pub async fn status(access: &Access) -> Result<StatusReply, Status> {
    let channel =
        access.connect(PATIENCE, None).await.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(AdminClient::new(channel)
        .status(access.request(StatusRequest { first: 0, most: None }))
        .await?
        .into_inner())
}

pub async fn stop(access: &Access) -> Result<(), Status> {
    let channel =
        access.connect(PATIENCE, None).await.map_err(|error| Status::unavailable(error.to_string()))?;
    let request = access.request(StopRequest { reason: "a stranger said so".into() });
    AdminClient::new(channel).stop(request).await.map(drop)
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
