#![allow(clippy::unwrap_used)]

use std::path::Path;

use relabel_core::evaluation::counts::{MultiLabelCounts, RealCounts};
use serde_json::json;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

use super::classes::{Classes, ClassesError, class_ids};
use super::multi_label::{MultiLabel, MultiLabelError};
use super::real::Real;
use super::sets::{Corruption, EvalSet, Layout, layout};
use super::{attack, count_logits};
use crate::model::{BatchNormOptions, build};

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-6, "{a} against {b}");
}

#[test]
fn top1_top5_and_loss_are_those_of_their_definitions() {
    // Seven outputs; the right one is the first, the fifth and the sixth of the answers.
    let rows = [[7.0_f32, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]; 3];
    let logits = Tensor::from_slice(rows.as_flattened()).view([3, 7]);
    let counts = count_logits(&logits, &Tensor::from_slice(&[0_i64, 4, 5]));
    let total: f64 = (1..=7).map(|logit| f64::from(logit).exp()).sum();
    assert_eq!((counts.samples, counts.top1, counts.top5), (3, 1, 2));
    close(counts.loss_sum, 3.0 * total.ln() - 7.0 - 3.0 - 2.0);
    close(counts.top1_share(), 1.0 / 3.0);
    close(counts.top5_share(), 2.0 / 3.0);
    close(counts.loss(), counts.loss_sum / 3.0);
}

#[test]
fn what_is_no_answer_has_no_part_in_accuracy_and_loss() {
    let logits = Tensor::from_slice(&[9.0_f32, 1.0, 8.0, 2.0]).view([1, 4]);
    let mask = Tensor::from_slice(&[true, false, true, false]);
    let counts = count_logits(&logits.masked_fill(&mask, f64::NEG_INFINITY), &Tensor::from_slice(&[3_i64]));
    assert_eq!((counts.top1, counts.top5), (1, 1));
    close(counts.loss_sum, (1.0_f64.exp() + 2.0_f64.exp()).ln() - 2.0);
}

fn read(name: &str, text: &str) -> Result<Classes, ClassesError> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    Classes::read(&path)
}

#[test]
fn classes_are_read_from_lines_indexes_and_folders() {
    let named = read("a.txt", "n01440764 tench, Tinca tinca\nn01443537\tgoldfish\n\nn01484850\n").unwrap();
    assert_eq!((named.key(0), named.name(0)), ("n01440764".into(), "tench, Tinca tinca".into()));
    assert_eq!((named.key(2), named.name(2)), ("n01484850".into(), "n01484850".into()));
    assert_eq!(named.len(), 3);
    assert_eq!(read("b.txt", "great white shark\nhen\n").unwrap().name(0), "great white shark");
    let index = r#"{"1": ["n01443537", "goldfish"], "0": ["n01440764", "tench"]}"#;
    assert_eq!(read("c.json", index).unwrap().name(1), "goldfish");
    assert_eq!(read("d.json", r#"["tench", "hen"]"#).unwrap().name(1), "hen");
    let folder = TempDir::new().unwrap();
    for name in ["n2", "n1", ".hidden"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    let folders = Classes::read(folder.path()).unwrap();
    assert_eq!((folders.len(), folders.key(0), folders.key(7)), (2, "n1".into(), "7".into()));
    for (name, text, said) in [
        ("e.json", r#"{"0": ["a", "b"], "2": ["c", "d"]}"#, "class 1 of 2 is missing"),
        ("f.txt", "hen\ntench\nhen\n", "hen is class 0 and class 2"),
        ("g.txt", "\n", "no class in it"),
        ("h.json", r#"[3]"#, "class 0 is neither a name nor [folder, name]"),
    ] {
        let error = read(name, text).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains(name) && !error.contains('\n'), "{error}");
    }
}

#[test]
fn folders_mean_classes_by_name_then_by_number_then_by_order() {
    let dir = Path::new("set");
    let known = Classes::from_folders(strings(&["n1", "n2", "n3"]));
    let ids = |folders: &[&str], known: Option<&Classes>, outputs| {
        class_ids(dir, &strings(folders), known, outputs).map_err(|error| error.to_string())
    };
    assert_eq!(ids(&["n1", "n3"], Some(&known), 3), Ok(vec![0, 2]));
    // ImageNetV2: as strings 10 comes before 2.
    assert_eq!(ids(&["0", "1", "10", "2"], Some(&known), 11), Ok(vec![0, 1, 10, 2]));
    assert_eq!(ids(&["0", "1", "10", "2"], None, 11), Ok(vec![0, 1, 10, 2]));
    // A network that was trained on folders of numbers has them in their order as strings.
    let numbers = Classes::from_folders(strings(&["0", "1", "10", "2"]));
    assert_eq!(ids(&["10", "2"], Some(&numbers), 4), Ok(vec![2, 3]));
    assert_eq!(ids(&["a", "b"], None, 2), Ok(vec![0, 1]));
    for (folders, known, outputs, said) in [
        (&["n1", "x"][..], Some(&known), 3, "class folder x is none of the 3 classes"),
        (&["a", "b"], None, 3, "2 class folders, but the network has 3 outputs"),
        (&["0", "7"], None, 7, "class folder 7 is a number beyond the network's 7 outputs"),
        (&["01", "1"], None, 7, "class folders 01 and 1 mean the same class"),
    ] {
        let error = ids(folders, known, outputs).unwrap_err();
        assert!(error.contains(said) && error.starts_with("set: "), "{error}");
    }
}

fn image(root: &Path, path: &str) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, "").unwrap();
}

#[test]
fn layouts_are_told_apart() {
    let root = TempDir::new().unwrap();
    let root = root.path();
    image(root, "imagenet/train/n1/a.JPEG");
    image(root, "imagenet/val/n1/ILSVRC2012_val_00000001.JPEG");
    assert_eq!(layout(&root.join("imagenet")).unwrap(), Layout::Plain(root.join("imagenet/val")));
    image(root, "v2/1/a.jpeg");
    image(root, "v2/2/a.jpeg");
    assert_eq!(layout(&root.join("v2")).unwrap(), Layout::Plain(root.join("v2")));
    for severity in 1..=5 {
        image(root, &format!("c/noise/shot_noise/{severity}/n1/a.JPEG"));
        image(root, &format!("c/blur/glass_blur/{severity}/n1/a.JPEG"));
    }
    let corruption = |group: &str, name: &str| {
        let path = root.join("c").join(group).join(name);
        let severities = (1..=5).map(|severity| (severity, path.join(severity.to_string()))).collect();
        Corruption { name: name.into(), severities }
    };
    let (glass, shot) = (corruption("blur", "glass_blur"), corruption("noise", "shot_noise"));
    assert_eq!(layout(&root.join("c")).unwrap(), Layout::Corrupted(vec![glass, shot.clone()]));
    assert_eq!(layout(&root.join("c/noise")).unwrap(), Layout::Corrupted(vec![shot]));
    image(root, "c/noise/snow/heavy/n1/a.JPEG");
    let error = layout(&root.join("c/noise")).unwrap_err().to_string();
    assert!(error.contains("heavy"), "{error}");
}

#[test]
fn a_set_of_some_classes_is_a_subset_of_those_that_are_known() {
    let root = TempDir::new().unwrap();
    image(root.path(), "n1/ILSVRC2012_val_00000002.JPEG");
    image(root.path(), "n3/a.JPEG");
    let known = Classes::from_folders(strings(&["n1", "n2", "n3"]));
    let set = EvalSet::open(root.path(), Some(&known), 3).unwrap();
    assert_eq!((&*set.class_ids, set.subset, set.is_imagenet_val()), (&[0, 2][..], true, false));
    let own = EvalSet::open(root.path(), None, 2).unwrap();
    assert_eq!((&*own.class_ids, own.subset), (&[0, 1][..], false));
    // An output that no class uses makes no subset.
    let all = Classes::from_folders(strings(&["n1", "n3"]));
    assert!(!EvalSet::open(root.path(), Some(&all), 5).unwrap().subset);
}

#[test]
fn real_counts_an_answer_among_the_labels_and_leaves_out_images_without() {
    let real = Real::parse("[[3], [], [1, 2], [0]]").unwrap();
    let mut counts = RealCounts::default();
    for (number, answer) in [(1, 3), (2, 0), (3, 2), (4, 1)] {
        real.add(&mut counts, &format!("ILSVRC2012_val_{number:08}.JPEG"), answer).unwrap();
    }
    assert_eq!(counts, RealCounts { images: 3, right: 2 });
    close(counts.accuracy(), 2.0 / 3.0);
    for file in ["ILSVRC2012_val_00000000.JPEG", "ILSVRC2012_val_00000005.JPEG", "n01440764_1.JPEG"] {
        let error = real.add(&mut counts, file, 0).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("1..=4"), "{error}");
    }
    assert!(Real::parse(r#"{"a": 1}"#).is_err());
}

#[test]
fn multi_label_accuracy_has_two_definitions() {
    let classes = Classes::from_folders(strings(&["n0", "n1", "n2"]));
    let file = json!({
        "initial_annots": {
            "a": { "correct": ["n0"], "wrong": ["n2"], "unclear": ["n1"] },
            "b": { "correct": ["n0", "n1"] },
            "c": { "unclear": ["n2"] },
            "d": { "correct": ["n2"] },
            "bad": { "correct": ["n0"] },
        },
        "problematic_images": { "bad": "two pictures" },
    });
    let parse =
        |file: &serde_json::Value| MultiLabel::parse(&file.to_string(), Path::new("human.json"), &classes);
    let labels = parse(&file).unwrap();
    let mut counts = MultiLabelCounts::default();
    // Class 0: a unclear, b correct, c wrong. Class 2: d correct. Not counted: problematic, not annotated.
    for (name, class, answer) in
        [("a", 0, 1), ("b", 0, 1), ("c", 0, 0), ("d", 2, 2), ("bad", 0, 0), ("other", 1, 1)]
    {
        labels.add(&mut counts, name, class, answer);
    }
    assert_eq!(counts.images, 4);
    close(counts.correct(), 2.0 / 4.0);
    close(counts.class_mean(), (2.0 / 3.0 + 1.0) / 2.0);

    let mut listed = file.clone();
    listed["problematic_images"] = json!(["bad"]);
    assert_eq!(parse(&listed).unwrap(), labels);
    let foreign = json!({ "initial_annots": { "a": { "correct": ["n9"] } } });
    assert!(matches!(parse(&foreign), Err(MultiLabelError::OtherClasses { count: 1, .. })));
    let error = parse(&json!({ "annots": {} })).unwrap_err().to_string();
    assert!(error.contains("human.json") && error.contains("initial_annots"), "{error}");
}

#[test]
fn the_attack_moves_each_pixel_by_epsilon_within_its_range_and_raises_the_loss() {
    let model = build("resnet18", 4, BatchNormOptions::default(), Device::Cpu, 3).unwrap();
    let mean = Tensor::from_slice(&crate::data::augment::MEAN).view([1, 3, 1, 1]);
    let deviation = Tensor::from_slice(&crate::data::augment::STD).view([1, 3, 1, 1]);
    // Pixels of black and white among them.
    let noise = || Tensor::randint_low(-40, 296, [2, 3, 32, 32], (Kind::Float, Device::Cpu));
    let bytes = crate::model::seeded(1, noise).clamp(0, 255);
    let pixels = bytes / 255;
    let x = (&pixels - &mean) / &deviation;
    let classes = Tensor::from_slice(&[1_i64, 3]);
    let direction = attack::direction(&model, &x, &classes, |logits| logits).unwrap();
    let epsilon = 4.0 / 255.0;
    let moved = attack::perturb(&x, &direction, epsilon);
    let expected = (&pixels + &direction * epsilon).clamp(0, 1);
    let back = &moved * &deviation + &mean;
    assert!((back - &expected).abs().max().double_value(&[]) < 1e-6);
    assert!((&expected - &pixels).abs().max().double_value(&[]) > 0.9 * epsilon);
    let loss =
        |x: &Tensor| count_logits(&tch::no_grad(|| model.forward(x, false).unwrap()), &classes).loss_sum;
    assert!(loss(&moved) > loss(&x), "{} {}", loss(&moved), loss(&x));
    // One image's direction does not depend on what else is in the batch.
    let alone = attack::direction(&model, &x.narrow(0, 1, 1), &classes.narrow(0, 1, 1), |l| l).unwrap();
    let same = alone.eq_tensor(&direction.narrow(0, 1, 1)).to_kind(Kind::Float).mean(Kind::Float);
    assert!(same.double_value(&[]) > 0.99);
}
