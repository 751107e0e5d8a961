//! The object store that a run goes to, for threads that may wait: the one that saves, and the one that restores.

use std::path::Path;

use relabel_store::{CHECKPOINTS, Content, Store, StoreError};
use tokio::runtime::Runtime;

use super::{CheckpointError, Written};

/// A run's checkpoints on an object store.
pub struct Remote {
    store: Store,
    runtime: Runtime,
}

impl Remote {
    /// Those of the run at `url`, which is `s3://bucket/prefix`. Nothing is asked of the store yet.
    ///
    /// # Errors
    /// [`CheckpointError::Store`] where the environment does not say how to get there; a system without threads or
    /// sockets to spare.
    pub fn open(url: &str) -> Result<Self, CheckpointError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Self { store: Store::open(url)?, runtime: runtime.map_err(CheckpointError::Runtime)? })
    }

    /// Uploads a checkpoint and its checksum under `name`, and reads it back: when this returns, the store has it.
    ///
    /// # Errors
    /// [`CheckpointError::Store`]: a store that is away or refuses, an upload that came out another.
    pub fn put(&self, written: &Written, name: &str) -> Result<(), CheckpointError> {
        let wanted = Content { bytes: Some(written.bytes), blake3: written.blake3.clone() };
        self.runtime.block_on(async {
            self.store.put_verified(&object(name, "safetensors"), &written.file, &wanted).await?;
            self.put_sum(written, name).await
        })?;
        Ok(())
    }

    /// Makes the checkpoint `name`, which the store has, available under the name `other` too.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn keep_as(&self, written: &Written, name: &str, other: &str) -> Result<(), CheckpointError> {
        let wanted = Content { bytes: Some(written.bytes), blake3: written.blake3.clone() };
        let [from, to] = [name, other].map(|name| object(name, "safetensors"));
        self.runtime.block_on(async {
            self.store.copy_verified(&from, &to, &wanted).await?;
            self.put_sum(written, other).await
        })?;
        Ok(())
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

    /// Removes a checkpoint that nobody counts on.
    pub fn discard(&self, name: &str) {
        for ending in ["safetensors", "b3"] {
            if let Err(error) = self.runtime.block_on(self.store.remove(&object(name, ending))) {
                tracing::warn!("{error}");
            }
        }
    }

    async fn put_sum(&self, written: &Written, name: &str) -> Result<(), StoreError> {
        let text = format!("{}  {name}.safetensors\n", written.blake3);
        self.store.put(&object(name, "b3"), text.into()).await
    }
}

fn object(name: &str, ending: &str) -> String {
    format!("{CHECKPOINTS}/{name}.{ending}")
}
