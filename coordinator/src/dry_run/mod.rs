//! `--dry-run`: the options as they resolve, each with the place that it came from, and what the run will take. Nothing
//! is made, bound or started. What a start would refuse is refused here too.

mod estimate;
mod images;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use relabel_config::{Kind, Value, schema};
use relabel_core::Position;
use serde_json::json;

use crate::cli::{DryRun, RunArgs};
use crate::config::{self, Origin, Resolved};
use crate::progress::{Screen, duration, four_digits};
use crate::run_dir::{self, Start, Told};
use estimate::{Estimate, estimate};
use images::count;

/// Prints what `coordinator` with these arguments would do.
pub fn run(
    args: &RunArgs,
    form: DryRun,
    overrides: &[(String, String)],
    screen: &Screen,
) -> Result<ExitCode> {
    let file = args.config.config.as_deref();
    let named = args.run_dir.as_deref();
    let (mut resolved, told) = match args.resume {
        false => {
            let resolved = config::load(None, file, config::environment(), overrides)?;
            let told = run_dir::look(named, Start::New { arch: &resolved.config.model.arch })?;
            (resolved, told)
        }
        true => {
            let told = run_dir::look(named, Start::Resumed)?;
            let began = told.began.as_ref().map(|began| (told.path.as_path(), &began.config));
            (config::load(began, file, config::environment(), overrides)?, told)
        }
    };
    let mut notes = resolved.notes.clone();
    if let Some(began) = &told.began {
        if !args.resume {
            began.same(&told.path, &mut resolved.config)?;
        }
        notes.extend(began.reconcile(&mut resolved.config)?);
    }
    for note in &notes {
        tracing::warn!("{note}");
    }
    let from = position(&told, &resolved);
    let data = Path::new(&resolved.config.data.data_path);
    let tell = |line: String| screen.line(&line);
    let seen = |split: &str| {
        let dir = data.join(split);
        count(&dir, &tell).with_context(|| format!("cannot list {}", dir.display()))
    };
    let held = (seen("train")?, seen("val")?);
    let estimate = estimate(&resolved.config, args.workers, &told.path, from, held);
    match form {
        DryRun::Text => print!("{}{}", options(&resolved)?, words(&estimate, &resolved, args, &told, from)),
        DryRun::Json => {
            println!("{}", serde_json::to_string_pretty(&as_json(&resolved, &estimate, &told, from))?)
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Where training would begin.
fn position(told: &Told, resolved: &Resolved) -> Position {
    let beginning = Position { epoch: resolved.config.optim.start_epoch, step: 0 };
    told.history.newest().map_or(beginning, |written| written.position)
}

/// The options as YAML, each with its origin behind it: a file that `--config` reads.
fn options(resolved: &Resolved) -> Result<String> {
    let mut text = String::from("# The options of the run, and where each came from\n");
    let mut sections: Vec<&str> = Vec::new();
    for setting in schema() {
        let (path, name) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
        let parents: Vec<&str> = path.split('.').collect();
        let same = parents.iter().zip(&sections).take_while(|(a, b)| a == b).count();
        for (depth, section) in parents.iter().enumerate().skip(same) {
            let _ = writeln!(text, "{}{section}:", "  ".repeat(depth));
        }
        sections = parents;
        let value = match ((setting.get)(&resolved.config), setting.kind) {
            (Value::None, _) => "null".to_owned(),
            // Words that YAML could take for something else are quoted.
            (Value::Text(value), Kind::Text | Kind::Network | Kind::Choice(_)) => {
                format!("'{}'", value.replace('\'', "''"))
            }
            (value, _) => value.to_string(),
        };
        let line = format!("{}{name}: {value}", "  ".repeat(sections.len()));
        let origin = resolved.origins.get(setting.key).unwrap_or(&Origin::BuiltIn);
        match origin {
            // A default needs no remark.
            Origin::BuiltIn => writeln!(text, "{line}")?,
            origin => writeln!(text, "{line:<38}  # {origin}")?,
        }
    }
    Ok(text)
}

/// The estimates as lines of comment.
fn words(estimate: &Estimate, resolved: &Resolved, args: &RunArgs, told: &Told, from: Position) -> String {
    let config = &resolved.config;
    let mut lines = vec![String::new(), "What the run would take".to_owned()];
    let mut fact = |name: &str, words: String| lines.push(format!("{name:<11}{words}"));
    let folder = told.path.display();
    match &told.began {
        None => fact("run", format!("a new one in {folder}")),
        Some(began) => fact("run", format!("{} in {folder}, carried on from {from}", began.run_id)),
    }
    let least = match args.least() {
        least if least < args.workers => format!(", at least {least}"),
        _ => String::new(),
    };
    let place = if args.local { ", started on this machine" } else { "" };
    let share = four_digits(f64::from(config.optim.batch_size) / f64::from(args.workers));
    fact("workers", format!("{}{least}{place}; {share} images each a step", args.workers));
    match (estimate.train_images, estimate.val_images, estimate.classes) {
        (Some(train), val, Some(classes)) => {
            let val = val.map_or_else(|| "no".to_owned(), |val| val.to_string());
            fact("data", format!("{train} training and {val} validation images in {classes} classes"));
        }
        _ => fact(
            "data",
            format!(
                "{}/train is not to be seen from here, or holds tar files, which only workers look into",
                config.data.data_path
            ),
        ),
    }
    if let (Some(steps), Some(per_epoch)) = (estimate.steps, estimate.steps_per_epoch) {
        let last = estimate.last_batch.map_or_else(String::new, |n| format!(", the last of {n} images"));
        let epochs = config.optim.epochs;
        fact(
            "steps",
            format!(
                "{steps} to do: {epochs} epochs of {per_epoch} steps of {} images{last}",
                config.optim.batch_size
            ),
        );
    }
    match (estimate.seconds, estimate.images_per_second, &estimate.speed_of) {
        (Some(seconds), Some(speed), Some(run)) => {
            let run = run.display();
            fact("time", format!("{} at the {speed:.0} images a second of {run}", duration(seconds, " s")));
        }
        (None, Some(speed), Some(run)) => {
            fact(
                "time",
                format!("unknown without the data; {} did {speed:.0} images a second", run.display()),
            );
        }
        _ => fact("time", "unknown: no run beside it trained this network at this size".to_owned()),
    }
    match estimate.parameters.zip(estimate.worker_state_bytes) {
        Some((parameters, state)) => {
            let batches = estimate
                .worker_batches_bytes
                .map_or_else(String::new, |n| format!(", {} of batches", size(n)));
            fact(
                "memory",
                format!(
                    "{:.1} million parameters; a worker holds {} of weights, gradients and optimizer{batches}, and \
                     activations on top",
                    parameters as f64 / 1e6,
                    size(state)
                ),
            );
        }
        None => fact("memory", "unknown without the number of classes and a network of the list".to_owned()),
    }
    if let (Some(disk), Some(one)) = (estimate.disk_bytes, estimate.checkpoint_bytes) {
        let free =
            estimate.disk_free_bytes.map_or_else(String::new, |free| format!("; {} are free", size(free)));
        let written =
            estimate.checkpoints_written.map_or_else(String::new, |n| format!("{n} checkpoints written, "));
        fact(
            "disk",
            format!(
                "{} at most: {written}{} kept and the best, {} each{free}",
                size(disk),
                config.checkpoint.keep,
                size(one)
            ),
        );
        if estimate.disk_free_bytes.is_some_and(|free| free < disk) {
            fact("", "THIS IS MORE THAN IS FREE: lower checkpoint.keep or take another --run-dir".to_owned());
        }
    }
    lines.iter().map(|line| format!("# {line}").trim_end().to_owned() + "\n").collect()
}

/// Bytes in the unit that suits them.
fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 1_000_000_000 => format!("{:.1} GB", b as f64 / 1e9),
        b if b >= 1_000_000 => format!("{:.1} MB", b as f64 / 1e6),
        b => format!("{:.0} kB", b as f64 / 1e3),
    }
}

fn as_json(resolved: &Resolved, estimate: &Estimate, told: &Told, from: Position) -> serde_json::Value {
    let options = schema().iter().map(|setting| {
        let value = match (setting.get)(&resolved.config) {
            Value::None => json!(null),
            Value::Flag(value) => json!(value),
            Value::Whole(value) => json!(value),
            Value::Real(value) => json!(value),
            Value::Text(value) => json!(value),
        };
        let origin = resolved.origins.get(setting.key).map(ToString::to_string);
        (setting.key.to_owned(), json!({ "value": value, "from": origin }))
    });
    json!({
        "run_dir": told.path,
        "run_id": told.began.as_ref().map(|began| &began.run_id),
        "from": from,
        "options": options.collect::<serde_json::Map<_, _>>(),
        "estimate": estimate,
    })
}
