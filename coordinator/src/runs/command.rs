//! `coordinator runs`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::{RunSummary, list};
use crate::cli::RunsArgs;
use crate::progress::duration;
use crate::table::{Side, Table};
use crate::view::unix_time;

/// Lists the runs in a folder.
pub fn run(args: &RunsArgs) -> Result<ExitCode> {
    let dir = &args.dir;
    let none = || format!("no runs in {}", dir.display());
    let (runs, unreadable) = match list(dir) {
        Ok(found) => found,
        // The folder comes with the first run.
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound && dir == Path::new(crate::run_dir::RUNS) =>
        {
            (Vec::new(), Vec::new())
        }
        Err(error) => return Err(error).with_context(|| format!("cannot list {}", dir.display())),
    };
    for (path, error) in &unreadable {
        tracing::warn!("{} is left out: {error}", path.display());
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&runs)?);
    } else if runs.is_empty() {
        println!("{}", none());
    } else {
        print!("{}", table(&runs, unix_time()));
    }
    Ok(ExitCode::SUCCESS)
}

/// The runs as people read them, at the Unix time `now`.
pub(super) fn table(runs: &[RunSummary], now: f64) -> String {
    let columns = [
        ("run", Side::Left),
        ("state", Side::Left),
        ("network", Side::Left),
        ("epochs", Side::Right),
        ("best top-1", Side::Right),
        ("at epoch", Side::Right),
        ("loss", Side::Right),
        ("img/s", Side::Right),
        ("last written", Side::Right),
    ];
    let mut table = Table::new(&columns);
    for run in runs {
        let shown = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        table.row(vec![
            run.name.clone(),
            run.state.to_string(),
            run.arch.clone(),
            format!("{}/{}", run.epochs_done, run.epochs),
            shown(run.best_top1.map(|top1| format!("{:.2}%", 100.0 * top1))),
            shown(run.best_epoch.map(|epoch| (epoch + 1).to_string())),
            shown(run.last_step.as_ref().map(|step| format!("{:.3}", step.loss))),
            shown(run.last_step.as_ref().map(|step| format!("{:.0}", step.images_per_second))),
            format!("{} ago", duration((now - run.updated).max(0.0), " s")),
        ]);
    }
    table.to_string()
}
