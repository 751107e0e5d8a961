//! Other runs, and this one, as their folders tell: for `coordinator runs`, for the dashboard's comparison, and for
//! what a dry run expects. Only reads, and takes no lock: a run is not disturbed by being looked at.

mod command;
mod curves;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use relabel_config::{Config, schema};
use relabel_core::{Fact, History};
use serde::Serialize;

pub use command::run;
pub use curves::{Curves, newest};

use crate::journal::{self, JournalError};
use crate::metrics::{EpochPoint, StepPoint};

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A coordinator on this host holds its folder.
    Running,
    /// All epochs are done and saved.
    Finished,
    /// It was ended before, and can be resumed; or it runs on another host.
    Stopped,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            State::Running => "running",
            State::Finished => "finished",
            State::Stopped => "stopped",
        })
    }
}

/// A run, told by its folder.
#[derive(Debug, Clone, Serialize)]
pub struct RunSummary {
    /// Of its folder.
    pub name: String,
    pub path: PathBuf,
    pub run_id: String,
    pub arch: String,
    pub state: State,
    /// Epochs that were validated, and that are to be.
    pub epochs_done: u32,
    pub epochs: u32,
    /// Once the data set is known.
    pub steps_per_epoch: Option<u64>,
    /// Share in [0, 1], and the epoch (from 0) that reached it.
    pub best_top1: Option<f64>,
    pub best_epoch: Option<u32>,
    /// The newest lines of its metrics.
    pub last_step: Option<StepPoint>,
    pub last_epoch: Option<EpochPoint>,
    /// When its metrics or its journal were last written to, Unix time.
    pub updated: f64,
    /// Its options, where this version can read them.
    #[serde(skip)]
    pub config: Option<Config>,
}

/// A folder that holds a run which cannot be told of, and why.
pub type Unreadable = (PathBuf, JournalError);

/// The run in `dir`; None where there is none.
///
/// # Errors
/// A journal that is damaged, or that cannot be read.
pub fn summary(dir: &Path) -> Result<Option<RunSummary>, JournalError> {
    let facts: Vec<Fact> = match journal::peek(dir) {
        Ok(facts) => facts,
        Err(JournalError::Io { source, .. })
            if matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let began = facts.iter().find_map(|fact| match fact {
        Fact::Started { run_id, config, .. } => Some((run_id.clone(), config.clone())),
        _ => None,
    });
    let Some((run_id, began_with)) = began else { return Ok(None) };
    let history = History::replay(&facts);
    let config = config(dir).or_else(|| serde_json::from_str(&began_with).ok());
    let best = history.best();
    let (last_step, last_epoch) = newest(dir);
    let steps_per_epoch = config.as_ref().zip(history.dataset.as_ref()).map(|(config, dataset)| {
        relabel_core::shards::steps_per_epoch(dataset.train_samples, config.optim.batch_size.max(1))
    });
    let epochs = config.as_ref().map_or(0, |config: &Config| config.optim.epochs);
    let done = history.validated.keys().next_back().map_or(0, |epoch| epoch + 1);
    let state = match (journal::is_held(dir), history.finished) {
        (true, _) => State::Running,
        (false, true) => State::Finished,
        (false, false) => State::Stopped,
    };
    Ok(Some(RunSummary {
        name: name_of(dir),
        path: dir.to_owned(),
        run_id,
        arch: config.as_ref().map(|config| config.model.arch.clone()).unwrap_or_default(),
        state,
        epochs_done: done,
        epochs,
        steps_per_epoch,
        best_top1: best.map(|(_, top1)| top1),
        best_epoch: best.map(|(epoch, _)| epoch),
        last_step,
        last_epoch,
        updated: updated(dir),
        config,
    }))
}

/// The runs in the folders of `parent`, by name, and those that cannot be told of.
///
/// # Errors
/// `parent` cannot be listed.
pub fn list(parent: &Path) -> std::io::Result<(Vec<RunSummary>, Vec<Unreadable>)> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(parent)? {
        let path = entry?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    let (mut runs, mut unreadable) = (Vec::new(), Vec::new());
    for folder in folders {
        match summary(&folder) {
            Ok(run) => runs.extend(run),
            Err(error) => unreadable.push((folder, error)),
        }
    }
    Ok((runs, unreadable))
}

/// An option in which two runs differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Its dotted key.
    pub key: &'static str,
    pub here: String,
    pub there: String,
}

/// The options in which `there` is other than `here`, in the order of the schema.
pub fn differences(here: &Config, there: &Config) -> Vec<Difference> {
    let both = schema().iter().map(|setting| (setting.key, (setting.get)(here), (setting.get)(there)));
    both.filter(|(_, here, there)| here != there)
        .map(|(key, here, there)| Difference { key, here: here.to_string(), there: there.to_string() })
        .collect()
}

/// What the run was last started with, as far as this version can read it.
fn config(dir: &Path) -> Option<Config> {
    serde_yaml_ng::from_str(&std::fs::read_to_string(dir.join("config.yaml")).ok()?).ok()
}

/// The name of a folder, `runs/.` and `.` too.
fn name_of(dir: &Path) -> String {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    absolute.file_name().map_or_else(|| "run".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn updated(dir: &Path) -> f64 {
    let modified = |name: &str| {
        let modified = std::fs::metadata(dir.join(name)).ok()?.modified().ok()?;
        Some(modified.duration_since(UNIX_EPOCH).ok()?.as_secs_f64())
    };
    ["metrics.jsonl", "journal.jsonl"].iter().filter_map(|name| modified(name)).fold(0.0, f64::max)
}
