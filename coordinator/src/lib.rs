//! The coordinator: owns a training run. A library, so that tests and tools drive the parts that the program is
//! made of; [`main`] is the program.
//!
//! - [`config`] reads the options, `run_dir` opens the run's folder and its [`journal`].
//! - [`driver`] is the one task that owns the core; [`service`] is its gRPC side.
//! - [`report`] shows what the core observes, through [`progress`] and [`metrics`].
//! - `launch` starts and watches workers on this machine.
//! - [`security`] is the port: who may come to it, and how much of them.
//! - `admin` is the other side: `coordinator status`, `stop` and `checkpoint`.
//! - `leases` has workers make label maps or evaluate weights in place of a run.
//! - `submit` makes a job of a run and hands it to a cluster.

mod admin;
mod cli;
pub mod config;
pub mod driver;
mod inbox;
pub mod journal;
mod launch;
mod leases;
pub mod metrics;
pub mod progress;
pub mod report;
mod run;
mod run_dir;
pub mod security;
pub mod service;
mod submit;

use std::io::IsTerminal;
use std::process::ExitCode;

use cli::{Cli, Command, LogForm};
use progress::Screen;

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
        Some(Command::Status(args)) => runtime.block_on(admin::status(args)),
        Some(Command::Stop(args)) => runtime.block_on(admin::stop(args)),
        Some(Command::Checkpoint(args)) => runtime.block_on(admin::checkpoint(args)),
        Some(Command::Label(args)) => runtime.block_on(leases::label::run(*args, screen)),
        Some(Command::Eval(args)) => runtime.block_on(leases::eval::run(*args, screen)),
    };
    ended.unwrap_or_else(|error| {
        let usage = error.is::<run_dir::RunDirError>()
            || error.is::<config::ConfigError>()
            || error.is::<relabel_proto::security::SecurityError>()
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
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(screen.clone());
    match form {
        LogForm::Text => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
        LogForm::Json => builder.json().flatten_event(true).init(),
    }
}
