//! Whatever strangers do to the ports of a run that trains, it ends as it would have.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use relabel_tests::{
    Running, Scratch, assert_each_sample_once, assert_same_curve, batches, losses, run, start, wait_for_steps,
};

use super::client::{PATIENCE, access, hello, join, runtime, status, stop};

const JOIN: &str = "the-join-token-of-this-test";
const IMAGES: u32 = 480;

/// Ports that a process listens on, by its sockets and the kernel's table of them.
fn listening(running: &Running) -> Vec<u16> {
    let pid = running.pid();
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let links = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let sockets: Vec<_> = links.map(|link| link.display().to_string()).collect();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let listens = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let own = *state == "0A" && sockets.contains(&format!("socket:[{inode}]"));
        own.then(|| u16::from_str_radix(address.split(':').nth(1)?, 16).ok())?
    };
    table.lines().filter_map(listens).collect()
}

/// Says garbage to a port and waits a while for what comes.
fn shout(port: u16, n: u32) -> bool {
    if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
        let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
        let _ = stream.write_all(&garbage(n));
        let _ = stream.read(&mut [0; 256]);
    }
    false
}

/// What a stranger may say to any port, the `n`th time.
fn garbage(n: u32) -> Vec<u8> {
    let random = |length: usize| {
        let mut state = u64::from(n) * 2 + 1;
        let step = move |_| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..length).map(step).collect::<Vec<u8>>()
    };
    match n % 7 {
        0 => random(300),
        1 => b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        // A record of a TLS handshake, a preface of HTTP/2, a hello of the ring, each with what does not belong to it.
        2 => [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"[..], &random(200)].concat(),
        3 => [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &random(200)].concat(),
        4 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\x00\x05\0\0\0\x01".to_vec(),
        5 => {
            [&b"RELABEL\n\x01\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0"[..], &random(64)].concat()
        }
        _ => Vec::new(),
    }
}

/// What a stranger may try with the protocol itself, knowing it well but for the token. Whether it was told that it
/// may not; it may also find nobody.
fn try_the_door(port: u16, n: u32) -> bool {
    let guessed = access(port, n.is_multiple_of(2).then_some("a-token-that-i-have-guessed"));
    // This user may give orders where there is no admin token, so it comes as a worker that does.
    let as_worker = access(port, Some(JOIN));
    let refused = runtime().block_on(async {
        match n % 3 {
            0 => join(&guessed, hello(), PATIENCE).await.err(),
            1 => stop(&as_worker).await.err(),
            _ => status(&as_worker).await.err(),
        }
    });
    let code = refused.expect("it was let in").code();
    matches!(code, tonic::Code::PermissionDenied | tonic::Code::Unauthenticated)
}

#[test]
fn strangers_at_every_port_change_nothing() {
    let scratch = Scratch::with_data(IMAGES, 8);
    let mut command = scratch.elastic("undisturbed", 1, 1, "127.0.0.1:0");
    command.args(["--local", "--threads", "1", "--optim.epochs", "2"]);
    let ended = run(command);
    assert!(ended.status.success(), "{}", ended.stderr);

    let mut command = scratch.elastic("run", 2, 1, "127.0.0.1:0");
    command.args(["--optim.epochs", "2"]).env("RELABEL_JOIN_TOKEN", JOIN);
    let mut coordinator = start(command);
    let port = coordinator.port();
    let worker = || {
        let mut command = scratch.worker(port);
        command.env("RELABEL_JOIN_TOKEN", JOIN);
        start(command)
    };
    let mut workers = vec![worker(), worker()];
    wait_for_steps(&scratch.path("run"), 2);
    let (over, tried, told) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let rings = std::sync::Mutex::new(workers.iter().flat_map(listening).collect::<Vec<_>>());
    assert_eq!(rings.lock().unwrap().len(), 2, "each worker has an end of the ring");
    std::thread::scope(|scope| {
        let hostile = |act: fn(u16, u32) -> bool, at_rings: bool| {
            let (over, tried, told, rings) = (&over, &tried, &told, &rings);
            scope.spawn(move || {
                let mut n = 0;
                while !over.load(Ordering::Relaxed) {
                    let ports = if at_rings { rings.lock().unwrap().clone() } else { vec![port] };
                    for port in ports {
                        told.fetch_add(act(port, n).into(), Ordering::Relaxed);
                        tried.fetch_add(1, Ordering::Relaxed);
                    }
                    n += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        };
        hostile(shout, false);
        hostile(shout, true);
        hostile(try_the_door, false);
        // A ring that is formed anew, among them.
        wait_for_steps(&scratch.path("run"), 15);
        workers.remove(0).kill();
        workers.push(worker());
        coordinator
            .wait_for("the newcomer", |text| text.contains("2 workers, going on in memory").then_some(()));
        *rings.lock().unwrap() = workers.iter().flat_map(listening).collect();
        let ended = coordinator.wait();
        over.store(true, Ordering::Relaxed);
        assert!(ended.status.success(), "{}", ended.stderr);
        let lines = ended.stderr.lines().filter(|line| line.contains("refused the connection")).count();
        assert!((2..100).contains(&lines), "{lines} lines about strangers:\n{}", ended.stderr);
        assert!(ended.stderr.contains("it showed another join token"), "{}", ended.stderr);
    });
    let (tried, told) = (tried.into_inner(), told.into_inner());
    assert!(tried > 100 && told > 20, "strangers came {tried} times only, {told} of them were told no");
    eprintln!("strangers came {tried} times, {told} of them were told no");
    for worker in workers {
        let ended = worker.wait();
        assert!(ended.status.success(), "{}", ended.stderr);
    }
    let [disturbed, undisturbed] = ["run", "undisturbed"].map(|name| scratch.path(name));
    assert_each_sample_once(&disturbed, 2, IMAGES.into());
    assert_eq!(batches(&disturbed), batches(&undisturbed), "the sequence of global batches");
    assert_same_curve(&losses(&disturbed), &losses(&undisturbed), 1e-3);
}
