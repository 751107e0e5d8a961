//! Runs as jobs of a real SLURM: two nodes with host names, addresses and a pretended GPU each, which
//! `tests/slurm/cluster.sh` brings up around this test. `make slurm-test` runs it all.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../tests/security/certificates.rs"]
mod certificates;
mod cluster;

use std::sync::LazyLock;

use certificates::Authority;
use cluster::{Job, Node, scontrol};
use nix::sys::signal::Signal;
use relabel_tests::{Scratch, assert_each_sample_once, assert_same_curve, losses, run};

/// Training images: five steps an epoch, three epochs.
const IMAGES: u32 = 80;

/// The data of all tests, and in `undisturbed` the run that theirs are compared with: two workers, no SLURM.
static SHARED: LazyLock<Scratch> = LazyLock::new(|| {
    let shared = Scratch::with_data(IMAGES, 8);
    let mut undisturbed = shared.local("undisturbed", 2);
    undisturbed.args(CURVE);
    let ended = run(undisturbed);
    assert!(ended.status.success(), "{}", ended.stderr);
    shared
});

/// With its statistics frozen, BatchNorm does not see among how many workers a batch is divided: the curve is the same.
const CURVE: [&str; 2] = ["--optim.bn.frozen=true", "--optim.lr.init=0.0005"];

/// A job of two nodes whose run goes to `run_dir`.
fn submit(run_dir: &str, flags: &[&str]) -> Job {
    let two = ["--nodes=2", "--gpus-per-node=1", "--device=cpu"];
    Job::submit(&SHARED, run_dir, &[&two, &CURVE[..], flags].concat())
}

/// Checks that the curve of `run_dir` is what it would have been undisturbed.
fn assert_undisturbed(run_dir: &str) {
    assert_same_curve(&losses(&SHARED.path("undisturbed")), &losses(&SHARED.path(run_dir)), 1e-4);
}

#[test]
#[ignore = "needs a SLURM cluster: make slurm-test"]
fn a_job_trains_on_both_nodes() {
    let job = submit("whole", &[]);
    job.wait_for_state("COMPLETED");
    assert_undisturbed("whole");
    assert_each_sample_once(&SHARED.path("whole"), 3, IMAGES.into());
    let log = job.log();
    for words in ["on node1) joined as rank 0 of 2", "on node2) joined as rank 1 of 2", ": done\n"] {
        assert!(log.contains(words), "no {words:?} in\n{log}");
    }
}

#[test]
#[ignore = "needs a SLURM cluster: make slurm-test"]
fn the_time_limit_saves_and_requeues() {
    // SLURM looks at time limits every half minute. The workers pause until then, so that it makes no difference how
    // long these few steps take; nobody is to think them dead.
    let patient = ["dead_after", "wait_for_workers", "reunite_for"].map(|key| format!("--cluster.{key}=600"));
    let flags = ["--time=20", "--save-before=60"].into_iter().chain(patient.iter().map(String::as_str));
    let job = submit("limited", &flags.collect::<Vec<_>>());
    job.wait_for_steps(4);
    job.signal_workers(Signal::SIGSTOP);
    scontrol(&["update", &format!("JobId={}", job.id), "TimeLimit=1"]);
    job.wait_for_log("the time is nearly over");
    job.signal_workers(Signal::SIGCONT);
    job.wait_for_log("back in the queue");
    let before = losses(&SHARED.path("limited")).len();
    assert!(before < 15, "the run was over before its time");
    job.wait_for_state("PENDING");
    scontrol(&["update", &format!("JobId={}", job.id), "TimeLimit=20", "StartTime=now"]);
    job.wait_for_log("life 2 on node[1-2]");
    job.wait_for_state("COMPLETED");
    assert_undisturbed("limited");
    // Nothing was done twice: the checkpoint was the last thing of the first life.
    assert_each_sample_once(&SHARED.path("limited"), 3, IMAGES.into());
}

#[test]
#[ignore = "needs a SLURM cluster: make slurm-test"]
fn a_lost_node_leaves_the_job_to_the_other() {
    let job = submit("shrunk", &[]);
    job.wait_for_steps(4);
    let node = Node::power_off("node2");
    node.set_state("DOWN");
    job.wait_for_state("COMPLETED");
    assert_eq!(job.field("Restarts"), "0", "the job was not to be requeued");
    assert_undisturbed("shrunk");
}

#[test]
#[ignore = "needs a SLURM cluster: make slurm-test"]
fn the_loss_of_the_first_node_requeues_the_job() {
    let job = submit("moved", &["--checkpoint.every_steps=2"]);
    job.wait_for_steps(4);
    let node = Node::power_off("node1");
    node.set_state("DOWN");
    job.wait_for_state("PENDING");
    drop(node);
    scontrol(&["update", &format!("JobId={}", job.id), "StartTime=now"]);
    job.wait_for_log("life 2 on");
    job.wait_for_state("COMPLETED");
    assert_undisturbed("moved");
}

#[test]
#[ignore = "needs a SLURM cluster: make slurm-test"]
fn a_cancelled_job_goes_on_when_it_is_submitted_again() {
    let job = submit("cancelled", &[]);
    job.wait_for_steps(4);
    cluster::command("scancel", &[&job.id]);
    job.wait_for_state("CANCELLED");
    let before = losses(&SHARED.path("cancelled")).len();
    assert!(before < 15, "it was over before it was cancelled");
    let again = submit("cancelled", &[]);
    again.wait_for_state("COMPLETED");
    assert_undisturbed("cancelled");
    assert_each_sample_once(&SHARED.path("cancelled"), 3, IMAGES.into());
}

#[test]
#[ignore = "needs a SLURM cluster: make slurm-test"]
fn a_killed_coordinator_comes_back_in_the_same_job() {
    let job = submit("revived", &[]);
    job.wait_for_steps(4);
    job.kill_coordinator();
    job.wait_for_log("the coordinator was killed (137); starting it again");
    job.wait_for_state("COMPLETED");
    assert_undisturbed("revived");
}

#[test]
#[ignore = "needs a SLURM cluster: make slurm-test"]
fn a_job_with_certificates_speaks_tls() {
    // The address of the first node.
    let authority = Authority::new(&SHARED.path(""), "ca");
    let own = authority.sign("10.77.0.11");
    let [cert, key, ca] = [
        format!("--tls-cert={}", own.cert.display()),
        format!("--tls-key={}", own.key.display()),
        format!("--tls-ca={}", authority.pem.display()),
    ];
    let job = submit("encrypted", &[&cert, &key, &ca, "--optim.epochs=1"]);
    job.wait_for_state("COMPLETED");
    assert_each_sample_once(&SHARED.path("encrypted"), 1, IMAGES.into());
    let log = job.log();
    assert!(log.contains("coordinator status --coordinator https://10.77.0.11:"), "{log}");
}

#[test]
#[ignore = "needs a SLURM cluster: make slurm-test"]
fn an_array_is_a_run_for_each_index() {
    let flags = [
        "--nodes=1",
        "--gpus-per-node=1",
        "--device=cpu",
        "--array=1-2",
        "--compute.seed=%a",
        "--optim.epochs=1",
    ];
    let job = Job::submit(&SHARED, "sweep-%a", &flags);
    for index in ["1", "2"] {
        job.of_array(index).wait_for_state("COMPLETED");
        assert_each_sample_once(&SHARED.path(&format!("sweep-{index}")), 1, IMAGES.into());
        let config = std::fs::read_to_string(SHARED.path(&format!("sweep-{index}/config.yaml"))).unwrap();
        assert!(config.contains(&format!("seed: {index}\n")), "{config}");
    }
    assert_ne!(losses(&SHARED.path("sweep-1")), losses(&SHARED.path("sweep-2")));
}

#[test]
#[ignore = "needs a SLURM cluster: make slurm-test"]
fn a_heterogeneous_job_is_one_run() {
    let job = Job::by_hand(&SHARED, "mixed", &["--gpus-per-node=1", ":", "--mem=100"], &["--optim.epochs=1"]);
    job.wait_for_state("COMPLETED");
    assert!(job.log().contains("joined as rank 1 of 2"), "{}", job.log());
    assert_each_sample_once(&SHARED.path("mixed"), 1, IMAGES.into());
}

#[test]
#[ignore = "needs a SLURM cluster: make slurm-test"]
fn a_run_that_fails_fails_the_job() {
    let job = submit("broken", &["--data.data_path=/no/such/folder"]);
    job.wait_for_state("FAILED");
    assert_eq!(job.field("ExitCode"), "1:0");
    let log = job.log();
    assert!(log.contains("/no/such/folder") && log.contains("ended with 1"), "{log}");
}

#[test]
#[ignore = "needs a SLURM cluster: make slurm-test"]
fn what_sbatch_says_no_to_is_one_line() {
    let line = Job::refused(&SHARED, &["--partition=nowhere"]);
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.starts_with("error: sbatch refused the job: ") && line.contains("partition"), "{line}");
}
