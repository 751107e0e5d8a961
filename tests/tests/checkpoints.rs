//! Checkpoints where the disk is full or read-only, where the writer is killed, and when somebody asks for one.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use relabel_tests::{Running, Scratch, losses, program, run, sorted, start, wait_for_steps};

/// A disk of its own under a folder; gone at the end.
struct Disk(PathBuf);

impl Disk {
    /// None where this process may not mount one.
    fn mount(folder: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let options = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: this process may not mount a disk");
            return None;
        }
        Some(Self(folder.to_owned()))
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let status = Command::new("mount").args(["-o", &options]).arg(&self.0).status();
        assert!(status.unwrap().success(), "{options}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What is left of a test that has failed goes with it as far as it can.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Every checkpoint in the run's folder is whole; returns how many there are.
fn all_are_whole(run_dir: &Path) -> usize {
    let files = sorted(&run_dir.join("checkpoints"));
    let checkpoints: Vec<_> =
        files.iter().filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    for path in &checkpoints {
        let inspected =
            Command::new(program("worker")).args(["inspect", "checkpoint"]).arg(path).output().unwrap();
        assert!(
            inspected.status.success(),
            "{}: {}",
            path.display(),
            String::from_utf8_lossy(&inspected.stderr)
        );
    }
    checkpoints.len()
}

fn wait_for(running: &mut Running, words: &str) {
    running.wait_for(words, |text| text.contains(words).then_some(()));
}

#[test]
fn a_full_disk_costs_checkpoints_and_the_end_but_no_training_that_was_saved() {
    let scratch = Scratch::with_data(64, 8);
    let run_dir = scratch.path("run");
    // A checkpoint of a ResNet-18 with momentum is 90 MB: one fits, two do not.
    let Some(disk) = Disk::mount(&run_dir.join("checkpoints"), "150m") else { return };
    let ended = run(scratch.local("run", 1));
    let line = ended.last_line(1);
    assert!(line.contains("a checkpoint could not be written"), "{line}");
    assert!(line.contains("o space left on device"), "{line}");
    assert!(line.contains("(epoch 2, step 0) is intact"), "{line}");
    assert!(
        ended.stderr.contains("training goes on, and the next one is tried when it is due"),
        "{}",
        ended.stderr
    );
    assert_eq!(losses(&run_dir).len(), 12, "all was trained");
    // Nothing half-written is left, and once there is room the same command goes on from what is intact.
    all_are_whole(&run_dir);
    disk.remount("size=1g");
    let ended = run(scratch.local("run", 1));
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(ended.stderr.contains("going on from checkpoint resnet18-e0001-s000000"), "{}", ended.stderr);
    assert!(all_are_whole(&run_dir) >= 3);
}

#[test]
fn a_read_only_folder_is_named_and_ends_the_run_that_cannot_save() {
    let scratch = Scratch::with_data(32, 8);
    let Some(disk) = Disk::mount(&scratch.path("run/checkpoints"), "1g") else { return };
    disk.remount("ro");
    let ended = run(scratch.local("run", 1));
    let line = ended.last_line(1);
    assert!(line.contains("ead-only file system") && line.contains("there is none before it"), "{line}");
}

#[test]
fn a_writer_that_is_killed_leaves_nothing_that_is_taken_for_a_checkpoint() {
    let scratch = Scratch::with_data(320, 8);
    let run_dir = scratch.path("run");
    let mut command = scratch.local("run", 2);
    // There is always one being written.
    command.args(["--checkpoint.every_steps", "1", "--optim.epochs", "2"]);
    let mut running = start(command);
    for (steps, joined) in [(4, 2), (9, 3), (15, 4)] {
        wait_for_steps(&run_dir, steps);
        let pids = running.worker_pids(joined);
        // The last one that joined as rank 0 is the writer.
        let writer = running.wait_for("the writer", |text| {
            let line = text.lines().rev().find(|line| line.contains("joined as rank 0"))?;
            line.split("(process ").nth(1)?.split_whitespace().next()?.parse().ok()
        });
        assert!(pids.iter().any(|pid| pid.as_raw() == writer));
        kill(nix::unistd::Pid::from_raw(writer), Signal::SIGKILL).unwrap();
    }
    let ended = running.wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(all_are_whole(&run_dir) >= 3);
}

#[test]
fn checkpoints_come_by_the_clock_and_when_asked_for() {
    let scratch = Scratch::with_data(640, 8);
    let run_dir = scratch.path("run");
    let mut command = scratch.local("run", 1);
    // A hundredth of a minute; the epochs' own come in addition.
    command.args(["--checkpoint.every_minutes", "0.01", "--optim.epochs", "1"]);
    let mut running = start(command);
    wait_for(&mut running, "checkpoint resnet18-e0000-s");
    let ended = running.wait();
    assert!(ended.status.success(), "{}", ended.stderr);

    let mut command = scratch.local("asked", 1);
    command.args(["--optim.epochs", "1"]);
    let mut running = start(command);
    wait_for_steps(&scratch.path("asked"), 2);
    kill(running.pid(), Signal::SIGUSR1).unwrap();
    wait_for(&mut running, "SIGUSR1: saving at the next step");
    wait_for(&mut running, "checkpoint resnet18-e0000-s");
    let port = running.port();
    let mut ask = Command::new(program("coordinator"));
    ask.args([
        "checkpoint",
        "--coordinator",
        &format!("http://127.0.0.1:{port}"),
        "--reason",
        "before the move",
    ]);
    assert!(ask.status().unwrap().success());
    wait_for(&mut running, "before the move: saving at the next step");
    let ended = running.wait();
    assert!(ended.status.success(), "training goes on: {}", ended.stderr);
    assert!(all_are_whole(&run_dir) >= 1);
}
