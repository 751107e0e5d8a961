use std::time::Duration;

use relabel_core::{FromWorker, Hello};
use relabel_proto::security::{Access, TlsArgs};
use relabel_proto::v1;
use relabel_proto::v1::session_server::{Session as Service, SessionServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

use super::Session;
use super::link::{Kept, Terms};
use super::signals::Signals;
use super::stream::{self, Broken, Stream};

/// Seats every worker, and then neither reads nor says anything.
struct Stuck;

#[tonic::async_trait]
impl Service for Stuck {
    type JoinStream = std::pin::Pin<
        Box<dyn tokio_stream::Stream<Item = Result<v1::CoordinatorMessage, Status>> + Send + 'static>,
    >;

    async fn join(
        &self,
        _: Request<Streaming<v1::WorkerMessage>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        use tokio_stream::StreamExt as _;
        let welcome = v1::Welcome {
            world: 1,
            run_id: "stuck".into(),
            run_dir: "/stuck".into(),
            config: "{}".into(),
            ..Default::default()
        };
        let message =
            v1::CoordinatorMessage { message: Some(v1::coordinator_message::Message::Welcome(welcome)) };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(message)).chain(tokio_stream::pending()))))
    }
}

async fn stuck() -> Access {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serve = tonic::transport::Server::builder().add_service(SessionServer::new(Stuck));
    tokio::spawn(serve.serve_with_incoming(TcpListenerStream::new(listener)));
    Access::new(&url, &TlsArgs::default(), None).unwrap()
}

/// The messages that wait on a wire.
fn waiting(wire: &mut mpsc::Receiver<v1::WorkerMessage>) -> Vec<v1::WorkerMessage> {
    std::iter::from_fn(|| wire.try_recv().ok()).collect()
}

#[test]
fn a_signal_to_leave_that_finds_the_wire_full_is_told_on_the_next_stream() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let access = stuck().await;
        let hello = Hello {
            rank: None,
            host: "here".into(),
            pid: std::process::id(),
            device: "cpu".into(),
            nccl: None,
            ring_address: "127.0.0.1:1".into(),
            instance: 1,
            standing: None,
        };
        let (_session, mut link) = Session::with_link(&access, hello.clone());
        let channel = access.connect(Duration::from_secs(5), None).await.unwrap();
        let (welcome, stuck) = stream::open(&access, channel, hello).await.unwrap().unwrap();
        let (wire, mut full) = mpsc::channel(1);
        let mut stuck = Stream { wire, ..stuck };
        stuck.put(FromWorker::Heartbeat).unwrap();

        let (mut signals, mut kept, terms) =
            (Signals::listen().unwrap(), Kept::default(), Terms::of(&welcome));
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
        let relay = link.relay(&mut stuck, &mut signals, &mut kept, &terms);
        let broken =
            tokio::time::timeout(Duration::from_secs(20), relay).await.expect("it gives the stream up");
        assert!(matches!(broken, Broken::Away { outside: false, .. }));
        assert_eq!(waiting(&mut full).len(), 1);

        let (wire, mut next) = mpsc::channel(16);
        link.catch_up(&Stream { wire, ..stuck }, &mut kept);
        let leaving = v1::WorkerMessage::from(FromWorker::Leaving { reason: "SIGTERM".into() });
        assert_eq!(waiting(&mut next), [leaving]);
    });
}
