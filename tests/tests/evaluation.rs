//! A trained checkpoint evaluated in every way that there is: by its run, by `worker eval`, by workers together.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use relabel_tests::{Ended, Scratch, metrics, program, run, start};
use serde_json::Value;

fn worker(args: &[&str]) -> Output {
    Command::new(program("worker")).args(args).args(["--threads", "1"]).output().unwrap()
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Percent apart by less than any image counts, nats by less than rounding of sums.
fn assert_same(found: &Value, expected: &Value) {
    for (key, tolerance) in [("top1", 1e-9), ("top5", 1e-9), ("val_loss", 1e-5)] {
        let number = |value: &Value| value[key].as_f64().unwrap_or_else(|| panic!("no {key} in {value}"));
        assert!((number(found) - number(expected)).abs() < tolerance, "{key}: {found} against {expected}");
    }
}

#[test]
fn a_checkpoint_is_as_good_wherever_it_is_evaluated() {
    let scratch = Scratch::with_data(100, 31);
    let trained = run(scratch.local("run", 1));
    assert!(trained.status.success(), "{}", trained.stderr);
    let epochs = metrics(&scratch.path("run"), "epoch");
    let best =
        epochs.iter().rev().max_by(|a, b| a["top1"].as_f64().partial_cmp(&b["top1"].as_f64()).unwrap());
    let best = best.unwrap();
    let weights = scratch.path("run").join("checkpoints/resnet18-best.safetensors");
    let data = scratch.path("data");

    // The checkpoint says its architecture, and train/ its classes.
    let size = ["--image-size", "32", "--batch-size", "7"];
    let multi = format!("multi={}", path(&data.join("val-multi")));
    let evaluated = worker(
        &[
            &["eval", "--weights", path(&weights), "--json", "--data", path(&data), &multi][..],
            &["--real", path(&data.join("real-multi.json")), "--fgsm", "8"],
            &["--multi-label", path(&data.join("human_accuracy_multi.json"))],
            &["--classes", path(&data.join("classes.json"))],
            &size,
        ]
        .concat(),
    );
    assert!(evaluated.status.success(), "{}", String::from_utf8_lossy(&evaluated.stderr));
    let report: Value = serde_json::from_slice(&evaluated.stdout).unwrap();
    let mut set = report["sets"][0].clone();
    set["val_loss"] = set["loss"].clone();
    assert_eq!((&set["name"], &set["images"]), (&"data".into(), &31.into()));
    assert_same(&set, best);
    let multi = &report["sets"][1];
    assert_eq!((&multi["name"], &multi["real"]["images"]), (&"multi".into(), &31.into()), "{multi}");
    // Every picture's own class is one that it shows.
    assert!(multi["real"]["accuracy"].as_f64() >= multi["top1"].as_f64(), "{multi}");
    assert_eq!(multi["multi_label"]["images"], 31, "{multi}");
    assert_eq!(set["fgsm"][0]["epsilon"], 8.0, "{set}");

    // Two workers, neither training folders nor label maps.
    let bare = scratch.path("bare");
    std::fs::create_dir(&bare).unwrap();
    symlink(data.join("val"), bare.join("val")).unwrap();
    let mut command = scratch.local("test", 2);
    command.args(["--util.test_only", "true", "--util.test_weight_file", path(&weights)]);
    command.args(["--data.data_path", path(&bare), "--data.relabel.path", "no/such/folder"]);
    let tested = run(command);
    assert!(tested.status.success(), "{}", tested.stderr);
    let lines = metrics(&scratch.path("test"), "test");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["images"], 31);
    assert_same(&lines[0], best);
    assert!(tested.stderr.contains("(31 images)") && tested.stderr.contains("done: evaluated once"));
    assert!(!scratch.path("test").join("checkpoints").join("resnet18-best.safetensors").exists());

    // Neither wrong weights nor a resume that makes no sense.
    let mut command = scratch.local("wrong", 1);
    command.args(["--util.test_only", "true", "--util.test_weight_file", path(&data.join("synth.json"))]);
    assert!(run(command).last_line(1).contains("synth.json"));
}

#[test]
fn predictions_name_classes_and_survive_a_file_that_is_no_image() {
    let scratch = Scratch::with_data(8, 8);
    let mut command = scratch.local("run", 1);
    command.args(["--optim.epochs", "1"]);
    let trained = run(command);
    assert!(trained.status.success(), "{}", trained.stderr);
    let weights = scratch.path("run").join("checkpoints/resnet18-best.safetensors");
    let data = scratch.path("data");
    let (image, other) = (scratch.file_of("val", 0), scratch.file_of("val", 1));
    let broken = scratch.path("broken.jpg");
    std::fs::write(&broken, "no image").unwrap();
    let common = ["--weights", path(&weights), "--image-size", "32", "--top", "3", "--exact-resize"];
    let predict = |more: &[&str]| {
        worker(&[&["predict", path(&image), path(&broken), path(&other)][..], &common, more].concat())
    };

    let named = predict(&["--json", "--classes", path(&data.join("classes.json"))]);
    assert_eq!(named.status.code(), Some(1), "one of the files is no image");
    let stderr = String::from_utf8(named.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.contains("broken.jpg"), "{stderr}");
    let answers: Value = serde_json::from_slice(&named.stdout).unwrap();
    let images: Vec<_> =
        answers.as_array().unwrap().iter().map(|answer| answer["image"].as_str().unwrap()).collect();
    assert_eq!(images, [path(&image), path(&other)]);
    let classes: Value = serde_json::from_slice(&std::fs::read(data.join("classes.json")).unwrap()).unwrap();
    for answer in answers.as_array().unwrap() {
        let predictions = answer["predictions"].as_array().unwrap();
        assert_eq!(predictions.len(), 3);
        for seen in predictions {
            let class = &classes[seen["class"].to_string()];
            assert_eq!((&seen["folder"], &seen["name"]), (&class[0], &class[1]));
        }
    }
    // As a table, with folders for names, and with numbers where nothing is known.
    let class = answers[0]["predictions"][0]["class"].as_u64().unwrap();
    let folder = answers[0]["predictions"][0]["folder"].as_str().unwrap();
    let first = |more: &[&str]| {
        let table = String::from_utf8(predict(more).stdout).unwrap();
        let cells = table.lines().nth(1).unwrap().split_whitespace().map(str::to_owned);
        cells.collect::<Vec<_>>()
    };
    let class = class.to_string();
    assert_eq!(first(&["--data", path(&data)])[3..], [class.clone(), folder.to_owned()]);
    assert_eq!(first(&[])[3..], [class.clone(), class]);
}

/// A network after an epoch, and beside the data set of `val` pictures one in ImageNet-C's layout, `c`.
fn with_sets(val: u32) -> Scratch {
    let scratch = Scratch::with_data(16, val);
    let mut command = scratch.local("run", 1);
    command.args(["--optim.epochs", "1"]);
    let trained = run(command);
    assert!(trained.status.success(), "{}", trained.stderr);
    for (corruption, severity, pictures) in [
        ("fog", "1", "val"),
        ("fog", "2", "val-multi"),
        ("fog", "3", "val"),
        ("fog", "4", "val-multi"),
        ("fog", "5", "val"),
        ("snow", "1", "val-multi"),
    ] {
        let folder = scratch.path("c").join(corruption);
        std::fs::create_dir_all(&folder).unwrap();
        symlink(scratch.path("data").join(pictures), folder.join(severity)).unwrap();
    }
    std::fs::write(scratch.path("baseline.json"), r#"{"fog": 0.5}"#).unwrap();
    scratch
}

/// `worker eval` or `coordinator eval` on three sets in every way that there is, with paths as a person gives them.
fn eval(program_name: &str, scratch: &Scratch, flags: &[&str]) -> Command {
    let mut command = Command::new(program(program_name));
    // Logs of workers that failed are kept among temporary files.
    command.current_dir(scratch.path("")).env("TMPDIR", scratch.path("")).stdin(Stdio::null());
    command.args(["eval", "--weights", "run/checkpoints/resnet18-best.safetensors"]);
    command.args(["--data", "c", "data", "multi=data/val-multi", "--real", "data/real-multi.json"]);
    command.args(["--multi-label", "data/human_accuracy_multi.json", "--classes", "data/classes.json"]);
    command.args(["--corruption-baseline", "baseline.json", "--fgsm", "4", "8", "--image-size", "32"]);
    command.args(flags);
    command
}

/// A worker for the coordinator on `port` of this host.
fn evaluator(port: u16) -> Command {
    let mut command = Command::new(program("worker"));
    command.args(["eval", "--threads", "1", "--coordinator", &format!("http://127.0.0.1:{port}")]);
    command.stdin(Stdio::null());
    command
}

#[track_caller]
fn report(ended: &Ended) -> &str {
    assert!(ended.status.success(), "{}", ended.stderr);
    &ended.stdout
}

#[test]
fn workers_together_print_what_one_process_prints() {
    let scratch = with_sets(16);
    let flags = ["--json", "--batch-size", "1"];
    let together = |more: &[&str]| eval("coordinator", &scratch, &[&flags[..], more].concat());
    let alone = run(eval("worker", &scratch, &[&flags[..], &["--threads", "1"]].concat()));
    let alone = report(&alone);
    let json: Value = serde_json::from_str(alone).unwrap();
    assert_eq!((&json["sets"][0]["name"], &json["sets"][0]["path"]), (&"data".into(), &"data/val".into()));
    assert_eq!(
        (&json["sets"][1]["real"]["images"], &json["sets"][1]["multi_label"]["images"]),
        (&16.into(), &16.into())
    );
    assert_eq!(json["corrupted"][0]["corruptions"][0]["severities"].as_array().unwrap().len(), 5);
    assert!(json["corrupted"][0]["mce"].is_f64(), "{json}");

    let local = run(together(&["--local", "--workers", "2", "--threads", "1"]));
    assert_eq!(report(&local), alone);
    assert_eq!(local.stderr.matches(") joined").count(), 2, "{}", local.stderr);

    // One that is held up with the range that it has, and killed.
    let mut coordinator = start(together(&["--listen", "127.0.0.1:0"]));
    let port = coordinator.port();
    let doomed = start(evaluator(port));
    coordinator.worker_pids(1);
    kill(doomed.pid(), Signal::SIGSTOP).unwrap();
    let other = start(evaluator(port));
    coordinator.worker_pids(2);
    doomed.kill();
    coordinator.wait_for("the loss", |log| log.contains("handed out again").then_some(()));
    assert_eq!(report(&coordinator.wait()), alone);
    let other = other.wait();
    assert!(other.status.success() && other.stderr.contains("the evaluation is over"), "{}", other.stderr);

    // As a table, in larger batches.
    let table = |name: &str, flags: &[&str]| {
        let mut command = eval(name, &scratch, flags);
        command.args(["--batch-size", "8", "--threads", "1"]);
        report(&run(command)).to_owned()
    };
    let alone = table("worker", &[]);
    assert!(alone.contains("multi-label") && alone.contains("mean corruption error"), "{alone}");
    assert_eq!(table("coordinator", &["--local"]), alone);
}

#[test]
fn a_worker_that_sees_something_else_is_refused_and_told_what() {
    let scratch = with_sets(30);
    let mut coordinator = start(eval("coordinator", &scratch, &["--listen", "127.0.0.1:0"]));
    let port = coordinator.port();
    let first = start(evaluator(port));
    coordinator.worker_pids(1);
    kill(first.pid(), Signal::SIGSTOP).unwrap();

    let labels = scratch.path("data/real-multi.json");
    let text = std::fs::read_to_string(&labels).unwrap();
    std::fs::write(&labels, format!("{text}\n")).unwrap();
    let line = run(evaluator(port));
    assert!(line.last_line(1).contains("the labels that it judges by, are not those"), "{}", line.stderr);
    std::fs::write(&labels, text).unwrap();
    std::fs::remove_file(scratch.file_of("val-multi", 2)).unwrap();
    let line = run(evaluator(port));
    let wanted = "it sees other images in multi than the first worker did (29 against 30)";
    assert!(line.last_line(1).contains(wanted), "{}", line.stderr);
    coordinator.wait_for("the refusal", |log| log.contains(wanted).then_some(()));

    // Nor is there anything for who would do something else.
    let mut command = Command::new(program("worker"));
    command.args(["label", "--coordinator", &format!("http://127.0.0.1:{port}")]).stdin(Stdio::null());
    let other = run(command);
    assert!(other.last_line(1).contains("it is `coordinator eval`"), "{}", other.stderr);
}

#[test]
fn what_keeps_an_evaluation_from_its_end_is_said_in_a_line() {
    let scratch = with_sets(6);
    let bad = scratch.file_of("val", 1);
    std::fs::write(&bad, b"not a picture").unwrap();
    // By one process or by workers, an unreadable image ends it.
    let line = |name: &str, more: &[&str]| {
        let ended = run(eval(name, &scratch, &[&["--threads", "1"], more].concat()));
        assert_eq!(ended.stdout, "");
        ended.last_line(1).to_owned()
    };
    let (alone, together) = (line("worker", &[]), line("coordinator", &["--local", "--workers", "2"]));
    let name = bad.strip_prefix(scratch.path("")).unwrap();
    assert!(alone.starts_with(&format!("error: cannot use image {}: neither a JPEG", path(name))), "{alone}");
    // A worker runs in a folder of its own.
    assert_eq!(together, alone.replace(path(name), path(&bad)));

    let lonely = run(eval("coordinator", &scratch, &["--listen", "127.0.0.1:0", "--wait-for-workers", "1"]));
    assert_eq!(lonely.last_line(1), "error: no worker came within 1 s (--wait-for-workers)");
    // What fails a local worker fails it all, by the worker's own words.
    let ended = run(eval("coordinator", &scratch, &["--local", "--arch", "resnet34"]));
    assert!(ended.last_line(1).contains("resnet34"), "{}", ended.stderr);
}

#[test]
fn wrong_usage_of_an_evaluation_is_exit_code_2() {
    let weights = ["--weights", "w"];
    for (name, flags, wanted) in [
        ("worker", &weights[..], "--data"),
        ("worker", &["--coordinator", "h", "--data", "d"], "cannot be used with"),
        ("worker", &["--coordinator", "h", "--json"], "cannot be used with"),
        ("coordinator", &weights, "--data"),
        ("coordinator", &["--weights", "w", "--data", "d", "--workers", "2"], "--local"),
        ("coordinator", &["--weights", "w", "--data", "d", "--fgsm", "0"], "above 0"),
        ("coordinator", &["--weights", "w", "--data", "d", "--optim.epochs", "2"], "belongs to a run"),
    ] {
        let mut command = Command::new(program(name));
        command.arg("eval").args(flags);
        let ended = run(command);
        assert_eq!(ended.status.code(), Some(2), "{name} {flags:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(wanted), "{name} {flags:?}: {}", ended.stderr);
    }
}
