//! The load generator at a small size: the real coordinator takes simulated workers on, forms a generation, loses some
//! and lets others in, and ends.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use relabel_tests::program;
use serde_json::Value;

#[test]
fn simulated_workers_form_generations_churn_and_end() {
    let output = Command::new(env!("CARGO_BIN_EXE_load"))
        .arg("--coordinator")
        .arg(program("coordinator"))
        .args(["--workers", "200", "--steady", "2", "--losses", "1", "--crowd", "10", "--step", "0.1"])
        .args(["--churn", "4", "--churn-percent", "30", "--json"])
        // A machine that is busy with other tests makes nobody silent.
        .args([
            "--",
            "--cluster.admit_after",
            "0.5",
            "--cluster.dead_after",
            "60",
            "--cluster.reunite_for",
            "60",
        ])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [figures] = figures.as_array().unwrap().as_slice() else { panic!("{figures}") };
    let number = |path: &str| figures.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);

    assert_eq!(number("/workers"), 200.0);
    assert_eq!(figures["losses"].as_array().unwrap().len(), 1, "{figures}");
    assert_eq!(figures["admissions"].as_array().unwrap().len(), 1, "{figures}");
    assert_eq!(number("/crowd/lost"), 20.0, "{figures}");
    // Each of them is alive twice a second, and nearly all say every second how far they are.
    assert!(number("/steady/messages") > 2.0 * 200.0, "{figures}");
    assert!(number("/steady/probes") > 0.0, "{figures}");
    for path in ["/churn/died", "/churn/left", "/churn/came", "/churn/generations", "/churn/steps"] {
        assert!(number(path) >= 1.0, "{path}: {figures}");
    }
    assert_eq!(number("/put_out"), 0.0, "{stderr}");
    assert_eq!(number("/exit"), 143.0, "a stop ends the coordinator as SIGTERM does: {figures}");
}
