//! The command line of `coordinator`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use relabel_config::{EvalOptions, LabelOptions};
use relabel_proto::DEFAULT_PORT;
use relabel_proto::security::AdminAccess;

use crate::config::{ConfigFile, help};
use crate::security::SecurityArgs;
use crate::submit::k8s::K8sArgs;
use crate::submit::slurm::SlurmArgs;
use crate::{http, traces};

/// Own a training run: hand out epochs, shards and duties to workers.
///
/// Every option of the run is a flag too: `--optim.lr.init 0.1`; `--help` lists them.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunArgs,
    /// Form of log lines; RUST_LOG chooses their levels
    #[arg(long, value_name = "FORM", default_value = "text", global = true)]
    pub log: LogForm,
}

#[derive(Subcommand)]
pub enum Command {
    /// Show how a run is doing
    Status(StatusArgs),
    /// List the runs in a folder and how they stand
    Runs(RunsArgs),
    /// End a run after a checkpoint
    Stop(StopArgs),
    /// Have a checkpoint written at the next step; training goes on
    Checkpoint(CheckpointArgs),
    /// Make the label maps of a data set with workers that come and go
    ///
    /// Ended in any way, it is carried on by the same command. Workers are `worker label --coordinator URL`; all must
    /// see the data, the weights and the folder of the maps under the same names.
    Label(Box<LabelArgs>),
    /// Evaluate weights on one or more sets with workers that come and go
    ///
    /// It prints what `worker eval` prints, whatever the number of workers (the last digits of a loss are those of
    /// their processors and threads, as there). They are `worker eval --coordinator URL`; all must see the weights and
    /// the sets under the same names.
    Eval(Box<EvalArgs>),
    /// Hand a run in as a job of a cluster
    #[command(subcommand)]
    Submit(SubmitCommand),
    /// Print completions for a shell: source <(coordinator completions bash)
    Completions { shell: clap_complete::Shell },
    /// Write manual pages into a folder
    #[command(hide = true)]
    Man { dir: PathBuf },
}

#[derive(Subcommand)]
pub enum SubmitCommand {
    Slurm(Box<SlurmArgs>),
    K8s(Box<K8sArgs>),
}

/// A run
#[derive(Args)]
pub struct RunArgs {
    /// Workers that train together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub workers: u32,
    /// Fewest workers that go on training when others are lost or have to leave [default: all of --workers]
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u32).range(1..))]
    pub min_workers: Option<u32>,
    /// Start the workers too, on this machine
    #[arg(long)]
    pub local: bool,
    /// With --local, threads of each worker [default: its share of the cores]
    #[arg(long, value_name = "T", requires = "local", value_parser = clap::value_parser!(u32).range(1..))]
    pub threads: Option<u32>,
    #[command(flatten)]
    pub config: ConfigFile,
    /// Folder of the run: journal, checkpoints, metrics, logs [default: a new one under runs/]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Carry on with the run in --run-dir, or the newest under runs/, with the options that it began with and those
    /// given here. Without it, a run that is not finished is carried on by the very command that began it
    #[arg(long)]
    pub resume: bool,
    /// Address to listen on [default: 0.0.0.0:4747; with --local a free port of 127.0.0.1]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// On SIGTERM leave the run, after a checkpoint, to the coordinator that is started next in this one's place: the
    /// workers train on. Exits 75 then. Without it, SIGTERM ends the run
    #[arg(long, conflicts_with = "local")]
    pub hand_over: bool,
    #[command(flatten)]
    pub security: SecurityArgs,
    /// Address of the dashboard and of /metrics, for whoever reaches it, or none [default: 127.0.0.1:4748, or a free
    /// port where that is taken, for this user and root only]
    #[arg(long, value_name = "ADDR")]
    pub http: Option<http::Address>,
    /// Send a trace of each epoch to the OpenTelemetry collector at this address (OTLP over gRPC), as
    /// http://localhost:4317
    #[arg(long, value_name = "URL")]
    pub otlp: Option<traces::Collector>,
    /// Print the options as they resolve, where each came from, and what the run would take; start nothing
    #[arg(long, value_name = "FORM", num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    pub dry_run: Option<DryRun>,
}

/// The form of a dry run's words.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    /// YAML that --config reads, with remarks
    Text,
    /// One JSON object
    Json,
}

impl RunArgs {
    /// Fewest workers that go on training.
    pub fn least(&self) -> u32 {
        self.min_workers.unwrap_or(self.workers)
    }

    pub fn listen(&self) -> SocketAddr {
        self.listen.unwrap_or_else(|| default_address(self.local))
    }

    pub fn http(&self) -> http::Address {
        self.http.unwrap_or(http::Address::Default)
    }
}

fn default_address(local: bool) -> SocketAddr {
    match local {
        true => SocketAddr::from(([127, 0, 0, 1], 0)),
        false => SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT)),
    }
}

/// A labelling
#[derive(Args)]
pub struct LabelArgs {
    #[command(flatten)]
    pub options: LabelOptions,
    #[command(flatten)]
    pub lease: LeaseArgs,
}

/// An evaluation
#[derive(Args)]
pub struct EvalArgs {
    #[command(flatten)]
    pub options: EvalOptions,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub lease: LeaseArgs,
}

/// The workers of a labelling or an evaluation.
#[derive(Args)]
pub struct LeaseArgs {
    /// Start workers too, on this machine; others may join
    #[arg(long)]
    pub local: bool,
    /// With --local, how many
    #[arg(long, value_name = "N", default_value_t = 1, requires = "local", value_parser = clap::value_parser!(u32).range(1..))]
    pub workers: u32,
    /// With --local, threads of each worker [default: its share of the cores]
    #[arg(long, value_name = "T", requires = "local", value_parser = clap::value_parser!(u32).range(1..))]
    pub threads: Option<u32>,
    /// Address to listen on [default: 0.0.0.0:4747; with --local a free port of 127.0.0.1]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    #[command(flatten)]
    pub security: SecurityArgs,
    /// Seconds without any worker, at the start and after the last was lost, before it fails
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub wait_for_workers: u64,
}

impl LeaseArgs {
    pub fn listen(&self) -> SocketAddr {
        self.listen.unwrap_or_else(|| default_address(self.local))
    }
}

/// Which run
#[derive(Args)]
pub struct Target {
    /// Address of the run's coordinator
    #[arg(long, value_name = "URL", env = "RELABEL_COORDINATOR", default_value = "http://127.0.0.1:4747")]
    pub coordinator: String,
    #[command(flatten)]
    pub access: AdminAccess,
}

#[derive(Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub target: Target,
    /// One JSON object instead of a table; with --watch one a line
    #[arg(long)]
    pub json: bool,
    /// Show it again and again, every so many seconds (1 if no number is given), until the run is over
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = pause)]
    pub watch: Option<f64>,
}

/// Seconds between two looks.
fn pause(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "it takes a number of seconds".to_owned())?;
    let fits = (0.1..=86_400.0).contains(&seconds);
    fits.then_some(seconds).ok_or_else(|| "it takes 0.1 to 86400 seconds".to_owned())
}

#[derive(Args)]
pub struct RunsArgs {
    /// Folder whose folders are the runs
    #[arg(value_name = "DIR", default_value = crate::run_dir::RUNS)]
    pub dir: PathBuf,
    /// A JSON list instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct StopArgs {
    #[command(flatten)]
    pub target: Target,
    /// Why, for the log
    #[arg(long, default_value = "asked to stop")]
    pub reason: String,
}

#[derive(Args)]
pub struct CheckpointArgs {
    #[command(flatten)]
    pub target: Target,
    /// Why, for the log
    #[arg(long, default_value = "asked for a checkpoint")]
    pub reason: String,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogForm {
    /// Sentences for people
    Text,
    /// One JSON object a line
    Json,
}

impl Cli {
    /// Parses what is left of the command line after its dotted flags are taken out. Ends the process on a
    /// usage error (exit code 2), and for `--help` and `--version`.
    pub fn read(args: Vec<std::ffi::OsString>) -> Self {
        let matches = Self::command().after_long_help(help()).get_matches_from(args);
        let cli = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        if cli.run.least() > cli.run.workers {
            let words =
                format!("--min-workers {} is more than --workers {}", cli.run.least(), cli.run.workers);
            Self::command().error(clap::error::ErrorKind::ValueValidation, words).exit();
        }
        cli
    }
}
