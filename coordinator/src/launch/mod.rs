//! `--local`: the workers as children of the coordinator, one command on one machine. They get logs of their own,
//! a process group of their own (a terminal's Ctrl-C reaches the coordinator, which stops them in order), and
//! they die with the coordinator, however it dies.
//!
//! The last needs a word. The kernel's parent-death signal has to be asked for in the child, which Rust allows
//! only as unsafe code between fork and exec. So the child is first this same program once more ([`CHILD`]),
//! which asks for the signal and becomes the worker. And the signal comes when the *thread* that forked
//! ends, so all forking is done by one thread that lives as long as the workers are wanted.

mod local;
mod spawner;
#[cfg(test)]
mod tests;

use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Child;

use relabel_proto::security::{ADMIN_TOKEN, JOIN_TOKEN};

pub(crate) use local::Local;
use spawner::Spawner;

use crate::security::LocalAccess;

/// The first argument that makes this program a worker's beginning. Not for people.
const CHILD: &str = "__local-worker";
/// Lines of a log that a message shows.
const TAIL: usize = 5;

/// Why local workers cannot be started. Each message is one line and says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error(
        "there is no worker program at {}: --local starts the one beside the coordinator; build it with \
         cargo build --release -p relabel-worker",
        path.display()
    )]
    NoWorker { path: PathBuf },
    #[error("cannot find the coordinator's own program, beside which the worker stands: {source}")]
    OwnProgram { source: io::Error },
    #[error("cannot open the log {} of worker {rank}: {source}", path.display())]
    Log { rank: u32, path: PathBuf, source: io::Error },
    #[error("cannot start worker {rank} ({}): {source}", program.display())]
    Spawn { rank: u32, program: PathBuf, source: io::Error },
}

/// To be called first in `main`: where this process was started to become a local worker, it does, and does not
/// return. Returns otherwise.
pub(crate) fn become_worker_if_asked() {
    let mut args = std::env::args_os().skip(1);
    if args.next().as_deref() != Some(OsStr::new(CHILD)) {
        return;
    }
    let (Some(parent), Some(program)) = (args.next(), args.next()) else {
        eprintln!("{CHILD} is the coordinator's own way to start a worker");
        std::process::exit(2);
    };
    let asked = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    // A parent that died before the signal was asked for sends none.
    let orphan = parent.to_str() != Some(nix::unistd::getppid().to_string().as_str());
    if orphan {
        std::process::exit(1);
    }
    let error = match asked {
        Ok(()) => std::process::Command::new(&program).args(args).exec(),
        Err(errno) => errno.into(),
    };
    eprintln!("cannot start {}: {error}", program.display());
    std::process::exit(1);
}

/// The worker program beside the coordinator's own.
///
/// # Errors
/// There is none.
pub(crate) fn worker_program() -> Result<PathBuf, LaunchError> {
    let own = std::env::current_exe().map_err(|source| LaunchError::OwnProgram { source })?;
    let path = own.with_file_name("worker");
    if path.is_file() { Ok(path) } else { Err(LaunchError::NoWorker { path }) }
}

/// What local workers do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Train, each as its rank.
    Train,
    /// See to ranges of images, each a `worker` with this subcommand.
    Lease(&'static str),
}

/// What local workers are started with.
#[derive(Debug, Clone)]
pub(crate) struct LocalOptions {
    pub(crate) task: Task,
    /// Workers, ranks 0 to `n` - 1.
    pub(crate) n: u32,
    /// As [`worker_program`] finds it.
    pub(crate) worker: PathBuf,
    /// How they come in. The token goes to them by their environment, as everybody can read a command line.
    pub(crate) home: LocalAccess,
    /// The logs go to `logs/worker-<rank>.log` in it.
    pub(crate) run_dir: PathBuf,
    /// Threads of one worker; none shares the machine's cores out.
    pub(crate) threads: Option<u32>,
    /// Arguments that every worker gets in addition, such as `--cpu`.
    pub(crate) extra: Vec<OsString>,
}

impl LocalOptions {
    /// Threads of one worker: its share of the cores, and at least one.
    fn threads(&self) -> u32 {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        self.threads.unwrap_or(cores / self.n.max(1)).max(1)
    }

    /// The arguments of the worker `rank`.
    fn args(&self, rank: u32) -> Vec<OsString> {
        let mut args: Vec<OsString> = match self.task {
            Task::Train => vec!["--rank".into(), rank.to_string().into()],
            Task::Lease(command) => vec![command.into()],
        };
        args.extend(["--coordinator".into(), OsString::from(&self.home.url)]);
        args.extend(["--threads".into(), self.threads().to_string().into()]);
        args.extend(self.extra.iter().cloned());
        args
    }
}

/// A worker that ended.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) rank: u32,
    pub(crate) status: ExitStatus,
    pub(crate) log: PathBuf,
    /// The last lines that it wrote, of this life of it only; empty where it wrote none.
    pub(crate) last_lines: Vec<String>,
}

/// The workers that run as children.
#[derive(Debug)]
pub(crate) struct LocalWorkers {
    options: LocalOptions,
    spawner: Spawner,
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    rank: u32,
    child: Child,
    log: PathBuf,
    /// Length of the log when this life began.
    log_begin: u64,
}

impl LocalWorkers {
    /// Starts all workers. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// A log cannot be opened, or a program cannot be started; what was started is killed.
    pub(crate) async fn start(options: LocalOptions) -> Result<Self, LaunchError> {
        if !options.worker.is_file() {
            return Err(LaunchError::NoWorker { path: options.worker });
        }
        let own = std::env::current_exe().map_err(|source| LaunchError::OwnProgram { source })?;
        let prefix = vec![own.into(), CHILD.into(), std::process::id().to_string().into()];
        Self::start_behind(options, prefix).await
    }

    /// [`start`](Self::start) with the words that the worker's command line begins with.
    async fn start_behind(options: LocalOptions, prefix: Vec<OsString>) -> Result<Self, LaunchError> {
        let environment = vec![
            (JOIN_TOKEN.variable, Some(options.home.token.reveal().into())),
            // They are no operators.
            (ADMIN_TOKEN.variable, None),
        ];
        let spawner = Spawner::start(prefix, environment);
        let mut workers = Self { spawner, running: Vec::new(), options };
        for rank in 0..workers.options.n {
            workers.respawn(rank).await?;
        }
        Ok(workers)
    }

    /// Starts the worker `rank`, again or for the first time. It may not be running.
    ///
    /// # Errors
    /// Its log cannot be opened, or the program cannot be started.
    pub(crate) async fn respawn(&mut self, rank: u32) -> Result<(), LaunchError> {
        let log = self.options.run_dir.join("logs").join(format!("worker-{rank}.log"));
        let args = self.options.args(rank);
        let (file, log_begin) = open_log(&log, &self.options.worker, &args)
            .map_err(|source| LaunchError::Log { rank, path: log.clone(), source })?;
        let program = self.options.worker.clone();
        let child = self.spawner.spawn(program.clone(), args, file).await;
        let child = child.map_err(|source| LaunchError::Spawn { rank, program, source })?;
        self.running.push(Running { rank, child, log, log_begin });
        Ok(())
    }

    /// Ranks that run, as far as [`next_exit`](Self::next_exit) has said.
    pub(crate) fn ranks(&self) -> impl Iterator<Item = u32> {
        self.running.iter().map(|worker| worker.rank)
    }

    /// Waits for the next worker to end; for ever where none runs. May be dropped and called again: no exit is lost.
    pub(crate) async fn next_exit(&mut self) -> Exit {
        let mut waits: FuturesUnordered<_> = self
            .running
            .iter_mut()
            .enumerate()
            .map(|(index, worker)| async move { (index, worker.child.wait().await) })
            .collect();
        let (index, status) = match waits.next().await {
            Some((index, Ok(status))) => (index, status),
            // Waiting fails only for what is no child any more: nothing is known of its end.
            Some((index, Err(_))) => (index, ExitStatus::default()),
            None => std::future::pending().await,
        };
        drop(waits);
        let worker = self.running.swap_remove(index);
        let last_lines = last_lines(&worker.log, worker.log_begin);
        Exit { rank: worker.rank, status, log: worker.log, last_lines }
    }

    /// Asks all workers to stop (SIGTERM) and kills what still runs after `grace`, with everything that it started.
    /// Returns how each ended, in that order.
    pub(crate) async fn terminate(&mut self, grace: Duration) -> Vec<Exit> {
        let mut exits = Vec::new();
        for (signal, wait) in [(Signal::SIGTERM, Some(grace)), (Signal::SIGKILL, None)] {
            self.signal(signal);
            let all = async {
                while !self.running.is_empty() {
                    exits.push(self.next_exit().await);
                }
            };
            match wait {
                // Nothing outlives a SIGKILL for long.
                None => all.await,
                Some(grace) => drop(tokio::time::timeout(grace, all).await),
            }
        }
        exits
    }

    fn signal(&self, signal: Signal) {
        for pid in self.running.iter().filter_map(|worker| worker.child.id()) {
            if let Ok(pid) = i32::try_from(pid) {
                // It may have ended just now.
                let _ = killpg(Pid::from_raw(pid), signal);
            }
        }
    }
}

/// Opens a worker's log for appending, and heads what will follow with the command. Returns the length so far too.
fn open_log(path: &Path, worker: &Path, args: &[OsString]) -> io::Result<(std::fs::File, u64)> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path)?;
    let words: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    io::Write::write_all(&mut file, format!("==== {} {}\n", worker.display(), words.join(" ")).as_bytes())?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

/// The last lines of a log from `begin` on. A log that cannot be read has none.
fn last_lines(path: &Path, begin: u64) -> Vec<String> {
    /// Enough for the lines of a message; a log may be gigabytes.
    const WINDOW: u64 = 16 * 1024;
    let read = || {
        let mut file = std::fs::File::open(path)?;
        let from = begin.max(file.metadata()?.len().saturating_sub(WINDOW));
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(WINDOW).read_to_end(&mut bytes)?;
        io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(TAIL)..].iter().map(|line| line.to_string()).collect()
}
