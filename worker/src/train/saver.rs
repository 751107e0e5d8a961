//! Writes checkpoints on a thread of its own; training waits for neither that nor, but for what is left of it at the next
//! update, for the copy in memory.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use relabel_core::{DutyId, FromWorker, Position, Written};

use crate::checkpoint::{self, CheckpointError, Copying, Remote, State};
use crate::session::Reports;

/// A state and what is to become of it.
pub(super) struct Save {
    pub duty: DutyId,
    pub state: State,
    pub position: Position,
    /// Keep it under the name of the best as well.
    pub best: bool,
}

enum Job {
    Save(Box<Save>),
    Remove(Vec<String>),
}

/// The writing thread. Dropping it waits for what it has been given.
pub(super) struct Saver {
    jobs: Option<mpsc::Sender<Job>>,
    /// States whose memory is free for the next copy.
    spares: mpsc::Receiver<State>,
    reports: Reports,
    thread: Option<JoinHandle<()>>,
}

impl Saver {
    /// Starts the thread that writes into `folder`, and to an object store where the run goes to one; first it makes room
    /// for the copy of a state `like` those to come.
    pub(super) fn start(
        folder: PathBuf,
        remote: Option<Remote>,
        reports: Reports,
        like: State,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel();
        let (spare, spares) = mpsc::channel();
        let target = Target { folder, remote };
        let to_coordinator = reports.clone();
        let thread = std::thread::Builder::new().name("saver".into()).spawn(move || {
            // Sent in vain where training has ended. Where there is no memory, the copy itself says so.
            if let Ok(room) = like.room() {
                let _ = spare.send(room);
            }
            drop(like);
            for job in queue {
                match job {
                    Job::Save(save) => {
                        to_coordinator.send(target.write(&save));
                        let _ = spare.send(save.state);
                    }
                    Job::Remove(files) => remove(&target.folder, &files),
                }
            }
        })?;
        Ok(Self { jobs: Some(jobs), spares, reports, thread: Some(thread) })
    }

    /// Copies the state and has the copy written. Nothing may change weights or optimizer before [`Copying::wait`].
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn save(&self, save: Save) -> std::io::Result<Copying> {
        // Of several that are not being written one is enough: the memory of all but the last is given back.
        let spare = self.spares.try_iter().last();
        let (jobs, reports) = (self.jobs.clone(), self.reports.clone());
        let Save { duty, state, position, best } = save;
        state.copied_behind(spare, move |copied| match copied {
            Ok(state) => give(jobs.as_ref(), Job::Save(Box::new(Save { duty, state, position, best }))),
            Err(error) => reports.send(FromWorker::CheckpointFailed { duty, reason: error.to_string() }),
        })
    }

    pub(super) fn remove(&self, files: Vec<String>) {
        give(self.jobs.as_ref(), Job::Remove(files));
    }
}

fn give(jobs: Option<&mpsc::Sender<Job>>, job: Job) {
    let given = jobs.map(|jobs| jobs.send(job));
    if !matches!(given, Some(Ok(()))) {
        tracing::error!("the thread that writes checkpoints has died; checkpoints are no longer written");
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed already.
            let _ = thread.join();
        }
    }
}

/// Where checkpoints go.
struct Target {
    folder: PathBuf,
    remote: Option<Remote>,
}

impl Target {
    /// Writes a state and says how that went. Where the run goes to an object store, a checkpoint that is not there is
    /// a failed one.
    fn write(&self, save: &Save) -> FromWorker {
        let Save { duty, state, position, best } = save;
        let arch = relabel_config::file_stem(&state.arch);
        let name = format!("{arch}-e{:04}-s{:06}", position.epoch, position.step);
        let best = best.then(|| format!("{arch}-best"));
        let began = std::time::Instant::now();
        let written = checkpoint::write(state, &self.folder, &name).and_then(|written| {
            if let Some(remote) = &self.remote {
                self.upload(remote, &written, &arch, &name, best.as_deref())?;
            }
            if let Some(best) = &best {
                checkpoint::keep_as(&written, &self.folder, best)?;
            }
            Ok(written)
        });
        match written {
            Ok(written) => {
                tracing::debug!("wrote {} in {:.2?}", written.file.display(), began.elapsed());
                let file = format!("{name}.safetensors");
                let (bytes, blake3) = (written.bytes, written.blake3);
                FromWorker::CheckpointWritten {
                    duty: *duty,
                    written: Written { file, bytes, blake3, position: *position },
                }
            }
            Err(error) => FromWorker::CheckpointFailed { duty: *duty, reason: error.to_string() },
        }
    }

    /// Brings a checkpoint to the object store. One that does not get there does not count, but may be the last that there
    /// is: it stays here under another name, until the next gets there or takes its place.
    fn upload(
        &self,
        remote: &Remote,
        written: &checkpoint::Written,
        arch: &str,
        name: &str,
        best: Option<&str>,
    ) -> Result<(), CheckpointError> {
        let unsent = format!("{arch}-unsent");
        let sent = remote.put(written, name, best);
        match &sent {
            Ok(()) => remove(&self.folder, &[format!("{unsent}.safetensors")]),
            Err(_) => match checkpoint::keep_as(written, &self.folder, &unsent) {
                Ok(()) => remove(&self.folder, &[format!("{name}.safetensors")]),
                Err(error) => tracing::warn!("{error}"),
            },
        }
        sent
    }
}

/// Removes old files. One that cannot be removed costs room, not correctness.
fn remove(folder: &Path, files: &[String]) {
    for file in files {
        let path = folder.join(file);
        for path in [path.with_extension("b3"), path] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!("cannot remove the old checkpoint {}: {error}", path.display());
                }
                _ => {}
            }
        }
    }
}

/// How long nothing may have been written to a half-written file before it counts as left behind: another rank may be
/// writing.
const LEFT_BEHIND: Duration = Duration::from_secs(600);

/// Removes what a killed writer left half written long ago.
pub(super) fn remove_leftovers(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let modified = path.metadata().and_then(|metadata| metadata.modified());
        let old = modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LEFT_BEHIND));
        if name.starts_with('.') && name.ends_with(".tmp") && old {
            match std::fs::remove_file(&path) {
                Ok(()) => tracing::info!("removed {}, which a killed writer left behind", path.display()),
                Err(error) => tracing::warn!("cannot remove the half-written {}: {error}", path.display()),
            }
        }
    }
}
