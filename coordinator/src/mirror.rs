//! The run's folder on an object store, where `checkpoint.upload` names one: the journal follows each fact, metrics and
//! curves each checkpoint. Checkpoints go there from the worker that wrote them, and are the journal's only when that
//! worker has read them back. An old one is removed from the store only after the journal there no longer names it, so
//! that at any moment what is on the store can be resumed from.
//!
//! A store that is away costs nothing but its copy: what has not gone there goes there later.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use relabel_core::Fact;
use relabel_store::{Store, StoreError};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::journal::{self, JournalError};

/// What goes there with each checkpoint, as far as it is there.
const SHOWN: [&str; 3] = ["config.yaml", "metrics.jsonl", "curves.svg"];

/// Between two tries to reach a store that is away.
const PAUSE: Duration = Duration::from_secs(5);

/// How long the end of a run waits for what has not gone there yet.
const FAREWELL: Duration = Duration::from_secs(45);

/// Why a folder and the store do not go together.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("{} holds a run that goes another way than this folder's, {}: name another checkpoint.upload or --run-dir", .0, .1.display())]
    Another(String, PathBuf),
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
        matches!(self, Self::Another(..) | Self::Unnamed(_))
    }
}

/// Brings `folder` up to what the store holds of the run, if it holds more of it: a folder on a new machine, or one that
/// the run has gone on without. None is a folder of a new name. Returns whether something was fetched.
///
/// # Errors
/// Another run on the store; a store that cannot be reached, unless `folder` holds a run, with which it goes on.
pub async fn catch_up(store: &Store, folder: Option<&Path>) -> Result<bool, MirrorError> {
    // The store first: a coordinator that is at work in `folder` can only have gone further by the second look.
    let there = store.get(journal::JOURNAL).await;
    let here = match folder {
        Some(folder) => journal::whole_lines(folder)?,
        None => Vec::new(),
    };
    let there = match there {
        Ok(Some(there)) => there,
        Ok(None) => return Ok(false),
        Err(error) if !here.is_empty() => {
            tracing::warn!("{error}; going on with what is in the run's folder");
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    };
    if here.starts_with(&there) {
        return Ok(false);
    }
    let url = store.name_of("");
    let Some(folder) = folder else { return Err(MirrorError::Unnamed(url)) };
    if !there.starts_with(&here) {
        return Err(MirrorError::Another(url, folder.to_owned()));
    }
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
    Ok(true)
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), MirrorError> {
    let part = path.with_extension("fetched");
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    written.map_err(|source| MirrorError::Write { path: path.to_owned(), source })
}

/// The task that keeps the store's copy. Without [`Self::finish`] it ends with the process.
pub struct Mirror {
    news: mpsc::UnboundedSender<News>,
    task: JoinHandle<()>,
}

/// What has changed in the folder.
#[derive(Debug, Default)]
struct News {
    /// The pictures and numbers that people look at.
    shown: bool,
    /// Files of checkpoints that the journal no longer names.
    retired: Vec<String>,
}

impl Mirror {
    /// Starts with all that is in `folder`.
    pub fn start(store: Store, folder: PathBuf) -> Self {
        let (news, changes) = mpsc::unbounded_channel();
        let task = tokio::spawn(keep(store, folder, changes));
        let mirror = Self { news, task };
        mirror.tell(News { shown: true, retired: Vec::new() });
        mirror
    }

    /// A fact is in the journal.
    pub fn noted(&self, fact: &Fact) {
        self.tell(match fact {
            Fact::Retired { files } => News { shown: false, retired: files.clone() },
            fact => News { shown: matches!(fact, Fact::Committed { .. }), retired: Vec::new() },
        });
    }

    fn tell(&self, news: News) {
        // It listens for as long as this is there.
        let _ = self.news.send(news);
    }

    /// Waits until everything has gone there, for some time.
    pub async fn finish(self) {
        self.tell(News { shown: true, retired: Vec::new() });
        drop(self.news);
        if tokio::time::timeout(FAREWELL, self.task).await.is_err() {
            tracing::warn!(
                "the object store lacks the last of the run's journal and metrics; the same command brings them there \
                 when it can be reached again"
            );
        }
    }
}

/// Brings changes to the store until there are no more.
async fn keep(store: Store, folder: PathBuf, mut changes: mpsc::UnboundedReceiver<News>) {
    let (mut shown, mut retired) = (false, BTreeSet::new());
    let mut away: Option<Instant> = None;
    let mut more = true;
    while more {
        // The first of them, or the time to try again.
        let first = match away {
            Some(_) => tokio::time::timeout(PAUSE, changes.recv()).await.unwrap_or(Some(News::default())),
            None => changes.recv().await,
        };
        more = first.is_some();
        let rest = std::iter::from_fn(|| changes.try_recv().ok());
        for news in first.into_iter().chain(rest) {
            shown |= news.shown;
            retired.extend(news.retired);
        }
        match bring(&store, &folder, shown, &mut retired).await {
            Ok(()) => {
                shown = false;
                if let Some(since) = away.take() {
                    tracing::info!(
                        "the object store has the run again, after {:.0} s",
                        since.elapsed().as_secs_f64()
                    );
                }
            }
            Err(error) => {
                if away.is_none() {
                    tracing::warn!("{error}; the object store gets what it lacks when it is back");
                }
                away.get_or_insert_with(Instant::now);
                if !more {
                    // Nothing else comes: until the time for it is over.
                    more = true;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Brings what has changed to the store: what is shown, the journal, and then takes away what that no longer names.
async fn bring(
    store: &Store,
    folder: &Path,
    shown: bool,
    retired: &mut BTreeSet<String>,
) -> Result<(), MirrorError> {
    if shown {
        for name in SHOWN {
            match tokio::fs::read(folder.join(name)).await {
                Ok(bytes) => store.put(name, bytes.into()).await?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                // Its writers say more of it, and the run can be resumed without.
                Err(error) => tracing::warn!("cannot read {}: {error}", folder.join(name).display()),
            }
        }
    }
    let journal = journal::whole_lines(folder)?;
    store.put(journal::JOURNAL, Bytes::from(journal)).await?;
    while let Some(file) = retired.first().cloned() {
        let sidecar = Path::new(&file).with_extension("b3").display().to_string();
        for name in [&file, &sidecar] {
            store.remove(&format!("{}/{name}", relabel_store::CHECKPOINTS)).await?;
        }
        retired.remove(&file);
    }
    Ok(())
}
