//! Finds the state_dict in a file, whoever wrote it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tch::Tensor;

use super::{Container, Weights, WeightsError};
use crate::checkpoint::{self, safetensors_file};
use crate::model::StateDict;
use crate::pt::pickle::{TensorRef, Value};
use crate::pt::{Format, PtFile};
use crate::torch;

/// Where checkpoints keep their state_dict, most usual first: the reference, torchvision and timm, then
/// others. Averaged weights come last, where a file has both.
const WRAPPERS: [&str; 5] = ["state_dict", "model", "model_state", "model_state_dict", "state_dict_ema"];
/// What wrapping modules put before every name.
const PREFIXES: [&str; 2] = ["module.", "_orig_mod."];
/// How much longer than the file its tensors may be: some share a storage or are expanded, most do not.
const SHARING: usize = 4;
/// Bytes that they may be longer by in any case.
const SHARED: usize = 16 << 20;

/// Reads the state_dict of `file`, which may be torch.save's (zip or legacy; bare or in a checkpoint),
/// safetensors or one of our checkpoints: the content decides, not the name. Needs memory for the file twice.
///
/// # Errors
/// Unreadable, damaged, none of these, or with code in it, of which nothing is run.
pub fn read(file: &Path) -> Result<Weights, WeightsError> {
    let bytes = std::fs::read(file).map_err(|source| WeightsError::Read { path: file.into(), source })?;
    parse(file, bytes)
}

/// As [`read`] of a file whose content is `bytes`; `file` is for messages.
pub fn parse(file: &Path, bytes: Vec<u8>) -> Result<Weights, WeightsError> {
    match bytes.as_slice() {
        [b'P', b'K', ..] | [0x80, 2..=5, ..] => of_torch(file, bytes),
        // Eight bytes of length, then JSON.
        [_, _, _, _, _, _, _, _, b'{', ..] => of_safetensors(file, bytes),
        _ => Err(WeightsError::Unknown { path: file.into() }),
    }
}

fn of_torch(file: &Path, bytes: Vec<u8>) -> Result<Weights, WeightsError> {
    let wrong = |source| WeightsError::Pt { path: file.into(), source };
    let mut left = bytes.len().saturating_mul(SHARING).saturating_add(SHARED);
    let pt = PtFile::parse(bytes).map_err(wrong)?;
    let root = pt.root();
    let wrapped = || WRAPPERS.into_iter().find_map(|key| Some((Some(key), tensors_in(root.get(key)?)?)));
    let found = tensors_in(root).map(|tensors| (None, tensors)).or_else(wrapped);
    let (under, found) =
        found.ok_or_else(|| WeightsError::NoStateDict { path: file.into(), found: described(root) })?;
    let mut tensors = Vec::with_capacity(found.len());
    for (name, tensor) in found {
        let elements = pt.contiguous(tensor).map_err(wrong)?;
        // Each is a copy, so that a short file could otherwise fill any memory with views of the same bytes.
        left =
            left.checked_sub(elements.len()).ok_or_else(|| WeightsError::Repeated { path: file.into() })?;
        let shape: Vec<i64> = tensor.shape.iter().map(|&side| side as i64).collect();
        let tensor = torch::from_bytes(&elements, &shape, super::kind_of(tensor.storage.dtype));
        tensors.push((name.to_owned(), tensor.map_err(|error| WeightsError::Model(error.into()))?));
    }
    // Beside the state_dict; a bare one has only tensors.
    let number = |keys: &[&str]| {
        keys.iter().find_map(|key| match root.get(key)? {
            Value::Int(v) => Some(*v as f64),
            Value::Float(v) => Some(*v),
            _ => None,
        })
    };
    let whole = |keys: &[&str]| number(keys).filter(|v| *v >= 0.0 && v.fract() == 0.0).map(|v| v as u64);
    let arch = ["arch", "model_name"].into_iter().find_map(|key| match root.get(key)? {
        Value::Str(arch) => Some(arch.to_string()),
        _ => None,
    });
    let container = match pt.format() {
        Format::Zip => Container::Zip,
        Format::Legacy => Container::Legacy,
    };
    let about = About {
        under: under.map(str::to_owned),
        arch,
        epoch: whole(&["epoch"]),
        top1: number(&["accuracy", "best_acc1", "acc1"]),
        ..About::default()
    };
    finish(file, container, tensors, about)
}

fn of_safetensors(file: &Path, bytes: Vec<u8>) -> Result<Weights, WeightsError> {
    let wrong = |reason| WeightsError::Safetensors { path: file.into(), reason };
    let (header, data_start) = safetensors_file::parse(&bytes).map_err(wrong)?;
    let text = header.metadata().clone().unwrap_or_default();
    if checkpoint::is_ours(&text) {
        let state = checkpoint::parse(file, bytes)?;
        // Momentum belongs to the weights that were trained, not to their average.
        let of_sgd = |(name, buffer): (String, Tensor)| {
            Some((name.strip_prefix("momentum_buffer.")?.to_owned(), buffer)).filter(|_| state.ema.is_none())
        };
        let momentum = state.optimizer.into_iter().filter_map(of_sgd).collect();
        let about = About {
            arch: Some(state.arch),
            epoch: Some(state.progress.epoch.into()),
            step: Some(state.progress.step),
            top1: state.metadata.get("top1").and_then(|text| text.parse().ok()),
            momentum,
            notes: state.metadata,
            ..About::default()
        };
        // What was validated is what is to be used.
        return finish(file, Container::Checkpoint, state.ema.unwrap_or(state.model), about);
    }
    let tensors = safetensors_file::tensors(&bytes, &header, data_start).map_err(wrong)?;
    if tensors.is_empty() {
        return Err(WeightsError::NoStateDict { path: file.into(), found: "no tensors at all".to_owned() });
    }
    let about = About { arch: text.get("arch").cloned(), ..About::default() };
    finish(file, Container::Safetensors, tensors, about)
}

/// What a file says beside the tensors.
#[derive(Default)]
struct About {
    under: Option<String>,
    arch: Option<String>,
    epoch: Option<u64>,
    step: Option<u64>,
    top1: Option<f64>,
    momentum: StateDict,
    notes: BTreeMap<String, String>,
}

/// Takes the prefixes off the names.
fn finish(
    file: &Path,
    container: Container,
    mut tensors: StateDict,
    about: About,
) -> Result<Weights, WeightsError> {
    let mut prefix = String::new();
    let all = |at: usize, p: &str| tensors.iter().all(|(name, _)| name[at..].starts_with(p));
    while let Some(found) = PREFIXES.into_iter().find(|p| !tensors.is_empty() && all(prefix.len(), p)) {
        prefix.push_str(found);
    }
    // Once, and not prefix by prefix: a name may have very many.
    tensors.iter_mut().for_each(|(name, _)| drop(name.drain(..prefix.len())));
    let mut seen = BTreeSet::new();
    if let Some((name, _)) = tensors.iter().find(|(name, _)| !seen.insert(name)) {
        return Err(WeightsError::Twice { path: file.into(), name: name.clone() });
    }
    let About { under, arch, epoch, step, top1, momentum, notes } = about;
    let origin = file.display().to_string();
    Ok(Weights { tensors, origin, container, under, prefix, arch, epoch, step, top1, momentum, notes })
}

/// The items of a dict of tensors by name, of which there is at least one.
fn tensors_in(value: &Value) -> Option<Vec<(&str, &TensorRef)>> {
    let Value::Dict(items) = value else { return None };
    let items: Option<Vec<_>> = items
        .iter()
        .map(|item| match item {
            (Value::Str(name), Value::Tensor(tensor)) => Some((&**name, &**tensor)),
            _ => None,
        })
        .collect();
    items.filter(|items| !items.is_empty())
}

/// What a file holds that has no state_dict, so that a person can see which file it is.
fn described(root: &Value) -> String {
    const SHOWN: usize = 5;
    let Value::Dict(items) = root else { return root.type_name().to_owned() };
    let keys = items.iter().take(SHOWN).map(|(key, value)| match key {
        Value::Str(key) => format!("{key} ({})", value.type_name()),
        key => key.type_name().to_owned(),
    });
    let more = if items.len() > SHOWN { ", ..." } else { "" };
    format!("a dict of {} keys: {}{more}", items.len(), keys.collect::<Vec<_>>().join(", "))
}
