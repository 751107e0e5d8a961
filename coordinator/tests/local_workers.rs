//! The real coordinator program as the beginning of a local worker: it dies with its parent, however that dies.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const COORDINATOR: &str = env!("CARGO_BIN_EXE_coordinator");

#[test]
fn a_worker_dies_with_a_coordinator_that_is_killed() {
    // A shell stands for the coordinator, and sleep for the worker.
    let line = format!("'{COORDINATOR}' __local-worker $$ sleep 1000 & echo $!; wait");
    let mut parent = Command::new("sh").args(["-c", &line]).stdout(Stdio::piped()).spawn().unwrap();
    let mut pid = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut pid).unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    let is = |name: &str| std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(name));
    let wait_until = |what: &str, condition: &dyn Fn() -> bool| {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait_until("the worker starts", &|| is("(sleep)"));
    parent.kill().unwrap();
    parent.wait().unwrap();
    // Gone, or a zombie that nobody has collected yet.
    wait_until("the worker dies", &|| !is("(sleep)") || is(") Z "));
}

#[test]
fn a_worker_whose_coordinator_is_gone_already_does_not_start() {
    let output = Command::new(COORDINATOR).args(["__local-worker", "1", "echo", "started"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]));
}

#[test]
fn a_worker_that_cannot_be_started_says_so() {
    let own = std::process::id().to_string();
    let output = Command::new(COORDINATOR).args(["__local-worker", &own, "no/such/worker"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.starts_with("cannot start no/such/worker: ") && line.lines().count() == 1, "{line}");
}
