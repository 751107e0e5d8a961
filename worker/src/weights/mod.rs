//! Weights from other programs and for them: state_dicts in files of torch, in safetensors and in our own
//! checkpoints.
//!
//! [`read()`] finds the state_dict in a file, [`load()`] fills a model with it, [`write()`] writes one that torch
//! and torchvision take. What a file says is checked before anything is changed, and nothing that it
//! brings along is run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use tch::{Kind, Tensor};

pub mod export;
pub mod inspect;
mod read;
mod reference;
#[cfg(test)]
mod tests;
mod write;

pub use read::{parse, read};
pub use reference::SgdNotes;
pub use write::{Form, write};

use crate::checkpoint::CheckpointError;
use crate::model::{self, BatchNormOptions, Model, ModelError, StateDict, load_tensors, rexnet};
use crate::pt::PtError;
use crate::pt::pickle::Dtype;

/// What the name of BatchNorm's counter of steps ends with. Files from before PyTorch 0.4.1 have none, and
/// nothing computes with it.
const COUNTER: &str = ".num_batches_tracked";

/// Where the classifiers of known networks stand: ResNet, EfficientNet, ReXNet, timm's ReXNet, others of
/// timm.
const CLASSIFIERS: [&str; 5] = ["fc", "classifier.1", "output.1", "head.fc", "classifier"];

/// A state_dict from a file, and what else the file says of it.
#[derive(Debug)]
pub struct Weights {
    /// Parameters and buffers on the CPU, of the kinds that the file has, in its order, by names without
    /// [`prefix`](Self::prefix).
    pub tensors: StateDict,
    /// The file, for messages.
    pub origin: String,
    pub container: Container,
    /// Key under which the file keeps the state_dict, if it is not the whole file.
    pub under: Option<String>,
    /// What every name began with: `module.` of DistributedDataParallel, `_orig_mod.` of torch.compile.
    pub prefix: String,
    /// Name of the architecture, if the file says it; other programs have other names.
    pub arch: Option<String>,
    /// The epoch in progress, or the next one, from 0.
    pub epoch: Option<u64>,
    /// Steps done in that epoch.
    pub step: Option<u64>,
    /// Accuracy as the file has it: our checkpoints' is of 1, others' often of 100.
    pub top1: Option<f64>,
    /// SGD's momentum buffers by parameter name, in the model's order; only in our checkpoints.
    pub momentum: StateDict,
    /// What else our checkpoints note, by key.
    pub notes: BTreeMap<String, String>,
}

/// Key of [`Weights::notes`] under which a checkpoint says `optim.bn.eps`.
pub const BN_EPS: &str = "bn_eps";

impl Weights {
    /// The BatchNorm that these weights of `arch` were trained with: as a checkpoint notes it, else as the
    /// architecture's published weights were.
    pub fn batch_norm(&self, arch: &str) -> BatchNormOptions {
        let usual = model::published_batch_norm(arch);
        let noted = self.notes.get(BN_EPS).and_then(|text| text.parse().ok());
        BatchNormOptions { eps: noted.unwrap_or(usual.eps), ..usual }
    }
}

/// The sort of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// torch.save's, since torch 1.6.
    Zip,
    /// torch.save's, before.
    Legacy,
    Safetensors,
    /// Ours, whose checksum has been verified.
    Checkpoint,
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zip => "a zip file of torch.save",
            Self::Legacy => "a legacy file of torch.save",
            Self::Safetensors => "a safetensors file",
            Self::Checkpoint => "a checkpoint of this program",
        })
    }
}

/// Why weights were not read, loaded or written. Each message is one line that names the file.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("cannot read the weights {}: {source}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{}: {source}", path.display())]
    Pt {
        path: PathBuf,
        #[source]
        source: PtError,
    },
    #[error("{}: the safetensors file is truncated or damaged ({reason})", path.display())]
    Safetensors { path: PathBuf, reason: String },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(
        "{}: neither a file of torch.save (.pth) nor safetensors; convert it with torch.save(model.state_dict(), FILE)",
        path.display()
    )]
    Unknown { path: PathBuf },
    #[error("{}: holds no state_dict, but {found}", path.display())]
    NoStateDict { path: PathBuf, found: String },
    #[error(
        "{}: its tensors are views of the same few bytes again and again; save them as tensors of their own",
        path.display()
    )]
    Repeated { path: PathBuf },
    #[error("{}: {name} stands in it twice", path.display())]
    Twice { path: PathBuf, name: String },
    #[error(
        "{origin}: {name} holds {kind:?}, where floating-point numbers are needed; quantized weights do not load"
    )]
    NotFloat { origin: String, name: String, kind: Kind },
    #[error("{origin}{}: {source}", said(arch.as_ref()))]
    DoesNotFit {
        origin: String,
        arch: Option<String>,
        #[source]
        source: Box<ModelError>,
    },
    #[error("cannot write {}: {reason}", path.display())]
    CannotHold { path: PathBuf, reason: String },
    #[error("cannot write {}: {source}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Model(#[from] ModelError),
}

fn said(arch: Option<&String>) -> String {
    arch.map_or_else(String::new, |arch| format!(" (which says that it is of {arch})"))
}

/// What becomes of a classifier of another number of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// It is an error.
    Strict,
    /// The model keeps its own, freshly initialized: for training on other classes than before. So it does
    /// where the file has no classifier at all.
    Replace,
}

/// What [`load()`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub origin: String,
    pub container: Container,
    /// Tensors that came from the file.
    pub tensors: usize,
    /// Counters of BatchNorm that the file lacks, and which were set to 0.
    pub counters: usize,
    pub replaced: Option<Replaced>,
}

/// A classifier that was left as the model had it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// Its name in the model.
    pub name: String,
    /// Classes of the file's; none if it has no classifier.
    pub found: Option<i64>,
    pub wanted: i64,
}

impl fmt::Display for Loaded {
    /// One sentence for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "loaded {} tensors from {}, {}", self.tensors, self.origin, self.container)?;
        if let Some(Replaced { name, found, wanted }) = &self.replaced {
            match found {
                Some(found) => write!(f, "; its classifier {name} of {found} classes")?,
                None => write!(f, "; its missing classifier {name}")?,
            }
            write!(f, " was replaced by a fresh one of {wanted}")?;
        }
        match self.counters {
            0 => Ok(()),
            counters => write!(f, "; {counters} num_batches_tracked, which it lacks, were set to 0"),
        }
    }
}

impl Weights {
    /// The tensors that an optimizer trains: all but the statistics of BatchNorm.
    pub fn parameters(&self) -> impl Iterator<Item = &(String, Tensor)> {
        let buffers = [".running_mean", ".running_var", COUNTER];
        self.tensors.iter().filter(move |(name, _)| !buffers.iter().any(|buffer| name.ends_with(buffer)))
    }

    /// Rows of the classifier; none where no tensor has the name of one.
    pub fn classes(&self) -> Option<i64> {
        let weight = |layer: &str| {
            let name = format!("{layer}.weight");
            self.tensors.iter().find(|(n, t)| *n == name && t.dim() >= 2)
        };
        CLASSIFIERS.into_iter().find_map(weight).and_then(|(_, tensor)| tensor.size().first().copied())
    }
}

/// Fills `model` with `weights`, converted to its kind and moved to its device. Names and shapes must be
/// the model's, as in `load_state_dict(strict=True)`; BatchNorm's counters may be missing and are then
/// set to 0. The model may have any device and memory format. Timm's names of ReXNet are taken for the authors'.
///
/// # Errors
/// What differs, by name; the model is unchanged then.
pub fn load(model: &mut Model, weights: &Weights, head: Head) -> Result<Loaded, WeightsError> {
    let mut target = model.state_dict();
    let mut source: StateDict = weights.tensors.iter().map(|tensor| renamed(model, tensor)).collect();
    let replaced = match head {
        Head::Strict => None,
        Head::Replace => replace_head(model, &mut target, &mut source),
    };
    for (name, to) in &target {
        let from = source.iter().find(|(n, _)| n == name);
        if let Some((_, from)) = from.filter(|(_, from)| is_float(to.kind()) && !is_float(from.kind())) {
            let (origin, kind) = (weights.origin.clone(), from.kind());
            return Err(WeightsError::NotFloat { origin, name: name.clone(), kind });
        }
    }
    let tensors = source.len();
    let given: BTreeSet<&String> = source.iter().map(|(name, _)| name).collect();
    let lacking = |name: &String| name.ends_with(COUNTER) && !given.contains(name);
    let counters: StateDict = target
        .iter()
        .filter(|(name, _)| lacking(name))
        .map(|(name, tensor)| (name.clone(), tensor.zeros_like()))
        .collect();
    drop(given);
    let added = counters.len();
    source.extend(counters);
    load_tensors(model.arch(), &target, &source).map_err(|source| WeightsError::DoesNotFit {
        origin: weights.origin.clone(),
        arch: weights.arch.clone(),
        source: Box::new(source),
    })?;
    let (origin, container) = (weights.origin.clone(), weights.container);
    Ok(Loaded { origin, container, tensors, counters: added, replaced })
}

/// A tensor by the name and with the shape that `model` has it under: timm's ReXNet has its own names, and a
/// classifier without the two sides of 1.
fn renamed(model: &Model, (name, tensor): &(String, Tensor)) -> (String, Tensor) {
    let timms = rexnet::names().any(|arch| arch == model.arch()).then(|| rexnet::from_timm(name)).flatten();
    match timms {
        Some(name) if tensor.dim() == 2 => (name, tensor.unsqueeze(-1).unsqueeze(-1)),
        Some(name) => (name, tensor.shallow_clone()),
        None => (name.clone(), tensor.shallow_clone()),
    }
}

fn is_float(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16)
}

/// Takes the classifier, which is the model's last layer, out of both sides if it has other classes in the
/// source, or is not there.
fn replace_head(model: &Model, target: &mut StateDict, source: &mut StateDict) -> Option<Replaced> {
    let (last, _) = model.parameters().last()?;
    let layer = last.rsplit_once('.').map_or(last.as_str(), |(layer, _)| layer).to_owned();
    let of_layer = |(name, _): &(String, Tensor)| {
        name.strip_prefix(layer.as_str()).is_some_and(|rest| rest.starts_with('.'))
    };
    let rows = |tensors: &StateDict| {
        tensors.iter().find(|t| of_layer(t)).and_then(|(_, t)| t.size().first().copied())
    };
    let (found, wanted) = (rows(source), rows(target)?);
    if found == Some(wanted) {
        return None;
    }
    // Only the number of classes may differ: features of another width are of another network.
    let fits = |(name, from): &(String, Tensor)| {
        let to = target.iter().find(|(n, _)| n == name);
        to.is_some_and(|(_, to)| from.size().get(1..) == to.size().get(1..))
    };
    if !source.iter().filter(|t| of_layer(t)).all(fits) {
        return None;
    }
    target.retain(|t| !of_layer(t));
    source.retain(|t| !of_layer(t));
    Some(Replaced { name: layer, found, wanted })
}

/// What libtorch calls the element type `dtype`.
fn kind_of(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::Bool => Kind::Bool,
    }
}

/// The reverse; none for what these files cannot hold.
fn dtype_of(kind: Kind) -> Option<Dtype> {
    Dtype::ALL.into_iter().find(|dtype| kind_of(*dtype) == kind)
}
