//! The object store that a run goes to, for threads that may wait: the one that saves, and the one that restores.

use std::path::Path;
use std::time::Duration;

use relabel_store::{CHECKPOINTS, Content, Store, StoreError};
use tokio::runtime::Runtime;

use super::{CheckpointError, Written};

/// How long a failed upload goes on to clear up behind itself.
const SOON: Duration = Duration::from_secs(5);

/// A run's checkpoints on an object store.
pub struct Remote {
    store: Store,
    runtime: Runtime,
}

impl Remote {
    /// Those of a run with these options, if it goes to an object store. Nothing is asked of the store yet.
    ///
    /// # Errors
    /// [`CheckpointError::Store`] where the environment does not say how to get there; a system without threads or
    /// sockets to spare.
    pub fn of(options: &relabel_config::Checkpoint) -> Result<Option<Self>, CheckpointError> {
        if options.upload.is_empty() {
            return Ok(None);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(CheckpointError::Runtime)?;
        Ok(Some(Self { store: Store::open(&options.upload)?, runtime }))
    }

    /// Uploads a checkpoint and its checksum under `name`, and `best` too where it is given, and reads each back: when
    /// this returns, the store has them. Where it fails, `name` is not left there.
    ///
    /// # Errors
    /// [`CheckpointError::Store`]: a store that is away or refuses, an upload that came out another.
    pub fn put(&self, written: &Written, name: &str, best: Option<&str>) -> Result<(), CheckpointError> {
        let wanted = Content { bytes: Some(written.bytes), blake3: written.blake3.clone() };
        let stored = self.runtime.block_on(async {
            let file = object(name, "safetensors");
            self.store.put_verified(&file, &written.file, &wanted).await?;
            self.put_sum(written, name).await?;
            if let Some(best) = best {
                self.store.copy_verified(&file, &object(best, "safetensors"), &wanted).await?;
                self.put_sum(written, best).await?;
            }
            Ok::<_, StoreError>(())
        });
        if stored.is_err() {
            self.discard(name);
        }
        Ok(stored?)
    }

    /// Downloads the checkpoint `file` into `folder`, which is to have this BLAKE3 hash.
    ///
    /// # Errors
    /// [`CheckpointError::Store`]: one that is missing or damaged, a store that is away, a disk that refuses.
    pub fn fetch(&self, folder: &Path, file: &str, blake3: &str) -> Result<(), CheckpointError> {
        let wanted = Content { bytes: None, blake3: blake3.to_owned() };
        let (object, path) = (format!("{CHECKPOINTS}/{file}"), folder.join(file));
        Ok(self.runtime.block_on(self.store.fetch(&object, &path, &wanted))?)
    }

    /// Removes what may be there of a checkpoint that does not count, if the store can be told so soon.
    fn discard(&self, name: &str) {
        let removed = async {
            for ending in ["safetensors", "b3"] {
                self.store.remove(&object(name, ending)).await?;
            }
            Ok::<_, StoreError>(())
        };
        let removed = self.runtime.block_on(async { tokio::time::timeout(SOON, removed).await });
        tracing::debug!("removed what there was of {name} on the object store: {removed:?}");
    }

    async fn put_sum(&self, written: &Written, name: &str) -> Result<(), StoreError> {
        let text = format!("{}  {name}.safetensors\n", written.blake3);
        self.store.put(&object(name, "b3"), text.into()).await
    }
}

fn object(name: &str, ending: &str) -> String {
    format!("{CHECKPOINTS}/{name}.{ending}")
}
