//! Workers that come, go, die and stand still, and a coordinator that is killed: real processes. Whatever happens, the
//! global batches are those of an undisturbed run, each sample is seen once an epoch, and the curve does not show it
//! (BatchNorm's statistics are frozen, so that it does not see how a batch is cut).
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use relabel_tests::{
    Running, Scratch, assert_each_sample_once, assert_same_curve, batches, losses, run, start, wait_for_steps,
};

/// Steps of 16 images an epoch; two epochs are trained.
const IMAGES: u32 = 800;

/// A free port.
const ANY: &str = "127.0.0.1:0";

fn scratch() -> Scratch {
    Scratch::with_data(IMAGES, 8)
}

/// By epoch and step.
type BySteps<T> = BTreeMap<(u64, u64), T>;

/// What the disturbed runs have to equal: one worker that nobody disturbs.
fn undisturbed(scratch: &Scratch) -> (BySteps<Vec<u64>>, BySteps<f64>) {
    let mut command = scratch.elastic("undisturbed", 1, 1, ANY);
    command.args(["--local", "--threads", "1", "--optim.epochs", "2"]);
    let ended = run(command);
    assert!(ended.status.success(), "{}", ended.stderr);
    let run_dir = scratch.path("undisturbed");
    (batches(&run_dir), losses(&run_dir))
}

fn assert_like_undisturbed(scratch: &Scratch, run_dir: &str) {
    let (whole, curve) = undisturbed(scratch);
    let run_dir = scratch.path(run_dir);
    assert_each_sample_once(&run_dir, 2, IMAGES.into());
    assert_eq!(batches(&run_dir), whole, "the sequence of global batches");
    assert_same_curve(&losses(&run_dir), &curve, 1e-3);
}

/// Starts a coordinator for `most` workers, of which `least` go on.
fn coordinator(scratch: &Scratch, most: u32, least: u32) -> (Running, u16) {
    let mut command = scratch.elastic("run", most, least, ANY);
    command.args(["--optim.epochs", "2"]);
    let mut coordinator = start(command);
    let port = coordinator.port();
    (coordinator, port)
}

fn wait_for(running: &mut Running, words: &str) {
    running.wait_for(words, |text| text.contains(words).then_some(()));
}

#[test]
fn workers_join_and_leave_while_training_goes_on() {
    let scratch = scratch();
    let (mut coordinator, port) = coordinator(&scratch, 3, 1);
    let first = start(scratch.worker(port));
    wait_for(&mut coordinator, "joined as rank 0");
    let second = start(scratch.worker(port));
    // Two are there and three may come: the beginning does not wait for ever.
    wait_for(&mut coordinator, "generation 1: 2 workers");
    wait_for_steps(&scratch.path("run"), 3);
    let third = start(scratch.worker(port));
    wait_for(&mut coordinator, "joins the 2 that train");
    wait_for(&mut coordinator, "generation 2: 3 workers, going on in memory");

    // One has to go: it says so, the others go on with the step after the next, and it exits as the signal has it.
    kill(second.pid(), Signal::SIGTERM).unwrap();
    wait_for(&mut coordinator, "is leaving (SIGTERM)");
    let left = second.wait();
    assert_eq!(left.status.code(), Some(143), "{}", left.stderr);
    wait_for(&mut coordinator, "generation 3: 2 workers, going on in memory");
    for (who, running) in [("coordinator", coordinator), ("first", first), ("third", third)] {
        let ended = running.wait();
        assert!(ended.status.success(), "{who}: {}", ended.stderr);
        assert!(!ended.stderr.contains("WARN"), "nothing went wrong:\n{}", ended.stderr);
    }
    assert_like_undisturbed(&scratch, "run");
}

#[test]
fn killed_workers_cost_no_step_and_no_sample() {
    let scratch = scratch();
    let (mut coordinator, port) = coordinator(&scratch, 3, 1);
    let mut workers: Vec<_> = (0..3).map(|_| start(scratch.worker(port))).collect();
    wait_for(&mut coordinator, "generation 1: 3 workers");
    for (steps, victim) in [(5, 2), (12, 0), (25, 1), (45, 0)] {
        wait_for_steps(&scratch.path("run"), steps);
        workers.remove(victim).kill();
        workers.push(start(scratch.worker(port)));
    }
    let ended = coordinator.wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(!ended.stderr.contains("going on from checkpoint"), "{}", ended.stderr);
    assert_like_undisturbed(&scratch, "run");
}

#[test]
fn a_killed_coordinator_takes_its_workers_up_as_they_are() {
    successor_of(&[], Running::kill);
}

#[test]
fn a_coordinator_that_makes_way_leaves_its_workers_to_train_on() {
    successor_of(&["--hand-over"], |coordinator| {
        let pid = coordinator.pid();
        kill(pid, Signal::SIGTERM).unwrap();
        let ended = coordinator.wait();
        assert_eq!(ended.status.code(), Some(75), "{}", ended.stderr);
        let (asked, saved) =
            ("making way for the coordinator that is started next", "checkpoint resnet18-e0000-s");
        let after = ended.stderr.split_once(asked).unwrap_or_else(|| panic!("{}", ended.stderr)).1;
        assert!(after.contains(saved), "{}", ended.stderr);
    });
}

/// Trains under a coordinator that is `ended` and another that is started in its place.
fn successor_of(flags: &[&str], ended: impl FnOnce(Running)) {
    let scratch = scratch();
    let mut command = scratch.elastic("run", 2, 1, ANY);
    command.args(["--optim.epochs", "2"]).args(flags);
    let mut coordinator = start(command);
    let port = coordinator.port();
    let workers = [start(scratch.worker(port)), start(scratch.worker(port))];
    wait_for(&mut coordinator, "generation 1: 2 workers");
    wait_for_steps(&scratch.path("run"), 5);
    ended(coordinator);
    // They train on meanwhile.
    let steps = || batches(&scratch.path("run")).len();
    let (before, began) = (steps(), Instant::now());
    while steps() < before + 5 {
        assert!(began.elapsed() < Duration::from_secs(60), "training has stopped with the coordinator");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut command = scratch.elastic("run", 2, 1, &format!("127.0.0.1:{port}"));
    command.args(["--optim.epochs", "2"]);
    let ended = run(command);
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(ended.stderr.contains("going on as before: all 2 workers of generation 1"), "{}", ended.stderr);
    for worker in workers {
        let worker = worker.wait();
        assert!(worker.status.success(), "{}", worker.stderr);
        assert!(worker.stderr.contains("in touch with the coordinator again"), "{}", worker.stderr);
    }
    assert_like_undisturbed(&scratch, "run");
}

#[test]
fn a_worker_that_stands_still_is_left_behind_and_comes_back() {
    let scratch = scratch();
    let mut command = scratch.elastic("run", 3, 2, ANY);
    command.args(["--optim.epochs", "2", "--cluster.dead_after", "1.5"]);
    let mut coordinator = start(command);
    let port = coordinator.port();
    let workers: Vec<_> = (0..3).map(|_| start(scratch.worker(port))).collect();
    wait_for(&mut coordinator, "generation 1: 3 workers");
    wait_for_steps(&scratch.path("run"), 3);
    kill(workers[1].pid(), Signal::SIGSTOP).unwrap();
    wait_for(&mut coordinator, "was lost: nothing heard of it for 1.5 s");
    wait_for(&mut coordinator, "generation 2: 2 workers, going on in memory");
    kill(workers[1].pid(), Signal::SIGCONT).unwrap();
    wait_for(&mut coordinator, "is back on cpu");
    wait_for(&mut coordinator, "generation 3: 3 workers, going on in memory");
    for running in workers.into_iter().chain([coordinator]) {
        let ended = running.wait();
        assert!(ended.status.success(), "{}", ended.stderr);
    }
    assert_like_undisturbed(&scratch, "run");
}

#[test]
fn the_last_worker_saves_before_it_leaves() {
    let scratch = scratch();
    let (mut coordinator, port) = coordinator(&scratch, 1, 1);
    let worker = start(scratch.worker(port));
    wait_for_steps(&scratch.path("run"), 3);
    kill(worker.pid(), Signal::SIGTERM).unwrap();
    let left = worker.wait();
    assert_eq!(left.status.code(), Some(143), "{}", left.stderr);
    wait_for(&mut coordinator, "checkpoint resnet18-e0000-s");
    let next = start(scratch.worker(port));
    wait_for(&mut coordinator, "going on from checkpoint resnet18-e0000-s");
    for running in [coordinator, next] {
        let ended = running.wait();
        assert!(ended.status.success(), "{}", ended.stderr);
    }
    assert_like_undisturbed(&scratch, "run");
}
