//! The cluster that the test runs in, through SLURM's own programs.

use std::cell::Cell;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use relabel_tests::{Scratch, metrics, program, sorted};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(150);

/// Runs a program and returns what it printed.
pub fn command<S: AsRef<OsStr>>(program: &str, args: &[S]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub fn scontrol(args: &[&str]) -> String {
    command("scontrol", args)
}

/// Waits until `found` finds something; `shown` says what there is instead when it does not.
fn wait<T>(what: &str, mut found: impl FnMut() -> Option<T>, shown: impl Fn() -> String) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "no {what} after {PATIENCE:?}:\n{}", shown());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A job of SLURM that trains.
pub struct Job {
    pub id: String,
    run_dir: PathBuf,
    log: PathBuf,
}

impl Job {
    /// `coordinator submit slurm` on the data in `scratch`, by somebody who stands there. The run goes to `run_dir`.
    pub fn submit(scratch: &Scratch, run_dir: &str, flags: &[&str]) -> Self {
        let output = Self::command(scratch, run_dir, flags).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).unwrap();
        let id = said.strip_prefix("submitted job ").and_then(|rest| rest.split(':').next()).unwrap();
        Self::at(scratch, id, run_dir)
    }

    /// What `coordinator submit slurm` says to a job that SLURM does not want.
    pub fn refused(scratch: &Scratch, flags: &[&str]) -> String {
        let output = Self::command(scratch, "refused", flags).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    }

    /// The script in `deploy/slurm` given to sbatch, with flags of sbatch and options of the run.
    pub fn by_hand(scratch: &Scratch, run_dir: &str, flags: &[&str], options: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/slurm/relabel.sbatch");
        // The options of a part of a heterogeneous job are those in front of its script.
        let output = Command::new("sbatch")
            .current_dir(scratch.path(""))
            .env("RELABEL_RUN_DIR", run_dir)
            .env("RELABEL_BIN", program("coordinator").parent().unwrap())
            .env("RELABEL_DEVICE", "cpu")
            .arg("--parsable")
            .arg(format!("--output={run_dir}.log"))
            .args(flags)
            .arg(script)
            .args(scratch.options())
            .args(options)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self::at(scratch, String::from_utf8(output.stdout).unwrap().trim(), run_dir)
    }

    fn command(scratch: &Scratch, run_dir: &str, flags: &[&str]) -> Command {
        let mut command = Command::new(program("coordinator"));
        command.args(["submit", "slurm", "--run-dir", run_dir, "--cpus-per-worker=1"]);
        command.args(scratch.options()).args(flags).current_dir(scratch.path(""));
        // Sooner than one would look elsewhere.
        command.env("RELABEL_WATCH", "1");
        command
    }

    fn at(scratch: &Scratch, id: &str, run_dir: &str) -> Self {
        Self { id: id.into(), run_dir: scratch.path(run_dir), log: scratch.path(&format!("{run_dir}.log")) }
    }

    /// The job of one index of an array.
    pub fn of_array(&self, index: &str) -> Self {
        let filled = |path: &Path| PathBuf::from(path.to_str().unwrap().replace("%a", index));
        Self { id: format!("{}_{index}", self.id), run_dir: filled(&self.run_dir), log: filled(&self.log) }
    }

    /// A field of `scontrol show job`.
    pub fn field(&self, name: &str) -> String {
        let shown = scontrol(&["--oneliner", "show", "job", &self.id]);
        let prefix = format!("{name}=");
        let field = shown.split_whitespace().find_map(|word| word.strip_prefix(&prefix));
        field.unwrap_or_else(|| panic!("no {name} in {shown}")).to_owned()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Everything that there is to see when a test fails.
    fn shown(&self) -> String {
        let mut shown = scontrol(&["show", "job", &self.id]);
        shown.push_str(&self.log());
        let logs = self.run_dir.join("logs");
        for log in if logs.is_dir() { sorted(&logs) } else { Vec::new() } {
            shown.push_str(&format!("---- {}\n{}", log.display(), std::fs::read_to_string(&log).unwrap()));
        }
        shown
    }

    /// Waits until the job is in `state`; fails as soon as it has ended in another.
    pub fn wait_for_state(&self, state: &str) {
        let over = Cell::new(false);
        let reached = || {
            let now = self.field("JobState");
            let ended = ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"].contains(&now.as_str());
            over.set(ended && now != state);
            assert!(!over.get(), "the job ended {now}, not {state}:\n{}", self.shown());
            (now == state).then_some(())
        };
        wait(state, reached, || self.shown());
    }

    /// Waits until the job's log says something.
    pub fn wait_for_log(&self, text: &str) {
        wait(text, || self.log().contains(text).then_some(()), || self.shown());
    }

    /// Waits until the run has recorded so many steps.
    pub fn wait_for_steps(&self, steps: usize) {
        let done = || (metrics(&self.run_dir, "step").len() >= steps).then_some(());
        wait("steps", done, || self.shown());
    }

    /// Sends a signal to the worker processes, as the coordinator has noted them.
    pub fn signal_workers(&self, signal: Signal) {
        let log = self.log();
        let pids: Vec<&str> =
            log.split("(process ").skip(1).filter_map(|part| part.split_whitespace().next()).collect();
        assert!(pids.len() >= 2, "{log}");
        for pid in pids {
            kill(Pid::from_raw(pid.parse().unwrap()), signal).unwrap();
        }
    }

    /// Kills the coordinator as `kill -9` does.
    pub fn kill_coordinator(&self) {
        let run_dir = self.run_dir.file_name().unwrap().to_str().unwrap();
        let is = |pid: &Pid| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split('\0');
            words.next().is_some_and(|program| program.ends_with("/coordinator"))
                && words.any(|word| word == run_dir)
        };
        let found: Vec<Pid> = processes().filter(is).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        kill(found[0], Signal::SIGKILL).unwrap();
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The tests that follow want the nodes.
            let _ = Command::new("scancel").arg(&self.id).status();
        }
    }
}

/// All processes of the cluster; it has a process namespace of its own.
fn processes() -> impl Iterator<Item = Pid> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| Some(Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?)))
}

/// A node of the cluster that is off. Dropping this starts it again.
pub struct Node(&'static str);

impl Node {
    /// What a power cut does: everything on it is gone, and its link is dead.
    pub fn power_off(name: &'static str) -> Self {
        let folder = std::env::var("CLUSTER").unwrap();
        let daemon = std::fs::read_to_string(format!("{folder}/slurmd.{name}.pid")).unwrap();
        let network = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let there = network(daemon.trim());
        assert!(there.is_some() && there != network("self"));
        for pid in processes().filter(|pid| network(&pid.to_string()) == there) {
            // It may have died with another.
            let _ = kill(pid, Signal::SIGKILL);
        }
        let link = Path::new("/sys/class/net").join(format!("link-{name}"));
        wait("end of the node's link", || (!link.exists()).then_some(()), String::new);
        Self(name)
    }

    /// Tells SLURM what it would find out by itself, later.
    pub fn set_state(&self, state: &str) {
        scontrol(&["update", &format!("NodeName={}", self.0), &format!("State={state}"), "Reason=test"]);
    }
}

impl Drop for Node {
    /// Waits until the node can be used.
    fn drop(&mut self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("slurm/cluster.sh");
        let started = Command::new(script).args(["--node", self.0]).status();
        if std::thread::panicking() || !started.unwrap().success() {
            return;
        }
        let state = || command("sinfo", &["--noheader", "--nodes", self.0, "--format=%T"]);
        let usable = || ["idle", "allocated", "mixed"].contains(&state().trim()).then_some(());
        wait("node", usable, state);
    }
}
