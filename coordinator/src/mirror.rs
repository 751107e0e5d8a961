//! The run's folder on an object store, where `checkpoint.upload` names one: the journal follows each fact, metrics and
//! curves each checkpoint. Checkpoints go there from the worker that wrote them, and are the journal's only when that
//! worker has read them back. An old one is removed from the store only after the journal there no longer names it, so
//! that at any moment what is on the store can be resumed from.
//!
//! A store that is away costs nothing but its copy: what has not gone there goes there later. A coordinator that finds
//! another's journal there has been taken for dead, and its run goes on elsewhere: it ends. The journal is only written
//! in place of the one that was compared with it, so that one that was held up in between takes nothing from the other.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use relabel_core::{Fact, History};
use relabel_store::{CHECKPOINTS, Store, StoreError};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::journal::{self, JournalError};

/// What goes there with each checkpoint, as far as it is there.
const SHOWN: [&str; 3] = ["config.yaml", "metrics.jsonl", "curves.svg"];

/// Between two tries to reach a store that is away.
const PAUSE: Duration = Duration::from_secs(5);

/// So often the store's journal is looked at to be written in place of what was found.
const LOOKS: usize = 4;

/// How long the end of a run waits for what has not gone there yet.
const FAREWELL: Duration = Duration::from_secs(20);

/// Why a folder and the store do not go together.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("{url} holds a run that goes another way than the one in {}: name another checkpoint.upload or --run-dir", folder.display())]
    Another { url: String, folder: PathBuf },
    #[error(
        "{0} holds a run: name the folder that it is to go on in with --run-dir, or another checkpoint.upload"
    )]
    Unnamed(String),
    #[error("cannot write {} from the object store: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

impl MirrorError {
    /// Whether the command line is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Another { .. } | Self::Unnamed(_))
    }
}

/// Brings `folder` up to what the store holds of the run, if it holds more of it: a folder on a new machine, or one that
/// the run has gone on without. None is a folder of a new name.
///
/// # Errors
/// Another run on the store, or a damaged journal; a store that cannot be reached, unless `folder` holds a run, with which
/// it goes on.
pub async fn catch_up(store: &Store, folder: Option<&Path>) -> Result<(), MirrorError> {
    if folder.is_some_and(journal::is_held) {
        // Whoever opens it is told so.
        return Ok(());
    }
    let here = match folder {
        Some(folder) => journal::whole_lines(folder)?,
        None => Vec::new(),
    };
    let there = match store.get(journal::JOURNAL).await {
        Ok(there) => there.unwrap_or_default(),
        Err(error) if !here.is_empty() => {
            tracing::warn!("{error}; going on with what is in the run's folder");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    if here.starts_with(&there) {
        return Ok(());
    }
    let url = store.name_of("");
    let Some(folder) = folder else { return Err(MirrorError::Unnamed(url)) };
    if !there.starts_with(&here) {
        return Err(MirrorError::Another { url, folder: folder.to_owned() });
    }
    journal::read::<Fact>(Path::new(&store.name_of(journal::JOURNAL)), &there)?;
    std::fs::create_dir_all(folder)
        .map_err(|source| MirrorError::Write { path: folder.to_owned(), source })?;
    for name in SHOWN {
        if let Some(bytes) = store.get(name).await? {
            replace(&folder.join(name), &bytes)?;
        }
    }
    // Last: it makes a run of the folder.
    replace(&folder.join(journal::JOURNAL), &there)?;
    tracing::info!("fetched the run's journal from {url}; its checkpoints follow when they are wanted");
    Ok(())
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), MirrorError> {
    let part = path.with_extension("fetched");
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    written.map_err(|source| MirrorError::Write { path: path.to_owned(), source })
}

/// The task that keeps the store's copy. Without [`Self::finish`] it ends with the process.
pub struct Mirror {
    /// None once it has ended.
    task: Option<JoinHandle<Result<(), MirrorError>>>,
}

/// Tells a [`Mirror`] what has become of the folder; dropped, that nothing more will.
pub struct News(mpsc::UnboundedSender<Due>);

/// What is to be brought to the store, beside the journal.
#[derive(Debug, Clone, Copy, Default)]
struct Due {
    /// The pictures and numbers that people look at.
    shown: bool,
    /// The journal has retired checkpoints: they are to go.
    retired: bool,
}

impl News {
    /// A fact is in the journal.
    pub fn noted(&self, fact: &Fact) {
        let shown = matches!(fact, Fact::Committed { .. });
        let retired = matches!(fact, Fact::Retired { .. });
        // One that listens no more has said why.
        let _ = self.0.send(Due { shown, retired });
    }
}

impl Mirror {
    /// Starts with all that is in `folder`.
    pub fn start(store: Store, folder: PathBuf) -> (Self, News) {
        let (news, changes) = mpsc::unbounded_channel();
        let task = tokio::spawn(keep(store, folder, changes));
        (Self { task: Some(task) }, News(news))
    }

    /// Waits until the store can no longer be this run's, and says why. A wait that is given up can be taken up again.
    pub async fn lost(&mut self) -> String {
        match self.ended().await {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// Waits until everything has gone there, for some time. The [`News`] is to be dropped before.
    pub async fn finish(mut self) {
        tokio::select! {
            ended = self.ended() => if let Some(reason) = ended {
                tracing::error!("{reason}");
            },
            () = tokio::time::sleep(FAREWELL) => tracing::warn!(
                "the object store lacks the last of the run's journal and metrics; the same command brings them there \
                 when it can be reached again"
            ),
        }
    }

    /// Waits for the end of the task. None where it has brought the last of the news, or has been found ended before.
    async fn ended(&mut self) -> Option<String> {
        let ended = self.task.as_mut()?.await;
        self.task = None;
        match ended {
            Ok(ended) => ended.err().map(|error| error.to_string()),
            Err(died) => Some(format!("what brings the run to the object store has died: {died}")),
        }
    }
}

/// Brings changes to the store until there are no more.
///
/// # Errors
/// [`MirrorError::Another`]: the store has another's journal. Whatever else goes wrong is told and tried again.
async fn keep(
    store: Store,
    folder: PathBuf,
    mut changes: mpsc::UnboundedReceiver<Due>,
) -> Result<(), MirrorError> {
    let mut due = Due { shown: true, retired: true };
    let mut away: Option<Instant> = None;
    let mut over = false;
    loop {
        match bring(&store, &folder, &mut due).await {
            Ok(()) => {
                if let Some(since) = away.take() {
                    let seconds = since.elapsed().as_secs_f64();
                    tracing::info!("the object store has the run again, after {seconds:.0} s");
                }
                match changes.recv().await {
                    Some(change) => due.add(change),
                    None if over => return Ok(()),
                    // Metrics and curves have come to their end since.
                    None => (over, due.shown) = (true, true),
                }
            }
            Err(another @ MirrorError::Another { .. }) => return Err(another),
            Err(error) => {
                if away.is_none() {
                    tracing::warn!("{error}; the object store gets what it lacks when it is back");
                }
                away.get_or_insert_with(Instant::now);
                tokio::time::sleep(PAUSE).await;
            }
        }
        while let Ok(change) = changes.try_recv() {
            due.add(change);
        }
    }
}

impl Due {
    fn add(&mut self, more: Self) {
        self.shown |= more.shown;
        self.retired |= more.retired;
    }
}

/// Brings what has changed to the store: the journal, what is shown, and then takes away what the journal no longer
/// names. What has been done is no longer due.
async fn bring(store: &Store, folder: &Path, due: &mut Due) -> Result<(), MirrorError> {
    let here = journal::whole_lines(folder)?;
    let facts = match due.retired {
        true => journal::read(&folder.join(journal::JOURNAL), &here)?.0,
        false => Vec::new(),
    };
    bring_journal(store, folder, here).await?;
    if due.shown {
        for name in SHOWN {
            let path = folder.join(name);
            if path.exists() {
                store.put_file(name, &path).await?;
            }
        }
        due.shown = false;
    }
    if due.retired {
        let retired = retired(&facts);
        for name in store.list(CHECKPOINTS).await? {
            // The checksum goes with its file.
            if retired.contains(&Path::new(&name).with_extension("safetensors")) {
                store.remove(&format!("{CHECKPOINTS}/{name}")).await?;
            }
        }
        due.retired = false;
    }
    Ok(())
}

/// Makes `here` the store's journal, if it continues what is there.
async fn bring_journal(store: &Store, folder: &Path, here: Vec<u8>) -> Result<(), MirrorError> {
    for _ in 0..LOOKS {
        let (there, found) = store.find(journal::JOURNAL).await?;
        let there = there.unwrap_or_default();
        if !here.starts_with(&there) {
            return Err(MirrorError::Another { url: store.name_of(""), folder: folder.to_owned() });
        }
        if here.len() == there.len() || store.put_in_place_of(found, journal::JOURNAL, here.clone()).await? {
            return Ok(());
        }
        // Somebody has written it since, or the answer to its having been written was lost.
    }
    Err(StoreError::Contended(store.name_of(journal::JOURNAL)).into())
}

/// The files that were retired, and have not been written again since.
fn retired(facts: &[Fact]) -> BTreeSet<PathBuf> {
    let counted = History::replay(facts).checkpoints;
    let named = facts.iter().flat_map(|fact| match fact {
        Fact::Retired { files } => files.as_slice(),
        _ => &[],
    });
    named.filter(|file| counted.iter().all(|held| held.file != **file)).map(PathBuf::from).collect()
}
