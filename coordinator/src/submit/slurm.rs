//! The batch script of a run: the lines for sbatch and the settings, made from the options, in front of the job
//! itself, which is the part of `deploy/slurm/relabel.sbatch` below its marker. Pure: nothing is read or run here.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::SubmitError;
use crate::config::ConfigFile;

/// The script that is handed in by hand, of which the job is taken.
const BY_HAND: &str = include_str!("../../../deploy/slurm/relabel.sbatch");

/// The line that the job begins with.
const MARKER: &str = "\n# ---- the job\n";

/// A SLURM job: the coordinator on its first node, a worker a task on all nodes.
///
/// Every option of the run is a flag here too: `--optim.lr.init 0.1`. What the job is given is what the
/// configuration file, the environment and the flags say when it is handed in.
#[derive(Args)]
pub(crate) struct SlurmArgs {
    /// Nodes
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) nodes: u32,
    /// GPUs of each node, a worker for each
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) gpus_per_node: u32,
    /// Workers of each node [default: one a GPU, or one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) workers_per_node: Option<u32>,
    /// Workers with which training goes on when nodes are lost [default: those of all nodes but one]
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) min_workers: Option<u32>,
    /// CPU cores of each worker, which decode its images [default: the site's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cpus_per_worker: Option<u32>,
    /// What workers train on
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub(crate) device: Device,
    /// Time limit as SLURM writes it: 90, 1:30:00, 2-12:00:00; then the job goes back into the queue
    #[arg(long, value_name = "TIME", default_value = "24:00:00")]
    pub(crate) time: String,
    /// Seconds before the time limit at which a checkpoint is saved
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) save_before: u32,
    /// Name of the job [default: the configuration file's, or the network's]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Folder of the run, seen by all nodes; %j is the job's number, %a its index in an array, %x its name. Its log
    /// and its script go beside it
    #[arg(long, value_name = "DIR", default_value = "runs/%x-%j")]
    pub(crate) run_dir: String,
    /// Partition
    #[arg(long, value_name = "NAME")]
    pub(crate) partition: Option<String>,
    /// Account that is charged
    #[arg(long, value_name = "NAME")]
    pub(crate) account: Option<String>,
    /// Quality of service
    #[arg(long, value_name = "NAME")]
    pub(crate) qos: Option<String>,
    /// Indices of an array of runs, such as 0-3; %a in an option is the index
    #[arg(long, value_name = "INDICES")]
    pub(crate) array: Option<String>,
    /// Another option of sbatch, such as --sbatch=--exclusive; may be repeated
    #[arg(long = "sbatch", value_name = "OPTION", allow_hyphen_values = true)]
    pub(crate) extra: Vec<String>,
    /// A shell command to run first, such as 'module load cuda'; may be repeated
    #[arg(long, value_name = "COMMAND")]
    pub(crate) setup: Vec<String>,
    /// Folder of the programs coordinator and worker on the nodes [default: this program's]
    #[arg(long, value_name = "DIR")]
    pub(crate) bin: Option<PathBuf>,
    /// Port of the coordinator [default: one made from the job's number]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// Certificate (PEM) of the coordinator, for the addresses of all nodes that may be the job's first: it and the
    /// workers speak TLS
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Key (PEM) of --tls-cert
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Certificate (PEM) that signed --tls-cert
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_ca: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) config: ConfigFile,
    /// Print the batch script and hand nothing in
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// A GPU each where the job has GPUs, else the CPU
    Auto,
    /// A GPU each
    Gpu,
    /// The CPU, whatever GPUs the job has
    Cpu,
}

impl Device {
    /// As `RELABEL_DEVICE` has it.
    fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Gpu => "gpu",
            Self::Cpu => "cpu",
        }
    }
}

/// A job that can be handed in.
#[derive(Debug)]
pub(crate) struct Job {
    name: String,
    run_dir: String,
    /// The folder that the run's is in; the log and the script go there.
    folder: PathBuf,
    /// The lines after `#SBATCH`.
    directives: Vec<String>,
    /// Shell lines between those and the job.
    settings: String,
}

impl Job {
    /// The job of `args` for the programs in the folder `bin`, with `options` of the run, which trains `arch`.
    ///
    /// # Errors
    /// A flag whose value cannot be put into a script, or that cannot be.
    pub(crate) fn new(
        args: &SlurmArgs,
        bin: &Path,
        options: &[String],
        arch: &str,
    ) -> Result<Self, SubmitError> {
        let name = match &args.name {
            Some(name) => name.clone(),
            None => {
                let file = args.config.config.as_deref().and_then(Path::file_stem);
                file.map_or_else(
                    || relabel_config::file_stem(arch).to_string(),
                    |stem| stem.to_string_lossy().into(),
                )
            }
        };
        let word = |flag: &'static str, value: &str| {
            let odd = |c: char| !(c.is_ascii_alphanumeric() || "-_.,:/%@+=".contains(c));
            match value.is_empty() || value.contains(odd) {
                true => Err(SubmitError::flag(
                    flag,
                    value,
                    "it may hold letters, digits and any of -_.,:/%@+= only",
                )),
                false => Ok(value.to_owned()),
            }
        };
        let per_node = args.workers_per_node.unwrap_or(args.gpus_per_node.max(1));
        let limit = seconds(&args.time).ok_or_else(|| {
            SubmitError::flag("--time", &args.time, "SLURM takes 90 (minutes), 1:30:00 or 2-12:00:00")
        })?;
        if limit.is_some_and(|limit| u64::from(args.save_before) >= limit) {
            let reason = "the job has no more time than that: see --time";
            return Err(SubmitError::flag("--save-before", &args.save_before.to_string(), reason));
        }
        if args.device == Device::Gpu && args.gpus_per_node == 0 {
            return Err(SubmitError::flag(
                "--device",
                "gpu",
                "the job asks for no GPUs: see --gpus-per-node",
            ));
        }
        let workers = u64::from(args.nodes) * u64::from(per_node);
        let spared = u64::from(args.nodes.saturating_sub(1)) * u64::from(per_node);
        let min_workers = args.min_workers.map_or(spared.max(1), u64::from);
        if min_workers > workers {
            return Err(SubmitError::flag(
                "--min-workers",
                &min_workers.to_string(),
                "the job has fewer workers than that",
            ));
        }

        let run_dir = args.run_dir.trim_end_matches('/').to_owned();
        let folder =
            Path::new(&run_dir).parent().map(|folder| folder.display().to_string().replace("%x", &name));
        let folder = folder.filter(|folder| !folder.is_empty()).unwrap_or_else(|| ".".into());
        if folder.contains('%') {
            let reason = "only its last part may hold %j and %a: its folder has to be there before the job";
            return Err(SubmitError::flag("--run-dir", &run_dir, reason));
        }
        let mut directives = vec![
            format!("--job-name={}", word("--name", &name)?),
            format!("--nodes={}", args.nodes),
            format!("--ntasks-per-node={per_node}"),
        ];
        if args.gpus_per_node > 0 {
            directives.push(format!("--gpus-per-node={}", args.gpus_per_node));
        }
        directives.extend(args.cpus_per_worker.map(|cores| format!("--cpus-per-task={cores}")));
        directives.push(format!("--time={}", args.time));
        for (flag, value) in [
            ("--partition", &args.partition),
            ("--account", &args.account),
            ("--qos", &args.qos),
            ("--array", &args.array),
        ] {
            if let Some(value) = value {
                directives.push(format!("{flag}={}", word(flag, value)?));
            }
        }
        directives.push(format!("--output={}.log", word("--run-dir", &run_dir)?));
        directives.push("--open-mode=append".into());
        directives.push(format!("--signal=B:USR1@{}", args.save_before));
        directives.push("--requeue".into());
        directives.push("--no-kill".into());
        for option in &args.extra {
            if !option.starts_with('-') || option.contains(['\n', '\r']) {
                return Err(SubmitError::flag(
                    "--sbatch",
                    option,
                    "it should look like --sbatch=--exclusive",
                ));
            }
            directives.push(option.clone());
        }

        let mut settings = String::new();
        let mut set = |name: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(settings, "{name}={value}");
        };
        set("run_dir", &format!("${{RELABEL_RUN_DIR:-{}}}", run_dir));
        set("bin", &quoted(&bin.display().to_string()));
        set("device", args.device.word());
        set("min_workers", &min_workers.to_string());
        match args.port {
            Some(port) => set("port", &port.to_string()),
            None => set("port", "$((20000 + SLURM_JOB_ID % 10000))"),
        }
        for (name, file) in
            [("tls_cert", &args.tls_cert), ("tls_key", &args.tls_key), ("tls_ca", &args.tls_ca)]
        {
            set(name, &file.as_ref().map_or_else(String::new, |file| quoted(&file.display().to_string())));
        }
        for command in &args.setup {
            let _ = writeln!(settings, "{command}");
        }
        settings.push_str("set --");
        for option in options {
            let _ = write!(settings, " \\\n    {}", quoted(option));
        }
        settings.push('\n');
        Ok(Self { name, run_dir, folder: folder.into(), directives, settings })
    }

    /// The whole script.
    pub(crate) fn script(&self) -> String {
        let mut script =
            String::from("#!/bin/bash\n# Made by `coordinator submit slurm`; `sbatch` takes it again.\n");
        for directive in &self.directives {
            let _ = writeln!(script, "#SBATCH {directive}");
        }
        script.push('\n');
        script.push_str(&self.settings);
        // A test holds the marker to be there.
        let job = BY_HAND.find(MARKER).map_or("", |at| &BY_HAND[at..]);
        script.push_str(job);
        script
    }

    /// Where the log and the script go.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn script_path(&self) -> PathBuf {
        self.folder.join(format!("{}.sbatch", self.name))
    }

    /// The log of the job `id`; an array has one for each index.
    pub(crate) fn log(&self, id: &str) -> String {
        format!("{}.log", self.run_dir(id))
    }

    /// The run's folder in the job `id`.
    pub(crate) fn run_dir(&self, id: &str) -> String {
        self.run_dir.replace("%x", &self.name).replace("%j", id)
    }
}

/// A time limit in seconds as SLURM reads it: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S; none is no limit. None where it
/// is no time at all.
fn seconds(time: &str) -> Option<Option<u64>> {
    if ["infinite", "unlimited", "0"].contains(&time.to_ascii_lowercase().as_str()) {
        return Some(None);
    }
    let numbers =
        |text: &str| text.split(':').map(|part| part.parse::<u64>().ok()).collect::<Option<Vec<_>>>();
    let total = match time.split_once('-') {
        Some((days, rest)) => {
            let days: u64 = days.parse().ok()?;
            let rest = match numbers(rest)?[..] {
                [h] => h * 3600,
                [h, m] => h * 3600 + m * 60,
                [h, m, s] => h * 3600 + m * 60 + s,
                _ => return None,
            };
            days.checked_mul(86400)?.checked_add(rest)?
        }
        None => match numbers(time)?[..] {
            [m] => m.checked_mul(60)?,
            [m, s] => m.checked_mul(60)?.checked_add(s)?,
            [h, m, s] => h.checked_mul(3600)?.checked_add(m.checked_mul(60)?)?.checked_add(s)?,
            _ => return None,
        },
    };
    Some(Some(total))
}

/// A word of the shell that means exactly this text.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=%+@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}
