//! `worker label`: label maps of a whole data set, made by a trained classifier.
//!
//! ```text
//!   JPEG ─▶ squashed to a square ─▶ last feature map ─▶ linear layer a cell ─▶ top k a cell ─▶ <class>/<stem>.pt
//!            data/whole.rs              [`annotator`]: network or TorchScript                    `writer`
//! ```
//!
//! A map that stands in the output folder whole is not made again, so a run that was killed is carried on by
//! the same command. `recipe` keeps maps of different annotators from ending up in one folder.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::data::index::Split;
use crate::data::whole::{WholeLoader, WholePlan};
use crate::labels::pack::training_folder;
use crate::labels::packed::Precision;
use crate::labels::{LabelMap, map_in_order, map_path, pack};
use crate::progress::Progress;

pub mod annotator;
mod recipe;
mod shard;
#[cfg(test)]
mod tests;
mod writer;

use annotator::{Annotator, Arch};
use recipe::Recipe;
use shard::Shard;
use writer::Writer;

/// Pixels of the input for each cell of the map, for every network here.
const STRIDE: u32 = 32;
/// Side of the input of the published maps in pixels, which gives 15 cells.
const SIZE: u32 = 475;
/// Batches that loader threads make ahead.
const PREFETCH: usize = 3;

/// Arguments of `worker label`.
#[derive(Debug, Args)]
pub struct LabelArgs {
    /// Data set whose training images (DIR/train) get maps, or a folder of class folders
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Folder for the maps, CLASS/IMAGE.pt; go on in it after an interruption with the same command
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Trained weights of the annotator: .pth, .safetensors or a checkpoint
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// The annotator: an architecture as in model.arch, or script:FILE, a TorchScript module that gives the
    /// feature map [B, C, h, w] of images (with --head) or the scores [B, classes, h, w] themselves
    #[arg(long, value_name = "ARCH")]
    pub arch: Arch,
    /// Weights with the fully connected layer for the feature map of script:FILE
    #[arg(long, value_name = "FILE")]
    pub head: Option<PathBuf>,
    /// Side in pixels that images are squashed to [default: 475, or 32 for each cell of --map]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(32..=4096))]
    pub size: Option<u32>,
    /// Cells along a side of the map [default: as --size gives]
    #[arg(long, value_name = "CELLS", value_parser = clap::value_parser!(u32).range(1..=128))]
    pub map: Option<u32>,
    /// Classes kept a cell; all of them where the annotator has fewer
    #[arg(long, default_value_t = 5, value_name = "K", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub top_k: u16,
    /// Images in one forward pass
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub batch: u16,
    /// Write float16: half the size, logits rounded to 11 bits
    #[arg(long)]
    pub half: bool,
    /// When all maps are there, pack them into this file too, as `worker pack` does
    #[arg(long, value_name = "FILE", conflicts_with = "shard")]
    pub pack: Option<PathBuf>,
    /// Do one of N parts, I from 0, as with --shard $SLURM_PROCID/$SLURM_NTASKS
    #[arg(long, default_value = "0/1", value_name = "I/N")]
    pub shard: Shard,
    /// Threads of libtorch, and threads that load images [default: the machine's cores]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

/// Runs the command. Unreadable images are listed at the end, and fail it only where no map came out at all.
pub fn run(args: &LabelArgs) -> Result<()> {
    let threads = args
        .threads
        .map_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get), usize::from);
    crate::torch::set_num_threads(threads);
    let folder = training_folder(&args.data);
    let split = Arc::new(Split::open(&folder, None)?);
    let side = args.size.or_else(|| Some(args.map? * STRIDE)).unwrap_or(SIZE);
    let annotator = Annotator::open(&args.arch, args.weights.as_deref(), args.head.as_deref(), args.top_k)?;
    if let Some(classes) = annotator.classes() {
        compare_classes(classes, &split, args)?;
    }
    std::fs::create_dir_all(&args.out).with_context(|| format!("{} cannot be made", args.out.display()))?;
    Recipe::new(args, &annotator, side)?.claim(&args.out)?;

    let samples: Vec<u32> = args.shard.of(split.len()).collect();
    let done = whole_maps(args, &split, &samples, threads);
    let todo: Vec<u32> = samples.iter().copied().filter(|sample| !done.contains(sample)).collect();
    if !done.is_empty() {
        tracing::info!("{} of {} label maps are there already", done.len(), samples.len());
    }
    let began = Instant::now();
    let (made, unreadable) = label(args, &annotator, &split, todo, side, threads)?;
    for line in &unreadable {
        tracing::warn!("{line}");
    }
    let out = args.out.display();
    let total = done.len() + made;
    if total == 0 && !samples.is_empty() {
        bail!("{out}: no label map was made, as none of {} images could be read", unreadable.len());
    }
    let bad = match unreadable.len() {
        0 => String::new(),
        n => format!("; {n} images could not be read and have none"),
    };
    println!("{out}: {total} label maps, {made} of them made now in {:.0?}{bad}", began.elapsed());
    if let Some(file) = &args.pack {
        // What was made before this start goes in as well.
        let all = (0..split.len() as u32).map(|sample| split.key(sample));
        let mut keys: Vec<String> = all.filter(|key| map_path(&args.out, key).is_file()).collect();
        keys.sort_unstable();
        let rounding = pack::write(&args.out, &keys, file, Precision::Half, threads)?;
        println!(
            "{}: {} label maps; float16 moved logits by at most {rounding:.1e}",
            file.display(),
            keys.len()
        );
    }
    Ok(())
}

/// Says so where the annotator's classes cannot be those of the folders.
fn compare_classes(classes: u32, split: &Split, args: &LabelArgs) -> Result<()> {
    let folders = split.classes().len();
    if classes as usize != folders {
        tracing::warn!(
            "the annotator knows {classes} classes, {} has {folders} class folders: train with model.num_classes \
             {classes}, and see that class ids mean the same",
            args.data.display()
        );
    }
    ensure!(
        !args.half || classes <= 2049,
        "--half cannot hold class ids up to {}: leave it out",
        classes - 1
    );
    Ok(())
}

/// Those of `samples` whose map stands on the disk whole.
fn whole_maps(args: &LabelArgs, split: &Split, samples: &[u32], threads: usize) -> BTreeSet<u32> {
    let progress = Progress::new(samples.len() as u64, "label maps looked for");
    let whole = map_in_order(samples, threads, |&sample| {
        let bytes = std::fs::read(map_path(&args.out, &split.key(sample)));
        progress.advance(1);
        // Its checksums tell whether it is whole.
        bytes.is_ok_and(|bytes| LabelMap::parse_stored(bytes, None).is_ok())
    });
    progress.finish();
    samples.iter().zip(whole).filter(|(_, whole)| *whole).map(|(&sample, _)| sample).collect()
}

/// Labels `todo`. Returns how many maps were made, and a line for each image that could not be read.
fn label(
    args: &LabelArgs,
    annotator: &Annotator,
    split: &Arc<Split>,
    todo: Vec<u32>,
    side: u32,
    threads: usize,
) -> Result<(usize, Vec<String>)> {
    let progress = Progress::new(todo.len() as u64, "images labelled");
    let classes: BTreeSet<u32> = todo.iter().map(|&sample| split.class(sample)).collect();
    for class in classes {
        let folder = args.out.join(&split.classes()[class as usize]);
        std::fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    let batch = usize::from(args.batch);
    let plan = WholePlan { split: split.clone(), samples: todo, side, batch, threads, prefetch: PREFETCH };
    let mut loader = WholeLoader::start(plan)?;
    let writer = Writer::start(&args.out, args.half)?;
    let (mut made, mut unreadable) = (0, Vec::new());
    while let Some(batch) = loader.next().transpose()? {
        unreadable.extend_from_slice(&batch.skipped);
        if !batch.samples.is_empty() {
            let maps = annotator.label(&batch.images, batch.samples.len(), side)?;
            check_side(args, side, &maps)?;
            for (&sample, map) in batch.samples.iter().zip(maps) {
                if !writer.send(split.key(sample), map) {
                    // It has failed, and says why below.
                    break;
                }
            }
        }
        made += batch.samples.len();
        progress.advance((batch.samples.len() + batch.skipped.len()) as u64);
        loader.recycle(batch);
        if writer.has_failed() {
            break;
        }
    }
    writer.finish()?;
    progress.finish();
    Ok((made, unreadable))
}

fn check_side(args: &LabelArgs, side: u32, maps: &[LabelMap]) -> Result<()> {
    if let (Some(wanted), Some(map)) = (args.map, maps.first()) {
        let (height, width) = (map.height, map.width);
        ensure!(
            height == wanted as usize && width == wanted as usize,
            "an input of {side} pixels gives a map of {height} x {width} cells, not --map {wanted}: change --size"
        );
    }
    Ok(())
}
