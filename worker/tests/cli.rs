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

fn shown(args: &[&str]) -> serde_json::Value {
    let output = worker(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[track_caller]
fn assert_refused(args: &[&str], words: &[&str]) {
    let output = worker(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for word in words {
        assert_eq!(stderr.matches(word).count(), 1, "{word} is not once in: {stderr}");
    }
}

#[test]
fn weights_are_shown_and_what_is_none_is_named() {
    let testdata = concat!(env!("CARGO_MANIFEST_DIR"), "/src/labels/testdata/");
    let file = |name: &str| format!("{testdata}{name}");
    let report = shown(&["inspect", "weights", &file("checkpoint_legacy.pth"), "--json"]);
    assert_eq!(report["container"], "legacy");
    assert_eq!((&report["under"], &report["arch"]), (&"state_dict".into(), &"resnet18".into()));
    assert_eq!((&report["epoch"], report["tensors"].as_array().unwrap().len()), (&3.into(), 7));
    let text = worker(&["inspect", "weights", &file("checkpoint.pth")]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("1.num_batches_tracked  int64    []"), "{text}");

    let no_file = "no/such.pth";
    assert_refused(&["inspect", "weights", no_file], &[no_file, "No such file"]);
    assert_refused(&["inspect", "weights", &file("evil_zip.pt")], &["posix.system"]);
    assert_refused(
        &["inspect", "checkpoint", &file("checkpoint.pth")],
        &["a zip file of torch.save, not a checkpoint"],
    );
    assert_refused(
        &["export", &file("checkpoint.pth"), "never.pth"],
        &["none of its tensors has the name of a classifier"],
    );
}

#[test]
fn a_checkpoint_is_verified_before_it_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let state = worker::checkpoint::State {
        progress: worker::checkpoint::Progress { epoch: 5, step: 40, seed: 2 },
        arch: "resnet18".to_owned(),
        metadata: [("top1".to_owned(), "0.75".to_owned())].into(),
        model: vec![(
            "fc.weight".to_owned(),
            tch::Tensor::ones([3, 8], (tch::Kind::Float, tch::Device::Cpu)),
        )],
        ema: None,
        optimizer_name: "sgd".into(),
        optimizer: vec![],
        loss_scale: None,
    };
    let written = worker::checkpoint::write(&state, folder.path(), "last").unwrap();
    let file = written.file.to_str().unwrap();
    let report = shown(&["inspect", "checkpoint", file, "--json"]);
    for (key, value) in [("epoch", 5), ("step", 40), ("classes", 3), ("parameters", 24)] {
        assert_eq!(report[key], value, "{key}");
    }
    assert_eq!((&report["top1"], &report["arch"]), (&0.75.into(), &"resnet18".into()));
    assert_eq!(report["verified"], serde_json::json!(["header", "b3"]));

    // The file is whole, but not the one that its neighbour speaks of.
    let sidecar = folder.path().join("last.b3");
    std::fs::write(&sidecar, format!("{}  last.safetensors\n", "0".repeat(64))).unwrap();
    assert_refused(&["inspect", "checkpoint", file], &["is damaged: its BLAKE3 hash is"]);
    std::fs::remove_file(&sidecar).unwrap();
    let report = shown(&["inspect", "checkpoint", file, "--json"]);
    assert_eq!(report["verified"], serde_json::json!(["header"]));
}
