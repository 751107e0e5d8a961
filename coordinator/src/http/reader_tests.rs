//! Who reads, how many at a time, and for how long one may keep the server waiting.
#![allow(clippy::unwrap_used)]

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::tests::{driven, get};
use super::*;

/// A user that no file and no process of this test's is.
const NOBODY: u32 = 65534;

const SHORT: Duration = Duration::from_millis(400);
/// Much longer than what is to happen, and much shorter than what is not.
const SOON: Duration = Duration::from_secs(10);

const REQUEST: &[u8] = b"GET /api/view HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A server that is not patient, for so many readers at a time.
async fn served(address: Address, places: usize, dir: &Path) -> (Http, SocketAddr) {
    let (queue, run_dir) = driven(2, dir);
    let bound = bind(address).await.unwrap().unwrap();
    let address = bound.address();
    (bound.serve_with(queue, run_dir, places, Patience { request: SHORT, taking: SHORT }), address)
}

fn anywhere() -> Address {
    Address::At("127.0.0.1:0".parse().unwrap())
}

/// Whether other users can be tried: only root may be them.
fn may_be_others() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped, for only root can start a process as another user");
    }
    root
}

/// A process of another user that connects, sends `words`, as printf takes them, and prints what comes.
fn stranger(address: SocketAddr, words: &str) -> Child {
    let script =
        format!("exec 3<>/dev/tcp/{}/{}; printf '{words}' >&3; cat <&3", address.ip(), address.port());
    let mut command = Command::new("bash");
    command.args(["--norc", "-c", &script]).uid(NOBODY).gid(NOBODY).current_dir("/").stdout(Stdio::piped());
    command.spawn().unwrap()
}

/// What another user gets to read.
async fn read_by_stranger(address: SocketAddr, path: &str) -> String {
    let child = stranger(
        address,
        &format!("GET {path} HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n"),
    );
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// What is sent until the connection is closed.
async fn rest(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let end = tokio::time::timeout(SOON, stream.read_to_end(&mut read)).await;
    // An end that is cut off is an end.
    let _ = end.expect("the connection is still open");
    String::from_utf8(read).unwrap()
}

#[tokio::test]
async fn only_this_user_reads_what_was_not_opened_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let (http, address) = served(Address::Default, 8, dir.path()).await;
    assert_eq!(get(address, "/api/view", "").await.0, 200);
    if may_be_others() {
        for path in ["/", "/metrics", "/api/view", "/api/logs", "/healthz", "/elsewhere"] {
            let answer = read_by_stranger(address, path).await;
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 403"), "{path}: {head}");
            assert!(head.to_lowercase().contains("content-security-policy"), "{head}");
            assert_eq!(body, Readers::refusal(address), "{path}");
            assert!(body.contains(&format!("--http {address}")) && body.lines().count() == 1, "{body}");
        }
    }
    http.stop().await;
}

#[tokio::test]
async fn an_address_that_was_named_is_for_every_user() {
    let dir = tempfile::tempdir().unwrap();
    let (http, address) = served(anywhere(), 8, dir.path()).await;
    if may_be_others() {
        let answer = read_by_stranger(address, "/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("relabel_run_info"), "{answer}");
    }
    http.stop().await;
}

#[tokio::test]
async fn strangers_take_no_place_from_readers() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, run_dir) = driven(2, dir.path());
    let bound = bind(Address::Default).await.unwrap().unwrap();
    let address = bound.address();
    let http = bound.serve_with(queue, run_dir, 1, Patience::default());
    if may_be_others() {
        // They send nothing: each holds what it has got.
        let mut strangers: Vec<Child> = (0..4).map(|_| stranger(address, "")).collect();
        tokio::time::sleep(SHORT).await;
        assert!(strangers.iter_mut().all(|child| child.try_wait().unwrap().is_none()), "they are connected");
        assert_eq!(get(address, "/api/view", "").await.0, 200);
        for mut child in strangers {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    http.stop().await;
}

#[tokio::test]
async fn who_sends_no_request_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let (http, address) = served(anywhere(), 8, dir.path()).await;
    // Nothing at all.
    let began = Instant::now();
    let mut silent = TcpStream::connect(address).await.unwrap();
    assert_eq!(rest(&mut silent).await, "");
    assert!(began.elapsed() >= SHORT / 2, "it had no time to ask");

    // A head that never ends, each byte of it soon after the one before.
    let (mut reading, mut writing) = TcpStream::connect(address).await.unwrap().into_split();
    writing.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ").await.unwrap();
    let trickle = async {
        while writing.write_all(b"x").await.is_ok() {
            tokio::time::sleep(SHORT / 8).await;
        }
    };
    let cut = async { while reading.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {} };
    tokio::time::timeout(SOON, async {
        tokio::select! { () = trickle => {}, () = cut => {} }
    })
    .await
    .unwrap();

    // A connection that is kept for a next request which does not come.
    let mut kept = TcpStream::connect(address).await.unwrap();
    kept.write_all(REQUEST).await.unwrap();
    assert!(rest(&mut kept).await.starts_with("HTTP/1.1 200"));
    // A body that was promised and does not come.
    let mut owing = TcpStream::connect(address).await.unwrap();
    let promise = b"GET /api/view HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n{";
    owing.write_all(promise).await.unwrap();
    assert!(rest(&mut owing).await.starts_with("HTTP/1.1 200"));
    http.stop().await;
}

#[tokio::test]
async fn a_stream_of_events_outlasts_the_patience() {
    let dir = tempfile::tempdir().unwrap();
    let (http, address) = served(anywhere(), 8, dir.path()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut read = Vec::new();
    let views = |read: &[u8]| String::from_utf8_lossy(read).matches("event: view").count();
    while views(&read) < 4 {
        let more = tokio::time::timeout(SOON, stream.read_buf(&mut read)).await.unwrap().unwrap();
        assert!(more > 0, "cut off: {}", String::from_utf8_lossy(&read));
    }
    http.stop().await;
}

/// Who asks and does not read gets no place for ever; and there are only so many places.
#[tokio::test]
async fn who_takes_nothing_is_cut_off_and_leaves_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let (http, address) = served(anywhere(), 1, dir.path()).await;
    let images = dir.path().join("run/images");
    std::fs::create_dir(&images).unwrap();
    std::fs::write(images.join("large.png"), vec![7; files::LARGEST as usize]).unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stuck = socket.connect(address).await.unwrap();
    for _ in 0..4 {
        stuck.write_all(b"GET /images/large.png HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    }
    stuck.readable().await.unwrap();
    let (code, head, body) = get(address, "/api/view", "").await;
    assert_eq!((code, body.as_str()), (503, TOO_MANY), "{head}");
    let began = Instant::now();
    while get(address, "/api/view", "").await.0 != 200 {
        assert!(began.elapsed() < SOON, "it still has the only place");
        tokio::time::sleep(SHORT / 8).await;
    }
    drop(stuck);
    http.stop().await;
}
