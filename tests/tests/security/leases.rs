//! The port of `coordinator label` and `coordinator eval`: the same door, the same limits, the same distrust.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use relabel_proto::security::{Access, TlsArgs};
use relabel_proto::v1::leases_client::LeasesClient;
use relabel_proto::v1::{
    EvalCorruption, EvalFolder, EvalSeen, LeaseAlive, LeaseCoordinatorMessage, LeaseFault, LeaseHello,
    LeaseReady, LeaseWorkerMessage, lease_coordinator_message, lease_ready, lease_worker_message::Message,
};
use relabel_tests::{Running, Scratch, program, run, start};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::certificates::Authority;
use super::client::{PATIENCE, access, runtime};
use super::roles::{ADMIN, JOIN, assert_refused, text};

/// Longest that a test waits for what is to come at once.
const SOON: Duration = Duration::from_secs(20);

/// `coordinator label` or `coordinator eval` of what only workers would open: a data set `nowhere`.
fn coordinator(folder: &Path, command: &str, flags: &[&str]) -> Running {
    let mut program = Command::new(program("coordinator"));
    program.args([command, "--listen", "127.0.0.1:0", "--data", "nowhere", "--weights", "none.pth"]);
    if command == "label" {
        program.args(["--out", "maps", "--arch", "resnet18"]);
    }
    start({
        program.args(flags).current_dir(folder).stdin(Stdio::null());
        program
    })
}

/// Both directions of a worker's stream.
struct Worker {
    say: mpsc::Sender<LeaseWorkerMessage>,
    hear: Streaming<LeaseCoordinatorMessage>,
}

impl Worker {
    async fn say(&self, message: Message) {
        self.say.send(LeaseWorkerMessage { message: Some(message) }).await.unwrap();
    }

    /// How the coordinator ends the stream.
    async fn end(mut self) -> Result<Option<LeaseCoordinatorMessage>, Status> {
        tokio::time::timeout(SOON, self.hear.message()).await.expect("an end")
    }
}

fn hello(command: &str) -> LeaseHello {
    LeaseHello {
        version: relabel_proto::VERSION.into(),
        host: "somewhere".into(),
        pid: 1,
        command: command.into(),
    }
}

/// Opens a stream, and is welcomed or refused.
async fn hold(access: &Access, hello: LeaseHello) -> Result<Worker, Status> {
    let channel =
        access.connect(PATIENCE, None).await.map_err(|error| Status::unavailable(error.to_string()))?;
    let (say, outgoing) = mpsc::channel(16);
    say.send(LeaseWorkerMessage { message: Some(Message::Hello(hello)) }).await.unwrap();
    let mut client = LeasesClient::new(channel);
    let mut hear = client.hold(access.request(ReceiverStream::new(outgoing))).await?.into_inner();
    let first = hear.message().await?.expect("a welcome").message;
    assert!(matches!(first, Some(lease_coordinator_message::Message::Welcome(_))), "{first:?}");
    Ok(Worker { say, hear })
}

#[test]
fn only_who_shows_certificate_and_token_is_given_work() {
    let folder = tempfile::TempDir::new().unwrap();
    let authority = Authority::new(folder.path(), "ours");
    let (server, own) = (authority.sign("localhost"), authority.sign("worker"));
    let token = |name: &str, token: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("{token}\n")).unwrap();
        path
    };
    let (join, admin) = (token("join", JOIN), token("admin", ADMIN));
    let wrong = token("wrong", "another-token-than-the-right-one");
    for (command, other) in [("label", "eval"), ("eval", "label")] {
        let tls = ["--tls-cert", text(&server.cert), "--tls-key", text(&server.key)];
        let ours = ["--tls-client-ca", text(&authority.pem)];
        let tokens = ["--join-token-file", text(&join), "--admin-token-file", text(&admin)];
        let mut coordinator = coordinator(folder.path(), command, &[&tls[..], &ours, &tokens].concat());
        let port = coordinator.port();
        coordinator.wait_for("the invitation", |log| {
            let flags =
                "https://HOST:PORT --tls-ca FILE --tls-cert FILE --tls-key FILE --join-token-file FILE";
            let flags = flags.replace("PORT", &port.to_string());
            log.contains(&format!("worker {command} --coordinator {flags}")).then_some(())
        });
        let worker = |command: &str, url: &str, flags: &[&str]| {
            let mut worker = Command::new(program("worker"));
            worker.args([command, "--threads", "1", "--connect-timeout", "30", "--coordinator", url]);
            worker.args(flags).stdin(Stdio::null());
            run(worker)
        };
        let https = format!("https://localhost:{port}");
        let certificate =
            ["--tls-ca", text(&authority.pem), "--tls-cert", text(&own.cert), "--tls-key", text(&own.key)];
        let with = |token| [&certificate[..], &["--join-token-file", text(token)]].concat();
        let refused = |flags: &[&str], words: &[&str]| assert_refused(&worker(command, &https, flags), words);
        let plain = worker(command, &format!("http://localhost:{port}"), &[]);
        assert_refused(&plain, &["it speaks TLS: use https://"]);
        refused(&["--tls-ca", text(&authority.pem)], &["lets in only those who show a certificate"]);
        refused(&certificate, &["the coordinator refused this worker", "--join-token-file"]);
        refused(&with(&wrong), &["this is not its join token"]);
        refused(&with(&admin), &["this is its admin token: a worker shows the join token"]);
        assert!(!coordinator.stderr().contains("(process "), "{}", coordinator.stderr());

        // Let in, one learns what there is to be done.
        let ended = worker(other, &https, &with(&join));
        assert_refused(&ended, &[&format!("it is `coordinator {command}`")]);
        let ended = worker(command, &https, &with(&join));
        assert!(ended.last_line(1).contains(text(&folder.path().join("nowhere"))), "{}", ended.stderr);
        coordinator.wait_for("its last words", |log| {
            log.lines().any(|line| line.contains("(process ") && line.contains("nowhere")).then_some(())
        });
        coordinator.kill();
    }
}

#[test]
fn local_workers_come_in_past_tls_with_a_token_that_only_they_have() {
    let scratch = Scratch::with_data(16, 8);
    let mut command = scratch.local("run", 1);
    command.args(["--optim.epochs", "1"]);
    let trained = run(command);
    assert!(trained.status.success(), "{}", trained.stderr);
    let authority = Authority::new(&scratch.path(""), "ours");
    let server = authority.sign("localhost");
    let mut command = Command::new(program("coordinator"));
    command.args(["eval", "--local", "--threads", "1", "--json", "--image-size", "32", "--data", "data"]);
    command.args(["--weights", "run/checkpoints/resnet18-best.safetensors"]);
    command.args(["--tls-cert", text(&server.cert), "--tls-key", text(&server.key)]);
    command.current_dir(scratch.path("")).stdin(Stdio::null());
    let mut coordinator = start(command);

    // At once: the worker has its libraries to load yet.
    let url = format!("https://localhost:{}", coordinator.port());
    let tls = TlsArgs { tls_ca: Some(authority.pem.clone()), ..TlsArgs::default() };
    let stranger = Access::new(&url, &tls, None).unwrap();
    let refused = runtime().block_on(hold(&stranger, hello("eval"))).err().expect("a refusal");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("runs with --local"), "{refused}");

    let ended = coordinator.wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(report["sets"][0]["images"], 8, "{report}");
}

#[test]
fn a_flood_on_one_stream_is_slowed_and_nothing_of_it_is_lost() {
    let folder = tempfile::TempDir::new().unwrap();
    let mut coordinator = coordinator(folder.path(), "eval", &[]);
    let port = coordinator.port();
    let took = runtime().block_on(async {
        let worker = hold(&access(port, None), hello("eval")).await.unwrap();
        let began = Instant::now();
        // 2000 are free, and 600 more take 3 seconds.
        for _ in 0..2600 {
            worker.say(Message::Alive(LeaseAlive {})).await;
        }
        worker.say(Message::Fault(LeaseFault { reason: "the last\nof it".into(), hopeless: true })).await;
        let told = worker.end().await.unwrap().and_then(|told| told.message);
        assert!(matches!(told, Some(lease_coordinator_message::Message::Over(_))), "{told:?}");
        began.elapsed()
    });
    let ended = coordinator.wait();
    assert_eq!(ended.last_line(1), "error: the last of it");
    assert!(took >= Duration::from_secs_f64(2.9), "all of it was read within {took:?}");
}

#[test]
fn a_worker_that_forges_what_it_says_is_put_out_and_leaves_no_trace() {
    let folder = tempfile::TempDir::new().unwrap();
    let mut coordinator = coordinator(folder.path(), "eval", &[]);
    let access = access(coordinator.port(), None);
    let forged = LeaseHello { host: "h\nINFO all is done".into(), ..hello("eval") };
    let refused = runtime().block_on(hold(&access, forged)).err().expect("a refusal");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("LeaseHello.host is `h\\nINFO"), "{refused}");

    let folder = EvalFolder { samples: 8, fingerprint: "f".into(), ..EvalFolder::default() };
    let fog = Some(EvalCorruption { name: "fog\u{1b}[2J".into(), severity: 1 });
    for (forged, reason) in [
        (EvalFolder { below: "../../etc".into(), ..folder.clone() }, "EvalFolder.below is `../../etc`"),
        (EvalFolder { corruption: fog, ..folder.clone() }, "EvalCorruption.name is `fog\\u{1b}[2J`"),
        (EvalFolder { samples: 1 << 32, ..folder.clone() }, "EvalFolder.samples is `4294967296`"),
    ] {
        runtime().block_on(async {
            let worker = hold(&access, hello("eval")).await.unwrap();
            let folders = vec![folder.clone(), forged];
            let seen = EvalSeen { arch: "resnet18".into(), folders, ..EvalSeen::default() };
            worker.say(Message::Ready(LeaseReady { seen: Some(lease_ready::Seen::Eval(seen)) })).await;
            assert!(worker.end().await.is_ok_and(|message| message.is_none()), "it is put out");
        });
        coordinator.wait_for("the reason", |log| {
            log.contains(&format!("a message that makes no sense: {reason}, which is out of range"))
                .then_some(())
        });
    }
    // The next one may still be the first.
    let seen = EvalSeen { arch: "resnet18".into(), folders: vec![folder], ..EvalSeen::default() };
    runtime().block_on(async {
        let mut worker = hold(&access, hello("eval")).await.unwrap();
        worker.say(Message::Ready(LeaseReady { seen: Some(lease_ready::Seen::Eval(seen)) })).await;
        let order = tokio::time::timeout(SOON, worker.hear.message()).await.expect("a range").unwrap();
        let range = order.and_then(|order| order.message);
        let Some(lease_coordinator_message::Message::Range(range)) = range else { panic!("{range:?}") };
        assert_eq!((range.folder, range.first), (0, 0));
    });
    coordinator.kill();
}
