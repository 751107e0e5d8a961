//! A server that speaks S3, as a process, and what may happen to it and on the way to it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Who may come.
const KEYS: (&str, &str) = ("ranks", SECRET);
pub const SECRET: &str = "not-much-of-a-secret";

/// Its only bucket.
const BUCKET: &str = "runs";

/// A server whose objects are files of a folder, and outlive it.
pub struct Server {
    folder: tempfile::TempDir,
    port: u16,
    process: Option<Child>,
}

impl Server {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        // Free now, and hardly anybody's by the time that it is used.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Self { folder, port, process: None };
        server.come_back();
        server
    }

    /// Starts it on the port and with the objects that it had.
    pub fn come_back(&mut self) {
        let program = std::env::var("STORE_SERVER").expect("make store-test names the server");
        let child = Command::new(program)
            .args(["--host=127.0.0.1", &format!("--port={}", self.port)])
            .args(["--access-key", KEYS.0, "--secret-key", KEYS.1])
            .arg(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        self.process = Some(child.unwrap());
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20), "the server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Where an object is on the disk.
    pub fn file(&self, object: &str) -> PathBuf {
        self.folder.path().join(BUCKET).join(object)
    }

    /// The objects under a prefix, by their names after it.
    pub fn objects(&self, prefix: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.file(prefix)) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What a program's environment says to reach it on `port`, as AWS's tools have it.
    pub fn environment(port: u16) -> [(&'static str, String); 5] {
        [
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}")),
            ("AWS_ALLOW_HTTP", "true".into()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ACCESS_KEY_ID", KEYS.0.into()),
            ("AWS_SECRET_ACCESS_KEY", KEYS.1.into()),
        ]
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A store that takes connections and never says anything.
pub struct Silence(TcpListener);

impl Silence {
    pub fn begin() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    pub fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }
}

/// A way to a server, on which something may happen. It ends with the process.
///
/// Returns its port. `answer` and `request` see all that goes back and forth, as it comes, before it goes on.
fn way_to<R, A>(port: u16, request: R, answer: impl Fn() -> A + Send + 'static) -> u16
where
    R: Fn(&mut [u8]) + Clone + Send + 'static,
    A: FnMut(&mut [u8]) + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(("127.0.0.1", port)).unwrap());
            let (up_from, up_to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let (request, answer) = (request.clone(), answer());
            std::thread::spawn(move || pump(up_from, up_to, request));
            std::thread::spawn(move || pump(server, client, answer));
        }
    });
    own
}

fn pump(mut from: TcpStream, mut to: TcpStream, mut see: impl FnMut(&mut [u8])) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        see(&mut buffer[..read]);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// A way to the server on which one bit of every answer of more than this many bytes is turned over.
pub const LARGE: u64 = 1 << 20;

/// Opens it; returns its port, and how many bits were turned so far.
pub fn faulty_way_to(port: u16) -> (u16, Arc<AtomicU64>) {
    let turned = Arc::new(AtomicU64::new(0));
    let count = turned.clone();
    let answer = move || {
        let (count, mut seen) = (count.clone(), 0);
        move |part: &mut [u8]| {
            let before = seen;
            seen += part.len() as u64;
            if (before..seen).contains(&LARGE) {
                part[(LARGE - before) as usize] ^= 1;
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    (way_to(port, |_| (), answer), turned)
}

/// A way to the server on which requests can be held up.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    shut: bool,
    waiting: usize,
}

impl Gate {
    /// Opens a way through it; returns the way's port. The gate is for requests that begin with `what`.
    pub fn before(&self, port: u16, what: String) -> u16 {
        let gate = self.clone();
        let pass = move |part: &mut [u8]| {
            if part.starts_with(what.as_bytes()) {
                gate.pass();
            }
        };
        way_to(port, pass, || |_: &mut [u8]| ())
    }

    fn pass(&self) {
        let (state, changed) = &*self.0;
        let mut state = state.lock().unwrap();
        state.waiting += 1;
        changed.notify_all();
        state = changed.wait_while(state, |state| state.shut).unwrap();
        state.waiting -= 1;
    }

    /// Shuts it, and returns once somebody stands before it.
    pub fn shut(&self) {
        let (state, changed) = &*self.0;
        let mut state = state.lock().unwrap();
        state.shut = true;
        let limit = Duration::from_secs(60);
        let (_state, late) = changed.wait_timeout_while(state, limit, |state| state.waiting == 0).unwrap();
        assert!(!late.timed_out(), "nobody came to the gate");
    }

    pub fn open(&self) {
        let (state, changed) = &*self.0;
        state.lock().unwrap().shut = false;
        changed.notify_all();
    }
}
