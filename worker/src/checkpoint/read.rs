//! Reading: nothing of a file is believed before its checksum has been found right.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;

use super::write::{
    DIGEST, EXTRA, FORMAT, FORMAT_NAME, LOSS_SCALE, LOSS_SCALE_STEPS, NO_DIGEST, OPTIMIZER, OPTIMIZER_NAME,
    TRAINED,
};
use super::{CheckpointError, Progress, State, safetensors_file};
use crate::train::loss_scale::LossScale;

/// Compares the whole file at `path` with `expected` (64 hexadecimal digits), or with the `.b3` file beside it.
/// Needs no memory to speak of.
///
/// # Errors
/// [`CheckpointError::Damaged`] if they differ, [`CheckpointError::Read`] if there is nothing to read or compare with.
pub fn verify(path: &Path, expected: Option<&str>) -> Result<(), CheckpointError> {
    let expected = match expected {
        Some(expected) => expected.to_owned(),
        None => {
            let sidecar = path.with_extension("b3");
            let text = std::fs::read(&sidecar)
                .map_err(|source| CheckpointError::Read { path: sidecar.clone(), source })?;
            let text = String::from_utf8_lossy(&text);
            match text.split_whitespace().next() {
                Some(hash) if hash.len() == NO_DIGEST.len() => hash.to_owned(),
                _ => {
                    let reason = "it does not begin with a BLAKE3 hash of 64 digits".to_owned();
                    return Err(CheckpointError::Damaged { path: sidecar, reason });
                }
            }
        }
    };
    let read = |source| CheckpointError::Read { path: path.to_owned(), source };
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut File::open(path).map_err(read)?, &mut hasher).map_err(read)?;
    let found = hasher.finalize().to_hex();
    if found.as_str().eq_ignore_ascii_case(&expected) {
        return Ok(());
    }
    let reason = format!("its BLAKE3 hash is {found}, not {expected}");
    Err(CheckpointError::Damaged { path: path.to_owned(), reason })
}

/// Reads the checkpoint at `path` after verifying that it is the one of that BLAKE3.
///
/// # Errors
/// As [`verify`] and [`load`].
pub fn load_verified(path: &Path, blake3: &str) -> Result<State, CheckpointError> {
    verify(path, Some(blake3))?;
    load(path)
}

/// Reads the checkpoint at `path`, and checks it against the digest in its own header.
///
/// # Errors
/// Unreadable, damaged (cut short, any byte changed), or not a checkpoint.
pub fn load(path: &Path) -> Result<State, CheckpointError> {
    let file =
        std::fs::read(path).map_err(|source| CheckpointError::Read { path: path.to_owned(), source })?;
    parse(path, file)
}

/// Whether the metadata of a safetensors header is that of a checkpoint of this program.
pub(crate) fn is_ours(metadata: &HashMap<String, String>) -> bool {
    metadata.get(FORMAT).map(String::as_str) == Some(FORMAT_NAME)
}

/// As [`load`], of a file's bytes; `path` is for messages.
pub(crate) fn parse(path: &Path, mut file: Vec<u8>) -> Result<State, CheckpointError> {
    let damaged = |reason: String| CheckpointError::Damaged { path: path.to_owned(), reason };
    let (header, data_start) = safetensors_file::parse(&file).map_err(damaged)?;
    let none = HashMap::new();
    let text = header.metadata().as_ref().unwrap_or(&none);
    if !is_ours(text) {
        let reason = format!("its header does not say {FORMAT} {FORMAT_NAME}");
        return Err(CheckpointError::Foreign { path: path.to_owned(), reason });
    }
    let field = |key: &str| text.get(key).ok_or_else(|| damaged(format!("its header lacks {key}")));
    check_digest(&mut file, data_start, field(DIGEST)?).map_err(damaged)?;

    let number = |key| field(key)?.parse::<i64>().map_err(|error| damaged(format!("{key}: {error}")));
    let (epoch, step) = (number("epoch")?, number("step")?);
    let progress = Progress {
        epoch: u32::try_from(epoch).map_err(|error| damaged(format!("epoch {epoch}: {error}")))?,
        step: u64::try_from(step).map_err(|error| damaged(format!("step {step}: {error}")))?,
        seed: number("seed")?,
    };
    let extra = |(key, value): (&String, &String)| Some((key.strip_prefix(EXTRA)?.to_owned(), value.clone()));
    let metadata: BTreeMap<String, String> = text.iter().filter_map(extra).collect();
    let (mut plain, mut trained, mut optimizer) = (Vec::new(), Vec::new(), Vec::new());
    for (name, tensor) in safetensors_file::tensors(&file, &header, data_start).map_err(damaged)? {
        if let Some(name) = name.strip_prefix(TRAINED) {
            trained.push((name.to_owned(), tensor));
        } else if let Some(name) = name.strip_prefix(OPTIMIZER) {
            optimizer.push((name.to_owned(), tensor));
        } else {
            plain.push((name, tensor));
        }
    }
    let (model, ema) = if trained.is_empty() { (plain, None) } else { (trained, Some(plain)) };
    let optimizer_name = text.get(OPTIMIZER_NAME).map_or("sgd", String::as_str).to_owned();
    let loss_scale = loss_scale(text).map_err(damaged)?;
    let arch = field("arch")?.clone();
    Ok(State { progress, arch, metadata, model, ema, optimizer_name, optimizer, loss_scale })
}

/// What the loss was scaled by, in files of runs in fp16.
fn loss_scale(text: &HashMap<String, String>) -> Result<Option<LossScale>, String> {
    let Some(scale) = text.get(LOSS_SCALE) else { return Ok(None) };
    let scale = scale.parse().map_err(|error| format!("{LOSS_SCALE}: {error}"))?;
    let steps = text.get(LOSS_SCALE_STEPS).ok_or_else(|| format!("its header lacks {LOSS_SCALE_STEPS}"))?;
    let steps = steps.parse().map_err(|error| format!("{LOSS_SCALE_STEPS}: {error}"))?;
    LossScale::new(scale, steps).map(Some)
}

/// Puts zeros where `digest` stands in the header, as it was when the digest was taken, and takes it again.
fn check_digest(file: &mut [u8], data_start: usize, digest: &str) -> Result<(), String> {
    let place = file[..data_start].windows(NO_DIGEST.len()).position(|window| window == digest.as_bytes());
    let Some(place) = place else {
        return Err("the checksum in its header is not one".to_owned());
    };
    file[place..place + NO_DIGEST.len()].copy_from_slice(NO_DIGEST.as_bytes());
    let found = blake3::hash(file).to_hex();
    if found.as_str() == digest {
        return Ok(());
    }
    Err(format!("its contents have the BLAKE3 hash {found}, not {digest} as its header says"))
}
