#![allow(clippy::unwrap_used)]

use std::path::Path;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    doctor: DoctorArgs,
}

/// A small data set with maps, as `worker synth` makes it.
fn data() -> tempfile::TempDir {
    #[derive(Parser)]
    struct Synth {
        #[command(flatten)]
        synth: crate::synth::SynthArgs,
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let synth = [
        "synth",
        out,
        "--classes",
        "3",
        "--size",
        "48x40",
        "--train",
        "12",
        "--val",
        "6",
        "--objects-max",
        "1",
    ];
    crate::synth::run(&Synth::parse_from(synth).synth).unwrap();
    dir
}

fn look(dir: &Path, more: &[&str]) -> Findings {
    let labels = dir.join("labels");
    let args = [
        "doctor",
        "--data",
        dir.to_str().unwrap(),
        "--labels",
        labels.to_str().unwrap(),
        "--image-size",
        "32",
    ];
    examine(&Cli::parse_from(args.iter().chain(more)).doctor, dir)
}

/// A file of class folder number `class`, the first by name.
fn file_of(dir: &Path, class: usize) -> PathBuf {
    let sorted = |dir: &Path| {
        let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    };
    sorted(&sorted(dir)[class]).swap_remove(0)
}

#[test]
fn nothing_is_wrong_with_a_good_data_set() {
    let dir = data();
    let findings = look(dir.path(), &[]);
    assert_eq!(findings.worst(), Verdict::Good, "{}", as_text(&findings));
    let text = as_text(&findings);
    for words in [
        "good  train         12 images in 3 classes",
        "good  classes       the same 3",
        "each of 12 training images",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
}

/// All at once: a run would stop at the first.
#[test]
fn everything_that_is_wrong_is_named() {
    let dir = data();
    let train = dir.path().join("train");
    let damaged = file_of(&train, 0);
    let bytes = std::fs::read(&damaged).unwrap();
    std::fs::write(&damaged, &bytes[..bytes.len() / 2]).unwrap();
    std::fs::create_dir(train.join("class_without")).unwrap();
    std::fs::write(train.join("class_without/a.txt"), "").unwrap();
    let labels = dir.path().join("labels");
    let missing = file_of(&labels, 1);
    std::fs::remove_file(&missing).unwrap();
    let broken = file_of(&labels, 2);
    std::fs::write(&broken, "no map").unwrap();
    std::fs::create_dir(labels.join("stranger")).unwrap();
    std::fs::copy(file_of(&labels, 0), broken.with_file_name("nobody.pt")).unwrap();

    let findings = look(dir.path(), &["--all"]);
    let bad = |what: &str, words: &str, of: &str| {
        let found = findings.0.iter().any(|finding| {
            finding.what == what
                && finding.words.contains(words)
                && finding.of.iter().any(|thing| thing.contains(of))
        });
        assert!(found, "{what}: {words}: {of}\n{}", as_text(&findings));
    };
    bad("train images", "1 cannot be read (all opened)", damaged.to_str().unwrap());
    bad("train", "1 class folders hold no image", "class_without");
    bad("train", "1 files are no images", "a.txt");
    bad("classes", "1 are in train and not in val", "class_without");
    bad("label maps", "1 of 12 training images have none", missing.file_stem().unwrap().to_str().unwrap());
    bad("label maps", "1 cannot be used", broken.to_str().unwrap());
    bad("label maps", "1 folders are named as no class is", "stranger");
    bad("label maps", "some are of no training image", "1 maps");
    assert_eq!(findings.worst(), Verdict::Bad);
}

#[test]
fn a_packed_store_is_checked_like_its_folder() {
    #[derive(Parser)]
    struct Pack {
        #[command(flatten)]
        pack: crate::labels::pack::PackArgs,
    }
    let dir = data();
    let packed = dir.path().join("labels.packed");
    let labels = dir.path().join("labels");
    std::fs::remove_file(file_of(&labels, 1)).unwrap();
    let pack = Pack::parse_from(["pack", labels.to_str().unwrap(), packed.to_str().unwrap()]);
    crate::labels::pack::run(&pack.pack).unwrap();
    let args = ["doctor", "--data", dir.path().to_str().unwrap(), "--labels", packed.to_str().unwrap()];
    let findings = examine(&Cli::parse_from(args).doctor, dir.path());
    let text = as_text(&findings);
    assert!(text.contains("1 of 12 training images have none") && text.contains("all read: "), "{text}");
    assert!(text.contains("are smaller than the crop of 224 pixels"), "{text}");
}

#[test]
fn a_folder_that_is_not_there_is_said_and_the_rest_is_looked_at() {
    let dir = data();
    std::fs::remove_dir_all(dir.path().join("val")).unwrap();
    let findings = look(dir.path(), &[]);
    let text = as_text(&findings);
    assert!(
        text.contains("BAD   val           there is no folder") && text.contains("each of 12 training"),
        "{text}"
    );
}

#[test]
fn what_is_opened_is_spread_over_the_whole() {
    assert_eq!(spread(10, 4), [1, 3, 6, 8]);
    assert_eq!(spread(3, 1000), [0, 1, 2]);
    assert_eq!(spread(3, usize::MAX), [0, 1, 2]);
    assert_eq!(spread(0, 5), [0; 0]);
}
