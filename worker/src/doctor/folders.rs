//! Folders and names: what the index of a split would take, and what it would stumble over. Shards are as the index
//! takes them, or it says what the first is that is wrong with them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Findings, Verdict};
use crate::data::index::{EXTENSIONS, Split, holds_shards};
use crate::data::location::Location;
use crate::labels::map_in_order;

/// Listing waits for the file system and hardly computes, so the number does not depend on the cores.
const THREADS: usize = 16;

/// How much larger one class may be than another before that is odd.
const UNEVEN: usize = 10;

/// A split as its folders have it.
pub(super) struct Listing {
    pub dir: PathBuf,
    /// Where the images are, if they are in shards.
    sharded: Option<Split>,
    /// Sorted by name.
    pub classes: Vec<Class>,
}

/// A class folder.
pub(super) struct Class {
    pub name: String,
    /// Names of its images, sorted.
    pub images: Vec<String>,
    /// What is in it besides, but for what is hidden.
    others: Vec<String>,
    /// Names that are not UTF-8.
    unreadable: Vec<String>,
    error: Option<String>,
}

impl Listing {
    pub fn len(&self) -> usize {
        self.classes.iter().map(|class| class.images.len()).sum()
    }

    pub fn location(&self, (class, image): (usize, usize)) -> Location {
        if let Some(split) = &self.sharded {
            return split.location(split.samples(class as u32).start + image as u32);
        }
        let class = &self.classes[class];
        Location::File(self.dir.join(&class.name).join(&class.images[image]))
    }

    /// `class/stem`, what a label map is named after.
    pub fn key(&self, (class, image): (usize, usize)) -> String {
        let class = &self.classes[class];
        let name = &class.images[image];
        format!("{}/{}", class.name, name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem))
    }
}

/// Lists a split and says what is wrong with its folders; None where there is nothing to go on with.
pub(super) fn split(findings: &mut Findings, what: &'static str, dir: &Path) -> Option<Listing> {
    // A folder that cannot be listed is told of below.
    let listing = match holds_shards(dir).unwrap_or(false) {
        true => in_shards(findings, what, dir)?,
        false => in_folders(findings, what, dir)?,
    };
    describe(findings, what, &listing);
    (listing.len() > 0).then_some(listing)
}

/// Indexes shards as training does.
fn in_shards(findings: &mut Findings, what: &'static str, dir: &Path) -> Option<Listing> {
    let split = match Split::open(dir, None) {
        Ok(split) => split,
        Err(error) => {
            findings.bad(what, error.to_string());
            return None;
        }
    };
    let classes = split.classes().iter().enumerate().map(|(class, name)| {
        let images = split.samples(class as u32).map(|sample| split.file_name(sample).to_owned());
        Class {
            name: name.clone(),
            images: images.collect(),
            others: Vec::new(),
            unreadable: Vec::new(),
            error: None,
        }
    });
    let classes = classes.collect();
    Some(Listing { dir: dir.to_path_buf(), sharded: Some(split), classes })
}

fn in_folders(findings: &mut Findings, what: &'static str, dir: &Path) -> Option<Listing> {
    let names = match class_folders(dir) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            findings.bad(what, format!("there is no folder {}", dir.display()));
            return None;
        }
        Err(error) => {
            findings.bad(what, format!("{} cannot be listed: {error}", dir.display()));
            return None;
        }
    };
    if names.is_empty() {
        findings.bad(what, format!("{} holds no class folders", dir.display()));
        return None;
    }
    let classes = map_in_order(&names, THREADS, |name| list(dir, name));
    Some(Listing { dir: dir.to_path_buf(), sharded: None, classes })
}

/// Says how many images there are, and what is wrong with them by their names.
fn describe(findings: &mut Findings, what: &'static str, listing: &Listing) {
    let dir = &listing.dir;
    let sizes: Vec<usize> = listing.classes.iter().map(|class| class.images.len()).collect();
    let (least, most) = (sizes.iter().min().copied().unwrap_or(0), sizes.iter().max().copied().unwrap_or(0));
    let each = if least == most { least.to_string() } else { format!("{least} to {most}") };
    findings
        .good(what, format!("{} images in {} classes, {each} a class", listing.len(), listing.classes.len()));
    let all = |of: fn(&Class) -> &Vec<String>| {
        let things =
            listing.classes.iter().flat_map(|class| of(class).iter().map(|name| shown(dir, class, name)));
        things.collect::<Vec<_>>()
    };
    let errors =
        listing.classes.iter().filter_map(|class| Some(format!("{}: {}", class.name, class.error.as_ref()?)));
    findings.wrong(what, Verdict::Bad, errors.collect(), |n| format!("{n} class folders cannot be listed"));
    let empty = listing.classes.iter().filter(|class| class.images.is_empty() && class.error.is_none());
    let empty = empty.map(|class| dir.join(&class.name).display().to_string()).collect();
    findings.wrong(what, Verdict::Bad, empty, |n| format!("{n} class folders hold no image"));
    findings
        .wrong(what, Verdict::Bad, all(|class| &class.unreadable), |n| format!("{n} names are not UTF-8"));
    findings.wrong(what, Verdict::Odd, all(|class| &class.others), |n| {
        format!("{n} files are no images by their names (.jpeg, .jpg, .png) and are left out")
    });
    let twice = twins(listing);
    findings.wrong(what, Verdict::Odd, twice, |n| {
        format!("{n} images have the name of another but for the ending, and so share its label map")
    });
    if least > 0 && most / least >= UNEVEN {
        let small = listing.classes.iter().filter(|class| class.images.len() * UNEVEN <= most);
        let small = small.map(|class| format!("{}: {} images", class.name, class.images.len())).collect();
        findings.wrong(what, Verdict::Odd, small, |n| {
            format!("{n} classes have at most a tenth of the largest one's {most} images")
        });
    }
}

/// Says in which classes two splits differ: class ids are the places of the sorted folders.
pub(super) fn compare(findings: &mut Findings, train: &Listing, val: &Listing) {
    let names =
        |split: &Listing| split.classes.iter().map(|class| class.name.clone()).collect::<BTreeSet<_>>();
    let (train, val) = (names(train), names(val));
    if train == val {
        return findings.good("classes", format!("the same {} in train and val", train.len()));
    }
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>();
    findings
        .wrong("classes", Verdict::Bad, only(&train, &val), |n| format!("{n} are in train and not in val"));
    findings
        .wrong("classes", Verdict::Bad, only(&val, &train), |n| format!("{n} are in val and not in train"));
}

fn class_folders(dir: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") && entry.path().is_dir() {
            names.push(entry.file_name());
        }
    }
    names.sort();
    Ok(names)
}

fn list(dir: &Path, folder: &std::ffi::OsStr) -> Class {
    let mut class = Class {
        name: folder.to_string_lossy().into_owned(),
        images: Vec::new(),
        others: Vec::new(),
        unreadable: Vec::new(),
        error: None,
    };
    if folder.to_str().is_none() {
        class.unreadable.push(String::new());
        return class;
    }
    let mut take = || {
        for entry in fs::read_dir(dir.join(folder))? {
            let entry = entry?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let ending = Path::new(&name).extension().map(|ending| ending.to_ascii_lowercase());
            let image = ending.is_some_and(|ending| EXTENSIONS.iter().any(|known| ending == *known));
            let image = image && !entry.file_type()?.is_dir();
            match (name.into_string(), image) {
                (Ok(name), true) => class.images.push(name),
                (Ok(name), false) => class.others.push(name),
                (Err(name), _) => class.unreadable.push(name.to_string_lossy().into_owned()),
            }
        }
        io::Result::Ok(())
    };
    if let Err(error) = take() {
        class.error = Some(error.to_string());
    }
    class.images.sort_unstable();
    class.others.sort_unstable();
    class
}

fn shown(dir: &Path, class: &Class, name: &str) -> String {
    dir.join(&class.name).join(name).display().to_string()
}

/// Images whose stem an image before them has.
fn twins(listing: &Listing) -> Vec<String> {
    let mut found = Vec::new();
    for (number, class) in listing.classes.iter().enumerate() {
        let mut stems = BTreeSet::new();
        for image in 0..class.images.len() {
            if !stems.insert(listing.key((number, image))) {
                found.push(listing.location((number, image)).to_string());
            }
        }
    }
    found
}
