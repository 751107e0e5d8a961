//! Tar shards in place of folders: the same samples in the same order, so the same run.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use relabel_tests::{
    Ended, Scratch, assert_each_sample_once, batches, losses, program, run, sorted, start, wait_for_steps,
};

/// Packs `names` of `dir` with the system's tar.
fn tar(out: &Path, dir: &Path, names: &[String]) {
    let mut tar = Command::new("tar");
    tar.arg("--create").arg("--file").arg(out).arg("--directory").arg(dir).args(names);
    assert!(tar.status().unwrap().success(), "{}", out.display());
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

/// The images of a split, as class and file name, dealt out to three shards.
fn dealt(split: &Path) -> [Vec<(String, String)>; 3] {
    let mut shards = [const { Vec::new() }; 3];
    let images = sorted(split)
        .into_iter()
        .flat_map(|class| sorted(&class).into_iter().map(move |image| (name(&class), name(&image))));
    for (number, image) in images.enumerate() {
        shards[number % 3].push(image);
    }
    shards
}

/// The data set with the class folders in the archives.
fn by_folders(scratch: &Scratch) -> PathBuf {
    let to = scratch.path("folders");
    for split in ["train", "val"] {
        let from = scratch.path("data").join(split);
        std::fs::create_dir_all(to.join(split)).unwrap();
        for (number, images) in dealt(&from).into_iter().enumerate() {
            let names: Vec<_> = images.iter().map(|(class, image)| format!("{class}/{image}")).collect();
            tar(&to.join(split).join(format!("{split}-{number:06}.tar")), &from, &names);
        }
    }
    to
}

/// The data set as WebDataset has it: each image, and its class in a file beside it.
fn by_class_files(scratch: &Scratch) -> PathBuf {
    let (to, flat) = (scratch.path("files"), scratch.path("flat"));
    for split in ["train", "val"] {
        let from = scratch.path("data").join(split);
        std::fs::create_dir_all(to.join(split)).unwrap();
        std::fs::create_dir_all(&flat).unwrap();
        for (number, images) in dealt(&from).into_iter().enumerate() {
            let mut names = Vec::new();
            for (class, image) in images {
                let class_file = Path::new(&image).with_extension("cls");
                std::fs::copy(from.join(&class).join(&image), flat.join(&image)).unwrap();
                std::fs::write(flat.join(&class_file), class).unwrap();
                names.extend([image, name(&class_file)]);
            }
            tar(&to.join(split).join(format!("{split}-{number:06}.tar")), &flat, &names);
        }
    }
    to
}

/// A run of one worker, so that sums are the same to the last bit.
fn train(scratch: &Scratch, run_dir: &str, data: &Path) -> Ended {
    let mut command = scratch.local(run_dir, 1);
    command.arg("--data.data_path").arg(data).args(["--optim.epochs", "2"]);
    run(command)
}

/// What `worker eval` says of the validation images in `data`, in shards or folders, by the classes of training's.
fn evaluated(scratch: &Scratch, data: &Path) -> String {
    let mut eval = Command::new(program("worker"));
    eval.args(["eval", "--image-size", "32", "--json", "--threads", "1", "--weights"]);
    eval.arg(scratch.path("expected/checkpoints/resnet18-best.safetensors"));
    eval.arg("--data").arg(format!("set={}", data.display())).arg("--classes").arg(data.join("train"));
    let output = eval.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("\"images\":16"), "{told}");
    told.replace(data.to_str().unwrap(), "DATA")
}

#[test]
fn shards_train_as_their_folders_do_to_the_bit() {
    let scratch = Scratch::with_data(50, 16);
    let ended = train(&scratch, "expected", &scratch.path("data"));
    assert!(ended.status.success(), "{}", ended.stderr);
    let expected = losses(&scratch.path("expected"));
    assert_eq!(expected.len(), 2 * 4);
    for (run_dir, data) in [("a", by_folders(&scratch)), ("b", by_class_files(&scratch))] {
        let ended = train(&scratch, run_dir, &data);
        assert!(ended.status.success(), "{}", ended.stderr);
        let run_dir = scratch.path(run_dir);
        assert_eq!(losses(&run_dir), expected, "{}", data.display());
        assert_eq!(batches(&run_dir), batches(&scratch.path("expected")));
        assert_each_sample_once(&run_dir, 2, 50);
        // What else reads a data set reads this one.
        let mut doctor = Command::new(program("worker"));
        doctor.args(["doctor", "--image-size", "32", "--all", "--data"]).arg(&data);
        let output = doctor.arg("--labels").arg(scratch.path("data/labels")).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.ends_with("The data can be trained on.\n"), "{text}");
        assert!(
            text.contains("50 images in 4 classes") && text.contains("each of 50 training images"),
            "{text}"
        );
        assert_eq!(evaluated(&scratch, &data), evaluated(&scratch, &scratch.path("data")));
    }
}

#[test]
fn a_damaged_shard_ends_a_run_before_it_begins() {
    let scratch = Scratch::with_data(12, 4);
    let data = by_folders(&scratch);
    let shard = sorted(&data.join("train")).swap_remove(1);
    let whole = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &whole[..whole.len() / 2]).unwrap();
    let ended = train(&scratch, "truncated", &data);
    assert!(!ended.status.success());
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert!(last.contains(shard.to_str().unwrap()) && last.contains("truncated"), "{}", ended.stderr);

    // A damaged image ends it when it is its turn, by shard and member.
    let mut damaged = whole.clone();
    let jpeg = whole.windows(3).position(|bytes| bytes == [0xFF, 0xD8, 0xFF]).unwrap();
    damaged[jpeg..jpeg + 3].fill(0);
    std::fs::write(&shard, damaged).unwrap();
    let ended = train(&scratch, "damaged", &data);
    assert!(!ended.status.success());
    let last = ended.stderr.lines().last().unwrap_or_default();
    let named = format!("{}, member ", shard.display());
    assert!(last.contains(&named) && last.contains("neither a JPEG nor a PNG"), "{}", ended.stderr);
}

/// All that `data.shuffle_buffer` does: here as many images as a step has, so that a step's images lie side by side.
fn train_in_order(scratch: &Scratch, run_dir: &str, data: &Path, workers: u32) -> Command {
    let mut command = scratch.local(run_dir, workers);
    command.arg("--data.data_path").arg(data);
    command.args(["--data.shuffle_buffer", "16", "--checkpoint.every_steps", "1"]);
    command
}

#[test]
fn shards_read_in_order_are_the_same_for_any_number_of_workers_and_after_a_stop() {
    let scratch = Scratch::with_data(50, 16);
    let data = by_folders(&scratch);
    let ended = run(train_in_order(&scratch, "one", &data, 1));
    assert!(ended.status.success(), "{}", ended.stderr);
    assert_each_sample_once(&scratch.path("one"), 3, 50);
    let expected = batches(&scratch.path("one"));

    // Ids were dealt out to the shards in turn, so that a shard holds every third. In one of the six orders of the
    // shards, an epoch's steps are the rows of 16.
    let mut seen = std::collections::BTreeSet::new();
    for epoch in 0..3 {
        let steps: Vec<_> = (0..4).map(|step| expected[&(epoch, step)].clone()).collect();
        let rows = |shards: &[u64; 3]| {
            let row: Vec<u64> = shards.iter().flat_map(|first| (*first..50).step_by(3)).collect();
            let sorted = |part: &[u64]| {
                let mut part = part.to_vec();
                part.sort_unstable();
                part
            };
            row.chunks(16).map(sorted).collect::<Vec<_>>()
        };
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        let order = orders.into_iter().find(|shards| rows(shards) == steps);
        seen.insert(order.unwrap_or_else(|| panic!("{steps:?}")));
    }
    assert!(seen.len() > 1, "the order of shards is always {seen:?}");

    let ended = run(train_in_order(&scratch, "three", &data, 3));
    assert!(ended.status.success(), "{}", ended.stderr);
    assert_eq!(batches(&scratch.path("three")), expected);

    let running = start(train_in_order(&scratch, "stopped", &data, 1));
    wait_for_steps(&scratch.path("stopped"), 2);
    kill(running.pid(), Signal::SIGTERM).unwrap();
    assert_eq!(running.wait().status.code(), Some(143));
    let before = losses(&scratch.path("stopped")).len();
    assert!(before < 12, "it ended before it was stopped");
    let mut other = scratch.local("stopped", 1);
    other.arg("--data.data_path").arg(&data).args(["--data.shuffle_buffer", "17", "--resume"]);
    let last = run(other).stderr;
    assert!(last.contains("data.shuffle_buffer is 17 but this run began with 16"), "{last}");
    let mut resumed = train_in_order(&scratch, "stopped", &data, 1);
    resumed.arg("--resume");
    let ended = run(resumed);
    assert!(ended.status.success(), "{}", ended.stderr);
    assert_eq!(batches(&scratch.path("stopped")), expected);
    assert_eq!(losses(&scratch.path("stopped")), losses(&scratch.path("one")));
}

#[test]
fn an_order_of_shards_wants_shards_and_the_same_ones_everywhere() {
    let scratch = Scratch::with_data(12, 4);
    let ended = run(train_in_order(&scratch, "folders", &scratch.path("data"), 1));
    let words = "data.shuffle_buffer is 16, but ";
    assert!(!ended.status.success() && ended.stderr.contains(words), "{}", ended.stderr);

    // Shards of folders are the folders, but not to a run that reads them in order.
    let data = by_folders(&scratch);
    let ended = run(train_in_order(&scratch, "packed", &data, 1));
    assert!(ended.status.success(), "{}", ended.stderr);
    let train = data.join("train");
    let mut shards = sorted(&train);
    let (first, second) = (shards.remove(0), shards.remove(0));
    std::fs::rename(&first, train.join("aside")).unwrap();
    std::fs::rename(&second, &first).unwrap();
    std::fs::rename(train.join("aside"), &second).unwrap();
    let mut longer = train_in_order(&scratch, "packed", &data, 1);
    longer.args(["--resume", "--optim.epochs", "4"]);
    let ended = run(longer);
    assert!(!ended.status.success() && ended.stderr.contains("sees other training data"), "{}", ended.stderr);
}
