//! A worker that is slower than the others: real processes, one of which gets the processor for a part of the time only.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use relabel_tests::{Running, Scratch, assert_each_sample_once, start};

const IMAGES: u32 = 800;

/// A process that stands still for most of the time, until this is dropped.
struct Slowed {
    pid: Pid,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slowed {
    fn new(pid: Pid) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            // Once it has exited there is nobody to signal.
            while !done.load(Ordering::Relaxed) && kill(pid, Signal::SIGSTOP).is_ok() {
                std::thread::sleep(Duration::from_millis(400));
                let _ = kill(pid, Signal::SIGCONT);
                std::thread::sleep(Duration::from_millis(40));
            }
        });
        Self { pid, over, thread: Some(thread) }
    }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        let _ = kill(self.pid, Signal::SIGCONT);
    }
}

/// A run of at most three workers, of which two are enough, with `options`; the workers have come in their order.
fn begin(scratch: &Scratch, workers: u32, least: u32, options: &[&str]) -> (Running, Vec<Running>) {
    let mut command = scratch.elastic("run", workers, least, "127.0.0.1:0");
    command.args(["--optim.epochs", "2"]).args(options);
    let mut coordinator = start(command);
    let port = coordinator.port();
    let mut three = Vec::new();
    for rank in 0..3 {
        three.push(start(scratch.worker(port)));
        let came = format!("worker {rank} (");
        coordinator.wait_for(&came, |text| text.contains(&came).then_some(()));
    }
    (coordinator, three)
}

fn wait_for(running: &mut Running, words: &[&str]) {
    let in_a_line =
        |text: &str| text.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(());
    running.wait_for(&words.join(" ... "), in_a_line);
}

#[test]
fn a_slow_worker_is_named_with_what_it_costs_and_dropped() {
    let scratch = Scratch::with_data(IMAGES, 8);
    let (mut coordinator, mut workers) = begin(&scratch, 3, 2, &["--cluster.stragglers", "drop"]);
    wait_for(&mut coordinator, &["generation 1: 3 workers"]);
    let slow = workers.remove(1);
    let slowed = Slowed::new(slow.pid());
    wait_for(&mut coordinator, &["going on without a rank", "worker 1", "is slow", "% of its time to it"]);
    wait_for(&mut coordinator, &["generation 2: 2 workers, going on in memory"]);
    let left = slow.wait();
    drop(slowed);
    assert_eq!(left.status.code(), Some(143), "it was let go: {}", left.stderr);
    assert!(left.stderr.contains("it is too slow for the others"), "{}", left.stderr);
    for running in [workers.remove(1), workers.remove(0), coordinator] {
        let ended = running.wait();
        assert!(ended.status.success(), "{}", ended.stderr);
    }
    assert_each_sample_once(&scratch.path("run"), 2, IMAGES.into());
}

#[test]
fn a_standby_takes_the_place_of_a_slow_worker() {
    let scratch = Scratch::with_data(IMAGES, 8);
    let options = ["--cluster.stragglers", "replace", "--cluster.spares", "1"];
    let (mut coordinator, workers) = begin(&scratch, 2, 2, &options);
    wait_for(&mut coordinator, &["worker 2", "to stand by"]);
    wait_for(&mut coordinator, &["generation 1: 2 workers"]);
    let slowed = Slowed::new(workers[0].pid());
    wait_for(&mut coordinator, &["worker 2", "takes the place of worker 0", "which is slow"]);
    wait_for(&mut coordinator, &["generation 2: 2 workers, going on in memory"]);
    drop(slowed);
    for running in workers.into_iter().chain([coordinator]) {
        let ended = running.wait();
        assert!(ended.status.success(), "{}", ended.stderr);
    }
    assert_each_sample_once(&scratch.path("run"), 2, IMAGES.into());
}
