//! `coordinator eval`: `worker eval` by workers that come and go. They send what they count; the sums and the report
//! are made here.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use relabel_core::evaluation::corruption::Baseline;
use relabel_core::evaluation::{AskedSet, Evaluation};

use tempfile::TempDir;

use super::{Ended, Job, Outcome, check_names};
use crate::cli::EvalArgs;
use crate::progress::Screen;

/// Runs until every image is evaluated; the report goes to standard output.
pub(crate) async fn run(args: EvalArgs, screen: Screen) -> Result<ExitCode> {
    let given = &args.options;
    let baseline = match &given.corruption_baseline {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the baseline errors {}", path.display()))?;
            Baseline::parse(path, &text)?
        }
        None => Baseline::alexnet(),
    };
    let options = given.absolute().context("cannot tell the current folder")?;
    check_names(options.paths())?;
    // The report shows the folders as they were named.
    let sets = given.sets.iter().map(|set| AskedSet { name: set.name.clone(), dir: set.dir.clone() });
    let names: Vec<&str> = given.sets.iter().map(|set| set.name.as_str()).collect();
    let job = Job {
        work: Evaluation::new(sets.collect()),
        batch: options.network.batch_size,
        intro: format!("evaluating {} on {}", given.network.weights.display(), names.join(", ")),
        options,
    };
    let logs = args.lease.local.then(|| tempfile::Builder::new().prefix("relabel-eval-").tempdir());
    let logs = logs.transpose().context("cannot make a folder for the logs of local workers")?;
    let folder = logs.as_ref().map_or(Path::new(""), TempDir::path);
    let Outcome { ended, work, tally, .. } = super::run(job, &args.lease, folder, &screen).await?;
    let ended = ended.inspect_err(|error| {
        // The local workers' logs are of use only where the error names one.
        if let Some(logs) = logs.filter(|logs| error.to_string().contains(&*logs.path().to_string_lossy())) {
            let _ = logs.keep();
        }
    })?;
    match ended {
        Ended::Stopped(_) => {
            let what = format!("{} of {} images were evaluated", tally.done, tally.samples);
            screen.line(&format!("stopped; {what}, and nothing is kept of that"));
        }
        Ended::Done => {
            let network = &given.network;
            let report = work.report(&network.weights, network.arch.as_deref(), baseline);
            let report = report.context("no worker said what there is to be evaluated")?;
            print(&if args.json { report.to_json().to_string() } else { report.to_text() })?;
        }
    }
    Ok(ended.exit_code())
}

/// Prints a report to standard output. A reader that has seen enough, such as `head`, is no failure.
fn print(text: &str) -> Result<()> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}
