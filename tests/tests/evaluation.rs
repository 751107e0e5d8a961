//! A trained checkpoint evaluated in every way that there is: by its run, by `worker eval`, by workers together.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use relabel_tests::{Scratch, metrics, program, run};
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
    std::os::unix::fs::symlink(data.join("val"), bare.join("val")).unwrap();
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
