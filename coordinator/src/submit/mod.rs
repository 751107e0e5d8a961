//! `coordinator submit`: a run as a job of a cluster. What is handed in is made here as text, by pure functions of the
//! options ([`slurm`], [`k8s`]); the rest checks the run's options before they wait in a queue, shows the text or hands it to
//! the cluster's own program.

mod error;
pub(crate) mod k8s;
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
        SubmitCommand::K8s(args) => submit_k8s(&args, overrides),
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

fn submit_k8s(args: &k8s::K8sArgs, overrides: &[(String, String)]) -> Result<ExitCode> {
    let resolved = resolve(&args.config, overrides)?;
    let set: Vec<_> = set_options(&resolved).collect();
    let objects = k8s::Objects::new(args, &set, &resolved.config.model.arch)?;
    let yaml = objects.yaml().context("cannot write the objects as YAML")?;
    if args.dry_run {
        let _ = std::io::stdout().write_all(yaml.as_bytes());
        return Ok(ExitCode::SUCCESS);
    }
    let kubectl = Kubectl { namespace: args.namespace.as_deref() };
    if args.tokens.is_none() && kubectl.run(&["get", "secret", &objects.tokens], "").is_err() {
        let secret = k8s::secret(&objects.tokens)?;
        kubectl.run(&["create", "--filename", "-"], &secret)?;
    }
    kubectl.run(&["apply", "--filename", "-"], &yaml)?;
    let name = &objects.name;
    println!("handed in as {name}");
    println!("  kubectl get pods --selector app.kubernetes.io/instance={name}");
    println!(
        "  kubectl logs --follow --selector app.kubernetes.io/instance={name},app.kubernetes.io/component=coordinator"
    );
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

/// Every option that is not the built-in default: what the files and the environment say now, whatever becomes of them
/// while the job waits.
fn set_options(resolved: &Resolved) -> impl Iterator<Item = (&'static Setting, Value)> {
    let set = |key: &str| resolved.origins.get(key).is_some_and(|origin| *origin != Origin::BuiltIn);
    let settings = schema().iter().filter(move |setting| set(setting.key));
    settings.map(|setting| (setting, (setting.get)(&resolved.config)))
}

/// [`set_options`] as `--key=value`. A value among `patterns`, by key, is left as it was written.
fn options(resolved: &Resolved, patterns: &BTreeMap<String, String>) -> Vec<String> {
    let value = |key: &str, value: Value| match (patterns.get(key), value) {
        (Some(pattern), _) => pattern.clone(),
        // Shown as '' elsewhere.
        (None, Value::Text(text)) => text,
        (None, other) => other.to_string(),
    };
    set_options(resolved)
        .map(|(setting, is)| format!("--{}={}", setting.key, value(setting.key, is)))
        .collect()
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
        return Err(SubmitError::refused("sbatch", "sbatch: error: ", &output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    // `job;cluster` where there are several clusters.
    Ok(text.trim().split(';').next().unwrap_or_default().to_owned())
}

/// The cluster's own program, for one namespace.
struct Kubectl<'a> {
    namespace: Option<&'a str>,
}

impl Kubectl<'_> {
    /// Runs it with `input`.
    fn run(&self, args: &[&str], input: &str) -> Result<(), SubmitError> {
        let program = "kubectl";
        let failed = |source| SubmitError::NoProgram { program, source };
        let mut command = Command::new(program);
        command.args(self.namespace.map(|namespace| format!("--namespace={namespace}"))).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        if let Some(mut pipe) = child.stdin.take() {
            // If it does not read, its own words say why.
            let _ = pipe.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().map_err(failed)?;
        match output.status.success() {
            true => Ok(()),
            false => Err(SubmitError::refused(program, "error: ", &output.stderr)),
        }
    }
}
