//! Runs that start from weights of another one, as it is done for fine-tuning.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use relabel_tests::{Scratch, metrics, program, run, sorted};

/// Options of a run that learns nothing, so that what it began with is what it ends with.
const STILL: [&str; 6] = ["--optim.lr.init", "1e-30", "--optim.bn.frozen", "true", "--optim.epochs", "1"];

fn export(from: &Path, to: &Path, flags: &[&str]) {
    let mut command = Command::new(program("worker"));
    command.arg("export").arg(from).arg(to).args(flags);
    let ended = run(command);
    assert!(ended.status.success(), "{}", ended.stderr);
}

fn logs(run_dir: &Path) -> String {
    sorted(&run_dir.join("logs")).iter().map(|log| std::fs::read_to_string(log).unwrap()).collect()
}

#[test]
fn weights_of_one_run_are_where_another_begins() {
    let scratch = Scratch::with_data(64, 30);
    let mut command = scratch.local("first", 1);
    command.args(["--optim.epochs", "2"]);
    let ended = run(command);
    assert!(ended.status.success(), "{}", ended.stderr);
    let checkpoint = scratch.path("first/checkpoints/resnet18-e0002-s000000.safetensors");
    let weights = scratch.path("w.pth");
    export(&checkpoint, &weights, &["--reference"]);

    // Two workers, each of which validates a part: the second one was given the weights by the first.
    let mut command = scratch.local("second", 2);
    command.args(STILL).arg("--model.pretrained").arg(&weights);
    let ended = run(command);
    assert!(ended.status.success(), "{}", ended.stderr);
    let [first, second] =
        ["first", "second"].map(|name| metrics(&scratch.path(name), "epoch").pop().unwrap());
    assert_eq!(first["top1"], second["top1"]);
    let [a, b] = [&first, &second].map(|epoch| epoch["val_loss"].as_f64().unwrap());
    assert!((a - b).abs() <= 1e-5 * a, "{a} against {b}");

    // A checkpoint wins over it: nobody looks for the file any more.
    std::fs::remove_file(&weights).unwrap();
    let mut command = scratch.local("second", 2);
    command.args(STILL).args(["--optim.epochs", "2", "--resume"]).arg("--model.pretrained").arg(&weights);
    let ended = run(command);
    assert!(ended.status.success(), "{}", ended.stderr);
    assert_eq!(metrics(&scratch.path("second"), "epoch").len(), 2);

    // Other classes: the classifier is a fresh one, and the log says so.
    let mut command = scratch.local("third", 1);
    command.args(STILL).args(["--model.num_classes", "6", "--model.pretrained"]).arg(&checkpoint);
    let ended = run(command);
    assert!(ended.status.success(), "{}", ended.stderr);
    let logs = logs(&scratch.path("third"));
    assert!(logs.contains("its classifier fc of 4 classes was replaced by a fresh one of 6"), "{logs}");
}

#[test]
fn weights_that_cannot_be_used_end_the_run_with_one_line() {
    let scratch = Scratch::with_data(16, 4);
    let mut command = scratch.local("first", 1);
    command.args(STILL);
    assert!(run(command).status.success());
    let weights = scratch.path("first/checkpoints/resnet18-best.safetensors");
    let failure = |name: &str, options: &[&str]| {
        let mut command = scratch.local(name, 1);
        command.args(STILL).args(options);
        let ended = run(command);
        let errors: Vec<_> = ended.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{}", ended.stderr);
        ended.last_line(1).to_owned()
    };
    let line = failure("second", &["--model.pretrained", "/no/such.pth"]);
    assert!(line.contains("model.pretrained: cannot read the weights /no/such.pth"), "{line}");
    let weights = weights.to_str().unwrap();
    let line = failure("third", &["--model.arch", "resnet50", "--model.pretrained", weights]);
    for part in
        [weights, "says that it is of resnet18", "does not fit resnet50", "missing (layer1.0.conv3.weight"]
    {
        assert!(line.contains(part), "{part} is not in: {line}");
    }
}
