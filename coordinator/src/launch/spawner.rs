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

/// Variables with the value that they get, or none.
pub(super) type Environment = Vec<(&'static str, Option<OsString>)>;

/// Starts children; they are killed when it is dropped.
#[derive(Debug)]
pub(super) struct Spawner {
    requests: mpsc::Sender<Request>,
}

impl Spawner {
    /// Starts the thread. `prefix` goes before every program and its arguments; where it is not empty, its first
    /// word is the program that runs. `environment` is what its variables are set to, or that they are not. To be
    /// called inside a tokio runtime.
    pub(super) fn start(prefix: Vec<OsString>, environment: Environment) -> Self {
        let (requests, incoming) = mpsc::channel::<Request>();
        let runtime = tokio::runtime::Handle::current();
        std::thread::spawn(move || {
            // Children are waited for by the runtime's signal handler.
            let _inside = runtime.enter();
            for request in incoming {
                let words = prefix.iter().cloned().chain([request.program.into()]).chain(request.args);
                // Whoever asked and left has no use for the child: dropping it kills it.
                let _ = request.reply.send(spawn(words, &environment, request.log));
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

fn spawn(
    mut words: impl Iterator<Item = OsString>,
    environment: &Environment,
    log: File,
) -> io::Result<Child> {
    let program = words.next().unwrap_or_default();
    let mut command = Command::new(program);
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
        .args(words)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}
