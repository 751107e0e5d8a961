//! A run that trains a TorchScript module.
#![allow(clippy::unwrap_used)]

use relabel_tests::{Scratch, metrics, run, sorted};

const SMALL_NET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/small_net.pt");

#[test]
fn two_workers_train_a_module_and_a_resumed_run_draws_the_same_masks() {
    let scratch = Scratch::with_data(64, 16);
    let net = scratch.path("net.pt");
    std::fs::copy(SMALL_NET, &net).unwrap();
    let start = |name: &str, epochs: &str, more: &[&str]| {
        let mut command = scratch.local(name, 2);
        command.args(["--model.arch", &format!("script:{}", net.display()), "--optim.epochs", epochs]);
        command.args(["--optim.lr.decay_type", "default"]).args(more);
        let ended = run(command);
        assert!(ended.status.success(), "{}", ended.stderr);
        metrics(&scratch.path(name), "epoch")
    };
    let whole = start("whole", "2", &[]);
    let files: Vec<String> = sorted(&scratch.path("whole/checkpoints"))
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert!(files.contains(&"script-net-best.safetensors".to_string()), "{files:?}");

    // The module has dropout: only with the same masks is the second epoch's loss the same.
    start("halves", "1", &[]);
    let halves = start("halves", "2", &["--resume"]);
    let [a, b] = [&whole, &halves].map(|epochs| epochs.last().unwrap()["train_loss"].as_f64().unwrap());
    assert!((a - b).abs() <= 1e-6 * a, "{a} against {b}");
}

#[test]
fn a_module_that_is_missing_or_has_other_classes_ends_the_run_with_a_line_about_it() {
    let scratch = Scratch::with_data(16, 8);
    for (arch, more, part) in [
        (
            "script:/nowhere/net.pt".to_string(),
            "--optim.nesterov=true",
            "model.arch: script:/nowhere/net.pt cannot be read",
        ),
        (format!("script:{SMALL_NET}"), "--model.num_classes=7", "but the run needs [1, 7]"),
    ] {
        let mut command = scratch.local("run", 1);
        command.args(["--model.arch", &arch, more]);
        let ended = run(command);
        assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
        assert!(ended.stderr.contains(part), "{}", ended.stderr);
        std::fs::remove_dir_all(scratch.path("run")).unwrap();
    }
}
