//! The run directory: a new one for a new run, an existing one to resume, never one for the other.

use std::path::{Path, PathBuf};

use relabel_config::Config;
use relabel_core::{Fact, History};

use crate::journal::{self, Journal, JournalError};

/// Where runs go unless told otherwise.
pub(crate) const RUNS: &str = "runs";

/// Options that a resumed run has to keep: with others its position and the order of its samples would
/// mean something else, or its state would not fit.
const FIXED: [&str; 6] = [
    "compute.seed",
    "data.shuffle_buffer",
    "model.arch",
    "model.num_classes",
    "optim.optimizer",
    "optim.batch_size",
];

/// Why a run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    #[error(
        "run directory {} holds a run that began with other options ({changes}): add --resume to carry on with it all \
         the same, or name another --run-dir",
        path.display()
    )]
    Taken { path: PathBuf, changes: String },
    #[error("there is no run to resume in {}: leave --resume out to start one, or name another --run-dir", .0.display())]
    Nothing(PathBuf),
    #[error(
        "{key} is {now} but this run began with {then}: leave it as it was, or start a new run in another --run-dir"
    )]
    Changed { key: &'static str, now: String, then: String },
    #[error("no checkpoint in {} is whole any more: start afresh in another --run-dir", .0.display())]
    NothingWhole(PathBuf),
    #[error("cannot read the run directories in {}: {source}", path.display())]
    List { path: PathBuf, source: std::io::Error },
    #[error("the configuration in the journal of {} cannot be read: {source}; resume with the version that wrote it", path.display())]
    OldConfig { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// A run directory that is held by this coordinator, and what its journal says.
pub struct RunDir {
    pub path: PathBuf,
    pub journal: Journal<Fact>,
    pub history: History,
    /// What the run began with, if it is resumed.
    pub began: Option<Began>,
}

/// Which run a folder is opened for.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// A new one, or the same again; a folder that is not named is named after its architecture.
    New { arch: &'a str },
    /// The one that the folder holds.
    Resumed,
}

/// The beginning of a run, as its journal has it.
pub struct Began {
    pub run_id: String,
    pub config: Config,
}

impl RunDir {
    /// Opens `named`, or else the newest (to resume) or a new folder under `runs/`. A folder that is named for a new
    /// run and holds one is opened too: see [`Began::same`].
    ///
    /// # Errors
    /// A folder to resume that holds no run; one that another coordinator holds; a journal that is damaged.
    pub fn open(named: Option<&Path>, start: Start<'_>) -> Result<Self, RunDirError> {
        let path = place(named, start)?;
        let (journal, facts) = Journal::open(&path)?;
        let Told { began, history, .. } = told(path.clone(), &facts, start)?;
        Ok(Self { path, journal, history, began })
    }
}

/// What the journal of a run directory tells.
pub struct Told {
    pub path: PathBuf,
    pub history: History,
    /// What the run began with, if there is one already.
    pub began: Option<Began>,
}

/// As [`RunDir::open`], but nothing is made, written or held.
pub fn look(named: Option<&Path>, start: Start<'_>) -> Result<Told, RunDirError> {
    let path = place(named, start)?;
    let facts = match journal::peek(&path) {
        Err(JournalError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        facts => facts?,
    };
    told(path, &facts, start)
}

/// The folder that is meant.
fn place(named: Option<&Path>, start: Start<'_>) -> Result<PathBuf, RunDirError> {
    let path = match (named, start) {
        (Some(path), _) => path.to_path_buf(),
        (None, Start::Resumed) => {
            numbered()?.pop().map(|(_, path)| path).ok_or_else(|| RunDirError::Nothing(RUNS.into()))?
        }
        (None, Start::New { arch }) => {
            let next = numbered()?.pop().map_or(1, |(number, _)| number + 1);
            Path::new(RUNS).join(format!("{next:04}-{}", relabel_config::file_stem(arch)))
        }
    };
    match matches!(start, Start::Resumed) && !path.is_dir() {
        true => Err(RunDirError::Nothing(path)),
        false => Ok(path),
    }
}

fn told(path: PathBuf, facts: &[Fact], start: Start<'_>) -> Result<Told, RunDirError> {
    let began = facts.iter().find_map(|fact| match fact {
        Fact::Started { run_id, config, .. } => Some((run_id.clone(), config)),
        _ => None,
    });
    let began = match (began, start) {
        (None, Start::Resumed) => return Err(RunDirError::Nothing(path)),
        (None, Start::New { .. }) => None,
        (Some((run_id, json)), _) => {
            let read = serde_json::from_str(json);
            let config = read.map_err(|source| RunDirError::OldConfig { path: path.clone(), source })?;
            Some(Began { run_id, config })
        }
    };
    let history = History::replay(facts);
    if history.saved && history.checkpoints.is_empty() {
        return Err(RunDirError::NothingWhole(path));
    }
    Ok(Told { path, history, began })
}

/// The folders `runs/<number>-<name>` by number.
fn numbered() -> Result<Vec<(u32, PathBuf)>, RunDirError> {
    let failed = |source| RunDirError::List { path: RUNS.into(), source };
    let entries = match std::fs::read_dir(RUNS) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let number = entry.file_name().to_string_lossy().split('-').next().and_then(|n| n.parse().ok());
        found.extend(number.map(|number| (number, entry.path())));
    }
    found.sort();
    Ok(found)
}

impl Began {
    /// Checks that `config` goes on with what the run began with: position and sample order mean the same.
    /// A seed that was left open takes the run's. Returns the keys that may and do differ.
    ///
    /// # Errors
    /// A key that may not change.
    pub fn reconcile(&self, config: &mut Config) -> Result<Vec<String>, RunDirError> {
        if config.compute.seed < 0 {
            config.compute.seed = self.config.compute.seed;
        }
        let value = |setting: &relabel_config::Setting, config: &Config| (setting.get)(config).to_string();
        for setting in relabel_config::schema().iter().filter(|setting| FIXED.contains(&setting.key)) {
            let (key, now, then) = (setting.key, value(setting, config), value(setting, &self.config));
            if now != then {
                return Err(RunDirError::Changed { key, now, then });
            }
        }
        Ok(self.changes(config))
    }

    /// Checks that `config` is what the run in `path` began with, so that the command that gave it is the one that
    /// began the run: a supervisor starts it again as it was. A seed that was left open takes the run's.
    ///
    /// # Errors
    /// The keys that differ.
    pub fn same(&self, path: &Path, config: &mut Config) -> Result<(), RunDirError> {
        if config.compute.seed < 0 {
            config.compute.seed = self.config.compute.seed;
        }
        let changes = self.changes(config);
        match changes.is_empty() {
            true => Ok(()),
            false => Err(RunDirError::Taken { path: path.to_owned(), changes: changes.join("; ") }),
        }
    }

    /// The keys of `config` that differ from what the run began with, in words.
    fn changes(&self, config: &Config) -> Vec<String> {
        let value = |setting: &relabel_config::Setting, config: &Config| (setting.get)(config).to_string();
        let changed = relabel_config::schema().iter().filter_map(|setting| {
            let (now, then) = (value(setting, config), value(setting, &self.config));
            (now != then).then(|| format!("{} is now {now}, it was {then}", setting.key))
        });
        changed.collect()
    }
}
