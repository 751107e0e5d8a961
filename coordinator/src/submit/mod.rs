//! `coordinator submit`: a run as a job of a cluster. What is handed in is made here as text, by pure functions of the
//! options ([`slurm`]); the rest checks the run's options before they wait in a queue, shows the text or hands it to
//! the cluster's own program.

mod error;
pub(crate) mod slurm;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use relabel_config::{Setting, Value, schema};

use crate::cli::SubmitCommand;
use crate::config::{self, ConfigFile, Origin, Resolved};
pub(crate) use error::SubmitError;

/// Runs `coordinator submit ...`.
pub(crate) fn run(command: SubmitCommand, overrides: &[(String, String)]) -> Result<ExitCode> {
    match command {
        SubmitCommand::Slurm(args) => submit_slurm(&args, overrides),
    }
}

fn submit_slurm(args: &slurm::SlurmArgs, overrides: &[(String, String)]) -> Result<ExitCode> {
    // An array's runs are checked by its first: %a is another number in each.
    let first = args
        .array
        .as_deref()
        .map(|indices| indices.split(|c: char| !c.is_ascii_digit()).next().unwrap_or("0"));
    let of_first = |text: &String| first.map_or_else(|| text.clone(), |index| text.replace("%a", index));
    let checked: Vec<_> = overrides.iter().map(|(key, value)| (key.clone(), of_first(value))).collect();
    let resolved = resolve(&args.config, &checked)?;
    let programs = match &args.bin {
        Some(folder) => folder.clone(),
        None => own_folder()?,
    };
    let of_index = |value: &str| first.is_some() && value.contains("%a");
    let patterns = overrides.iter().filter(|(_, value)| of_index(value)).cloned().collect();
    let options = options(&resolved, &patterns);
    let job = slurm::Job::new(args, &programs, &options, &resolved.config.model.arch)?;
    let script = job.script();
    if args.dry_run {
        // A reader that has seen enough, such as `head`, is no failure.
        let _ = std::io::stdout().write_all(script.as_bytes());
        return Ok(ExitCode::SUCCESS);
    }
    // SLURM does not make the folder of a log, and says nothing of a job whose log it cannot write.
    let folder = job.folder();
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = job.script_path();
    std::fs::write(&path, &script).with_context(|| format!("cannot write {}", path.display()))?;
    let id = sbatch(&path)?;
    println!("submitted job {id}: {}", path.display());
    println!("  its log      {}", job.log(&id));
    println!("  run folder   {}", job.run_dir(&id));
    println!("  squeue --jobs {id}; scancel {id} ends it after a checkpoint");
    Ok(ExitCode::SUCCESS)
}

/// The run's options as the job will have them; what is wrong with them is said now.
fn resolve(file: &ConfigFile, overrides: &[(String, String)]) -> Result<Resolved> {
    let resolved = config::load(None, file.config.as_deref(), config::environment(), overrides)?;
    for note in &resolved.notes {
        tracing::warn!("{note}");
    }
    Ok(resolved)
}

/// Every option that is not the built-in default, as `--key=value`: what the files and the environment say now, whatever
/// becomes of them while the job waits. A value among `patterns`, by key, is left as it was written.
fn options(resolved: &Resolved, patterns: &BTreeMap<String, String>) -> Vec<String> {
    let set = |key: &str| resolved.origins.get(key).is_some_and(|origin| *origin != Origin::BuiltIn);
    let value = |setting: &Setting| match (patterns.get(setting.key), (setting.get)(&resolved.config)) {
        (Some(pattern), _) => pattern.clone(),
        // Shown as '' elsewhere.
        (None, Value::Text(text)) => text,
        (None, other) => other.to_string(),
    };
    let settings = schema().iter().filter(|setting| set(setting.key));
    settings.map(|setting| format!("--{}={}", setting.key, value(setting))).collect()
}

/// The folder of this program, where the worker stands too.
fn own_folder() -> Result<std::path::PathBuf> {
    let own = std::env::current_exe().context("cannot find the coordinator's own program")?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_path_buf())
}

/// Hands a script to SLURM; the job's number.
fn sbatch(script: &Path) -> Result<String, SubmitError> {
    let output = Command::new("sbatch").arg("--parsable").arg(script).stdin(Stdio::null()).output();
    let output = output.map_err(|source| SubmitError::NoProgram { program: "sbatch", source })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().map(|line| line.trim_start_matches("sbatch: error: ")).collect::<Vec<_>>();
        return Err(SubmitError::Refused { program: "sbatch", said: said.join("; ") });
    }
    let text = String::from_utf8_lossy(&output.stdout);
    // `job;cluster` where there are several clusters.
    Ok(text.trim().split(';').next().unwrap_or_default().to_owned())
}
