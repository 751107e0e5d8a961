//! Completions for shells, and manual pages: both made of the command line itself, every dotted option included.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::builder::PossibleValuesParser;
use clap::{Arg, Command, CommandFactory as _, ValueHint};
use clap_complete::Shell;
use relabel_config::{ARCHS, Config, Kind, schema};

use crate::cli::Cli;

/// The whole command line. The dotted options are taken out of it before clap sees it, so they stand here for readers
/// alone.
fn command() -> Command {
    let defaults = Config::default();
    let mut command = Cli::command();
    for setting in schema() {
        let help = format!("{} [default: {}]", setting.help, (setting.get)(&defaults));
        let arg = Arg::new(setting.key).long(setting.key).help(help).help_heading("Options of the run");
        let arg = match setting.kind {
            Kind::Choice(words) => arg.value_parser(PossibleValuesParser::new(words)),
            Kind::Network => arg.value_name("NETWORK").value_parser(PossibleValuesParser::new(ARCHS)),
            Kind::Flag => arg.num_args(0..=1).value_parser(PossibleValuesParser::new(["True", "False"])),
            Kind::Text if setting.key.ends_with("data_path") => {
                arg.value_name("DIR").value_hint(ValueHint::DirPath)
            }
            Kind::Text => arg.value_name("TEXT").value_hint(ValueHint::AnyPath),
            Kind::Whole { .. } => arg.value_name("N").value_hint(ValueHint::Other),
            Kind::Real { .. } => arg.value_name("X").value_hint(ValueHint::Other),
        };
        command = command.arg(arg);
    }
    command
}

/// Prints the completions of a shell.
pub fn completions(shell: Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "coordinator", &mut script);
    std::io::stdout().write_all(&script).context("standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a manual page for the program and for each of its subcommands into `dir`.
pub fn man(dir: &Path) -> Result<ExitCode> {
    let write = || {
        std::fs::create_dir_all(dir)?;
        clap_mangen::generate_to(command(), dir)
    };
    write().with_context(|| format!("cannot write manual pages into {}", dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_completed_in_every_shell() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command(), "coordinator", &mut script);
            let script = String::from_utf8(script).unwrap();
            for setting in schema() {
                assert!(script.contains(setting.key), "{shell}: {}", setting.key);
            }
            assert!(script.contains("adamp") && script.contains("resnext101_32x8d"), "{shell}");
        }
        command().debug_assert();
    }

    #[test]
    fn there_is_a_page_for_each_subcommand() {
        let dir = tempfile::tempdir().unwrap();
        man(dir.path()).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(read("coordinator.1").contains("optim.lr.init"));
        for subcommand in ["status", "runs", "stop", "checkpoint", "label", "eval"] {
            assert!(read(&format!("coordinator-{subcommand}.1")).contains(".SH SYNOPSIS"), "{subcommand}");
        }
    }
}
