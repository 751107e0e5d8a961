//! How much one may have: connections, messages, and time without a sign of life.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use relabel_proto::v1::{Fault, Heartbeat, worker_message::Message};
use relabel_tests::{Running, Scratch, run, start};

use super::client::{PATIENCE, access, hello, join, runtime, said, status};

/// A coordinator for one worker that has not come.
fn waiting(scratch: &Scratch, flags: &[&str]) -> (Running, u16) {
    let mut command = scratch.coordinator("run");
    command.args(["--workers", "2", "--listen", "127.0.0.1:0"]).args(flags);
    let mut coordinator = start(command);
    let port = coordinator.port();
    (coordinator, port)
}

/// Whether the other end closes the connection within `patience`.
fn is_closed_within(mut stream: TcpStream, patience: Duration) -> bool {
    let began = Instant::now();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    while began.elapsed() < patience {
        match stream.read(&mut [0; 1024]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return true,
        }
    }
    false
}

#[test]
fn those_beyond_the_limit_are_told_so_and_who_says_nothing_is_shown_out() {
    let scratch = Scratch::with_data(8, 4);
    let (coordinator, port) = waiting(&scratch, &["--max-connections", "3"]);
    // They say nothing, half of what HTTP/2 begins with, and all of it but then no more.
    let mut idle: Vec<_> = (0..3).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    idle[1].write_all(b"PRI * HTTP").unwrap();
    idle[2].write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    std::thread::sleep(Duration::from_millis(500));

    let refused = run(scratch.worker(port));
    let line = refused.last_line(1);
    assert!(line.contains("as many connections as may be (--max-connections)"), "{line}");
    assert!(coordinator.stderr().contains("as many connections as may be"), "{}", coordinator.stderr());
    for stream in idle {
        assert!(is_closed_within(stream, Duration::from_secs(20)), "10 s are over long since");
    }
    assert!(coordinator.stderr().contains("has shown no valid token for 10 s"), "{}", coordinator.stderr());
    assert!(runtime().block_on(status(&access(port, None))).is_ok(), "their places are free again");
}

#[test]
fn a_flood_on_one_stream_is_slowed_and_nothing_of_it_is_lost() {
    let scratch = Scratch::with_data(8, 4);
    let (coordinator, port) = waiting(&scratch, &[]);
    let (flooding, took) = runtime().block_on(async {
        let worker = join(&access(port, None), hello(), PATIENCE).await.unwrap();
        let began = Instant::now();
        // 2000 are free, and 600 more take 3 seconds.
        for _ in 0..2600 {
            worker.say.send(said(Message::Heartbeat(Heartbeat {}))).await.unwrap();
        }
        let reason = "the last of it".to_owned();
        worker.say.send(said(Message::Fault(Fault { reason }))).await.unwrap();
        let mut hear = worker.hear;
        while let Ok(Some(_)) = hear.message().await {}
        (worker.say, began.elapsed())
    });
    drop(flooding);
    let ended = coordinator.wait();
    assert!(ended.last_line(1).contains("the last of it"), "{}", ended.stderr);
    assert!(took >= Duration::from_secs_f64(2.9), "all of it was read within {took:?}");
}

/// A wire that can be cut without either end being told, as when a cable is pulled.
struct Wire {
    port: u16,
    cut: Arc<AtomicBool>,
    /// When the far end has closed its connection.
    closed: std::sync::mpsc::Receiver<Instant>,
}

fn wire(to: u16) -> Wire {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let cut = Arc::new(AtomicBool::new(false));
    let (far_closed, closed) = std::sync::mpsc::channel();
    let is_cut = cut.clone();
    std::thread::spawn(move || {
        let (near, _) = listener.accept().unwrap();
        let far = TcpStream::connect(("127.0.0.1", to)).unwrap();
        let carry = move |mut from: TcpStream, mut to: TcpStream, is_cut: Arc<AtomicBool>| {
            let mut buffer = [0; 4096];
            while let Ok(n) = from.read(&mut buffer)
                && n > 0
            {
                // What is sent into a cut wire is gone.
                if !is_cut.load(Ordering::Relaxed) {
                    let _ = to.write_all(&buffer[..n]);
                }
            }
            (from, to)
        };
        let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        let is_cut_too = is_cut.clone();
        let up = std::thread::spawn(move || carry(near_too, far_too, is_cut_too));
        let down = carry(far, near, is_cut);
        let _ = far_closed.send(Instant::now());
        // Neither is closed before the other has had its time.
        let _ = up.join();
        drop(down);
    });
    Wire { port, cut, closed }
}

#[test]
fn both_ends_of_a_cut_wire_see_it_within_the_time_of_a_dead_worker() {
    let scratch = Scratch::with_data(8, 4);
    let dead_after = Duration::from_secs(2);
    let (mut coordinator, port) =
        waiting(&scratch, &["--cluster.dead_after", "2", "--cluster.heartbeat", "0.5"]);
    let wire = wire(port);
    let near = runtime().block_on(async {
        let mut worker = join(&access(wire.port, None), hello(), dead_after).await.unwrap();
        wire.cut.store(true, Ordering::Relaxed);
        let began = Instant::now();
        let broken = tokio::time::timeout(PATIENCE, worker.hear.message()).await.expect("it waits for ever");
        assert!(broken.is_err(), "{broken:?}");
        began.elapsed()
    });
    coordinator.wait_for("the loss", |text| text.contains("nothing heard of it for 2.0 s").then_some(()));
    let far = wire.closed.recv_timeout(PATIENCE).expect("the coordinator keeps the connection for ever");
    eprintln!("the near end saw it after {near:?}, the far end {:?} before now", far.elapsed());
    // Twice the time, for a slow machine; without asking for signs of life it would take for ever.
    assert!(near < 2 * dead_after, "{near:?}");
}
