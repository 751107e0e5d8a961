//! The `worker` program: trains as a rank of a run, and small tools around its data.

mod cli;
mod rank;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if let Some(unfit) = relabel_config::unfit_processor(&cpuinfo) {
        eprintln!("error: {unfit}");
        return ExitCode::FAILURE;
    }
    let cli = Cli::parse();
    cli.log.start();
    let result = match cli.command {
        None => rank::run(cli.train),
        Some(Command::Train(args)) => rank::run(args),
        Some(Command::Synth(args)) => worker::synth::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Eval(args)) => worker::eval::command::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Predict(args)) => worker::predict::run(&args),
        Some(Command::Label(args)) => worker::annotate::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Pack(args)) => worker::labels::pack::run(&args).map(|()| ExitCode::SUCCESS),
        Some(Command::Inspect(args)) => args.run().map(|()| ExitCode::SUCCESS),
        Some(Command::Doctor(args)) => worker::doctor::run(&args),
        Some(Command::Completions { shell }) => cli::completions(shell).map(|()| ExitCode::SUCCESS),
        Some(Command::Man { dir }) => cli::man(&dir).map(|()| ExitCode::SUCCESS),
        Some(Command::Export(args)) => worker::weights::export::run(&args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {}", worker::print::one_line(&error));
        // Wrong usage has a code of its own.
        if error.is::<relabel_proto::security::SecurityError>() {
            ExitCode::from(2)
        } else {
            ExitCode::FAILURE
        }
    })
}
