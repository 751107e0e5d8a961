#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use relabel_config::Axes;

use super::write::{Picture, Split, wnid};
use super::*;
use crate::labels::pool::{UnitBox, pool};
use crate::labels::read_map;

fn args(out: &Path) -> SynthArgs {
    SynthArgs {
        out: out.join("data"),
        train: 24,
        val: 13,
        classes: 6,
        size: Size::Fixed(96, 72),
        objects_max: 3,
        seed: 5,
        threads: Some(2),
    }
}

fn recipe(args: &SynthArgs) -> Recipe {
    let SynthArgs { train, val, classes, size, objects_max, seed, .. } = *args;
    Recipe { version: VERSION, train, val, classes, size, objects_max, seed }
}

/// Every file under `folder` by its path.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    found
}

#[test]
fn the_same_arguments_give_the_same_bytes_on_any_number_of_threads() {
    let (a, b, c) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(&args(a.path())).unwrap();
    run(&SynthArgs { threads: Some(1), ..args(b.path()) }).unwrap();
    run(&SynthArgs { seed: 6, ..args(c.path()) }).unwrap();
    let (a, b, c) = (files(a.path()), files(b.path()), files(c.path()));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    assert!(a == b);
    let train = "data/train/n00000001/n00000001_1.JPEG";
    assert!(a[train] != c[train]);
    assert!(a[train] != a["data/train/n00000001/n00000001_2.JPEG"]);
}

#[test]
fn the_layout_is_imagenets() {
    let folder = tempfile::tempdir().unwrap();
    let args = args(folder.path());
    run(&args).unwrap();
    let files = files(&args.out);
    for class in 0..6 {
        let wnid = wnid(class);
        for n in 1..=4 {
            let picture = &files[&format!("train/{wnid}/{wnid}_{n}.JPEG")];
            let decoded = image::load_from_memory_with_format(picture, image::ImageFormat::Jpeg).unwrap();
            assert_eq!((decoded.width(), decoded.height()), (96, 72));
            assert!(files.contains_key(&format!("labels/{wnid}/{wnid}_{n}.pt")));
        }
    }
    assert_eq!(files.len(), 24 * 2 + 13 * 2 + 5);

    let real: Vec<Vec<u32>> = serde_json::from_slice(&files["real.json"]).unwrap();
    let multi: Vec<Vec<u32>> = serde_json::from_slice(&files["real-multi.json"]).unwrap();
    let human: serde_json::Value = serde_json::from_slice(&files["human_accuracy_multi.json"]).unwrap();
    assert_eq!((real.len(), multi.len()), (13, 13));
    for (i, (one, several)) in real.iter().zip(&multi).enumerate() {
        let name = format!("ILSVRC2012_val_{:08}.JPEG", i + 1);
        assert_eq!(one.len(), 1);
        assert!(files.contains_key(&format!("val/{}/{name}", wnid(one[0]))));
        assert!(several.len() >= 2, "{several:?}");
        assert!(
            several.iter().any(|&class| files.contains_key(&format!("val-multi/{}/{name}", wnid(class))))
        );
        let correct: Vec<String> = several.iter().copied().map(wnid).collect();
        assert_eq!(human["initial_annots"][&name]["correct"], serde_json::json!(correct));
    }
    let classes: BTreeMap<u32, [String; 2]> = serde_json::from_slice(&files["classes.json"]).unwrap();
    assert_eq!(classes[&4], ["n00000005", "ring"]);
    assert_eq!(classes.len(), 6);
}

#[test]
fn a_crop_of_an_object_is_taught_its_class() {
    let folder = tempfile::tempdir().unwrap();
    let args = SynthArgs { size: Size::Sides(80, 160), train: 60, ..args(folder.path()) };
    run(&args).unwrap();
    let recipe = recipe(&args);
    let (mut several, mut far) = (0, 0);
    for number in 0..recipe.train {
        let picture = Picture::plan(&recipe, Split::Train, number);
        let scene = &picture.scene;
        let wnid = wnid(picture.class);
        let map = read_map(&args.out.join(format!("labels/{wnid}/{}.pt", picture.stem(6))), 6).unwrap();
        assert_eq!((map.k, map.height, map.width), (5, 15, 15));
        assert!(scene.classes().contains(&picture.class));
        several += u32::from(scene.objects.len() > 1);
        for object in &scene.objects {
            let span = |center: f32, side: u32| {
                let (from, to) = (center - 0.6 * object.radius, center + 0.6 * object.radius);
                ((from / side as f32).max(0.0), (to / side as f32).min(1.0))
            };
            let ((x1, x2), (y1, y2)) = (span(object.x, scene.width), span(object.y, scene.height));
            let mut target = [0.0; 6];
            pool(&map, UnitBox { x1, y1, x2, y2 }, Axes::Hw, &mut target);
            assert!(target[object.class as usize] > 0.8, "{object:?} {target:?}");
            // Read with its axes swapped the map would teach something else of many crops.
            pool(&map, UnitBox { x1, y1, x2, y2 }, Axes::Reference, &mut target);
            far += u32::from(target[object.class as usize] < 0.5);
        }
    }
    assert_eq!(several, recipe.train);
    assert!(far > 20, "{far}");
}

#[test]
fn training_pictures_of_at_most_one_object_show_exactly_that() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(&SynthArgs { objects_max: 1, ..args(folder.path()) });
    for number in 0..recipe.train {
        let picture = Picture::plan(&recipe, Split::Train, number);
        assert_eq!(picture.scene.classes(), [picture.class]);
    }
}

#[test]
fn a_finished_folder_is_left_alone_and_a_foreign_one_refused() {
    let folder = tempfile::tempdir().unwrap();
    let args = args(folder.path());
    run(&args).unwrap();
    let picture = args.out.join("train/n00000001/n00000001_1.JPEG");
    std::fs::write(&picture, "mine").unwrap();
    run(&args).unwrap();
    assert_eq!(std::fs::read(&picture).unwrap(), b"mine");

    let message = run(&SynthArgs { seed: 9, ..args.clone() }).unwrap_err().to_string();
    assert!(message.contains("other arguments"), "{message}");

    // As an interrupted run leaves it: carried on with.
    std::fs::rename(args.out.join(DONE), args.out.join(BEGUN)).unwrap();
    let message = run(&SynthArgs { seed: 9, ..args.clone() }).unwrap_err().to_string();
    assert!(message.contains("a part of other"), "{message}");
    run(&args).unwrap();
    assert!(std::fs::read(&picture).unwrap() != b"mine" && !args.out.join(BEGUN).exists());

    let foreign = SynthArgs { out: args.out.join("train"), ..args.clone() };
    let message = run(&foreign).unwrap_err().to_string();
    assert!(message.contains("not empty"), "{message}");
    assert!(!args.out.join("train/labels").exists());
}

#[test]
fn bad_arguments_name_the_flag() {
    let folder = tempfile::tempdir().unwrap();
    let good = args(folder.path());
    for (bad, flag) in [
        (SynthArgs { classes: 17, ..good.clone() }, "--classes 17; wanted 2 to 16"),
        (SynthArgs { classes: 1, ..good.clone() }, "--classes 1"),
        (SynthArgs { train: 5, ..good.clone() }, "--train 5"),
        (SynthArgs { val: 0, ..good.clone() }, "--val 0"),
        (SynthArgs { objects_max: 0, ..good.clone() }, "--objects-max 0"),
        (SynthArgs { threads: Some(0), ..good.clone() }, "--threads 0"),
    ] {
        let message = run(&bad).unwrap_err().to_string();
        assert!(message.contains(flag), "{message}");
    }
    assert_eq!("160x120".parse(), Ok(Size::Fixed(160, 120)));
    assert_eq!("96-192".parse(), Ok(Size::Sides(96, 192)));
    for bad in ["160", "x", "192-96", "8x8", "9999x100", "-5-9"] {
        assert!(bad.parse::<Size>().is_err(), "{bad}");
    }
}
