//! The coordinator: owns a training run. A library, so that tests and tools drive the parts that the program is
//! made of; [`main`] is the program.
//!
//! - [`config`] reads the options, `run_dir` opens the run's folder and its [`journal`].
//! - [`driver`] is the one task that owns the core; [`service`] is its gRPC side.
//! - [`view`] is the run as people and tools see it; [`report`] shows it, through [`progress`] and [`metrics`].
//! - [`http`] serves it read-only: the dashboard, Prometheus's metrics, JSON and events.
//! - `launch` starts and watches workers on this machine.
//! - [`security`] is the port: who may come to it, and how much of them.
//! - `admin` and `status` are the other side: `coordinator stop`, `checkpoint` and `status`. [`runs`] reads the folders
//!   of runs, for `coordinator runs` and others.
//! - `leases` has workers make label maps or evaluate weights in place of a run.
//! - `submit` makes a job of a run and hands it to a cluster.

mod admin;
mod cli;
pub mod config;
mod dashboard;
pub mod driver;
mod dry_run;
pub mod http;
mod inbox;
pub mod journal;
mod launch;
mod leases;
pub mod metrics;
mod mirror;
mod pages;
pub mod progress;
pub mod report;
mod run;
mod run_dir;
pub mod runs;
pub mod security;
pub mod service;
mod status;
mod submit;
mod table;
mod traces;
pub mod view;

use std::io::IsTerminal;
use std::process::ExitCode;

use cli::{Cli, Command, LogForm};
use progress::Screen;
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Wrong usage: a flag or an option that cannot be.
const USAGE: u8 = 2;

/// The program, from its command line to its exit code.
pub fn main() -> ExitCode {
    launch::become_worker_if_asked();
    let (overrides, rest) = match config::split_dotted(std::env::args_os()) {
        Ok(split) => split,
        Err(error) => return fail(USAGE, &error.into()),
    };
    let cli = Cli::read(rest);
    let screen = Screen::stderr();
    start_log(cli.log, &screen);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &anyhow::Error::new(error).context("cannot start the runtime")),
    };
    let ended = match cli.command {
        None => runtime.block_on(run::run(cli.run, &overrides, screen)),
        Some(Command::Submit(command)) => submit::run(command, &overrides),
        Some(_) if !overrides.is_empty() => {
            return fail(
                USAGE,
                &anyhow::anyhow!("--{} belongs to a run, not to this subcommand", overrides[0].0),
            );
        }
        Some(Command::Status(args)) => runtime.block_on(status::run(args)),
        Some(Command::Runs(args)) => runs::run(&args),
        Some(Command::Stop(args)) => runtime.block_on(admin::stop(args)),
        Some(Command::Checkpoint(args)) => runtime.block_on(admin::checkpoint(args)),
        Some(Command::Completions { shell }) => pages::completions(shell),
        Some(Command::Man { dir }) => pages::man(&dir),
        Some(Command::Label(args)) => runtime.block_on(leases::label::run(*args, screen)),
        Some(Command::Eval(args)) => runtime.block_on(leases::eval::run(*args, screen)),
    };
    ended.unwrap_or_else(|error| {
        let usage = error.is::<run_dir::RunDirError>()
            || error.is::<config::ConfigError>()
            || error.is::<relabel_proto::security::SecurityError>()
            || error.downcast_ref::<mirror::MirrorError>().is_some_and(mirror::MirrorError::is_usage)
            || error.downcast_ref::<submit::SubmitError>().is_some_and(submit::SubmitError::is_usage);
        fail(if usage { USAGE } else { 1 }, &error)
    })
}

/// One line: the causes after the words that they explain.
fn fail(code: u8, error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(code)
}

fn start_log(form: LogForm, screen: &Screen) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt::layer().with_writer(screen.clone());
    let lines = match form {
        LogForm::Text => lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogForm::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(lines).with(screen.tail().clone()).with(filter).init();
}
