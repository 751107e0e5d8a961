//! `worker inspect weights` and `worker inspect checkpoint`: what stands in a file of weights.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use tch::Kind;

use super::{Container, Weights, read};
use crate::checkpoint;

/// Arguments of both.
#[derive(Debug, Args)]
pub struct FileArgs {
    /// The file
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `worker inspect weights`; the report goes to standard output.
///
/// # Errors
/// No file of weights.
pub fn weights(args: &FileArgs) -> Result<()> {
    report(args, &read(&args.file)?, &[])
}

/// Runs `worker inspect checkpoint`: as [`weights`], of our own checkpoints alone, and where the run stood.
///
/// # Errors
/// A file of another program, or one whose content differs from the checksum in it or beside it.
pub fn checkpoint(args: &FileArgs) -> Result<()> {
    let weights = read(&args.file)?;
    if weights.container != Container::Checkpoint {
        let file = args.file.display();
        bail!(
            "{file}: {}, not a checkpoint of this program; see `worker inspect weights`",
            weights.container
        );
    }
    let mut verified = vec!["header"];
    if args.file.with_extension("b3").exists() {
        checkpoint::verify(&args.file, None)?;
        verified.push("b3");
    }
    report(args, &weights, &verified)
}

/// `verified` names the checksums of a checkpoint that were found right.
fn report(args: &FileArgs, weights: &Weights, verified: &[&str]) -> Result<()> {
    let text = match args.json {
        true => as_json(&args.file, weights, verified).to_string(),
        false => as_text(weights, verified),
    };
    // A reader that has seen enough, such as `head`, is no failure.
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(()),
    }
}

fn parameters(weights: &Weights) -> usize {
    weights.parameters().map(|(_, tensor)| tensor.numel()).sum()
}

fn as_json(file: &Path, weights: &Weights, verified: &[&str]) -> Value {
    let tensors = weights.tensors.iter();
    let tensors = tensors.map(|(n, t)| json!({"name": n, "shape": t.size(), "kind": kind(t.kind())}));
    let container = match weights.container {
        Container::Zip => "zip",
        Container::Legacy => "legacy",
        Container::Safetensors => "safetensors",
        Container::Checkpoint => "checkpoint",
    };
    let mut report = json!({
        "file": file.display().to_string(),
        "container": container,
        "under": weights.under,
        "prefix": weights.prefix,
        "arch": weights.arch,
        "classes": weights.classes(),
        "epoch": weights.epoch,
        "step": weights.step,
        "top1": weights.top1,
        "parameters": parameters(weights),
        "momentum_buffers": weights.momentum.len(),
        "tensors": tensors.collect::<Vec<_>>(),
    });
    if weights.container == Container::Checkpoint {
        report["metadata"] = json!(weights.notes);
        report["verified"] = json!(verified);
    }
    report
}

fn as_text(weights: &Weights, verified: &[&str]) -> String {
    let mut lines = vec![format!("{}: {}", weights.origin, weights.container)];
    let mut say = |what: &str, value: Option<String>| {
        lines.extend(value.map(|value| format!("  {what:<14} {value}")));
    };
    say("architecture", weights.arch.clone());
    say("classes", weights.classes().map(|classes| classes.to_string()));
    say("epoch", weights.epoch.map(|epoch| epoch.to_string()));
    say("step", weights.step.map(|step| step.to_string()));
    say("accuracy", weights.top1.map(|top1| top1.to_string()));
    say("state_dict", weights.under.as_ref().map(|key| format!("under {key}")));
    say("prefix", (!weights.prefix.is_empty()).then(|| format!("{}, taken off below", weights.prefix)));
    say("parameters", Some(format!("{} in {} tensors", parameters(weights), weights.parameters().count())));
    say("buffers", Some((weights.tensors.len() - weights.parameters().count()).to_string()));
    say("momentum", (!weights.momentum.is_empty()).then(|| format!("{} buffers", weights.momentum.len())));
    let checksums = verified.iter().map(|place| match *place {
        "b3" => "in the .b3 file right",
        _ => "in the header right",
    });
    say("checksum", (!verified.is_empty()).then(|| checksums.collect::<Vec<_>>().join(", ")));
    for (key, value) in &weights.notes {
        say(key, Some(value.clone()));
    }
    let width = weights.tensors.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let tensor =
        |(name, t): &(String, tch::Tensor)| format!("{name:<width$}  {:<8} {:?}", kind(t.kind()), t.size());
    lines.extend(weights.tensors.iter().map(tensor));
    lines.join("\n")
}

/// torch's name of an element type.
fn kind(kind: Kind) -> String {
    match super::dtype_of(kind) {
        Some(dtype) => dtype.to_string(),
        None => format!("{kind:?}"),
    }
}
