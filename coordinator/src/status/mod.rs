//! `coordinator status`: how a run is doing, once or as it goes on.

mod table;
#[cfg(test)]
mod tests;

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use relabel_proto::v1::StatusReply;

use crate::admin::Operator;
use crate::cli::StatusArgs;
use crate::runs::{self, State};
use crate::view::{View, WorkerView};

/// Prints how the run is doing.
pub async fn run(args: StatusArgs) -> Result<ExitCode> {
    let mut operator = Operator::connect(&args.target).await?;
    let first = read(operator.status().await?)?;
    match args.watch {
        None if args.json => println!("{}", serde_json::to_string_pretty(&first)?),
        None => print!("{}", table::draw(&first)),
        Some(seconds) => return watch(operator, first, Duration::from_secs_f64(seconds), args.json).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// The view, with the workers of all pages.
fn read(status: StatusReply) -> Result<View> {
    let mut view: View = serde_json::from_str(&status.view)
        .context("the coordinator is of another version: use its own `coordinator status`")?;
    view.workers = status.workers.into_iter().map(WorkerView::from).collect();
    Ok(view)
}

/// Shows the run every `pause` until it is over or the coordinator is gone, or somebody has seen enough.
async fn watch(mut operator: Operator, mut view: View, pause: Duration, json: bool) -> Result<ExitCode> {
    let mut shown = Shown::begin(json)?;
    let watched = async {
        loop {
            shown.show(&view)?;
            tokio::time::sleep(pause).await;
            match operator.status().await {
                Ok(next) => view = read(next)?,
                Err(_) => return anyhow::Ok(()),
            }
        }
    };
    let gone = tokio::select! {
        watched = watched => watched.map(|()| true),
        _ = tokio::signal::ctrl_c() => Ok(false),
    };
    shown.end(&view)?;
    if gone? {
        eprintln!("{}", farewell(&view));
    }
    Ok(ExitCode::SUCCESS)
}

/// Why the coordinator answers no more, as far as its folder tells.
fn farewell(last: &View) -> String {
    let dir = Path::new(&last.run_dir);
    match runs::summary(dir).ok().flatten().map(|run| run.state) {
        Some(State::Finished) => format!("the run is finished: {}", last.run_dir),
        Some(State::Stopped) => {
            format!(
                "the coordinator has ended; carry on with: coordinator --resume --run-dir {}",
                last.run_dir
            )
        }
        Some(State::Running) | None => "the coordinator answers no more".to_owned(),
    }
}

/// Where a watched run is shown.
enum Shown {
    /// A screen of its own, as an editor has it, that is redrawn.
    Screen,
    /// A screen that was left again.
    Left,
    /// A pipe or a file: one after the other.
    Lines,
    Json,
}

/// What a terminal is told: to keep its lines and give a fresh screen without cursor, and the way back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

impl Shown {
    fn begin(json: bool) -> Result<Self> {
        if json {
            return Ok(Self::Json);
        }
        if !std::io::stdout().is_terminal() {
            return Ok(Self::Lines);
        }
        print!("{ENTER}");
        Ok(Self::Screen)
    }

    fn show(&mut self, view: &View) -> Result<()> {
        let mut out = std::io::stdout().lock();
        match self {
            Self::Json => writeln!(out, "{}", serde_json::to_string(view)?)?,
            Self::Left => {}
            Self::Lines => writeln!(out, "{}", table::draw(view))?,
            Self::Screen => {
                let (height, width) = console::Term::stdout().size();
                // Home, each line cleared to its end, and what is left below.
                write!(out, "\x1b[H")?;
                for line in table::draw(view).lines().take(usize::from(height).saturating_sub(1)) {
                    writeln!(out, "{}\x1b[K", console::truncate_str(line, usize::from(width), ""))?;
                }
                write!(out, "\x1b[J")?;
            }
        }
        Ok(out.flush()?)
    }

    /// Leaves the last state on the terminal.
    fn end(&mut self, view: &View) -> Result<()> {
        if matches!(self, Self::Screen) {
            *self = Self::Left;
            let mut out = std::io::stdout().lock();
            write!(out, "{LEAVE}{}", table::draw(view))?;
            out.flush()?;
        }
        Ok(())
    }
}

impl Drop for Shown {
    /// An error on the way leaves the terminal as it was found.
    fn drop(&mut self) {
        if matches!(self, Self::Screen) {
            print!("{LEAVE}");
        }
    }
}
