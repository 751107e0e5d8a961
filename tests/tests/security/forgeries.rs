//! File names that would reach outside of the run's folder: from a worker to the coordinator, and the other way.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use relabel_proto::v1::session_server::{Session, SessionServer};
use relabel_proto::v1::{
    CheckpointWritten, CoordinatorMessage, Form, Position, Remove, Restore, RestoreFailed, Welcome,
    WorkerMessage, coordinator_message, worker_message,
};
use relabel_tests::{Scratch, run, start};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::client::{PATIENCE, access, hello, join, runtime, said, status};

const OUTSIDE: &str = "../../precious";

#[test]
fn a_worker_that_names_a_file_outside_is_put_out_and_nothing_is_written_down() {
    let scratch = Scratch::with_data(8, 4);
    let mut command = scratch.coordinator("run");
    command.args(["--workers", "2", "--listen", "127.0.0.1:0"]);
    let mut coordinator = start(command);
    let access = access(coordinator.port(), None);
    let journal = || std::fs::read(scratch.path("run/journal.jsonl")).unwrap();
    let before = journal();

    let position = Some(Position { epoch: 1, step: 0 });
    let written =
        CheckpointWritten { file: OUTSIDE.into(), blake3: "00".into(), position, ..Default::default() };
    let failed = RestoreFailed { file: OUTSIDE.into(), ..Default::default() };
    for (nth, message) in
        [worker_message::Message::CheckpointWritten(written), worker_message::Message::RestoreFailed(failed)]
            .into_iter()
            .enumerate()
    {
        runtime().block_on(async {
            let mut worker = join(&access, hello(), PATIENCE).await.unwrap();
            worker.say.send(said(message)).await.unwrap();
            let ended = tokio::time::timeout(Duration::from_secs(20), worker.hear.message()).await;
            assert!(ended.expect("it is put out").is_ok_and(|message| message.is_none()));
            assert!(status(&access).await.unwrap().workers.is_empty());
        });
        coordinator.wait_for("the reason", |text| {
            let reason = "a message that makes no sense: file is `../../precious`, which is out of range";
            (text.matches(reason).count() > nth).then_some(())
        });
    }
    assert_eq!(journal(), before);
}

/// Welcomes every worker and then gives it one order.
struct Forger {
    welcome: Welcome,
    order: coordinator_message::Message,
}

#[tonic::async_trait]
impl Session for Forger {
    type JoinStream = BoxStream<'static, Result<CoordinatorMessage, Status>>;

    async fn join(&self, _: Request<Streaming<WorkerMessage>>) -> Result<Response<Self::JoinStream>, Status> {
        let (orders, stream) = tokio::sync::mpsc::channel(2);
        for message in [coordinator_message::Message::Welcome(self.welcome.clone()), self.order.clone()] {
            orders.send(Ok(CoordinatorMessage { message: Some(message) })).await.unwrap();
        }
        // Held open for as long as the worker listens.
        tokio::spawn(async move { orders.closed().await });
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }
}

#[test]
fn a_coordinator_that_names_a_file_outside_is_not_obeyed() {
    let scratch = Scratch::with_data(8, 4);
    let run_dir = scratch.path("run");
    std::fs::create_dir_all(run_dir.join("checkpoints")).unwrap();
    let precious = scratch.path("precious");
    std::fs::write(&precious, "not to be lost").unwrap();
    assert!(run_dir.join("checkpoints").join(OUTSIDE).exists(), "the name leads there");

    let mut config = relabel_config::Config::default();
    config.data.data_path = scratch.path("data").display().to_string();
    let welcome = Welcome {
        rank: 0,
        world: 1,
        run_id: "forged".into(),
        config: serde_json::to_string(&config).unwrap(),
        run_dir: run_dir.display().to_string(),
    };
    let remove = Remove { files: vec![OUTSIDE.into()] };
    let form = Form {
        generation: 1,
        world: 1,
        previous: "127.0.0.1:1".into(),
        next: "127.0.0.1:1".into(),
        token: vec![7; 32],
        restore: Some(Restore { file: OUTSIDE.into(), blake3: "00".into() }),
        position: Some(Position::default()),
        ..Default::default()
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for order in [coordinator_message::Message::Remove(remove), coordinator_message::Message::Form(form)] {
        let forger = Forger { welcome: welcome.clone(), order };
        let port = runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = tonic::transport::Server::builder().add_service(SessionServer::new(forger));
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
            port
        });
        let ended = run(scratch.worker(port));
        let line = ended.last_line(1);
        let words = "the coordinator sent a message that makes no sense: file is `../../precious`";
        assert!(line.contains(words), "{line}");
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "not to be lost");
    }
}
