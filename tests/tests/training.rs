//! Whole runs: a real coordinator, real workers, real images.
#![allow(clippy::unwrap_used)]

use nix::sys::signal::{Signal, kill};
use relabel_tests::{
    Scratch, assert_each_sample_once, assert_same_curve, batches, losses, metrics, run, sorted, start,
    wait_for_steps,
};

#[test]
fn two_workers_learn_and_see_each_sample_once_an_epoch() {
    // 100 images: six steps of 16 and one of 4, of which the second worker's slice has nothing.
    let scratch = Scratch::with_data(100, 30);
    let run_dir = scratch.path("run");
    let mut command = scratch.local("run", 2);
    command.args(["--optim.epochs", "5"]);
    let ended = run(command);
    assert!(ended.status.success(), "{}", ended.stderr);

    assert_each_sample_once(&run_dir, 5, 100);
    assert_eq!(losses(&run_dir).len(), 5 * 7);
    let epochs = metrics(&run_dir, "epoch");
    let loss = |epoch: usize| epochs[epoch]["train_loss"].as_f64().unwrap();
    assert!(loss(4) < 0.8 * loss(0), "the loss does not fall: {epochs:?}");
    for epoch in &epochs {
        // 30 images, each counted once: any other count cannot give a multiple of 1/30.
        let right = epoch["top1"].as_f64().unwrap() * 30.0 / 100.0;
        assert!((right - right.round()).abs() < 1e-6 && right <= 30.0, "{epoch}");
    }
    for name in ["curves.svg", "config.yaml", "checkpoints/resnet18-best.safetensors"] {
        assert!(run_dir.join(name).is_file(), "{name}");
        let shown = name.ends_with("yaml") || ended.stderr.contains(run_dir.join(name).to_str().unwrap());
        assert!(shown, "the last lines do not say where {name} is:\n{}", ended.stderr);
    }
    // The three newest, the best, and a checksum beside each.
    let checkpoints: Vec<_> = sorted(&run_dir.join("checkpoints"));
    assert_eq!(checkpoints.len(), 8, "{checkpoints:?}");
}

#[test]
fn the_number_of_workers_does_not_change_the_curve() {
    let scratch = Scratch::with_data(50, 8);
    for (name, workers) in [("one", 1), ("three", 3)] {
        let mut command = scratch.local(name, workers);
        // With its statistics frozen, BatchNorm does not see how the batch is cut.
        command.args(["--optim.bn.frozen", "true", "--optim.lr.init", "0.0005", "--optim.epochs", "2"]);
        let ended = run(command);
        assert!(ended.status.success(), "{}", ended.stderr);
        assert_each_sample_once(&scratch.path(name), 2, 50);
    }
    let [one, three] = ["one", "three"].map(|name| losses(&scratch.path(name)));
    assert_eq!(one.len(), 8);
    assert_same_curve(&one, &three, 1e-5);
    let [one, three] = ["one", "three"].map(|name| metrics(&scratch.path(name), "epoch"));
    for (one, three) in one.iter().zip(&three) {
        assert_eq!(one["top1"], three["top1"], "validation does not depend on who does it");
    }
}

#[test]
fn images_finished_on_the_device_teach_the_same_to_the_bit() {
    let scratch = Scratch::with_data(50, 8);
    for finish in ["host", "device"] {
        let mut command = scratch.local(finish, 2);
        command.args(["--data.finish", finish, "--optim.epochs", "2"]);
        command.args([
            "--data.cutmix.prob",
            "0.5",
            "--data.cutmix.beta",
            "1",
            "--data.cutmix.off_epoch",
            "0",
        ]);
        let ended = run(command);
        assert!(ended.status.success(), "{}", ended.stderr);
    }
    let [host, device] = ["host", "device"].map(|name| losses(&scratch.path(name)));
    assert_eq!(host.len(), 8);
    assert_eq!(host, device);
}

#[test]
fn a_run_that_was_killed_resumes_on_the_same_curve() {
    let scratch = Scratch::with_data(80, 8);
    let with = |run_dir: &str| {
        let mut command = scratch.local(run_dir, 2);
        command.args(["--checkpoint.every_steps", "2"]);
        command
    };
    let undisturbed = run(with("undisturbed"));
    assert!(undisturbed.status.success(), "{}", undisturbed.stderr);

    let run_dir = scratch.path("killed");
    let mut running = start(with("killed"));
    let workers = running.worker_pids(2);
    // Within the second epoch of five steps.
    wait_for_steps(&run_dir, 8);
    running.kill();
    for pid in workers {
        // They die with their coordinator; whoever is first does not matter.
        let _ = kill(pid, Signal::SIGKILL);
    }

    let mut command = with("killed");
    command.arg("--resume");
    let resumed = run(command);
    assert!(resumed.status.success(), "{}", resumed.stderr);
    assert!(resumed.stderr.contains("going on from checkpoint resnet18-e000"), "{}", resumed.stderr);
    assert_same_curve(&losses(&scratch.path("undisturbed")), &losses(&run_dir), 1e-4);

    // A second resume finds nothing left to do, nor does the same command; other options need another folder.
    let mut command = with("killed");
    command.arg("--resume");
    let again = run(command);
    assert!(again.status.success() && again.stderr.contains("all 3 epochs"), "{}", again.stderr);
    let again = run(with("killed"));
    assert!(again.status.success() && again.stderr.contains("all 3 epochs"), "{}", again.stderr);
    let mut command = with("killed");
    command.args(["--optim.lr.init", "0.03"]);
    let line = run(command);
    let words = "began with other options (optim.lr.init is now 0.03, it was 0.02): add --resume";
    assert!(line.last_line(2).contains(words), "{}", line.stderr);
}

#[test]
fn a_damaged_checkpoint_falls_back_to_the_one_before() {
    let scratch = Scratch::with_data(32, 8);
    let ended = run(scratch.local("run", 1));
    assert!(ended.status.success(), "{}", ended.stderr);
    let newest = scratch.path("run/checkpoints/resnet18-e0003-s000000.safetensors");
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&newest, bytes).unwrap();

    let mut command = scratch.local("run", 1);
    command.args(["--resume", "--optim.epochs", "4"]);
    let ended = run(command);
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(
        ended.stderr.contains("checkpoint resnet18-e0003-s000000.safetensors cannot be used"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("going on from checkpoint resnet18-e0002-s000000"), "{}", ended.stderr);
    assert_eq!(metrics(&scratch.path("run"), "epoch").len(), 4);
}

#[test]
fn a_killed_worker_costs_no_step_and_no_sample() {
    let scratch = Scratch::with_data(96, 8);
    let run_dir = scratch.path("run");
    let mut running = start(scratch.local("run", 2));
    let workers = running.worker_pids(2);
    wait_for_steps(&run_dir, 3);
    kill(workers[1], Signal::SIGKILL).unwrap();
    let ended = running.wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(ended.stderr.contains("going on in memory from worker"), "{}", ended.stderr);
    // Its successor took weights, momentum and statistics from the survivor: the curve does not show it.
    let undisturbed = run(scratch.local("undisturbed", 2));
    assert!(undisturbed.status.success(), "{}", undisturbed.stderr);
    assert_same_curve(&losses(&scratch.path("undisturbed")), &losses(&run_dir), 1e-4);
    assert_each_sample_once(&run_dir, 3, 96);
    assert_eq!(batches(&run_dir), batches(&scratch.path("undisturbed")));
}

#[test]
fn a_stop_saves_and_a_resume_goes_on() {
    let scratch = Scratch::with_data(64, 8);
    let run_dir = scratch.path("run");
    let running = start(scratch.local("run", 2));
    wait_for_steps(&run_dir, 2);
    kill(running.pid(), Signal::SIGTERM).unwrap();
    let ended = running.wait();
    assert_eq!(ended.status.code(), Some(143), "{}", ended.stderr);
    assert!(ended.stderr.contains("go on from epoch"), "{}", ended.stderr);
    let before = losses(&run_dir).len();
    assert!(before < 12, "it ended before it was stopped");

    let mut command = scratch.local("run", 1);
    command.arg("--resume");
    let resumed = run(command);
    assert!(resumed.status.success(), "{}", resumed.stderr);
    assert_each_sample_once(&run_dir, 3, 64);
    assert_eq!(losses(&run_dir).len(), 12);
}

#[test]
fn workers_started_by_hand_are_seated_and_watched_by_status() {
    let scratch = Scratch::with_data(32, 8);
    let mut command = scratch.coordinator("run");
    command.args(["--workers", "2", "--listen", "127.0.0.1:0"]);
    let mut coordinator = start(command);
    let port = coordinator.port();
    let mut first = scratch.worker(port);
    first.args(["--rank", "1"]);
    let first = start(first);

    let mut status = std::process::Command::new(relabel_tests::program("coordinator"));
    status.args(["status", "--json", "--coordinator", &format!("http://127.0.0.1:{port}")]);
    coordinator.wait_for("the first worker", |text| text.contains("joined as rank 1 of 2").then_some(()));
    let status: serde_json::Value = serde_json::from_slice(&status.output().unwrap().stdout).unwrap();
    assert_eq!(status["phase"], "gathering");
    assert_eq!(status["workers"][0]["rank"], 1);

    let second = start(scratch.worker(port));
    for (who, running) in [("coordinator", coordinator), ("rank 1", first), ("rank 0", second)] {
        let ended = running.wait();
        assert!(ended.status.success(), "{who}: {}", ended.stderr);
    }
    assert_each_sample_once(&scratch.path("run"), 3, 32);
}
