//! `worker doctor`: what this machine has that a worker can use; and with `--data` whether a data set can be trained on,
//! before the first run. A run stops at the first thing that is wrong; this says all of them.

mod files;
mod folders;
mod machine;
mod maps;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use folders::Listing;
use machine::Machine;

/// Things of a kind that are named; the rest is counted.
const NAMED: usize = 5;

/// Arguments of `worker doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Check a data set instead of the machine: the folder that holds `train/<class>/<image>` and `val/<class>/<image>`,
    /// or tar files in `train/` and `val/`
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Label maps: a folder of `<class>/<image stem>.pt`, or a file that `worker pack` made of it
    #[arg(long, value_name = "PATH", requires = "data")]
    labels: Option<PathBuf>,
    /// Images of each split, and label maps, that are opened, spread over the whole
    #[arg(long, value_name = "N", requires = "data", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    check: u32,
    /// Open every image and every label map
    #[arg(long, requires = "data", conflicts_with = "check")]
    all: bool,
    /// Side of the training crop: images with a shorter side are named
    #[arg(long, value_name = "PIXELS", requires = "data", default_value_t = 224)]
    image_size: u32,
    /// Threads that open files [default: the machine's cores]
    #[arg(long, value_name = "T", requires = "data", value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
    /// Print JSON: of a machine the values, of data every thing that is wrong
    #[arg(long)]
    json: bool,
}

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// It is not there, and need not be.
    Absent,
    Good,
    /// Training works, and may not do what is wanted.
    Odd,
    /// Training fails, or leaves something out.
    Bad,
}

/// What was looked at and how it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    words: String,
    /// The things that are wrong.
    of: Vec<String>,
}

/// All that was found.
#[derive(Debug, Default, Serialize)]
struct Findings(Vec<Finding>);

impl Findings {
    fn good(&mut self, what: &'static str, words: String) {
        self.0.push(Finding { what, verdict: Verdict::Good, words, of: Vec::new() });
    }

    /// Adds a finding about `of` if there are any.
    fn wrong(
        &mut self,
        what: &'static str,
        verdict: Verdict,
        of: Vec<String>,
        words: impl FnOnce(usize) -> String,
    ) {
        if !of.is_empty() {
            self.0.push(Finding { what, verdict, words: words(of.len()), of });
        }
    }

    fn absent(&mut self, what: &'static str, words: String) {
        self.0.push(Finding { what, verdict: Verdict::Absent, words, of: Vec::new() });
    }

    fn odd(&mut self, what: &'static str, words: String) {
        self.0.push(Finding { what, verdict: Verdict::Odd, words, of: Vec::new() });
    }

    fn bad(&mut self, what: &'static str, words: String) {
        self.0.push(Finding { what, verdict: Verdict::Bad, words, of: Vec::new() });
    }

    fn worst(&self) -> Verdict {
        self.0.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Good)
    }
}

/// Runs the command. The exit code is 1 where training would fail or leave something out.
pub fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let (findings, report, conclusion) = match &args.data {
        Some(data) => {
            let findings = examine(args, data);
            let shown = |path: &PathBuf| path.display().to_string();
            let report = serde_json::json!({
                "data": shown(data), "labels": args.labels.as_ref().map(shown), "verdict": findings.worst(), "findings": findings,
            });
            let conclusion = conclusion(&findings);
            (findings, report, conclusion)
        }
        None => {
            let machine = Machine::look();
            let findings = machine.findings();
            let report = serde_json::json!({
                "machine": machine, "verdict": findings.worst(), "findings": findings,
            });
            let conclusion = machine::conclusion(&findings);
            (findings, report, conclusion)
        }
    };
    let text = match args.json {
        true => serde_json::to_string_pretty(&report)? + "\n",
        false => as_text(&findings) + conclusion,
    };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            return Err(error).context("standard output");
        }
        _ => {}
    }
    Ok(match findings.worst() {
        Verdict::Bad => ExitCode::FAILURE,
        Verdict::Absent | Verdict::Good | Verdict::Odd => ExitCode::SUCCESS,
    })
}

/// Looks at the data set in `data`.
fn examine(args: &DoctorArgs, data: &Path) -> Findings {
    let threads = args.threads.map_or_else(|| crate::torch::threads(None), |threads| threads as usize);
    let most = if args.all { usize::MAX } else { args.check as usize };
    let mut findings = Findings::default();
    let train = folders::split(&mut findings, "train", &data.join("train"));
    let val = folders::split(&mut findings, "val", &data.join("val"));
    if let (Some(train), Some(val)) = (&train, &val) {
        folders::compare(&mut findings, train, val);
    }
    for (what, split) in [("train images", &train), ("val images", &val)] {
        if let Some(split) = split {
            files::open(&mut findings, what, split, most, threads, args.image_size);
        }
    }
    if let (Some(train), Some(labels)) = (&train, &args.labels) {
        maps::check(&mut findings, train, labels, most, threads);
    }
    findings
}

/// What follows from what was found of a data set, in a sentence.
fn conclusion(findings: &Findings) -> &'static str {
    match findings.worst() {
        Verdict::Absent | Verdict::Good => "The data can be trained on.\n",
        Verdict::Odd => "The data can be trained on; see what is odd.\n",
        Verdict::Bad => "Mend what is BAD before training.\n",
    }
}

/// `most` of `n` things, spread evenly.
fn spread(n: usize, most: usize) -> Vec<usize> {
    let taken = n.min(most);
    (0..taken).map(|i| ((2 * i + 1) as u128 * n as u128 / (2 * taken as u128)) as usize).collect()
}

/// The images of a split, as class and file.
fn images(split: &Listing) -> Vec<(usize, usize)> {
    let classes = split.classes.iter().enumerate();
    classes.flat_map(|(class, listed)| (0..listed.images.len()).map(move |image| (class, image))).collect()
}

fn as_text(findings: &Findings) -> String {
    let mut text = String::new();
    for finding in &findings.0 {
        let mark = match finding.verdict {
            Verdict::Absent => "-",
            Verdict::Good => "good",
            Verdict::Odd => "odd",
            Verdict::Bad => "BAD",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{mark:<5} {:<13} {}", finding.what, finding.words);
        for thing in finding.of.iter().take(NAMED) {
            let _ = writeln!(text, "{:20}{thing}", "");
        }
        if finding.of.len() > NAMED {
            let _ = writeln!(text, "{:20}and {} more; --json has all of them", "", finding.of.len() - NAMED);
        }
    }
    text
}
