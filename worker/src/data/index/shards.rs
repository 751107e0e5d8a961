//! The images of a split that is made of tar files, in the order that folders of them would have: by class, then by
//! name. Which shard holds an image is no part of the order, so that how the images were packed changes nothing.
//!
//! The class of an image is in `KEY.cls` beside `KEY.jpg` (KEY being all before the last dot), or is the folder that
//! the image is in. If a split holds any `.cls`, all its images need one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::path::Path;
use std::time::SystemTime;

use super::super::location::{Shard, Stamp};
use super::super::{DataError, ShardError};
use super::tar::{self, Member};
use super::{ClassListing, EXTENSIONS, Listing, Origin, Part, Scheme, ShardListing, stem};
use crate::labels::map_in_order;

/// Walking headers waits for the file system and hardly computes, so the number does not depend on the cores.
const THREADS: usize = 16;

/// Longest name of a class, in bytes.
const MAX_CLASS: usize = 255;

/// What was found in one shard.
struct Contents {
    stamp: Stamp,
    images: Vec<Image>,
    /// The class in each KEY.cls, by KEY.
    classes: HashMap<String, String>,
}

/// An image of a shard.
struct Image {
    /// Within the archive, without what does not matter (`./`, doubled slashes).
    path: String,
    start: u64,
    length: u32,
}

/// An image whose class is known.
struct Sample {
    /// Its place in the order in which classes were met.
    class: u32,
    /// Of its file, without folders.
    name: String,
    part: Part,
}

/// Indexes the shards `names` of the folder `dir`, which was modified at `modified`.
///
/// # Errors
/// The first shard, by its place in `names`, that cannot be read or that holds anything that is not understood; two
/// images of one class and name.
pub(super) fn scan(dir: &Path, modified: SystemTime, names: Vec<String>) -> Result<Listing, DataError> {
    let found = map_in_order(&names, THREADS, |name| contents(&dir.join(name)));
    let found = found.into_iter().collect::<Result<Vec<_>, _>>()?;
    let scheme = match found.iter().any(|shard| !shard.classes.is_empty()) {
        true => Scheme::ClassFiles,
        false => Scheme::ClassFolders,
    };
    let (mut shards, mut classes) = (Vec::with_capacity(names.len()), BTreeMap::new());
    let mut samples: Vec<Sample> = Vec::new();
    for ((number, name), contents) in (0..).zip(names).zip(found) {
        let stamp = contents.stamp;
        let path = dir.join(&name);
        let failed = |source| DataError::Shard { path, source };
        samples.extend(classified(number, contents, scheme, &mut classes).map_err(failed)?);
        shards.push(ShardListing { name, stamp });
    }
    let (order, ranks) = ranked(classes, scheme);
    let rank = |sample: &Sample| ranks[sample.class as usize];
    samples.sort_unstable_by(|a, b| (rank(a), &a.name).cmp(&(rank(b), &b.name)));
    let mut listed = Vec::with_capacity(order.len());
    for (name, samples) in order.into_iter().zip(samples.chunk_by(|a, b| a.class == b.class)) {
        check_keys(dir, &name, samples, &shards, scheme)?;
        let class = ClassListing::new(name, samples.iter().map(|sample| sample.name.as_str()));
        listed.push(class.ok_or_else(|| DataError::TooManyImages { path: dir.to_path_buf() })?);
    }
    let parts = samples.into_iter().map(|sample| sample.part).collect();
    Ok(Listing { modified, classes: listed, origin: Origin::Shards { scheme, shards, parts } })
}

/// Walks the headers of the shard at `path`, and reads its `.cls` members.
fn contents(path: &Path) -> Result<Contents, DataError> {
    let shard = Shard::open(path.to_path_buf());
    let shard = shard.map_err(|source| DataError::OpenShard { path: path.to_path_buf(), source })?;
    walk(&shard).map_err(|source| DataError::Shard { path: path.to_path_buf(), source })
}

fn walk(shard: &Shard) -> Result<Contents, ShardError> {
    let stamp = shard.stamp();
    let mut contents = Contents { stamp, images: Vec::new(), classes: HashMap::new() };
    tar::walk(shard.file(), stamp.size, |member, content| contents.add(member, content))?;
    if contents.images.is_empty() {
        return Err(match contents.classes.into_keys().min() {
            Some(key) => ShardError::NoImage { member: format!("{key}.cls") },
            None => ShardError::Empty,
        });
    }
    Ok(contents)
}

impl Contents {
    fn add(&mut self, member: Member, content: &mut dyn Read) -> Result<(), ShardError> {
        let Some(path) = plain(&member.path)? else { return Ok(()) };
        let ending = path.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase()).unwrap_or_default();
        let is_image = EXTENSIONS.contains(&ending.as_str());
        if !is_image && ending != "cls" {
            return Ok(());
        }
        if !member.is_file {
            return Err(ShardError::NotAFile { member: path });
        }
        if is_image {
            let Ok(length) = u32::try_from(member.length) else {
                return Err(ShardError::TooLarge { member: path, length: member.length });
            };
            self.images.push(Image { path, start: member.start, length });
            return Ok(());
        }
        let Some(class) = class_in(content)? else { return Err(ShardError::ClassName { member: path }) };
        match self.classes.insert(stem(&path).to_owned(), class) {
            Some(_) => Err(ShardError::MemberTwice { member: path }),
            None => Ok(()),
        }
    }
}

/// A member's path without what does not matter in it; none if it or a folder of it is hidden.
fn plain(path: &str) -> Result<Option<String>, ShardError> {
    if path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(ShardError::Outside { member: path.to_owned() });
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    Ok((!parts.iter().any(|part| part.starts_with('.'))).then(|| parts.join("/")))
}

/// The class that the content of a `.cls` member names; none if it is nothing that a folder of label maps could be
/// called.
fn class_in(content: &mut dyn Read) -> Result<Option<String>, ShardError> {
    // With room for the end of a line; with more it is too long, whatever it is.
    let most = MAX_CLASS as u64 + 3;
    let mut bytes = Vec::new();
    content.take(most).read_to_end(&mut bytes).map_err(ShardError::Read)?;
    let name = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    let is_name = (bytes.len() as u64) < most
        && !name.is_empty()
        && name.len() <= MAX_CLASS
        && !name.starts_with('.')
        && !name.contains(|c: char| c == '/' || c.is_control());
    Ok(is_name.then(|| name.to_owned()))
}

/// The images of shard `number` with their classes, which are numbered in `classes` as they are met.
fn classified(
    number: u32,
    contents: Contents,
    scheme: Scheme,
    classes: &mut BTreeMap<String, u32>,
) -> Result<Vec<Sample>, ShardError> {
    let mut unused: BTreeSet<&str> = contents.classes.keys().map(String::as_str).collect();
    let mut samples = Vec::with_capacity(contents.images.len());
    for image in &contents.images {
        let (folders, name) = image.path.rsplit_once('/').unwrap_or(("", image.path.as_str()));
        let class = match scheme {
            Scheme::ClassFiles => {
                let key = stem(&image.path);
                unused.remove(key);
                let class = contents.classes.get(key).map(String::as_str);
                class.ok_or_else(|| ShardError::NoClassFile { member: image.path.clone() })?
            }
            Scheme::ClassFolders if folders.is_empty() => {
                return Err(ShardError::NoClass { member: image.path.clone() });
            }
            Scheme::ClassFolders => folders.rsplit('/').next().unwrap_or(folders),
        };
        let class = match classes.get(class) {
            Some(class) => *class,
            None => {
                let next = classes.len() as u32;
                classes.insert(class.to_owned(), next);
                next
            }
        };
        let part = Part { shard: number, length: image.length, start: image.start };
        samples.push(Sample { class, name: name.to_owned(), part });
    }
    match unused.first() {
        Some(key) => Err(ShardError::NoImage { member: format!("{key}.cls") }),
        None => Ok(samples),
    }
}

/// The classes in the order of their ids, and the id of each by the place at which it was met.
///
/// By name, as folders are; whole numbers in `.cls` members by their value, since there they are the ids.
fn ranked(classes: BTreeMap<String, u32>, scheme: Scheme) -> (Vec<String>, Vec<u32>) {
    let mut order: Vec<(Option<u64>, String, u32)> =
        classes.into_iter().map(|(name, met)| (whole_number(&name), name, met)).collect();
    if scheme == Scheme::ClassFiles && order.iter().all(|(number, ..)| number.is_some()) {
        order.sort_by_key(|(number, ..)| *number);
    }
    let mut ranks = vec![0; order.len()];
    for (rank, (_, _, met)) in (0..).zip(&order) {
        ranks[*met as usize] = rank;
    }
    (order.into_iter().map(|(_, name, _)| name).collect(), ranks)
}

/// None of what is written in another way than numbers are, so that no two names are one number.
fn whole_number(name: &str) -> Option<u64> {
    name.parse().ok().filter(|number: &u64| number.to_string() == name)
}

/// Refuses two images of a class whose names differ in the ending at most: they would share a key.
fn check_keys(
    dir: &Path,
    class: &str,
    samples: &[Sample],
    shards: &[ShardListing],
    scheme: Scheme,
) -> Result<(), DataError> {
    let shown = |sample: &Sample| {
        let shard = dir.join(&shards[sample.part.shard as usize].name);
        format!("{}, member {}", shard.display(), scheme.member(class, &sample.name))
    };
    let place = |sample: &Sample| (sample.part.shard, sample.part.start);
    let mut seen: HashMap<&str, &Sample> = HashMap::with_capacity(samples.len());
    for sample in samples {
        if let Some(before) = seen.insert(stem(&sample.name), sample) {
            let in_order = place(before) < place(sample);
            let (first, second) = if in_order { (before, sample) } else { (sample, before) };
            let key = format!("{class}/{}", stem(&sample.name));
            return Err(DataError::Twice { key, first: shown(first), second: shown(second) });
        }
    }
    Ok(())
}
