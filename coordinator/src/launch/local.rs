//! The policy: a worker that a signal has killed is started again, one that was told to leave stays away, and one
//! that has failed ends the run unless enough others are left.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Exit, LaunchError, LocalOptions, LocalWorkers, Task};
use crate::security::LocalAccess;

/// How often one rank is started again before the run is given up.
const RESTARTS: u32 = 3;

/// Exit codes of a worker that was told to leave: by SIGINT, by SIGTERM.
const LEFT: [i32; 2] = [130, 143];

/// The workers of a `--local` run.
pub(crate) struct Local {
    workers: LocalWorkers,
    /// Fewest that go on.
    least: usize,
    restarts: BTreeMap<u32, u32>,
}

impl Local {
    /// Starts `n` workers of `program`, as [`super::worker_program`] finds it, that come in by `home`. With fewer than
    /// `least` of them there is no going on.
    pub(crate) async fn start(
        program: PathBuf,
        task: Task,
        n: u32,
        least: u32,
        threads: Option<u32>,
        home: &LocalAccess,
        run_dir: &Path,
    ) -> Result<Self, LaunchError> {
        let options = LocalOptions {
            task,
            n,
            worker: program,
            home: home.clone(),
            run_dir: run_dir.to_path_buf(),
            threads,
            extra: match task {
                Task::Train => vec!["--cpu".into()],
                Task::Lease(_) => Vec::new(),
            },
        };
        let (workers, least) = (LocalWorkers::start(options).await?, least as usize);
        Ok(Self { workers, least, restarts: BTreeMap::new() })
    }

    /// Watches the workers until one ends in a way that starting it again would not mend, and says so in a
    /// line.
    pub(crate) async fn watch(&mut self) -> String {
        loop {
            let exit = self.workers.next_exit().await;
            let restarts = self.restarts.entry(exit.rank).or_default();
            let killed = exit.status.signal().is_some();
            let left = self.workers.ranks().count();
            if exit.status.success() {
                continue;
            }
            if exit.status.code().is_some_and(|code| LEFT.contains(&code)) && left > 0 {
                tracing::info!("worker {} has left", exit.rank);
                continue;
            }
            if !killed || *restarts >= RESTARTS {
                if left >= self.least.max(1) {
                    tracing::warn!("going on without a worker: {}", described(&exit));
                    continue;
                }
                return described(&exit);
            }
            *restarts += 1;
            tracing::warn!("worker {} ended ({}); starting it again", exit.rank, exit.status);
            if let Err(error) = self.workers.respawn(exit.rank).await {
                return error.to_string();
            }
        }
    }

    /// Lets the workers end by themselves, and makes them after `grace`.
    pub(crate) async fn farewell(&mut self, grace: Duration) {
        let all = async {
            while self.workers.ranks().next().is_some() {
                self.workers.next_exit().await;
            }
        };
        if tokio::time::timeout(grace, all).await.is_err() {
            self.workers.terminate(grace).await;
        }
    }
}

fn described(exit: &Exit) -> String {
    let last = match exit.last_lines.last() {
        Some(line) => format!(": {}", line.strip_prefix("error: ").unwrap_or(line)),
        None => String::new(),
    };
    format!("worker {} ended ({}){last} [{}]", exit.rank, exit.status, exit.log.display())
}
