//! A server that speaks S3, as a process, and what may happen to it and on the way to it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// A way to the server on which one bit of every answer of more than this many bytes is turned over.
pub const LARGE: u64 = 1 << 20;

/// Opens it; returns its port, and how many bits were turned so far.
pub fn faulty_way_to(port: u16) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    let turned = Arc::new(AtomicU64::new(0));
    let count = turned.clone();
    // It ends with the process.
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(("127.0.0.1", port)).unwrap());
            let (up_from, up_to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || pump(up_from, up_to, None));
            let count = count.clone();
            std::thread::spawn(move || pump(server, client, Some(&count)));
        }
    });
    (own, turned)
}

fn pump(mut from: TcpStream, mut to: TcpStream, turned: Option<&AtomicU64>) {
    let (mut buffer, mut seen) = (vec![0; 64 << 10], 0);
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let before = seen;
        seen += read as u64;
        if let Some(turned) = turned
            && (before..seen).contains(&LARGE)
        {
            buffer[(LARGE - before) as usize] ^= 1;
            turned.fetch_add(1, Ordering::Relaxed);
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
