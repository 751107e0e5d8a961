//! A run's folder on an object store that speaks S3, as `checkpoint.upload` names it: what the worker that saves and
//! the coordinator do there. Nothing is decided here, and no credential is taken from anywhere but the environment (as
//! AWS's own tools read it: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, ...).
//!
//! An upload that was answered with "stored" is not yet believed: [`Store::put_verified`] reads the object back, whole,
//! and compares its BLAKE3 hash. That costs the transfer once more, and holds for every store, whatever checksums it
//! knows of.

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, ClientConfigKey, ObjectStore, ObjectStoreExt as _, PutMode, RetryConfig, UpdateVersion,
    WriteMultipart,
};
use relabel_config::s3_folder;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Where checkpoints are in the folder, as they are in a run directory.
pub const CHECKPOINTS: &str = "checkpoints";

/// Bytes that one request sends or fetches of a large object. S3 takes parts of at least 5 MiB and at most 10,000 of
/// them, so a checkpoint may have 80 GB.
const PART: u64 = 8 << 20;

/// Parts that are sent at once.
const CONCURRENT: usize = 4;

/// A request that goes wrong is tried again so often, and not after so long: some ten seconds where nobody answers.
const RETRIES: usize = 5;
const RETRY_FOR: Duration = Duration::from_secs(60);

/// How long a connection may take to come about, and a request to be answered: four parts at 5 Mbit/s.
const CONNECT: &str = "5 seconds";
const REQUEST: &str = "60 seconds";

/// How long a store that has failed is asked to forget the parts that it was sent.
const FORGET: Duration = Duration::from_secs(5);

/// Why something on the object store did not come about. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{0} is no folder of an object store: it should look like s3://bucket/prefix")]
    Url(String),
    #[error("cannot use the object store at {url}: {reason}")]
    Open { url: String, reason: String, source: Box<object_store::Error> },
    #[error("cannot {operation} {object}: {reason}")]
    Remote { operation: &'static str, object: String, reason: String, source: Box<object_store::Error> },
    #[error("there is no {0}")]
    Missing(String),
    #[error("{object} is damaged: it has {found}, not {wanted}")]
    Damaged { object: String, found: Content, wanted: Content },
    #[error(
        "cannot store {0}: each time it was found to be another by then (a store that knows no If-Match is used with \
         AWS_CONDITIONAL_PUT=disabled)"
    )]
    Contended(String),
    #[error("cannot {operation} {}: {source}", path.display())]
    File { operation: &'static str, path: PathBuf, source: io::Error },
}

impl StoreError {
    /// Whether this one object is at fault, so that another may do: it is damaged or gone.
    pub fn is_of_the_object(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::Damaged { .. })
    }
}

/// What an object is to hold, or was found to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Its length; None where it is not known.
    pub bytes: Option<u64>,
    /// BLAKE3 of all of it, 64 hexadecimal digits.
    pub blake3: String,
}

impl Content {
    /// Whether what was `found` is this.
    fn is(&self, found: &Self) -> bool {
        self.blake3.eq_ignore_ascii_case(&found.blake3)
            && self.bytes.is_none_or(|bytes| found.bytes == Some(bytes))
    }
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(bytes) = self.bytes {
            write!(f, "{bytes} bytes and ")?;
        }
        write!(f, "the BLAKE3 hash {}", self.blake3)
    }
}

/// Which of the objects that have had a name was found there: none, or one that the store tells from all others.
#[derive(Debug, Clone)]
pub struct Found(Option<UpdateVersion>);

/// A folder on an object store.
#[derive(Clone)]
pub struct Store {
    bucket: Arc<dyn ObjectStore>,
    prefix: Key,
    url: String,
}

impl Store {
    /// The folder at `s3://bucket/prefix`. Nothing is asked of the store yet.
    ///
    /// # Errors
    /// Another form of `url`, or an environment that does not say how to get there.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        let (bucket, prefix) = s3_folder(url).ok_or_else(|| StoreError::Url(url.to_owned()))?;
        // Whichever is the process's own by now serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(200),
                max_backoff: Duration::from_secs(4),
                base: 2.0,
            },
            max_retries: RETRIES,
            retry_timeout: RETRY_FOR,
        };
        let client = AmazonS3ConfigKey::Client;
        let bucket = AmazonS3Builder::from_env()
            .with_config(client(ClientConfigKey::ConnectTimeout), CONNECT)
            .with_config(client(ClientConfigKey::Timeout), REQUEST)
            .with_retry(retry)
            .with_bucket_name(bucket)
            .build()
            .map_err(|source| StoreError::Open {
                url: url.to_owned(),
                reason: line(&source),
                source: source.into(),
            })?;
        Ok(Self {
            bucket: Arc::new(bucket),
            prefix: Key::from(prefix),
            url: url.trim_end_matches('/').to_owned(),
        })
    }

    /// As messages name an object of the folder.
    pub fn name_of(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }

    /// Uploads `file` as the object `name` and reads it back: when this returns, the store holds `wanted`. What it
    /// holds instead is removed.
    ///
    /// # Errors
    /// A file that cannot be read, a store that cannot be reached or refuses, an object that came out another.
    pub async fn put_verified(&self, name: &str, file: &Path, wanted: &Content) -> Result<(), StoreError> {
        self.put_file(name, file).await?;
        self.verify(name, wanted).await
    }

    /// Makes the object `from` available as `to` as well, without its going over the network, and reads it there.
    ///
    /// # Errors
    /// As [`Self::put_verified`].
    pub async fn copy_verified(&self, from: &str, to: &str, wanted: &Content) -> Result<(), StoreError> {
        let copied = self.bucket.copy(&self.key(from), &self.key(to)).await;
        copied.map_err(self.failed("copy", from))?;
        self.verify(to, wanted).await
    }

    /// Uploads `file` as the object `name`, unread: what nobody counts on.
    ///
    /// # Errors
    /// As [`Self::put_verified`].
    pub async fn put_file(&self, name: &str, file: &Path) -> Result<(), StoreError> {
        let unread = |source| StoreError::File { operation: "read", path: file.to_owned(), source };
        let mut input = tokio::fs::File::open(file).await.map_err(unread)?;
        let mut part = next_part(&mut input).await.map_err(unread)?;
        if (part.len() as u64) < PART {
            return self.put(name, part).await;
        }
        let upload = self.bucket.put_multipart(&self.key(name)).await.map_err(self.failed("upload", name))?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART as usize);
        let sent = async {
            while !part.is_empty() {
                let room = upload.wait_for_capacity(CONCURRENT).await;
                room.map_err(self.failed("upload", name))?;
                upload.put(std::mem::take(&mut part).into());
                part = next_part(&mut input).await.map_err(unread)?;
            }
            // Each of them is there before the end is told: an error is still to be cleared away below.
            upload.wait_for_capacity(0).await.map_err(self.failed("upload", name))
        };
        if let Err(error) = sent.await {
            // Parts without an end would be paid for. A store that is away cannot be told, and is not waited for.
            let _ = tokio::time::timeout(FORGET, upload.abort()).await;
            return Err(error);
        }
        upload.finish().await.map_err(self.failed("upload", name))?;
        Ok(())
    }

    /// Stores a small object.
    ///
    /// # Errors
    /// A store that cannot be reached or refuses. Its answer is believed: the request is signed with a hash of `bytes`.
    pub async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        self.bucket.put(&self.key(name), bytes.into()).await.map_err(self.failed("store", name))?;
        Ok(())
    }

    /// Stores a small object where there still is what was `found`, and says whether that was so: of several that write
    /// at once, one comes through. Not so may be said, too, of what has come through after all, after an answer was lost.
    ///
    /// A store that knows no such conditions is written to without, where `AWS_CONDITIONAL_PUT=disabled` says so.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn put_in_place_of(
        &self,
        found: Found,
        name: &str,
        bytes: Vec<u8>,
    ) -> Result<bool, StoreError> {
        let mode = found.0.map_or(PutMode::Create, PutMode::Update);
        match self.bucket.put_opts(&self.key(name), bytes.clone().into(), mode.into()).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::Precondition { .. } | object_store::Error::AlreadyExists { .. }) => {
                Ok(false)
            }
            Err(object_store::Error::NotImplemented { .. }) => self.put(name, bytes).await.map(|()| true),
            Err(error) => Err(self.failed("store", name)(error)),
        }
    }

    /// A small object, if it is there.
    ///
    /// # Errors
    /// A store that cannot be reached or refuses.
    pub async fn get(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.find(name).await?.0)
    }

    /// A small object, if it is there, and what [`Self::put_in_place_of`] is to know of it.
    ///
    /// # Errors
    /// A store that cannot be reached or refuses.
    pub async fn find(&self, name: &str) -> Result<(Option<Vec<u8>>, Found), StoreError> {
        let read = async {
            let object = self.bucket.get(&self.key(name)).await?;
            let version =
                UpdateVersion { e_tag: object.meta.e_tag.clone(), version: object.meta.version.clone() };
            Ok((object.bytes().await?, version))
        };
        match read.await {
            Ok((bytes, version)) => Ok((Some(bytes.into()), Found(Some(version)))),
            Err(object_store::Error::NotFound { .. }) => Ok((None, Found(None))),
            Err(error) => Err(self.failed("read", name)(error)),
        }
    }

    /// The names of the objects that lie in the folder `folder` of this one.
    ///
    /// # Errors
    /// A store that cannot be reached or refuses.
    pub async fn list(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let listed = self.bucket.list_with_delimiter(Some(&self.key(folder))).await;
        let objects = listed.map_err(self.failed("list", folder))?.objects;
        Ok(objects.iter().filter_map(|object| object.location.filename().map(str::to_owned)).collect())
    }

    /// Downloads the object `name` to `file`, which has its name only once it is whole and found to be `wanted`.
    ///
    /// # Errors
    /// An object that is missing or damaged; a store that cannot be reached; a disk that refuses.
    pub async fn fetch(&self, name: &str, file: &Path, wanted: &Content) -> Result<(), StoreError> {
        let at = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::File { operation, path, source }
        };
        if let Some(folder) = file.parent() {
            tokio::fs::create_dir_all(folder).await.map_err(at("make the folder", folder))?;
        }
        let hidden =
            format!(".{}.{}.tmp", file.file_name().unwrap_or_default().to_string_lossy(), std::process::id());
        let part = file.with_file_name(hidden);
        let fetched = async {
            let mut out = tokio::fs::File::create(&part).await.map_err(at("write", &part))?;
            self.read(name, Some((&mut out, &part)), wanted).await?;
            out.sync_all().await.map_err(at("sync", &part))?;
            tokio::fs::rename(&part, file).await.map_err(at("rename the fetched", file))
        };
        let fetched = fetched.await;
        if fetched.is_err() {
            // What went wrong is worth telling; that a part is left is not.
            let _ = tokio::fs::remove_file(&part).await;
        }
        fetched
    }

    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    /// A store that cannot be reached or refuses.
    pub async fn remove(&self, name: &str) -> Result<(), StoreError> {
        match self.bucket.delete(&self.key(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("remove", name)(error)),
        }
    }

    /// Reads the whole object; one that is not `wanted` is removed.
    async fn verify(&self, name: &str, wanted: &Content) -> Result<(), StoreError> {
        let read = self.read(name, None, wanted).await;
        if let Err(StoreError::Damaged { .. }) = &read {
            // It counts for nobody, and the error says more than that it could not be removed either.
            let _ = self.remove(name).await;
        }
        read
    }

    /// Reads the whole object, writing it down where somebody wants it, and compares it.
    async fn read(
        &self,
        name: &str,
        mut out: Option<(&mut tokio::fs::File, &Path)>,
        wanted: &Content,
    ) -> Result<(), StoreError> {
        let key = self.key(name);
        let missing = |error| match error {
            object_store::Error::NotFound { .. } => StoreError::Missing(self.name_of(name)),
            error => self.failed("read", name)(error),
        };
        let bytes = self.bucket.head(&key).await.map_err(missing)?.size;
        let mut hasher = blake3::Hasher::new();
        // By parts, each in the time that a request may take and tried again by itself.
        let mut at = 0;
        while at < bytes {
            let end = bytes.min(at + PART);
            let part = self.bucket.get_range(&key, at..end).await.map_err(missing)?;
            hasher.update(&part);
            if let Some((file, path)) = &mut out {
                let written = file.write_all(&part).await;
                written.map_err(|source| StoreError::File {
                    operation: "write",
                    path: path.to_path_buf(),
                    source,
                })?;
            }
            at = end;
        }
        if let Some((file, path)) = &mut out {
            let flushed = file.flush().await;
            flushed.map_err(|source| StoreError::File {
                operation: "write",
                path: path.to_path_buf(),
                source,
            })?;
        }
        let found = Content { bytes: Some(bytes), blake3: hasher.finalize().to_hex().to_string() };
        match wanted.is(&found) {
            true => Ok(()),
            false => Err(StoreError::Damaged { object: self.name_of(name), found, wanted: wanted.clone() }),
        }
    }

    fn key(&self, name: &str) -> Key {
        name.split('/').fold(self.prefix.clone(), |key, part| key.join(part))
    }

    fn failed(
        &self,
        operation: &'static str,
        name: &str,
    ) -> impl FnOnce(object_store::Error) -> StoreError + use<> {
        let object = self.name_of(name);
        move |source| StoreError::Remote { operation, object, reason: line(&source), source: source.into() }
    }
}

/// The next [`PART`] of a file; less at its end, and then nothing.
async fn next_part(input: &mut tokio::fs::File) -> io::Result<Vec<u8>> {
    let mut part = Vec::new();
    input.take(PART).read_to_end(&mut part).await?;
    Ok(part)
}

/// An error of the store in one line, of a bearable length: it may bring the whole answer of a server along.
fn line(error: &object_store::Error) -> String {
    let words = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    match words.char_indices().nth(400) {
        Some((at, _)) => format!("{}...", &words[..at]),
        None => words,
    }
}
