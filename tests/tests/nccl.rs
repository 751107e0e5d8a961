//! The id of NCCL on its way from rank 0 through a real coordinator: the workers are the test's own, as there is no GPU.
#![allow(clippy::unwrap_used, clippy::panic)]

use relabel_proto::v1::coordinator_message::Message as Told;
use relabel_proto::v1::session_client::SessionClient;
use relabel_proto::v1::worker_message::Message;
use relabel_proto::v1::{CoordinatorMessage, Form, Hello, Indexed, NcclId, WorkerMessage};
use relabel_tests::{Scratch, start};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Both directions of a worker's stream.
struct Worker {
    say: mpsc::Sender<WorkerMessage>,
    hear: Streaming<CoordinatorMessage>,
}

impl Worker {
    /// Joins with this version of NCCL and says what it sees of the data.
    async fn join(port: u16, number: u32, nccl: Option<u32>) -> Self {
        let (say, outgoing) = mpsc::channel(16);
        let hello = Hello {
            version: relabel_proto::VERSION.into(),
            host: "gpu-host".into(),
            pid: 1 + number,
            device: format!("cuda:{number}"),
            ring_address: format!("127.0.0.1:{}", 1000 + number),
            instance: u64::from(number) + 1,
            nccl,
            ..Default::default()
        };
        let mut worker = {
            say.send(WorkerMessage { message: Some(Message::Hello(hello)) }).await.unwrap();
            let mut client = SessionClient::connect(format!("http://127.0.0.1:{port}")).await.unwrap();
            let hear = client.join(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
            Self { say, hear }
        };
        assert!(matches!(worker.next().await, Told::Welcome(_)));
        let seen = Indexed {
            train_samples: 64,
            train_fingerprint: "a".into(),
            val_samples: 8,
            val_fingerprint: "b".into(),
            classes: 4,
        };
        worker.say(Message::Indexed(seen)).await;
        worker
    }

    async fn say(&self, message: Message) {
        self.say.send(WorkerMessage { message: Some(message) }).await.unwrap();
    }

    async fn next(&mut self) -> Told {
        self.hear.message().await.unwrap().unwrap().message.unwrap()
    }

    async fn form(&mut self) -> Form {
        match self.next().await {
            Told::Form(form) => form,
            other => panic!("told {other:?}"),
        }
    }
}

async fn three(port: u16, nccl: [Option<u32>; 3]) -> ([Worker; 3], [Form; 3]) {
    let mut workers = [
        Worker::join(port, 0, nccl[0]).await,
        Worker::join(port, 1, nccl[1]).await,
        Worker::join(port, 2, nccl[2]).await,
    ];
    let [a, b, c] = &mut workers;
    let forms = [a.form().await, b.form().await, c.form().await];
    (workers, forms)
}

#[test]
fn the_id_that_rank_0_makes_reaches_its_peers_byte_for_byte() {
    let scratch = Scratch::with_data(8, 4);
    let mut command = scratch.coordinator("run");
    command.args(["--workers", "3", "--listen", "127.0.0.1:0", "--cluster.dead_after", "10"]);
    let mut coordinator = start(command);
    let port = coordinator.port();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (mut workers, forms) = three(port, [Some(23_003); 3]).await;
        assert!(forms.iter().all(|form| form.nccl && form.world == 3));
        let id: Vec<u8> = (0..128_u8).map(|n| n.wrapping_mul(61) ^ 0xa5).collect();
        let made = NcclId { generation: forms[0].generation, id };
        workers[0].say(Message::NcclId(made.clone())).await;
        for worker in &mut workers[1..] {
            match worker.next().await {
                Told::NcclId(told) => assert_eq!(told, made),
                other => panic!("told {other:?}"),
            }
        }
        // One that is no id ends the stream of whoever says it.
        workers[0].say(Message::NcclId(NcclId { generation: 1, id: vec![1; 5] })).await;
        while let Ok(Some(_)) = workers[0].hear.message().await {}
    });
    let refused = "NcclId.id is 5 bytes long";
    coordinator.wait_for(refused, |stderr| stderr.contains(refused).then_some(()));
    assert!(coordinator.stderr().contains("3 workers by NCCL 2.30.3"), "{}", coordinator.stderr());
}

#[test]
fn a_rank_without_nccl_has_all_sum_over_the_ring() {
    let scratch = Scratch::with_data(8, 4);
    let mut command = scratch.coordinator("run");
    command.args(["--workers", "3", "--listen", "127.0.0.1:0"]);
    let mut coordinator = start(command);
    let port = coordinator.port();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let (_workers, forms) = three(port, [Some(23_003), None, Some(23_003)]).await;
        assert!(forms.iter().all(|form| !form.nccl));
    });
}
