//! The one thread that forks: the kernel sends a child its parent-death signal when the thread that forked it ends,
//! and a thread of tokio's may end long before the coordinator.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc;

use tokio::process::{Child, Command};
use tokio::sync::oneshot;

/// A child to start, and where to send it.
struct Request {
    program: PathBuf,
    args: Vec<OsString>,
    log: File,
    reply: oneshot::Sender<io::Result<Child>>,
}

/// Starts children; they are killed when it is dropped.
#[derive(Debug)]
pub(super) struct Spawner {
    requests: mpsc::Sender<Request>,
}

impl Spawner {
    /// Starts the thread. `prefix` goes before every program and its arguments; where it is not empty, its first
    /// word is the program that runs. To be called inside a tokio runtime.
    pub(super) fn start(prefix: Vec<OsString>) -> Self {
        let (requests, incoming) = mpsc::channel::<Request>();
        let runtime = tokio::runtime::Handle::current();
        std::thread::spawn(move || {
            // Children are waited for by the runtime's signal handler.
            let _inside = runtime.enter();
            for request in incoming {
                let words = prefix.iter().cloned().chain([request.program.into()]).chain(request.args);
                // Whoever asked and left has no use for the child: dropping it kills it.
                let _ = request.reply.send(spawn(words, request.log));
            }
        });
        Self { requests }
    }

    /// Starts `program` with both outputs to `log`, no input, and a process group of its own.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) async fn spawn(&self, program: PathBuf, args: Vec<OsString>, log: File) -> io::Result<Child> {
        let (reply, child) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts workers is gone");
        self.requests.send(Request { program, args, log, reply }).map_err(|_| gone())?;
        child.await.map_err(|_| gone())?
    }
}

fn spawn(mut words: impl Iterator<Item = OsString>, log: File) -> io::Result<Child> {
    let program = words.next().unwrap_or_default();
    Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}
