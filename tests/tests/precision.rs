//! bf16 and fp16 from end to end: a run of two workers, its checkpoint used in another precision, and a GPU asked for.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Stdio};

use relabel_tests::{Ended, Scratch, metrics, program, run};
use serde_json::Value;

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn worker(args: &[&str]) -> Ended {
    let mut command = Command::new(program("worker"));
    command.args(args).stdin(Stdio::null());
    run(command)
}

fn fp16(scratch: &Scratch, epochs: &str) -> Command {
    let mut command = scratch.local("run", 2);
    command.args(["--compute.precision", "fp16", "--optim.epochs", epochs]);
    command
}

#[test]
fn a_run_in_fp16_finds_its_scale_and_keeps_it_over_an_interruption() {
    let scratch = Scratch::with_data(64, 16);
    let trained = run(fp16(&scratch, "2"));
    assert!(trained.status.success(), "{}", trained.stderr);
    let scales = || -> Vec<f64> {
        metrics(&scratch.path("run"), "step")
            .iter()
            .map(|line| line["loss_scale"].as_f64().unwrap())
            .collect()
    };
    let before = scales();
    assert_eq!(before.len(), 8);
    // From step to step it stays or is halved: 2000 updates have not been done.
    let mut steps = std::iter::once(65_536.0).chain(before.iter().copied()).zip(before.iter().copied());
    assert!(steps.all(|(last, next)| next == last || next == last / 2.0), "{before:?}");
    let mut command = fp16(&scratch, "3");
    command.arg("--resume");
    let resumed = run(command);
    assert!(resumed.status.success(), "{}", resumed.stderr);
    let after = scales();
    assert_eq!((after.len(), &after[..8]), (12, &before[..]));
    assert!(after[8] == before[7] || after[8] == before[7] / 2.0, "{after:?}");
    let weights = scratch.path("run/checkpoints/resnet18-best.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    let header = String::from_utf8_lossy(&bytes[8..4096]).into_owned();
    assert!(header.contains("\"loss_scale\":") && header.contains("\"loss_scale_steps\":"), "{header}");

    // What it has learned is used in any precision: the answers are near each other, and not the same numbers.
    let image = scratch.file_of("val", 0);
    let logits = |precision: &str| -> Vec<(u64, f64)> {
        let flags = ["--image-size", "32", "--top", "4", "--json", "--precision", precision];
        let said = worker(&[&["predict", path(&image), "--weights", path(&weights)][..], &flags].concat());
        assert!(said.status.success(), "{}", said.stderr);
        let answers: Value = serde_json::from_str(&said.stdout).unwrap();
        let seen = answers[0]["predictions"].as_array().unwrap();
        let mut seen: Vec<_> = seen
            .iter()
            .map(|seen| (seen["class"].as_u64().unwrap(), seen["logit"].as_f64().unwrap()))
            .collect();
        seen.sort_by_key(|(class, _)| *class);
        seen
    };
    let exact = logits("fp32");
    assert_eq!(exact, logits("tf32"), "no CPU has TF32");
    for precision in ["bf16", "fp16"] {
        let rough = logits(precision);
        assert_ne!(rough, exact, "{precision}");
        for ((_, a), (_, b)) in exact.iter().zip(&rough) {
            assert!((a - b).abs() < 0.05 * a.abs().max(1.0), "{precision}: {exact:?} {rough:?}");
        }
    }
    let data = scratch.path("data");
    for command in ["worker", "coordinator"] {
        let mut eval = Command::new(program(command));
        eval.args([
            "eval",
            "--weights",
            path(&weights),
            "--data",
            path(&data),
            "--image-size",
            "32",
            "--json",
        ]);
        eval.args(["--precision", "bf16"]).stdin(Stdio::null());
        if command == "coordinator" {
            eval.args(["--workers", "1", "--local", "--threads", "1"]);
        }
        let ended = run(eval);
        assert!(ended.status.success(), "{}", ended.stderr);
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(report["sets"][0]["images"], 16, "{report}");
    }

    // Maps of two precisions do not come into one folder.
    let maps = scratch.path("maps");
    let label = |precision: &str| {
        let flags =
            ["--arch", "resnet18", "--size", "64", "--precision", precision, "--weights", path(&weights)];
        worker(&[&["label", "--data", path(&data), "--out", path(&maps)][..], &flags].concat())
    };
    let made = label("bf16");
    assert!(
        made.status.success() && made.stdout.contains("64 label maps"),
        "{} {}",
        made.stdout,
        made.stderr
    );
    let refused = label("fp32");
    assert!(refused.last_line(1).contains("made with precision \"bf16\", not null"), "{}", refused.stderr);
}

#[test]
fn a_gpu_that_cannot_be_used_is_one_line_with_what_was_found() {
    let ended = worker(&["--gpu", "4096", "--coordinator", "http://127.0.0.1:9"]);
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    let lines: Vec<&str> = ended.stderr.lines().collect();
    let [line] = lines.as_slice() else { panic!("{}", ended.stderr) };
    assert!(line.starts_with("error: --gpu 4096: "), "{line}");
    // As far as the search comes on this machine.
    assert!(
        ["libcuda.so.1", "there is no GPU 4096", "no GPU"].iter().any(|found| line.contains(found)),
        "{line}"
    );
}

#[test]
fn a_level_that_is_for_gpus_is_said_to_mean_fp32_on_a_cpu() {
    let scratch = Scratch::with_data(16, 8);
    let mut command = scratch.local("run", 1);
    command.args(["--compute.opt_level", "O2", "--optim.epochs", "1"]);
    let ended = run(command);
    assert!(ended.status.success(), "{}", ended.stderr);
    let logs = relabel_tests::sorted(&scratch.path("run/logs"));
    let text: String = logs.iter().map(|log| std::fs::read_to_string(log).unwrap()).collect();
    let note = "compute.opt_level O2 is for GPUs: this worker trains in fp32 on its CPU";
    assert_eq!(text.matches(note).count(), 1, "{text}");
}
