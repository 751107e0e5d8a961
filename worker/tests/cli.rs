//! The worker program from its command line. That there are tests here also makes `cargo test` build the
//! program, which the end-to-end tests start.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn worker(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_worker")).args(args).output().unwrap()
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for args in
        [&["--rank", "minus one"][..], &["--gpu", "0", "--cpu"], &["no-such-command"], &["--no-such-flag"]]
    {
        assert_eq!(worker(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn a_gpu_that_cannot_be_used_is_one_line() {
    let output = worker(&["--gpu", "0"]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("error: --gpu 0: "), "{stderr}");
}

#[test]
fn a_label_map_is_shown_and_a_missing_one_is_named() {
    let map = concat!(env!("CARGO_MANIFEST_DIR"), "/src/labels/testdata/pool.pt");
    let output = worker(&["inspect", "label-map", map, "--crop", "0,0,1,1", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();

    let output = worker(&["inspect", "label-map", "no/such.pt"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no/such.pt"));
}
