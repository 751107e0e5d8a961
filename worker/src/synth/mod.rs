//! `worker synth`: a small data set in ImageNet's layout, several objects of several classes in each training
//! picture, of which the folder names one; label maps that name them all; validation sets with their truths.
//!
//! ```text
//! OUT/train/<wnid>/<wnid>_<n>.JPEG            several objects, one of the folder's class
//! OUT/labels/<wnid>/<wnid>_<n>.pt             label maps [2, 5, 15, 15], float32
//! OUT/val/<wnid>/ILSVRC2012_val_<n>.JPEG      one object;  OUT/real.json
//! OUT/val-multi/<wnid>/ILSVRC2012_val_<n>.JPEG  several;   OUT/real-multi.json, OUT/human_accuracy_multi.json
//! OUT/classes.json                            class index: [wnid, name], as ImageNet's class index files
//! OUT/synth.json                              the arguments; written last, so it says that all is there
//! ```
//!
//! Each picture has a random stream of its own, keyed by the seed, its split and its number, so the data
//! do not depend on the number of threads, and a longer data set starts with the shorter one's pictures.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

mod paint;
mod scene;
mod shape;
mod teach;
mod write;

use shape::Shape;

/// Arguments of `worker synth`.
#[derive(Debug, Clone, Args)]
pub struct SynthArgs {
    /// Folder to make; it must be empty or absent
    pub out: PathBuf,
    /// Training pictures
    #[arg(long, default_value_t = 2000, value_name = "N")]
    pub train: u32,
    /// Pictures in each of the two validation sets
    #[arg(long, default_value_t = 500, value_name = "N")]
    pub val: u32,
    /// Classes, 2 to 16
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub classes: u32,
    /// Size in pixels: WxH for all, or A-B for sides drawn from that range
    #[arg(long, default_value = "160x120", value_name = "WxH|A-B")]
    pub size: Size,
    /// Most objects in a training picture, which shows at least two of them unless this is 1
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub objects_max: u32,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Threads; as many as the machine has cores if not given
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
}

/// Size of the pictures in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Size {
    /// Width and height of every picture.
    Fixed(u32, u32),
    /// Each side is drawn from this range, both ends included.
    Sides(u32, u32),
}

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pair = |separator| {
            let (a, b) = text.split_once(separator)?;
            Some((a.parse::<u32>().ok()?, b.parse::<u32>().ok()?))
        };
        let size = match (pair('x'), pair('-')) {
            (Some((w, h)), _) => Size::Fixed(w, h),
            (_, Some((from, to))) if from <= to => Size::Sides(from, to),
            _ => return Err("wanted WxH, as 160x120, or a range of sides, as 96-192".into()),
        };
        let (Size::Fixed(a, b) | Size::Sides(a, b)) = size;
        if a.min(b) < 32 || a.max(b) > 2048 {
            return Err("sides must be 32 to 2048 pixels".into());
        }
        Ok(size)
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Size::Fixed(w, h) => write!(f, "{w}x{h}"),
            Size::Sides(from, to) => write!(f, "{from}-{to}"),
        }
    }
}

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

/// What a data set is a function of; the content of `synth.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Recipe {
    /// Grows when the same arguments come to give other pictures.
    version: u32,
    train: u32,
    val: u32,
    classes: u32,
    size: Size,
    objects_max: u32,
    seed: u64,
}

const VERSION: u32 = 1;
const DONE: &str = "synth.json";
const BEGUN: &str = "synth.json.partial";

/// Makes the data set. Does nothing where the folder holds it already, carries on where a run with the
/// same arguments was interrupted, and touches no folder that holds anything else.
pub fn run(args: &SynthArgs) -> Result<()> {
    let most = Shape::ALL.len() as u32;
    ensure!((2..=most).contains(&args.classes), "--classes {}; wanted 2 to {most}", args.classes);
    for (flag, n) in [("--train", args.train), ("--val", args.val)] {
        ensure!(
            n >= args.classes,
            "{flag} {n}; wanted at least one picture for each of {} classes",
            args.classes
        );
    }
    let objects_max = args.objects_max;
    ensure!((1..=12).contains(&objects_max), "--objects-max {objects_max}; wanted 1 to 12");
    let threads = match args.threads {
        Some(0) => bail!("--threads 0; wanted at least 1"),
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, |n| n.get()),
    };
    let recipe = Recipe {
        version: VERSION,
        train: args.train,
        val: args.val,
        classes: args.classes,
        size: args.size,
        objects_max,
        seed: args.seed,
    };
    let out = &args.out;
    let shown = out.display();
    if let Some(found) = marker(out, DONE)? {
        ensure!(
            found == recipe,
            "{shown} holds sample data made with other arguments; remove it or name another"
        );
        println!("{shown} is complete already");
        return Ok(());
    }
    match marker(out, BEGUN)? {
        Some(found) => {
            ensure!(
                found == recipe,
                "{shown} holds a part of other sample data; remove it or name another folder"
            );
        }
        None => {
            let empty = std::fs::read_dir(out).map_or(true, |mut entries| entries.next().is_none());
            ensure!(empty, "{shown} is not empty and was not made by `worker synth`; name another folder");
        }
    }
    std::fs::create_dir_all(out).with_context(|| format!("{shown} cannot be made"))?;
    let (begun, done) = (out.join(BEGUN), out.join(DONE));
    let text = serde_json::to_string_pretty(&recipe)? + "\n";
    std::fs::write(&begun, text).with_context(|| begun.display().to_string())?;
    write::data_set(&recipe, out, threads)?;
    std::fs::rename(&begun, &done).with_context(|| done.display().to_string())?;
    println!(
        "{shown}: {} training pictures of {} classes with label maps, and twice {} for validation",
        recipe.train, recipe.classes, recipe.val
    );
    Ok(())
}

/// The recipe that the folder's file `name` holds, if it is there.
fn marker(out: &std::path::Path, name: &str) -> Result<Option<Recipe>> {
    let path = out.join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let recipe = serde_json::from_str(&text);
            let hint =
                || format!("{} is of another version of `worker synth`; name another folder", path.display());
            Ok(Some(recipe.with_context(hint)?))
        }
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

#[cfg(test)]
mod tests;
