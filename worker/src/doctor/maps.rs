//! Whether every training image has a label map, and whether the maps can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;

use super::folders::Listing;
use super::{Findings, Verdict, images, spread};
use crate::labels::packed::Packed;
use crate::labels::{LabelMap, map_in_order, map_path, read_map};
use crate::progress::Progress;

const WHAT: &str = "label maps";

/// Listing waits for the file system and hardly computes, so the number does not depend on the cores.
const LISTERS: usize = 16;

/// Checks the maps at `path`, a folder or a packed store.
pub(super) fn check(findings: &mut Findings, train: &Listing, path: &Path, most: usize, threads: usize) {
    if path.is_dir() {
        let present = present(findings, train, path);
        let classes = train.classes.len() as u32;
        let read = |key: &String| read_map(&map_path(path, key), classes).map(|map| shape(&map));
        return open(findings, &present, most, threads, |key| read(key).map_err(|error| error.to_string()));
    }
    let packed = match Packed::open(path) {
        Ok(packed) => packed,
        Err(_) if !path.exists() => return findings.bad(WHAT, format!("there is no {}", path.display())),
        Err(error) => return findings.bad(WHAT, format!("{}: {error}", path.display())),
    };
    let (ids, folders) = (packed.classes(), train.classes.len());
    if ids as usize > folders {
        let words = format!(
            "{} names class ids up to {}, but there are {folders} class folders",
            path.display(),
            ids - 1
        );
        findings.bad(WHAT, words);
    }
    let names: BTreeSet<String> = packed.names().collect();
    let wanted: Vec<String> = images(train).into_iter().map(|image| train.key(image)).collect();
    let (present, missing): (Vec<_>, Vec<_>) = wanted.iter().cloned().partition(|key| names.contains(key));
    let extra = names.len() - present.iter().collect::<BTreeSet<_>>().len();
    said(findings, present.len(), missing, extra, Vec::new());
    let read = |key: &String| packed.get(key).map(|map| shape(&map)).map_err(|error| error.to_string());
    open(findings, &present, most, threads, read);
}

fn shape(map: &LabelMap) -> (usize, usize, usize) {
    (map.k, map.height, map.width)
}

/// The keys of the images that have a map in the folder `root`.
fn present(findings: &mut Findings, train: &Listing, root: &Path) -> Vec<String> {
    let folders: Vec<usize> = (0..train.classes.len()).collect();
    // For each class: keys with a map, keys without, and maps of no image.
    let listed = map_in_order(&folders, LISTERS, |&class| {
        let name = &train.classes[class].name;
        let entries = std::fs::read_dir(root.join(name)).into_iter().flatten().flatten();
        let mut files: BTreeSet<OsString> = entries.map(|entry| entry.file_name()).collect();
        let (mut present, mut missing) = (Vec::new(), Vec::new());
        let mut taken = BTreeSet::new();
        for image in 0..train.classes[class].images.len() {
            let key = train.key((class, image));
            let file = OsString::from(format!("{}.pt", key.rsplit('/').next().unwrap_or_default()));
            if files.contains(&file) {
                taken.insert(file);
                present.push(key);
            } else {
                missing.push(key);
            }
        }
        files.retain(|file| {
            !taken.contains(file) && Path::new(file).extension().is_some_and(|ending| ending == "pt")
        });
        (present, missing, files.len())
    });
    let (mut present, mut missing, mut extra) = (Vec::new(), Vec::new(), 0);
    for (with, without, more) in listed {
        present.extend(with);
        missing.extend(without);
        extra += more;
    }
    let classes: BTreeSet<&str> = train.classes.iter().map(|class| class.name.as_str()).collect();
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name());
    let names = folders.map(|name| name.to_string_lossy().into_owned());
    let strange = names.filter(|name| !name.starts_with('.') && !classes.contains(name.as_str())).collect();
    said(findings, present.len(), missing, extra, strange);
    present
}

/// Says which images have maps. `strange` are folders of maps that are no classes.
fn said(findings: &mut Findings, present: usize, missing: Vec<String>, extra: usize, strange: Vec<String>) {
    if missing.is_empty() {
        findings.good(WHAT, format!("each of {present} training images has one"));
    }
    let all = present + missing.len();
    findings.wrong(WHAT, Verdict::Bad, missing, |n| {
        format!("{n} of {all} training images have none; make them with `worker label`, or check the path")
    });
    if extra > 0 {
        let of = vec![format!("{extra} maps")];
        findings.wrong(WHAT, Verdict::Odd, of, |_| "some are of no training image".to_owned());
    }
    findings.wrong(WHAT, Verdict::Odd, strange, |n| format!("{n} folders are named as no class is"));
}

type Shape = (usize, usize, usize);

/// Reads `most` of the maps.
fn open(
    findings: &mut Findings,
    present: &[String],
    most: usize,
    threads: usize,
    read: impl Fn(&String) -> Result<Shape, String> + Sync,
) {
    let chosen: Vec<&String> = spread(present.len(), most).into_iter().map(|place| &present[place]).collect();
    let progress = Progress::new(chosen.len() as u64, "label maps read");
    let found = map_in_order(&chosen, threads, |key| {
        let shape = read(key);
        progress.advance(1);
        shape
    });
    progress.finish();
    let mut shapes: BTreeMap<Shape, usize> = BTreeMap::new();
    found.iter().flatten().for_each(|shape| *shapes.entry(*shape).or_default() += 1);
    let read = match chosen.len() == present.len() {
        true => "all".to_owned(),
        false => format!("{} of {}", chosen.len(), present.len()),
    };
    let words = |(k, height, width): &Shape| format!("{k} classes a cell, {height} x {width} cells");
    match shapes.len() {
        0 => {}
        1 => shapes.keys().for_each(|shape| findings.good(WHAT, format!("{read} read: {}", words(shape)))),
        _ => {
            let of = shapes.iter().map(|(shape, n)| format!("{n} of {}", words(shape))).collect();
            findings.wrong(WHAT, Verdict::Odd, of, |n| format!("{read} read, of {n} shapes"));
        }
    }
    let damaged: Vec<String> = found.into_iter().filter_map(Result::err).collect();
    findings.wrong(WHAT, Verdict::Bad, damaged, |n| format!("{n} cannot be used ({read} read)"));
}
