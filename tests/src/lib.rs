//! What the end-to-end tests share: the two programs, a small data set, and what a run leaves behind.
//!
//! The programs are those that cargo has built beside the test: `cargo test --workspace` and `make test`
//! build them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod net;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Longest that any program may take before the test kills it and fails: a guard against hangs, generous
/// because machines are slow at times.
const GUARD: Duration = Duration::from_secs(240);

/// The program `coordinator` or `worker`.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join(name);
    assert!(path.is_file(), "{} is not built: run `cargo test --workspace` or `make test`", path.display());
    path
}

/// A folder of one test with a data set in `data/`, removed at its end.
pub struct Scratch(TempDir);

impl Scratch {
    /// Makes `train` training and `val` validation images of four classes.
    pub fn with_data(train: u32, val: u32) -> Self {
        let scratch = Self(TempDir::new().unwrap());
        let out = scratch.path("data");
        let synth = Command::new(program("worker"))
            .args([OsStr::new("synth"), out.as_os_str()])
            .args(["--classes", "4", "--size", "64x48", "--objects-max", "2"])
            .args(["--train", &train.to_string(), "--val", &val.to_string()])
            .output()
            .unwrap();
        assert!(synth.status.success(), "{}", String::from_utf8_lossy(&synth.stderr));
        scratch
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Some file of class folder number `class` under `data/<kind>`, the first by name.
    pub fn file_of(&self, kind: &str, class: usize) -> PathBuf {
        let folder = &sorted(&self.path("data").join(kind))[class];
        sorted(folder).swap_remove(0)
    }

    /// `coordinator` on this data with options that make a run small and repeatable, its run directory
    /// being `run_dir`.
    pub fn coordinator(&self, run_dir: &str) -> Command {
        let mut command = Command::new(program("coordinator"));
        command.arg("--run-dir").arg(self.path(run_dir)).args(self.options());
        // The index of a folder that is about to go need not be kept.
        command.env("XDG_CACHE_HOME", self.path("cache")).stdin(Stdio::null());
        command
    }

    /// Options of a run on this data that make it small and repeatable.
    pub fn options(&self) -> Vec<String> {
        let [data, labels] = ["data", "data/labels"].map(|name| self.path(name));
        let options = [
            ("data.data_path", data.to_str().unwrap()),
            ("data.relabel.use", "true"),
            ("data.relabel.path", labels.to_str().unwrap()),
            ("data.image_size", "32"),
            ("data.rrc_minimum", "0.35"),
            ("model.arch", "resnet18"),
            ("optim.batch_size", "16"),
            ("optim.epochs", "3"),
            ("optim.lr.init", "0.02"),
            ("optim.warmup.epochs", "0"),
            ("compute.seed", "5"),
            ("compute.num_workers", "1"),
            ("util.print_freq", "1"),
            ("util.val_batch_size", "32"),
            ("util.record_samples", "true"),
        ];
        options.map(|(key, value)| format!("--{key}={value}")).into()
    }

    /// The same for `most` workers started by hand, of which `least` go on, listening at `address` (port 0 for a free
    /// one). Its times are short, so that tests are.
    pub fn elastic(&self, run_dir: &str, most: u32, least: u32, address: &str) -> Command {
        let mut command = self.coordinator(run_dir);
        command.args(["--workers", &most.to_string(), "--min-workers", &least.to_string()]);
        command.args(["--listen", address]);
        command.args(["--cluster.admit_after", "0.2", "--cluster.gather_for", "30"]);
        // So slowly that what another number of ranks rounds otherwise stays under 1e-4 of the loss: at 0.0005 it grew to
        // more than 1e-3 of it within a hundred steps.
        command.args(["--optim.bn.frozen", "true", "--optim.lr.init", "0.0002"]);
        command
    }

    /// The same with `workers` local workers.
    pub fn local(&self, run_dir: &str, workers: u32) -> Command {
        let mut command = self.coordinator(run_dir);
        command.args(["--workers", &workers.to_string(), "--local", "--threads", "1"]);
        command
    }

    /// A worker that talks to the coordinator on `port` of this host.
    pub fn worker(&self, port: u16) -> Command {
        self.worker_at(&format!("http://127.0.0.1:{port}"))
    }

    /// A worker that talks to the coordinator at `url`.
    pub fn worker_at(&self, url: &str) -> Command {
        let mut command = Command::new(program("worker"));
        command.args(["--coordinator", url]);
        command.args(["--threads", "1"]).env("XDG_CACHE_HOME", self.path("cache")).stdin(Stdio::null());
        command
    }
}

/// What is in a folder, by name.
pub fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// How a program ended.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// The last line, after checking that the program ended with `code`.
    pub fn last_line(&self, code: i32) -> &str {
        assert_eq!(self.status.code(), Some(code), "{}", self.stderr);
        self.stderr.lines().last().unwrap_or_default()
    }
}

/// A started program whose output goes to files. Killed when dropped.
pub struct Running {
    child: Child,
    out: PathBuf,
    log: PathBuf,
}

/// Starts a program.
pub fn start(mut command: Command) -> Running {
    let log =
        std::env::temp_dir().join(format!("relabel-test-{}-{:?}.log", std::process::id(), Instant::now()));
    let log =
        log.with_file_name(log.file_name().unwrap().to_string_lossy().replace([' ', '{', '}', ':', ','], ""));
    let out = log.with_extension("out");
    let file = |path: &Path| std::fs::File::create(path).unwrap();
    let child = command.stdout(file(&out)).stderr(file(&log)).spawn().unwrap();
    Running { child, out, log }
}

/// Runs a program to its end.
pub fn run(command: Command) -> Ended {
    start(command).wait()
}

impl Running {
    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id() as i32)
    }

    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub fn wait(mut self) -> Ended {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                let stdout = std::fs::read_to_string(&self.out).unwrap();
                return Ended { status, stdout, stderr: self.stderr() };
            }
            assert!(began.elapsed() < GUARD, "still running after {GUARD:?}:\n{}", self.stderr());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until `found` finds something in what the program has written so far.
    pub fn wait_for<T>(&mut self, what: &str, mut found: impl FnMut(&str) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            let ended = self.child.try_wait().unwrap();
            let stderr = self.stderr();
            if let Some(value) = found(&stderr) {
                return value;
            }
            assert!(ended.is_none(), "ended ({ended:?}) before {what}:\n{stderr}");
            assert!(began.elapsed() < GUARD, "no {what} after {GUARD:?}:\n{stderr}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The port that a coordinator says it listens on.
    pub fn port(&mut self) -> u16 {
        self.wait_for("listening", |text| {
            let rest = text.split("listening on ").nth(1)?;
            rest.split_whitespace().next()?.rsplit(':').next()?.parse().ok()
        })
    }

    /// Process ids of the local workers that have joined, in the order of joining.
    pub fn worker_pids(&mut self, workers: usize) -> Vec<nix::unistd::Pid> {
        self.wait_for("workers to join", |text| {
            let joined = text
                .split("(process ")
                .skip(1)
                .filter(|part| part.contains(") joined") || part.contains("joined as"));
            let pids: Vec<_> = joined
                .filter_map(|part| part.split_whitespace().next()?.parse().ok())
                .map(nix::unistd::Pid::from_raw)
                .collect();
            (pids.len() >= workers).then_some(pids)
        })
    }

    /// Kills the program as `kill -9` does.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.log);
        let _ = std::fs::remove_file(&self.out);
    }
}

/// One line of `metrics.jsonl`.
pub fn metrics(run_dir: &Path, kind: &str) -> Vec<Value> {
    let Ok(text) = std::fs::read_to_string(run_dir.join("metrics.jsonl")) else { return Vec::new() };
    // A line that is being written may be torn.
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["kind"] == kind).collect()
}

/// Waits until a run has recorded at least `steps` steps.
pub fn wait_for_steps(run_dir: &Path, steps: usize) {
    for _ in 0..10_000 {
        if metrics(run_dir, "step").len() >= steps {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{} never came to {steps} steps", run_dir.display());
}

/// The loss of every step, by epoch and step.
pub fn losses(run_dir: &Path) -> BTreeMap<(u64, u64), f64> {
    let mut losses = BTreeMap::new();
    for line in metrics(run_dir, "step") {
        let at = (line["epoch"].as_u64().unwrap(), line["step"].as_u64().unwrap());
        let before = losses.insert(at, line["loss"].as_f64().unwrap());
        assert_eq!(before, None, "{at:?} is recorded twice");
    }
    losses
}

/// A step of an epoch.
type Step = (u64, u64);

/// The samples of each step that is part of the state, over all lives of all ranks. A step counts where a rank has done
/// it, in the last generation that did; then the samples of all ranks that had begun it there are in it, also of
/// those that died before they could say that it was done.
pub fn batches(run_dir: &Path) -> BTreeMap<Step, Vec<u64>> {
    let mut begun: BTreeMap<(u64, Step), Vec<u64>> = BTreeMap::new();
    let mut done: BTreeMap<Step, u64> = BTreeMap::new();
    for file in sorted(&run_dir.join("samples")) {
        let text = std::fs::read_to_string(file).unwrap();
        // The last line of a killed worker may be torn; then nothing of the step had been sent.
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let (word, numbers) = line.trim_end().split_once(' ').unwrap();
            let numbers: Vec<u64> = numbers.split(' ').map(|number| number.parse().unwrap()).collect();
            let (generation, step, samples) = (numbers[0], (numbers[1], numbers[2]), &numbers[3..]);
            match word {
                "begun" => begun.entry((generation, step)).or_default().extend(samples),
                "done" => {
                    let last = done.entry(step).or_default();
                    *last = generation.max(*last);
                }
                _ => panic!("{line}"),
            }
        }
    }
    let samples = |(step, generation)| {
        let mut samples = begun.get(&(generation, step)).cloned().unwrap_or_default();
        samples.sort_unstable();
        (step, samples)
    };
    done.into_iter().map(samples).collect()
}

/// How often each sample was trained on, by epoch.
pub fn consumed(run_dir: &Path) -> BTreeMap<u64, BTreeMap<u64, u32>> {
    let mut epochs: BTreeMap<u64, BTreeMap<u64, u32>> = BTreeMap::new();
    for ((epoch, _), samples) in batches(run_dir) {
        for sample in samples {
            *epochs.entry(epoch).or_default().entry(sample).or_default() += 1;
        }
    }
    epochs
}

/// Checks that each of `samples` was trained on once in each of `epochs`.
pub fn assert_each_sample_once(run_dir: &Path, epochs: u64, samples: u64) {
    let once: BTreeMap<u64, u32> = (0..samples).map(|sample| (sample, 1)).collect();
    let consumed = consumed(run_dir);
    assert_eq!(consumed.keys().copied().collect::<Vec<_>>(), (0..epochs).collect::<Vec<_>>());
    for (epoch, counts) in consumed {
        assert_eq!(counts, once, "epoch {epoch}");
    }
}

/// Checks that two loss curves are the same to a relative tolerance.
pub fn assert_same_curve(a: &BTreeMap<(u64, u64), f64>, b: &BTreeMap<(u64, u64), f64>, tolerance: f64) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (at, a) in a {
        let b = b[at];
        assert!((a - b).abs() <= tolerance * a.abs().max(1e-3), "epoch and step {at:?}: {a} against {b}");
    }
}
