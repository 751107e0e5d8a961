//! Three workers and a coordinator on hosts of their own, whose network fails in the ways that networks do. Training
//! goes on with those that reach each other; whoever is cut off comes back when it can; the sequence of global batches
//! is that of an undisturbed run.
#![allow(clippy::unwrap_used)]

use relabel_tests::net::Net;
use relabel_tests::{Running, Scratch, assert_each_sample_once, start, wait_for_steps};

const IMAGES: u32 = 960;
const PORT: u16 = 4747;

/// The coordinator's host; the workers' are those before it.
const COORDINATOR: u32 = 3;

struct Cluster {
    coordinator: Running,
    workers: Vec<Running>,
    scratch: Scratch,
    net: Net,
}

impl Cluster {
    /// Three workers that train, two of which are enough. None where there cannot be network namespaces.
    fn start() -> Option<Self> {
        let Some(net) = Net::new(4) else {
            eprintln!("skipped: network namespaces need root and iproute2");
            return None;
        };
        let scratch = Scratch::with_data(IMAGES, 8);
        let mut command = scratch.elastic("run", 3, 2, &format!("{}:{PORT}", Net::address(COORDINATOR)));
        command.args(["--cluster.dead_after", "2", "--optim.epochs", "2"]);
        let mut coordinator = start(net.on(COORDINATOR, &command));
        coordinator.port();
        let workers = (0..3).map(|rank| {
            let mut worker = scratch.worker_at(&format!("http://{}:{PORT}", Net::address(COORDINATOR)));
            worker.args(["--rank", &rank.to_string()]);
            start(net.on(rank, &worker))
        });
        let workers = workers.collect();
        wait_for(&mut coordinator, "generation 1: 3 workers");
        wait_for_steps(&scratch.path("run"), 3);
        Some(Self { coordinator, workers, scratch, net })
    }

    /// Waits for the next generation of so many workers that goes on in memory.
    fn goes_on(&mut self, generation: u32, workers: u32) {
        let words = format!("generation {generation}: {workers} workers, going on in memory");
        wait_for(&mut self.coordinator, &words);
    }

    fn ends(self) {
        for running in self.workers.into_iter().chain([self.coordinator]) {
            let ended = running.wait();
            assert!(ended.status.success(), "{}", ended.stderr);
            assert!(!ended.stderr.contains("going on from checkpoint"), "{}", ended.stderr);
        }
        assert_each_sample_once(&self.scratch.path("run"), 2, IMAGES.into());
    }
}

fn wait_for(running: &mut Running, words: &str) {
    running.wait_for(words, |text| text.contains(words).then_some(()));
}

#[test]
fn a_host_that_vanishes_is_left_behind_and_comes_back() {
    let Some(mut cluster) = Cluster::start() else { return };
    cluster.net.plug(1, false);
    wait_for(&mut cluster.coordinator, "worker 1 (process");
    wait_for(&mut cluster.coordinator, "was lost: nothing heard of it for 2.0 s");
    cluster.goes_on(2, 2);
    cluster.net.plug(1, true);
    wait_for(&mut cluster.coordinator, "is back on cpu");
    cluster.goes_on(3, 3);
    cluster.ends();
}

#[test]
fn a_cut_between_two_workers_costs_one_of_them() {
    let Some(mut cluster) = Cluster::start() else { return };
    cluster.net.cut(0, 1, true);
    // Both are heard of; their kernels do not answer each other, and then they do not find each other.
    wait_for(&mut cluster.coordinator, "left the ring");
    wait_for(&mut cluster.coordinator, "going on without worker 1");
    wait_for(&mut cluster.coordinator, ": 2 workers, going on in memory");
    cluster.net.cut(0, 1, false);
    wait_for(&mut cluster.coordinator, "is back on cpu");
    cluster.ends();
}

#[test]
fn a_worker_cut_off_from_the_coordinator_alone_is_left_behind_and_comes_back() {
    let Some(mut cluster) = Cluster::start() else { return };
    cluster.net.cut(2, COORDINATOR, true);
    wait_for(&mut cluster.coordinator, "was lost: nothing heard of it for 2.0 s");
    cluster.goes_on(2, 2);
    cluster.net.cut(2, COORDINATOR, false);
    wait_for(&mut cluster.coordinator, "is back on cpu");
    cluster.goes_on(3, 3);
    cluster.ends();
}
