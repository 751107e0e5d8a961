//! Writing: to a temporary file, synced, then renamed, so that a name never stands for half a file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tch::Tensor;

use super::safetensors_file::Contents;
use super::temporary::Temporary;
use super::{CheckpointError, State};
use crate::train::loss_scale::LossScale;

/// Keys of the header's metadata. Those of [`State::metadata`] follow [`EXTRA`].
pub(super) const FORMAT: &str = "format";
pub(super) const FORMAT_NAME: &str = "relabel-checkpoint-1";
pub(super) const DIGEST: &str = "blake3";
pub(super) const EXTRA: &str = "extra.";
/// Stands in the digest's place while the digest is taken.
pub(super) const NO_DIGEST: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// What the names of the optimizer's tensors begin with.
pub(super) const OPTIMIZER: &str = "optimizer.";
/// What the names of the trained weights begin with where the plain names hold their average.
pub(super) const TRAINED: &str = "optimizer.trained.";
/// Key of the optimizer's name; a file without it is from a time when there was only one.
pub(super) const OPTIMIZER_NAME: &str = "optimizer";
/// Keys of what the loss is scaled by, in files of runs in fp16.
pub(super) const LOSS_SCALE: &str = "loss_scale";
pub(super) const LOSS_SCALE_STEPS: &str = "loss_scale_steps";

/// A checkpoint that is on the disk for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub file: PathBuf,
    /// Length of the file.
    pub bytes: u64,
    /// BLAKE3 of the whole file, 64 hexadecimal digits.
    pub blake3: String,
}

/// Writes `state` to `dir/name.safetensors` and its checksum to `dir/name.b3`; makes `dir` if need be.
/// When this returns, both have been synced, and they replace files of the same name at once.
///
/// # Errors
/// [`CheckpointError::Write`] names the path, the cause and the bytes needed. Temporary files are removed.
pub fn write(state: &State, dir: &Path, name: &str) -> Result<Written, CheckpointError> {
    let mut contents = contents(state);
    let file_name = format!("{name}.safetensors");
    let file = dir.join(&file_name);
    let needed = contents.file_len().map_err(failed("lay out", &file, 0))?;
    std::fs::create_dir_all(dir).map_err(failed("make the folder", dir, needed))?;

    let digest = digest(&contents).map_err(failed("lay out", &file, needed))?;
    contents.metadata.insert(DIGEST.to_owned(), digest);

    let sidecar = dir.join(format!("{name}.b3"));
    let mut hashing = None;
    let temporary = Temporary::write(&file, |out| {
        let mut writer = Hashing { out, hasher: blake3::Hasher::new() };
        contents.write(&mut writer)?;
        hashing = Some(writer.hasher.finalize().to_hex().to_string());
        Ok(())
    })
    .map_err(failed("write", &file, needed))?;
    let blake3 = hashing.unwrap_or_default();
    let sidecar_temporary = Temporary::write(&sidecar, |out| writeln!(out, "{blake3}  {file_name}"))
        .map_err(failed("write", &sidecar, needed))?;

    temporary.rename(&file).map_err(failed("rename the finished", &file, needed))?;
    sidecar_temporary.rename(&sidecar).map_err(failed("rename the finished", &sidecar, needed))?;
    // A rename is durable only once the folder is.
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync the folder", dir, needed))?;
    Ok(Written { file, bytes: needed, blake3 })
}

/// Makes `written` available under `name` in the same folder as well, in place of what had that name. No
/// data is copied: both names are links to one file.
///
/// # Errors
/// [`CheckpointError::Write`], as on a file system without hard links.
pub fn keep_as(written: &Written, dir: &Path, name: &str) -> Result<(), CheckpointError> {
    let target = dir.join(format!("{name}.safetensors"));
    let temporary =
        Temporary::link(&written.file, &target).map_err(failed("link", &target, written.bytes))?;
    temporary.rename(&target).map_err(failed("rename the link", &target, written.bytes))?;
    let sidecar = dir.join(format!("{name}.b3"));
    Temporary::write(&sidecar, |out| writeln!(out, "{}  {name}.safetensors", written.blake3))
        .and_then(|temporary| temporary.rename(&sidecar))
        .map_err(failed("write", &sidecar, written.bytes))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync the folder", dir, written.bytes))
}

fn failed<'a>(
    operation: &'static str,
    path: &'a Path,
    needed: u64,
) -> impl FnOnce(io::Error) -> CheckpointError + use<'a> {
    move |source| CheckpointError::Write { operation, path: path.to_owned(), needed, source }
}

fn contents(state: &State) -> Contents<'_> {
    let mut metadata: BTreeMap<String, String> =
        state.metadata.iter().map(|(key, value)| (format!("{EXTRA}{key}"), value.clone())).collect();
    for (key, value) in [
        (FORMAT, FORMAT_NAME.to_owned()),
        (DIGEST, NO_DIGEST.to_owned()),
        ("epoch", state.progress.epoch.to_string()),
        ("step", state.progress.step.to_string()),
        ("seed", state.progress.seed.to_string()),
        ("arch", state.arch.clone()),
        (OPTIMIZER_NAME, state.optimizer_name.clone()),
    ] {
        metadata.insert(key.to_owned(), value);
    }
    if let Some(LossScale { scale, good_steps }) = state.loss_scale {
        metadata.insert(LOSS_SCALE.to_owned(), scale.to_string());
        metadata.insert(LOSS_SCALE_STEPS.to_owned(), good_steps.to_string());
    }
    let (plain, trained) = match &state.ema {
        Some(average) => (average.as_slice(), state.model.as_slice()),
        None => (state.model.as_slice(), [].as_slice()),
    };
    let tensors =
        prefixed("", plain).chain(prefixed(TRAINED, trained)).chain(prefixed(OPTIMIZER, &state.optimizer));
    Contents::new(tensors, metadata)
}

/// `tensors` with `prefix` before their names.
fn prefixed<'a>(
    prefix: &'static str,
    tensors: &'a [(String, Tensor)],
) -> impl Iterator<Item = (Cow<'a, str>, &'a Tensor)> {
    tensors.iter().map(move |(name, tensor)| (Cow::from(format!("{prefix}{name}")), tensor))
}

/// BLAKE3 of the file as it would be with zeros for the digest itself.
fn digest(contents: &Contents<'_>) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    contents.write(&mut hasher)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Hashes what passes through.
struct Hashing<'a> {
    out: &'a mut File,
    hasher: blake3::Hasher,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
