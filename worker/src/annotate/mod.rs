//! `worker label`: label maps of a whole data set, made by a trained classifier.
//!
//! ```text
//!   JPEG ─▶ squashed to a square ─▶ last feature map ─▶ linear layer a cell ─▶ top k a cell ─▶ <class>/<stem>.pt
//!            data/whole.rs              [`annotator`]: network or TorchScript                    `writer`
//! ```
//!
//! A map that stands in the output folder whole is not made again, so a run that was killed is carried on by
//! the same command. `recipe` keeps maps of different annotators from ending up in one folder. `labeller` has the
//! work; it is given by the command line, or range by range by `coordinator label`.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use relabel_config::LabelOptions;
use relabel_proto::security::WorkerAccess;

use crate::labels::packed::Precision;
use crate::labels::{map_path, pack};
use crate::leases::{self, Own};

pub mod annotator;
mod labeller;
mod recipe;
mod shard;
#[cfg(test)]
mod tests;
mod writer;

use labeller::Labeller;
use shard::Shard;

/// Arguments of `worker label`.
#[derive(Debug, Args)]
pub struct LabelArgs {
    #[command(flatten)]
    own: Option<Own<LabelOptions>>,
    /// When all maps are there, pack them into this file too, as `worker pack` does
    #[arg(long, value_name = "FILE", conflicts_with_all = ["shard", "coordinator"])]
    pub pack: Option<PathBuf>,
    /// Do one of N parts, I from 0, as with --shard $SLURM_PROCID/$SLURM_NTASKS
    #[arg(long, default_value = "0/1", value_name = "I/N", conflicts_with = "coordinator")]
    pub shard: Shard,
    /// Take images and all options from the `coordinator label` at this address, until all are done
    #[arg(long, value_name = "URL")]
    pub coordinator: Option<String>,
    #[command(flatten)]
    pub access: WorkerAccess,
    /// Seconds to keep trying to reach the coordinator
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub connect_timeout: u64,
    /// Threads of libtorch, and threads that load images [default: the machine's cores]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

/// Runs the command. Unreadable images are listed at the end, and fail it only where no map came out at all.
pub fn run(args: &LabelArgs) -> Result<()> {
    let threads = crate::torch::threads(args.threads);
    crate::torch::set_num_threads(threads);
    match (&args.coordinator, &args.own) {
        (Some(url), _) => {
            let patience = Duration::from_secs(args.connect_timeout);
            leases::run::<Labeller>(&args.access.to(url)?, patience, threads)
        }
        (None, Some(Own(options))) => alone(args, options, threads),
        (None, None) => {
            bail!("name what is to be labelled, with --data, --out and --arch, or a --coordinator")
        }
    }
}

fn alone(args: &LabelArgs, options: &LabelOptions, threads: usize) -> Result<()> {
    let labeller = Labeller::open(options.clone(), threads)?;
    let split = labeller.split();
    let samples: Vec<u32> = args.shard.of(split.len()).collect();
    let missing = labeller.missing(&samples);
    let there = samples.len() - missing.len();
    if there > 0 {
        tracing::info!("{there} of {} label maps are there already", samples.len());
    }
    let began = Instant::now();
    let made = labeller.make(missing, &AtomicBool::new(false))?;
    for line in &made.unreadable {
        tracing::warn!("{line}");
    }
    let out = options.out.display();
    let total = there + made.maps;
    if total == 0 && !samples.is_empty() {
        bail!("{out}: no label map was made, as none of {} images could be read", made.unreadable.len());
    }
    let bad = match made.unreadable.len() {
        0 => String::new(),
        n => format!("; {n} images could not be read and have none"),
    };
    println!("{out}: {total} label maps, {} of them made now in {:.0?}{bad}", made.maps, began.elapsed());
    if let Some(file) = &args.pack {
        // What was made before this start goes in as well.
        let all = (0..split.len() as u32).map(|sample| split.key(sample));
        let mut keys: Vec<String> = all.filter(|key| map_path(&options.out, key).is_file()).collect();
        keys.sort_unstable();
        let rounding = pack::write(&options.out, &keys, file, Precision::Half, threads)?;
        println!(
            "{}: {} label maps; float16 moved logits by at most {rounding:.1e}",
            file.display(),
            keys.len()
        );
    }
    Ok(())
}
