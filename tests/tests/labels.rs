//! Label maps made by a trained network, packed, and trained with: real processes on real images.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use relabel_tests::{Ended, Scratch, assert_same_curve, losses, metrics, program, run, sorted, start};

/// A data set, and weights of a network that has been trained on it for an epoch.
fn with_weights(train: u32) -> Scratch {
    let scratch = Scratch::with_data(train, 4);
    let mut command = scratch.local("annotator", 1);
    command.args(["--optim.epochs", "1", "--optim.batch_size", "8"]);
    let ended = run(command);
    assert!(ended.status.success(), "{}", ended.stderr);
    scratch
}

/// `worker label` into the folder `out`, with the trained network.
fn label(scratch: &Scratch, out: &str, flags: &[&str]) -> Command {
    let mut command = label_with("worker", scratch, out);
    command.args(["--threads", "1"]).args(flags);
    command
}

/// The same by the workers of a coordinator.
fn coordinator_label(scratch: &Scratch, out: &str, flags: &[&str]) -> Command {
    let mut command = label_with("coordinator", scratch, out);
    command.args(flags);
    command
}

fn label_with(name: &str, scratch: &Scratch, out: &str) -> Command {
    let mut command = Command::new(program(name));
    command.arg("label").arg("--data").arg(scratch.path("data")).arg("--out").arg(scratch.path(out));
    command.args(["--arch", "resnet18", "--size", "96", "--weights"]);
    command.arg(scratch.path("annotator/checkpoints/resnet18-best.safetensors"));
    command.stdin(Stdio::null());
    command
}

/// A worker for the coordinator on `port` of this host.
fn labeller(port: u16) -> Command {
    let mut command = Command::new(program("worker"));
    command.args(["label", "--threads", "1", "--coordinator", &format!("http://127.0.0.1:{port}")]);
    command.stdin(Stdio::null());
    command
}

fn worker(arguments: &[&dyn AsRef<OsStr>]) -> Ended {
    let mut command = Command::new(program("worker"));
    command.args(arguments.iter().map(AsRef::as_ref));
    run(command)
}

/// Every file under `folder`, hidden ones too, by its path in it.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for path in sorted(&next) {
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.strip_prefix(folder).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn maps(files: &BTreeMap<PathBuf, Vec<u8>>) -> usize {
    let is_map = |path: &&PathBuf| !path.file_name().unwrap().as_encoded_bytes().starts_with(b".");
    files.keys().filter(|path| path.extension() == Some(OsStr::new("pt"))).filter(is_map).count()
}

/// A run of two workers on label maps at `path`.
fn train(scratch: &Scratch, run_dir: &str, path: &str) -> Command {
    let mut command = scratch.local(run_dir, 2);
    // The last of an option counts. Small steps, so that float16's rounding does not grow from step to step.
    command.arg("--data.relabel.path").arg(scratch.path(path));
    command.args(["--optim.epochs", "1", "--optim.bn.frozen", "true", "--optim.lr.init", "0.0005"]);
    command
}

#[test]
fn a_packed_store_trains_as_its_folder_does() {
    let scratch = with_weights(64);
    let ended = run(label(
        &scratch,
        "half",
        &["--half", "--map", "3", "--pack", scratch.path("half.pack").to_str().unwrap()],
    ));
    assert!(ended.status.success(), "{}", ended.stderr);
    let full = worker(&[
        &"pack",
        &scratch.path("data/labels"),
        &scratch.path("full.pack"),
        &"--data",
        &scratch.path("data"),
        &"--full",
    ]);
    assert!(full.status.success(), "{}", full.stderr);
    let rounded = worker(&[&"pack", &scratch.path("data/labels"), &scratch.path("rounded.pack")]);
    assert!(rounded.status.success(), "{}", rounded.stderr);
    for store in ["half.pack", "full.pack", "rounded.pack"] {
        let ended = worker(&[&"inspect", &"packed", &scratch.path(store)]);
        assert!(ended.status.success(), "{}", ended.stderr);
    }

    let curve = |name: &str, path: &str| {
        let ended = run(train(&scratch, name, path));
        assert!(ended.status.success(), "{}", ended.stderr);
        losses(&scratch.path(name))
    };
    let (from_half, from_truth) = (curve("a", "half"), curve("b", "data/labels"));
    assert_eq!(from_half.len(), 4);
    // Equal numbers go in, so equal ones come out, but for the order in which threads may add them.
    assert_same_curve(&from_half, &curve("c", "half.pack"), 1e-6);
    assert_same_curve(&from_truth, &curve("d", "full.pack"), 1e-6);
    // Rounded to float16: logits move by 0.004 at most.
    assert_same_curve(&from_truth, &curve("e", "rounded.pack"), 5e-3);
    let apart = from_half.iter().any(|(at, loss)| (loss - from_truth[at]).abs() > 0.01);
    assert!(apart, "the two sorts of labels teach the same, so that nothing was compared");
}

#[test]
fn a_damaged_store_is_refused_by_name() {
    let scratch = Scratch::with_data(16, 4);
    let store = scratch.path("store");
    let packed = worker(&[&"pack", &scratch.path("data/labels"), &store]);
    assert!(packed.status.success(), "{}", packed.stderr);
    let bytes = std::fs::read(&store).unwrap();
    let changed = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        bytes
    };
    for (name, bytes, wanted) in [
        ("index", changed(bytes.len() - 3), "is damaged"),
        ("record", changed(100), "is damaged"),
        ("cut", bytes[..bytes.len() / 2].to_vec(), "it is truncated"),
        ("foreign", b"<html>".to_vec(), "it is no packed store of label maps"),
    ] {
        let damaged = scratch.path(&format!("{name}.pack"));
        std::fs::write(&damaged, bytes).unwrap();
        let ended = run(train(&scratch, name, &format!("{name}.pack")));
        let line = ended.last_line(1);
        assert!(line.contains(wanted) && line.contains(damaged.to_str().unwrap()), "{name}: {line}");
        let ended = worker(&[&"inspect", &"packed", &damaged]);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
        assert!(ended.last_line(1).contains(damaged.to_str().unwrap()), "{}", ended.stderr);
    }
    assert!(metrics(&scratch.path("index"), "step").is_empty());
}

#[test]
fn a_killed_labelling_goes_on_and_ends_with_the_same_files() {
    let scratch = with_weights(60);
    let flags = ["--batch", "1"];
    let undisturbed = run(label(&scratch, "undisturbed", &flags));
    assert!(undisturbed.status.success(), "{}", undisturbed.stderr);
    let wanted = contents(&scratch.path("undisturbed"));
    assert_eq!(maps(&wanted), 60);

    let out = scratch.path("killed");
    let mut running = start(label(&scratch, "killed", &flags));
    let made = || if out.is_dir() { maps(&contents_while_written(&out)) } else { 0 };
    running.wait_for("some maps", |_| (made() >= 5).then_some(()));
    running.kill();
    let before = made();
    assert!((5..60).contains(&before), "it had made {before} of 60 maps");
    // As a power failure leaves it: the name of a map, and a part of its bytes.
    let torn = out.join(
        wanted
            .keys()
            .find(|path| out.join(path).is_file() && path.extension().is_some_and(|e| e == "pt"))
            .unwrap(),
    );
    let whole = std::fs::read(&torn).unwrap();
    std::fs::write(&torn, &whole[..whole.len() / 2]).unwrap();

    let ended = run(label(&scratch, "killed", &flags));
    assert!(ended.status.success(), "{}", ended.stderr);
    let there = format!("{} of 60 label maps are there already", before - 1);
    assert!(ended.stderr.contains(&there), "{there}: {}", ended.stderr);
    assert!(contents(&out) == wanted, "the files differ");

    // Other options would mix two sorts of maps.
    let ended = run(label(&scratch, "killed", &["--top-k", "2"]));
    assert!(ended.last_line(1).contains("made with top_k 4, not 2"), "{}", ended.stderr);
    let ended = run(label(&scratch, "data", &[]));
    assert!(ended.last_line(1).contains("was not made by `worker label`"), "{}", ended.stderr);
}

/// As [`contents`] of a folder in which a file may go away meanwhile, names only.
fn contents_while_written(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let folders = sorted(folder).into_iter().filter(|path| path.is_dir());
    folders.flat_map(|folder| sorted(&folder)).map(|path| (path, Vec::new())).collect()
}

#[test]
fn shards_make_the_files_of_one_labelling() {
    let scratch = with_weights(21);
    let one = run(label(&scratch, "one", &[]));
    assert!(one.status.success(), "{}", one.stderr);
    // At the same time, into one folder.
    let shards: Vec<_> = ["0/3", "1/3", "2/3"]
        .map(|shard| start(label(&scratch, "three", &["--shard", shard, "--batch", "2"])))
        .into_iter()
        .collect();
    for shard in shards {
        let ended = shard.wait();
        assert!(ended.status.success(), "{}", ended.stderr);
    }
    let (one, three) = (contents(&scratch.path("one")), contents(&scratch.path("three")));
    assert_eq!(one.keys().collect::<Vec<_>>(), three.keys().collect::<Vec<_>>());
    assert_eq!(maps(&three), 21);
}

#[test]
fn a_killed_worker_and_a_killed_coordinator_cost_no_map() {
    let scratch = with_weights(60);
    let one = run(label(&scratch, "one", &["--batch", "1"]));
    assert!(one.status.success(), "{}", one.stderr);

    let out = scratch.path("many");
    let made = || if out.is_dir() { maps(&contents_while_written(&out)) } else { 0 };
    let mut coordinator =
        start(coordinator_label(&scratch, "many", &["--batch", "1", "--listen", "127.0.0.1:0"]));
    let port = coordinator.port();
    let mut doomed = start(labeller(port));
    doomed.wait_for("some maps", |_| (made() >= 5).then_some(()));
    // Held up with the range that it has, so that the other cannot do everything meanwhile.
    kill(doomed.pid(), Signal::SIGSTOP).unwrap();
    let before = made();
    let mut other = start(labeller(port));
    other.wait_for("maps of the other", |_| (made() > before + 5).then_some(()));
    kill(other.pid(), Signal::SIGSTOP).unwrap();
    doomed.kill();
    coordinator.wait_for("the loss", |log| log.contains("handed out again").then_some(()));
    coordinator.kill();
    let before = made();
    assert!((11..60).contains(&before), "they had made {before} of 60 maps");

    let listen = format!("127.0.0.1:{port}");
    let mut again = start(coordinator_label(&scratch, "many", &["--batch", "1", "--listen", &listen]));
    again.port();
    kill(other.pid(), Signal::SIGCONT).unwrap();
    let ended = again.wait();
    let summary = ended.last_line(0);
    assert!(summary.contains(": 60 label maps, "), "{summary}");
    let other = other.wait();
    assert!(other.status.success() && other.stderr.contains("looking for it again"), "{}", other.stderr);
    assert!(contents(&scratch.path("one")) == contents(&out), "the files differ");
}

#[test]
fn a_coordinator_starts_workers_and_lists_what_none_could_read() {
    let scratch = with_weights(12);
    let bad = scratch.file_of("train", 1);
    std::fs::write(&bad, b"not a picture").unwrap();
    let one = run(label(&scratch, "one", &["--batch", "1"]));
    assert!(one.status.success(), "{}", one.stderr);
    for made in ["11 of them", "0 of them"] {
        let flags = ["--batch", "1", "--local", "--workers", "2", "--threads", "1"];
        let ended = run(coordinator_label(&scratch, "many", &flags));
        let wanted = format!("11 label maps, {made} made now");
        let summary = ended.last_line(0);
        assert!(summary.contains(&wanted) && summary.contains("; 1 images could not"), "{summary}");
        let listed =
            |line: &str| line.contains(bad.to_str().unwrap()) && line.contains("neither a JPEG nor a PNG");
        assert_eq!(ended.stderr.lines().filter(|line| listed(line)).count(), 1, "{}", ended.stderr);
    }
    let mut many = contents(&scratch.path("many"));
    many.retain(|path, _| !path.starts_with(".label"));
    assert!(contents(&scratch.path("one")) == many, "the files differ");

    // What fails a local worker fails it all, by the worker's own words.
    let flags = ["--local", "--threads", "1", "--top-k", "2"];
    let ended = run(coordinator_label(&scratch, "many", &flags));
    assert!(ended.last_line(1).contains("made with top_k 4, not 2"), "{}", ended.stderr);
}

#[test]
fn options_come_from_the_command_line_or_from_a_coordinator() {
    for (flags, wanted) in [
        (vec!["--data", "d", "--out", "o"], "--arch <ARCH>"),
        (vec!["--coordinator", "h", "--data", "d"], "cannot be used with"),
        (vec!["--coordinator", "h", "--shard", "0/2"], "cannot be used with"),
    ] {
        let mut command = Command::new(program("worker"));
        command.arg("label").args(&flags);
        let ended = run(command);
        assert_eq!(ended.status.code(), Some(2), "{flags:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(wanted), "{flags:?}: {}", ended.stderr);
    }
}

#[test]
fn unreadable_images_are_listed_and_left_out() {
    let scratch = with_weights(8);
    let (first, second) = (scratch.file_of("train", 0), scratch.file_of("train", 1));
    std::fs::write(&first, b"not a picture").unwrap();
    let bytes = std::fs::read(&second).unwrap();
    std::fs::write(&second, &bytes[..bytes.len() / 2]).unwrap();
    let ended = run(label(&scratch, "out", &[]));
    assert!(ended.status.success(), "{}", ended.stderr);
    assert_eq!(maps(&contents(&scratch.path("out"))), 6);
    for (path, why) in [(&first, "neither a JPEG nor a PNG"), (&second, "truncated")] {
        let line = ended.stderr.lines().find(|line| line.contains(path.to_str().unwrap()));
        assert!(line.is_some_and(|line| line.contains(why)), "{}", ended.stderr);
    }

    for class in 0..4 {
        for file in sorted(&sorted(&scratch.path("data/train"))[class]) {
            std::fs::write(file, b"").unwrap();
        }
    }
    let ended = run(label(&scratch, "none", &[]));
    assert!(ended.last_line(1).contains("none of 8 images could be read"), "{}", ended.stderr);
}
