//! Loads a real coordinator with simulated workers and measures what they cost it and how long things take.
//!
//! ```sh
//! make build
//! cargo run --release -p relabel-tests --bin load -- --workers 100,1000
//! cargo run --release -p relabel-tests --bin load -- --help
//! ```
//!
//! Each worker has a connection of its own to the coordinator, which is a process beside this one, shows the join
//! token, and speaks the protocol of a real worker on it: it reports, obeys and leaves as one. It has no data and no
//! model, and its ring is this process's memory: what is measured is the coordinator and not the training. For each
//! number of workers there is a run: all come; they train for a while; one dies and is replaced, a few times; a tenth
//! dies at once and is replaced; every other one of a share dies, or leaves in good order, and comes back; the run is
//! stopped. What was found is printed as a table or as JSON.
//!
//! A worker is an open file in each of the two processes, so 10,000 of them take `ulimit -Hn 10500` or more. All come
//! from one address, which the coordinator does not mind: it takes up to 16,384 connections from anywhere, and more
//! with `-- --max-connections N`. Both share this machine's cores, and the generator needs about as much of them as the
//! coordinator: where its own timers are late, so are the latencies, and a machine that does other work makes every
//! time longer. Neither process is given more memory than `--memory` says: asking for more ends it, which is better
//! than to bring the machine down.

mod coordinator;
mod figures;
mod load;
mod ring;
mod stream;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use load::Load;

/// Files that either side has open beside its workers' connections.
const OTHER_FILES: u64 = 300;

/// Measure a coordinator under simulated workers
#[derive(Parser)]
struct Cli {
    /// Numbers of workers, one run each
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000")]
    workers: Vec<u32>,
    /// Seconds of steady training that are measured
    #[arg(long, default_value_t = 30.0)]
    steady: f64,
    /// Workers that are killed, one at a time, and replaced
    #[arg(long, default_value_t = 3)]
    losses: u32,
    /// Percent of the workers that are killed at once, and replaced; 0 for none
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(..=50))]
    crowd: u32,
    /// Seconds in which workers leave and come; 0 for none
    #[arg(long, default_value_t = 60.0)]
    churn: f64,
    /// Percent of the workers that leave in a minute of that, and come again
    #[arg(long, default_value_t = 1.0)]
    churn_percent: f64,
    /// Seconds of a training step
    #[arg(long, default_value_t = 0.2)]
    step: f64,
    /// Steps of an epoch
    #[arg(long, default_value_t = 1_000_000)]
    steps_per_epoch: u64,
    /// The coordinator to load [default: the one beside this program]
    #[arg(long)]
    coordinator: Option<PathBuf>,
    /// GiB of memory that this program and the coordinator may take, each
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    memory: u64,
    /// Print JSON in place of a table
    #[arg(long)]
    json: bool,
    /// Further options for the coordinator, as `-- --cluster.heartbeat 2`
    #[arg(last = true)]
    options: Vec<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| runtime.block_on(run(&cli)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: &Cli) -> Result<()> {
    let most = cli.workers.iter().copied().max().unwrap_or_default();
    allow_files(u64::from(most) + OTHER_FILES)?;
    // The coordinator inherits it.
    let bytes = cli.memory << 30;
    setrlimit(Resource::RLIMIT_AS, bytes, bytes).context("cannot limit the memory")?;
    let program = match &cli.coordinator {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("coordinator"),
    };
    if !program.is_file() {
        bail!(
            "{} is not there: build it with `make build`, or name it with --coordinator",
            program.display()
        );
    }
    let mut all = Vec::new();
    for workers in &cli.workers {
        eprintln!("{workers} workers");
        let figures = Load::start(cli, &program, *workers).await?.measure(cli).await?;
        // A run that fails later does not take these with it.
        eprintln!("{}", serde_json::to_string(&figures)?);
        all.push(figures);
    }
    match cli.json {
        true => println!("{}", serde_json::to_string_pretty(&all)?),
        false => println!("{}", figures::table(&all)),
    }
    Ok(())
}

/// Lets this process, and the coordinator that it starts, have as many connections as there are workers.
fn allow_files(wanted: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if wanted > hard {
        bail!("a process may have {hard} files open here (ulimit -Hn), and {wanted} are needed");
    }
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(wanted), hard)?;
    Ok(())
}
