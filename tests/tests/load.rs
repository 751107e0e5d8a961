//! The load generator at a small size: the real coordinator takes simulated workers on, forms a generation, loses some
//! and lets others in, and ends. Its figures at large sizes stand in load/README.md.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use relabel_tests::program;
use serde_json::Value;

#[test]
fn simulated_workers_form_generations_churn_and_end() {
    let output = Command::new(env!("CARGO_BIN_EXE_load"))
        .arg("--coordinator")
        .arg(program("coordinator"))
        .args(["--workers", "50", "--steady", "2", "--losses", "1", "--step", "0.1", "--json"])
        .args(["--churn", "10", "--churn-percent", "60"])
        // A machine that is busy with other tests makes nobody silent.
        .args(["--", "--cluster.admit_after", "0.5", "--cluster.dead_after", "60"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [figures] = figures.as_array().unwrap().as_slice() else { panic!("{figures}") };
    let number = |path: &str| figures.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);

    assert_eq!(number("/workers"), 50.0);
    assert!(number("/form") > 0.0, "{figures}");
    assert_eq!(figures["losses"].as_array().unwrap().len(), 1, "{figures}");
    // 49 of them say every second how far they are, and all are alive twice a second.
    assert!(number("/steady/messages") > 2.0 * 100.0, "{figures}");
    assert!(number("/steady/probes") > 0.0 && number("/steady/latency_p50") > 0.0, "{figures}");
    assert!(number("/resident") > 1e6 && number("/resident") < 1e9, "{figures}");
    for path in ["/churn/died", "/churn/left", "/churn/came", "/churn/generations"] {
        assert!(number(path) >= 1.0, "{path}: {figures}");
    }
    assert!(number("/churn/training") > 0.0, "no step was taken: {figures}");
    assert_eq!(number("/put_out"), 0.0, "{stderr}");
    assert_eq!(number("/exit"), 143.0, "a stop ends the coordinator as SIGTERM does: {figures}");
}
