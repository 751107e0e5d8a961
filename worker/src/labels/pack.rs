//! `worker pack`: a folder of `.pt` label maps into one packed store.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;

use super::packed::{Packed, Packer, Packing, Precision};
use super::{LabelError, LabelMap, map_in_order, map_path};
use crate::data::index::Split;
use crate::progress::Progress;

/// Maps that are read before they are written: bounds the memory.
const AT_ONCE: usize = 4096;
/// Names of images without a map that are shown.
const SHOWN: usize = 5;

/// Arguments of `worker pack`.
#[derive(Debug, Args)]
pub struct PackArgs {
    /// Folder of label maps, CLASS/IMAGE.pt
    pub labels: PathBuf,
    /// File to make, for data.relabel.path; one that is there is replaced once the new one is whole
    pub out: PathBuf,
    /// Data set that the maps are for: packs only the maps of its training images, and says which have none
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Keep float32 logits [default: float16, which moves a logit under 32 by 0.008 at most]
    #[arg(long)]
    pub full: bool,
    /// Threads that read; as many as the machine has cores if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

/// Runs the command; says at the end what was made.
pub fn run(args: &PackArgs) -> Result<()> {
    let (labels, shown) = (&args.labels, args.labels.display());
    ensure!(labels.is_dir(), "{shown} is not a folder; name the one that holds <class>/<image>.pt");
    let mut keys = found(labels)?;
    if let Some(data) = &args.data {
        let wanted = images_of(data)?;
        let total = wanted.len();
        let missing: Vec<&String> = wanted.difference(&keys).collect();
        if !missing.is_empty() {
            let more = if missing.len() > SHOWN { ", ..." } else { "" };
            let first: Vec<&str> = missing.iter().take(SHOWN).map(|key| key.as_str()).collect();
            tracing::warn!("{} of {total} images have no map: {}{more}", missing.len(), first.join(", "));
        }
        keys.retain(|key| wanted.contains(key));
    }
    ensure!(!keys.is_empty(), "{shown} holds no <class>/<image>.pt to pack");
    let precision = if args.full { Precision::Full } else { Precision::Half };
    let threads = args
        .threads
        .map_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get), usize::from);
    let keys: Vec<String> = keys.into_iter().collect();
    let rounding = write(labels, &keys, &args.out, precision, threads)?;

    let out = args.out.display();
    let packed = Packed::open(&args.out).with_context(|| out.to_string())?;
    let loss = match precision {
        Precision::Half => format!("float16 moved logits by at most {rounding:.1e}"),
        Precision::Full => "logits are as they were".to_owned(),
    };
    println!(
        "{out}: {} label maps, {}, checksum {}; {loss}",
        packed.len(),
        indicatif::HumanBytes(packed.file_len()),
        packed.checksum()
    );
    Ok(())
}

/// Packs the maps under `labels` with these keys, sorted, into the store `out`. Returns the most that
/// float16 moved a logit.
///
/// # Errors
/// The first map that cannot be read or does not fit, by its path; or that `out` cannot be written.
pub fn write(
    labels: &Path,
    keys: &[String],
    out: &Path,
    precision: Precision,
    threads: usize,
) -> Result<f32> {
    let failed = |why: std::io::Error| anyhow!("{} cannot be written: {why}", out.display());
    let progress = Progress::new(keys.len() as u64, "label maps packed");
    let mut packer = Packer::create(out, precision).map_err(failed)?;
    for keys in keys.chunks(AT_ONCE) {
        let maps = map_in_order(keys, threads, |key| {
            let map = read(&map_path(labels, key));
            progress.advance(1);
            map
        });
        for (key, map) in keys.iter().zip(maps) {
            packer.push(key, &map?).map_err(|why| match why {
                Packing::Write(why) => failed(why),
                why => anyhow!("label map {}: {why}", map_path(labels, key).display()),
            })?;
        }
    }
    progress.finish();
    let rounding = packer.rounding();
    packer.finish().map_err(failed)?;
    Ok(rounding)
}

/// Any label map, whatever the number of its classes.
fn read(path: &Path) -> Result<LabelMap, LabelError> {
    let bytes = std::fs::read(path).map_err(|why| LabelError::Read { path: path.into(), why })?;
    let stored = LabelMap::parse_stored(bytes, None);
    Ok(stored.map_err(|why| LabelError::Map { path: path.into(), why: Box::new(why) })?.map)
}

/// Keys of all maps in class folders of `labels`. Hidden files and folders are left out.
fn found(labels: &Path) -> Result<BTreeSet<String>> {
    let mut keys = BTreeSet::new();
    for folder in entries(labels)? {
        if !folder.is_dir() {
            continue;
        }
        let class = text(&folder, folder.file_name())?;
        for file in entries(&folder)? {
            if file.extension() == Some(OsStr::new("pt")) {
                keys.insert(format!("{class}/{}", text(&file, file.file_stem())?));
            }
        }
    }
    Ok(keys)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let shown = || format!("{} cannot be listed", folder.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(shown)? {
        let entry = entry.with_context(shown)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    Ok(paths)
}

fn text<'a>(path: &Path, name: Option<&'a OsStr>) -> Result<&'a str> {
    match name.and_then(OsStr::to_str) {
        Some(name) => Ok(name),
        None => bail!("{} is not a UTF-8 name: rename it", path.display()),
    }
}

/// Keys of the training images of a data set, or of the images of a folder of class folders.
fn images_of(data: &Path) -> Result<BTreeSet<String>> {
    let split = Split::open(&training_folder(data), None)?;
    Ok((0..split.len() as u32).map(|sample| split.key(sample)).collect())
}

/// `data/train` of a data set, or `data` itself where it is a folder of class folders.
pub(crate) fn training_folder(data: &Path) -> PathBuf {
    let train = data.join("train");
    if train.is_dir() { train } else { data.to_owned() }
}
