//! `worker eval`: how good a network is on one or more sets.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail};
use clap::Args;
use relabel_config::EvalOptions;
use relabel_core::evaluation::corruption::Baseline;
use relabel_core::evaluation::{AskedSet, Evaluation};
use relabel_core::leases::{Piece, Work as _, range_length};
use relabel_proto::security::WorkerAccess;

use super::evaluator::Evaluator;
use crate::leases::{self, Holder as _, Own};
use crate::print::print;
use crate::progress::Progress;

/// Arguments of `worker eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(flatten)]
    own: Option<Own<EvalOptions>>,
    /// Print JSON
    #[arg(long, conflicts_with = "coordinator")]
    json: bool,
    /// Take images and all options from the `coordinator eval` at this address, until all are done
    #[arg(long, value_name = "URL")]
    coordinator: Option<String>,
    #[command(flatten)]
    access: WorkerAccess,
    /// Seconds to keep trying to reach the coordinator
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    connect_timeout: u64,
    /// Threads of libtorch, and threads that load images [default: the machine's cores]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

/// Runs the command; the report goes to standard output.
pub fn run(args: &EvalArgs) -> Result<()> {
    let threads = crate::torch::threads(args.threads);
    match (&args.coordinator, &args.own) {
        (Some(url), _) => {
            let patience = Duration::from_secs(args.connect_timeout);
            leases::run::<Evaluator>(&args.access.to(url)?, patience, threads)
        }
        (None, Some(Own(options))) => alone(options, args.json, threads),
        (None, None) => {
            bail!("name what is to be evaluated, with --weights and --data, or a --coordinator")
        }
    }
}

/// Does all ranges in their order, and so comes to the sums that `coordinator eval` comes to.
fn alone(options: &EvalOptions, json: bool, threads: usize) -> Result<()> {
    let baseline = match &options.corruption_baseline {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the baseline errors {}", path.display()))?;
            Baseline::parse(path, &text)?
        }
        None => Baseline::alexnet(),
    };
    let evaluator = Evaluator::open(options.clone(), threads)?;
    let sets = options.sets.iter().map(|set| AskedSet { name: set.name.clone(), dir: set.dir.clone() });
    let mut evaluation = Evaluation::new(sets.collect());
    let folders = evaluation.admit(evaluator.seen()?).map_err(Error::msg)?;
    let progress = Progress::new(evaluator.images(), "images evaluated");
    for (folder, samples) in (0..).zip(folders) {
        let length = range_length(samples, options.network.batch_size);
        let all = Piece { folder, samples: 0..samples };
        evaluator.evaluate(
            &all,
            length,
            &AtomicBool::new(false),
            |done| progress.advance(done),
            |piece, found| evaluation.add(piece, found).map(drop).map_err(Error::msg),
        )?;
    }
    progress.finish();
    let network = &options.network;
    let report = evaluation.report(&network.weights, network.arch.as_deref(), baseline);
    let report = report.context("there are no sets")?;
    print(&if json { report.to_json().to_string() } else { report.to_text() })
}
