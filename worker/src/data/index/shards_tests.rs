#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::super::location::{Location, Stamp};
use super::super::{DataError, ShardError};
use super::packing::{Tar, pack};
use super::{ShardListing, Split, holds_shards, open_files, open_shards};

/// Writes shards and says that they and their folder were last modified a minute ago.
fn write(dir: &Path, shards: &[(&str, Tar)]) {
    for (name, shard) in shards {
        fs::write(dir.join(name), shard.clone().end()).unwrap();
        touch(&dir.join(name), 60);
    }
    touch(dir, 60);
}

fn touch(path: &Path, age: u64) {
    File::open(path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
}

fn open(shards: &[(&str, Tar)]) -> Result<Split, DataError> {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), shards);
    Split::open(root.path(), None)
}

/// What is wrong with shards, without the folder that they are in.
fn refused(shards: &[(&str, Tar)]) -> String {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), shards);
    let error = Split::open(root.path(), None).unwrap_err().to_string();
    error.replace(&format!("{}/", root.path().display()), "")
}

fn content(location: &Location) -> Vec<u8> {
    // Of another length, and not empty.
    let mut bytes = vec![9; 3];
    location.read(&mut bytes).unwrap();
    bytes
}

/// Folders of images that hold their own names.
fn folders(root: &Path) {
    for name in ["n2/b.JPEG", "n2/a.jpg", "n10/z.png", "n10/Z.c.PNG", "n1/x.jpeg", "n1/y.jpg", "n1/z.jpg"] {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
}

#[test]
fn shards_are_indexed_as_the_folders_that_they_were_packed_from() {
    let root = tempfile::tempdir().unwrap();
    let [from, by_files, by_folders] = ["from", "files", "folders"].map(|name| root.path().join(name));
    folders(&from);
    pack(&from, &by_files, true);
    pack(&from, &by_folders, false);
    let expected = Split::open(&from, None).unwrap();
    assert_eq!((expected.classes(), expected.len()), (&["n1", "n10", "n2"].map(String::from)[..], 7));
    for dir in [&by_files, &by_folders] {
        let split = Split::open(dir, None).unwrap();
        assert_eq!(split.classes(), expected.classes());
        assert_eq!(split.fingerprint(), expected.fingerprint());
        for id in 0..7 {
            assert_eq!(split.key(id), expected.key(id));
            assert_eq!(split.file_name(id), expected.file_name(id));
            assert_eq!(split.class(id), expected.class(id));
            assert!(split.samples(split.class(id)).contains(&id));
            assert_eq!(content(&split.location(id)), content(&expected.location(id)), "{dir:?} {id}");
        }
        assert!(holds_shards(dir).unwrap() && !holds_shards(&from).unwrap());
    }
    let first = |dir: &Path| Split::open(dir, None).unwrap().location(0).to_string();
    assert_eq!(first(&by_files), format!("{}, member x.jpeg", by_files.join("000.tar").display()));
    assert_eq!(first(&by_folders), format!("{}, member n1/x.jpeg", by_folders.join("000.tar").display()));
}

#[test]
fn which_shard_holds_what_is_no_part_of_the_order_unless_it_is_read_in_that_of_the_shards() {
    let packed = |shards: [&[&str]; 2]| {
        let tar = |names: &[&str]| names.iter().fold(Tar::new(), |tar, name| tar.file(name, b""));
        open(&[("a.tar", tar(shards[0])), ("b.tar", tar(shards[1]))]).unwrap()
    };
    let one = packed([&["n/3.jpg", "m/1.jpg"], &["n/2.jpg"]]);
    let other = packed([&["m/1.jpg", "n/3.jpg"], &["n/2.jpg"]]);
    assert_eq!(one.in_shards().unwrap(), [vec![2, 0], vec![1]]);
    assert_eq!(other.in_shards().unwrap(), [vec![0, 2], vec![1]]);
    assert_eq!(one.fingerprint(), other.fingerprint());
    assert_ne!(one.packing_fingerprint(), other.packing_fingerprint());
    assert_ne!(
        packed([&["n/3.jpg"], &["m/1.jpg", "n/2.jpg"]]).packing_fingerprint(),
        one.packing_fingerprint()
    );
    assert_eq!(
        packed([&["n/3.jpg", "m/1.jpg"], &["n/2.jpg"]]).packing_fingerprint(),
        one.packing_fingerprint()
    );
    let ordered =
        |split: &Split, buffer| (0..20).map(|epoch| split.order(1, epoch, buffer)).collect::<Vec<_>>();
    assert_eq!(ordered(&one, 0), ordered(&other, 0));
    assert_ne!(ordered(&one, 1), ordered(&other, 1));
    assert!(
        ordered(&one, 1).iter().all(|order| [[2, 0, 1], [1, 2, 0]].contains(&order[..].try_into().unwrap()))
    );
}

#[test]
fn numbers_in_class_files_are_in_the_order_of_their_values() {
    let numbered = |classes: &[&str]| {
        let member = |tar: Tar, (number, class): (usize, &&str)| {
            tar.file(&format!("{number}.jpg"), b"").file(&format!("{number}.cls"), class.as_bytes())
        };
        let tar = classes.iter().enumerate().fold(Tar::new(), member);
        open(&[("a.tar", tar)]).unwrap().classes().to_vec()
    };
    assert_eq!(numbered(&["10", "2", "0\n", "10"]), ["0", "2", "10"]);
    // As text, as soon as one is no number as numbers are written.
    assert_eq!(numbered(&["10", "2", "cat"]), ["10", "2", "cat"]);
    assert_eq!(numbered(&["10", "2", "02"]), ["02", "10", "2"]);
    // Folders are sorted as folders on a disk are.
    let tar = Tar::new().file("10/a.jpg", b"").file("2/a.jpg", b"");
    assert_eq!(open(&[("a.tar", tar)]).unwrap().classes(), ["10", "2"]);
}

#[test]
fn what_is_hidden_or_no_image_is_left_out() {
    let tar = Tar::new()
        .member(b'5', "data/", b"")
        .file("./data//7/a.jpg", b"a")
        .file("data/7/._a.jpg", b"")
        .file(".cache/7/b.jpg", b"")
        .file("data/7/a.json", b"{}")
        .member(b'2', "data/7/link.txt", b"")
        .file("README", b"");
    let split = open(&[("a.tar", tar.clone()), (".hidden.tar", Tar::new())]).unwrap();
    assert_eq!((split.len(), split.key(0)), (1, "7/a".to_owned()));
    // In folders before its class an image may be of any depth; with class files they are no part of its key.
    let tar = Tar::new().file("x/y/a.jpg", b"").file("x/y/a.cls", b"7").file("x/y/a.txt", b"");
    let split = open(&[("a.tar", tar)]).unwrap();
    assert_eq!((split.len(), split.key(0)), (1, "7/a".to_owned()));
}

#[test]
fn each_way_to_be_wrong_has_its_line() {
    let good = || Tar::new().file("1.jpg", b"").file("1.cls", b"0");
    let folder = || Tar::new().file("n/1.jpg", b"");
    let pair = |class: &[u8]| Tar::new().file("2.jpg", b"").file("2.cls", class);
    let no_class = "shard b.tar: member 2.cls does not hold the name of a class";
    let twice = "b.tar, member 2.png and b.tar, member 2.jpg are both image 0/2";
    for (tar, expected) in [
        (good().file("2.jpg", b""), "shard b.tar: image 2.jpg has no .cls of the same name"),
        (folder(), "shard b.tar: image n/1.jpg has no .cls of the same name"),
        (Tar::new().file("2.cls", b"0"), "shard b.tar: member 2.cls has no .jpeg, .jpg or .png image"),
        (good().file("2.cls", b"0"), "shard b.tar: member 2.cls has no .jpeg, .jpg or .png image"),
        (good().file("1.cls", b"0"), "shard b.tar: member 1.cls is there twice"),
        (good(), "a.tar, member 1.jpg and b.tar, member 1.jpg are both image 0/1"),
        (Tar::new().file("2.png", b"").file("2.jpg", b"").file("2.cls", b"0"), twice),
        (pair(b"a/b"), no_class),
        (pair(b" \n"), no_class),
        (pair(b".."), no_class),
        (pair(&[b' '; 999]), no_class),
        (Tar::new().file("../2.jpg", b""), "shard b.tar: member ../2.jpg is no relative path"),
        (Tar::new().file("/2.jpg", b""), "shard b.tar: member /2.jpg is no relative path"),
        (Tar::new().member(b'1', "2.jpg", b""), "shard b.tar: member 2.jpg is a link"),
        (
            Tar::new().member(b'S', "2.jpg", b""),
            "shard b.tar: it is damaged or not a tar file, from byte 0 on: sparse entry",
        ),
        (Tar::new().file("2.txt", b""), "shard b.tar: it holds no .jpeg, .jpg or .png file"),
    ] {
        let error = refused(&[("a.tar", good()), ("b.tar", tar)]);
        assert!(error.starts_with(expected), "{error}\nis not\n{expected}");
        assert!(!error.contains('\n'), "{error}");
    }
    let error = refused(&[("a.tar", folder()), ("b.tar", Tar::new().file("2.jpg", b""))]);
    assert!(error.starts_with("shard b.tar: image 2.jpg has no class: expected"), "{error}");
    let error = refused(&[("a.tar", folder()), ("b.tar", folder())]);
    assert!(
        error.starts_with("a.tar, member n/1.jpg and b.tar, member n/1.jpg are both image n/1"),
        "{error}"
    );
    // By its name a compressed one is seen before it is opened, and not left out beside others.
    for name in ["b.tar", "b.tar.gz", "b.TGZ"] {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &[("a.tar", folder())]);
        fs::write(root.path().join(name), b"\x1F\x8B\x08\0").unwrap();
        let error = Split::open(root.path(), None).unwrap_err();
        assert!(matches!(error, DataError::Shard { source: ShardError::Compressed("gzip"), .. }), "{error}");
    }
}

#[test]
fn folders_and_shards_are_not_mixed() {
    let root = tempfile::tempdir().unwrap();
    folders(root.path());
    // What class folders were unpacked from may lie beside them.
    fs::write(root.path().join("all.tar.gz"), b"").unwrap();
    assert_eq!(Split::open(root.path(), None).unwrap().len(), 7);
    write(root.path(), &[("a.tar", Tar::new().file("n/1.jpg", b""))]);
    let error = Split::open(root.path(), None).unwrap_err();
    assert!(matches!(&error, DataError::FoldersAndShards { .. }), "{error}");
    assert!(error.to_string().contains("class folders (n1) and tar files (a.tar)"), "{error}");
}

fn cache_file(cache: &Path) -> Option<PathBuf> {
    fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path()).next()
}

/// The cache is proved to be used by changing a member behind its back: size and time of the shard are the same.
#[test]
fn the_cache_holds_while_size_and_time_of_each_shard_do() {
    let (root, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let split = || Split::open(root.path(), Some(cache.path())).unwrap();
    let one = |name: &str| Tar::new().file(name, b"1");
    write(root.path(), &[("a.tar", one("n/1.jpg")), ("b.tar", one("m/2.jpg"))]);
    let first = split();
    assert!(cache_file(cache.path()).is_some());
    let shard = root.path().join("b.tar");
    let modified = fs::metadata(&shard).unwrap().modified().unwrap();
    fs::write(&shard, one("m/3.jpg").end()).unwrap();
    File::open(&shard).unwrap().set_modified(modified).unwrap();
    assert_eq!(split(), first);
    assert_eq!(content(&split().location(1)), b"1");
    // Another time, and the same size.
    touch(&shard, 50);
    assert_eq!(split().key(0), "m/3");
    // Another size, and the same time.
    let modified = fs::metadata(&shard).unwrap().modified().unwrap();
    fs::write(&shard, one("m/3.jpg").file("m/4.jpg", b"").end()).unwrap();
    File::open(&shard).unwrap().set_modified(modified).unwrap();
    assert_eq!(split().len(), 3);
    // One more shard, of which only the folder tells.
    write(root.path(), &[("c.tar", one("k/1.jpg"))]);
    touch(root.path(), 40);
    assert_eq!(split().len(), 4);
    // What is damaged is made anew, and what lies is not believed.
    let file = cache_file(cache.path()).unwrap();
    let good = fs::read(&file).unwrap();
    for at in 0..good.len() {
        let mut damaged = good.clone();
        damaged[at] ^= 0x10;
        fs::write(&file, damaged).unwrap();
        assert_eq!(split().len(), 4);
        assert_eq!(fs::read(&file).unwrap(), good, "{at}");
    }
}

#[test]
fn a_shard_that_was_written_just_now_is_not_cached() {
    let (root, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(root.path(), &[("a.tar", Tar::new().file("n/1.jpg", b""))]);
    touch(&root.path().join("a.tar"), 0);
    Split::open(root.path(), Some(cache.path())).unwrap();
    assert_eq!(cache_file(cache.path()), None);
}

#[test]
fn a_shard_is_held_to_what_it_was_when_it_was_indexed() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), &[("a.tar", Tar::new().file("n/1.jpg", b"content"))]);
    let stamp = Stamp::of(&fs::metadata(root.path().join("a.tar")).unwrap()).unwrap();
    let listing = |stamp| [ShardListing { name: "a.tar".to_owned(), stamp }];
    open_shards(root.path(), &listing(stamp)).unwrap();
    let error = open_shards(root.path(), &listing(Stamp { size: stamp.size - 512, ..stamp })).unwrap_err();
    assert!(matches!(error, DataError::Shard { source: ShardError::Changed, .. }), "{error}");
    // It stays open: it may go, but not become shorter.
    let split = Split::open(root.path(), None).unwrap();
    let shard = root.path().join("a.tar");
    fs::rename(&shard, root.path().join("elsewhere")).unwrap();
    assert_eq!(content(&split.location(0)), b"content");
    File::options().write(true).open(root.path().join("elsewhere")).unwrap().set_len(515).unwrap();
    let error = split.location(0).read(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn more_shards_than_may_be_open_are_refused_at_once() {
    let error = open_files::make_room(Path::new("train"), 1 << 40).unwrap_err();
    assert!(matches!(error, DataError::TooManyShards { shards, .. } if shards == 1 << 40), "{error}");
    assert!(error.to_string().contains("ulimit -n"), "{error}");
}
