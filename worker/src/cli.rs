//! The command line of `worker`.

use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use relabel_proto::security::WorkerAccess;

/// Train as one rank of a run, or use one of the tools.
///
/// Without a subcommand it trains: `worker --rank 0` is `worker train --rank 0`.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub train: TrainArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Subcommand)]
pub enum Command {
    /// Train as one rank of a run (the default)
    Train(TrainArgs),
    /// Make a small data set of several objects a picture, with label maps
    Synth(worker::synth::SynthArgs),
    /// Make the label maps of a data set with a trained classifier
    #[command(override_usage = "worker label [OPTIONS] --data <DIR> --out <DIR> --arch <ARCH>\n       \
                                worker label [OPTIONS] --coordinator <URL>")]
    Label(worker::annotate::LabelArgs),
    /// Pack a folder of label maps into one memory-mapped file
    Pack(worker::labels::pack::PackArgs),
    /// Show what is in a file
    Inspect(InspectArgs),
    /// Write weights as torch and torchvision load them
    Export(worker::weights::export::ExportArgs),
    /// Evaluate weights on one or more sets
    #[command(override_usage = "worker eval [OPTIONS] --weights <FILE> --data <[NAME=]DIR>...\n       \
                                worker eval [OPTIONS] --coordinator <URL>")]
    Eval(worker::eval::command::EvalArgs),
    /// Say what image files show
    Predict(worker::predict::PredictArgs),
    /// Say what this machine has that a worker can use, or check a data set before the first run
    Doctor(worker::doctor::DoctorArgs),
    /// Print completions for a shell: source <(worker completions bash)
    Completions { shell: clap_complete::Shell },
    /// Write manual pages into a folder
    #[command(hide = true)]
    Man { dir: PathBuf },
}

/// Training
#[derive(Args)]
pub struct TrainArgs {
    /// Address of the coordinator
    #[arg(long, value_name = "URL", env = "RELABEL_COORDINATOR", default_value = "http://127.0.0.1:4747")]
    pub coordinator: String,
    #[command(flatten)]
    pub access: WorkerAccess,
    /// Rank to take; left out, the first free one
    #[arg(long, value_name = "N")]
    pub rank: Option<u32>,
    /// Train on this GPU
    #[arg(long, value_name = "I", conflicts_with = "cpu")]
    pub gpu: Option<u32>,
    /// Train on the CPU (the default without --gpu)
    #[arg(long)]
    pub cpu: bool,
    /// Threads of libtorch, and most threads that load data [default: the machine's cores]
    #[arg(long, value_name = "T")]
    pub threads: Option<usize>,
    /// Seconds to keep trying to reach the coordinator
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub connect_timeout: u64,
    /// Host name or address by which the other workers reach this one [default: the address that the
    /// coordinator is reached from]
    #[arg(long, value_name = "HOST")]
    pub advertise: Option<String>,
    /// Folder of the run as this host sees it, where checkpoints go [default: as the coordinator says]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Folder for the index of the data set [default: $XDG_CACHE_HOME/relabel or ~/.cache/relabel]
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
}

/// Tools that show what is in a file.
#[derive(Args)]
pub struct InspectArgs {
    #[command(subcommand)]
    what: Inspect,
}

#[derive(Subcommand)]
enum Inspect {
    /// Show a label map (.pt) and the targets that it gives for crops
    LabelMap(worker::labels::inspect::LabelMapArgs),
    /// Show what is in a packed store of label maps, and verify all of it
    Packed(worker::labels::inspect::PackedArgs),
    /// Show where a checkpoint of ours stands and what it holds, its checksums verified
    Checkpoint(worker::weights::inspect::FileArgs),
    /// Show the tensors of a file of weights: .pth, .safetensors or a checkpoint
    Weights(worker::weights::inspect::FileArgs),
}

impl InspectArgs {
    pub fn run(&self) -> anyhow::Result<()> {
        match &self.what {
            Inspect::LabelMap(args) => worker::labels::inspect::run(args),
            Inspect::Packed(args) => worker::labels::inspect::run_packed(args),
            Inspect::Checkpoint(args) => worker::weights::inspect::checkpoint(args),
            Inspect::Weights(args) => worker::weights::inspect::weights(args),
        }
    }
}

/// Prints the completions of a shell.
pub fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "worker", &mut script);
    std::io::stdout().write_all(&script).context("standard output")
}

/// Writes a manual page for the program and for each of its subcommands into `dir`.
pub fn man(dir: &Path) -> anyhow::Result<()> {
    let write = || {
        std::fs::create_dir_all(dir)?;
        // Named as the program is, not as its package.
        clap_mangen::generate_to(Cli::command().name("worker"), dir)
    };
    write().with_context(|| format!("cannot write manual pages into {}", dir.display()))
}

/// Logging
#[derive(Args)]
pub struct LogArgs {
    /// Form of log lines; RUST_LOG chooses their levels
    #[arg(long, value_name = "FORM", default_value = "text", global = true)]
    log: LogForm,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogForm {
    /// Sentences for people
    Text,
    /// One JSON object a line
    Json,
}

impl LogArgs {
    /// Sends log lines to the standard error.
    pub fn start(&self) {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env()
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.log {
            LogForm::Text => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
            LogForm::Json => builder.json().flatten_event(true).init(),
        }
    }
}
