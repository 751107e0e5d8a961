#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::super::DataError;
use super::super::location::Location;
use super::Split;

/// Makes the files, empty ones, and says that their folders were last modified `age` seconds ago.
fn tree(root: &Path, files: &[&str], age: u64) {
    for file in files {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(path).unwrap();
    }
    touch(root, age);
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            touch(&path, age);
        }
    }
}

fn touch(folder: &Path, age: u64) {
    let time = SystemTime::now() - Duration::from_secs(age);
    File::open(folder).unwrap().set_modified(time).unwrap();
}

fn cache_files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn samples_are_sorted_by_class_and_name() {
    let root = tempfile::tempdir().unwrap();
    let files = [
        "n02/b.JPEG",
        "n02/a.jpg",
        "n01/z.png",
        "n01/Z.PNG",
        "n01/c.c.Jpeg",
        "n10/x.jpeg", // kept
        "n01/.hidden.jpg",
        "n01/notes.txt",
        "n01/jpeg",
        ".git/a.jpg",
        "n01/folder.jpg/a.jpg",
        "list.jpg",
    ];
    tree(root.path(), &files, 0);
    let split = Split::open(root.path(), None).unwrap();
    assert_eq!(split.classes(), ["n01", "n02", "n10"]);
    assert_eq!(split.len(), 6);
    let samples: Vec<(u32, String)> =
        (0..6).map(|id| (split.class(id), split.file_name(id).into())).collect();
    let expected = [(0, "Z.PNG"), (0, "c.c.Jpeg"), (0, "z.png"), (1, "a.jpg"), (1, "b.JPEG"), (2, "x.jpeg")];
    assert_eq!(samples, expected.map(|(class, name)| (class, name.to_owned())));
    assert_eq!(split.location(4), Location::File(root.path().join("n02/b.JPEG")));
    assert_eq!(split.key(4), "n02/b");
    assert_eq!(split.key(1), "n01/c.c");
}

#[test]
fn the_fingerprint_is_of_names_and_their_classes_only() {
    let fingerprint = |files: &[&str]| {
        let root = tempfile::tempdir().unwrap();
        tree(root.path(), files, 0);
        Split::open(root.path(), None).unwrap().fingerprint()
    };
    let original = fingerprint(&["a/1.jpg", "a/2.jpg", "b/3.jpg"]);
    assert_eq!(original, fingerprint(&["b/3.jpg", "a/2.jpg", "a/1.jpg", "a/notes.txt"]));
    for other in [
        &["a/1.jpg", "a/2.jpg", "b/4.jpg"][..],
        &["a/1.jpg", "b/2.jpg", "b/3.jpg"],
        &["a/1.jpg", "a/2.jpg", "c/3.jpg"],
        &["a/1.jpg", "a/2.jpg", "b/3.jpg", "b/4.jpg"],
        &["a/1.jpg2.jpg", "b/3.jpg"],
    ] {
        assert_ne!(original, fingerprint(other), "{other:?}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let root = tempfile::tempdir().unwrap();
    let missing = Split::open(&root.path().join("train"), None).unwrap_err();
    assert!(matches!(&missing, DataError::MissingFolder { path } if path.ends_with("train")));
    assert!(missing.to_string().contains("data.data_path"));
    assert!(matches!(Split::open(root.path(), None), Err(DataError::NoClasses { .. })));
    tree(root.path(), &["a/1.jpg", "b/readme.txt", "c/readme.txt"], 0);
    let empty = Split::open(root.path(), None).unwrap_err();
    assert!(matches!(&empty, DataError::EmptyClass { path } if path.ends_with("b")), "{empty}");
    let file = Split::open(&root.path().join("a/1.jpg"), None).unwrap_err();
    assert!(matches!(file, DataError::List { .. }));
}

/// The cache is proved to be used by planting another one: the names in it come out.
#[test]
fn an_unchanged_folder_is_read_from_the_cache() {
    let (root, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree(root.path(), &["a/1.jpg", "a/ü.jpg", "b/3.jpg"], 60);
    let first = Split::open(root.path(), Some(cache.path())).unwrap();
    assert_eq!(cache_files(cache.path()).len(), 1);
    // A file that replaces another behind the folder's back: only a listing would see it.
    let modified = fs::metadata(root.path().join("b")).unwrap().modified().unwrap();
    fs::rename(root.path().join("b/3.jpg"), root.path().join("b/4.jpg")).unwrap();
    File::open(root.path().join("b")).unwrap().set_modified(modified).unwrap();
    assert_eq!(Split::open(root.path(), Some(cache.path())).unwrap(), first);
    assert_ne!(Split::open(root.path(), None).unwrap(), first);
}

#[test]
fn a_modified_folder_is_listed_again() {
    let (root, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree(root.path(), &["a/1.jpg", "b/2.jpg"], 60);
    Split::open(root.path(), Some(cache.path())).unwrap();
    // Only the class folder's own time tells of this one.
    File::create(root.path().join("b/3.jpg")).unwrap();
    touch(&root.path().join("b"), 50);
    let opened = Split::open(root.path(), Some(cache.path())).unwrap();
    assert_eq!(opened.len(), 3);
    assert_eq!(opened, Split::open(root.path(), None).unwrap());
    // And only the split folder's of these.
    tree(root.path(), &["c/4.jpg"], 40);
    assert_eq!(Split::open(root.path(), Some(cache.path())).unwrap().len(), 4);
    fs::remove_dir_all(root.path().join("b")).unwrap();
    assert_eq!(Split::open(root.path(), Some(cache.path())).unwrap().len(), 2);
}

#[test]
fn a_folder_that_may_still_change_within_its_timestamp_is_not_cached() {
    let (root, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree(root.path(), &["a/1.jpg"], 0);
    Split::open(root.path(), Some(cache.path())).unwrap();
    assert!(cache_files(cache.path()).is_empty());
}

#[test]
fn a_damaged_or_foreign_cache_is_made_again() {
    let (root, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree(root.path(), &["a/1.jpg", "a/2.jpg", "b/3.jpg"], 60);
    let expected = Split::open(root.path(), Some(cache.path())).unwrap();
    let file = cache_files(cache.path()).remove(0);
    let good = fs::read(&file).unwrap();
    let mut damaged: Vec<Vec<u8>> = (0..good.len()).map(|length| good[..length].to_vec()).collect();
    damaged.extend((0..good.len()).map(|at| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        bytes
    }));
    damaged.push([&good[..], b"!"].concat());
    for bytes in damaged {
        fs::write(&file, &bytes).unwrap();
        assert_eq!(Split::open(root.path(), Some(cache.path())).unwrap(), expected);
        assert_eq!(fs::read(&file).unwrap(), good);
    }
    assert_eq!(cache_files(cache.path()), std::slice::from_ref(&file), "temporary files are left behind");
    // The cache of another folder, put in this one's place.
    let other = tempfile::tempdir().unwrap();
    tree(other.path(), &["x/9.jpg"], 60);
    let elsewhere = tempfile::tempdir().unwrap();
    Split::open(other.path(), Some(elsewhere.path())).unwrap();
    fs::copy(cache_files(elsewhere.path()).remove(0), &file).unwrap();
    assert_eq!(Split::open(root.path(), Some(cache.path())).unwrap(), expected);
}

#[test]
fn a_cache_that_cannot_be_written_does_not_matter() {
    let root = tempfile::tempdir().unwrap();
    tree(root.path(), &["a/1.jpg"], 60);
    let not_a_folder = root.path().join("a/1.jpg");
    assert_eq!(Split::open(root.path(), Some(&not_a_folder)).unwrap().len(), 1);
}
