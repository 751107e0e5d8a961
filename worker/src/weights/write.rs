//! Writes weights as others read them: torch.save's zip form, and safetensors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use tch::{Device, Tensor};

use super::reference::SgdNotes;
use super::{Container, Weights, WeightsError, dtype_of};
use crate::checkpoint::safetensors_file::Contents;
use crate::checkpoint::temporary::Temporary;
use crate::model::StateDict;
use crate::pt;
use crate::pt::pickle::{TensorRef, Value};
use crate::torch::{self, TorchError};

/// What a file for torch holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The state_dict, as torchvision publishes weights.
    Bare,
    /// The dict that the reference saves: epoch, arch, state_dict, accuracy in percent, and the state of SGD
    /// where its momentum buffers and constants are known.
    Reference,
}

/// Writes `weights` to `file`, whose name ends in `.pth`, `.pt` or `.safetensors`; their order and kinds are
/// kept. The file has its name only once it is whole.
///
/// # Errors
/// Another ending, a form that this sort of file does not have, or a disk that does not take it.
pub fn write(file: &Path, weights: &Weights, form: Form) -> Result<(), WeightsError> {
    let cannot = |reason: &str| WeightsError::CannotHold { path: file.into(), reason: reason.to_owned() };
    let written = match file.extension().and_then(|ending| ending.to_str()) {
        Some("pth" | "pt") => {
            let mut storages = Storages::default();
            let root = match form {
                Form::Bare => storages.dict(&weights.tensors),
                Form::Reference => reference(weights, &mut storages),
            };
            let root = root.map_err(|error| WeightsError::Model(error.into()))?;
            Temporary::write(file, |out| pt::write(BufWriter::new(out), &root, &storages.bytes()?))
        }
        Some("safetensors") if form == Form::Reference => {
            return Err(cannot(
                "the reference's checkpoints are .pth files; name one, or leave out --reference",
            ));
        }
        Some("safetensors") => {
            let tensors = weights.tensors.iter().map(|(name, tensor)| (Cow::from(name), tensor));
            let contents = Contents::new(tensors, metadata(weights));
            Temporary::write(file, |out| {
                let mut out = BufWriter::new(out);
                contents.write(&mut out)?;
                out.flush()
            })
        }
        _ => return Err(cannot("its name should end in .pth or .safetensors")),
    };
    let failed = |source| WeightsError::Write { path: file.into(), source };
    written.map_err(failed)?.rename(file).map_err(failed)
}

/// `format` tells other readers of safetensors that the names are those of PyTorch modules.
fn metadata(weights: &Weights) -> BTreeMap<String, String> {
    let arch = weights.arch.clone().map(|arch| ("arch".to_owned(), arch));
    [Some(("format".to_owned(), "pt".to_owned())), arch].into_iter().flatten().collect()
}

fn reference(weights: &Weights, storages: &mut Storages) -> Result<Value, TorchError> {
    let top1 = weights.top1.map(|top1| match weights.container {
        Container::Checkpoint => 100.0 * top1,
        _ => top1,
    });
    let arch = weights.arch.as_deref().map_or(Value::None, |arch| Value::Str(arch.into()));
    let mut items = vec![
        ("epoch", weights.epoch.map_or(Value::None, |epoch| Value::Int(epoch.into()))),
        ("arch", arch),
        ("state_dict", storages.dict(&weights.tensors)?),
        ("accuracy", top1.map_or(Value::None, Value::Float)),
    ];
    if let Some(sgd) = SgdNotes::find(weights) {
        let buffers = weights.momentum.iter().zip(0_i64..).map(|((_, buffer), index)| {
            Ok((Value::Int(index.into()), dict([("momentum_buffer", storages.tensor(buffer)?)])))
        });
        let state = Value::Dict(buffers.collect::<Result<_, TorchError>>()?);
        let groups = Value::List(vec![sgd.param_group(weights.momentum.len())]);
        items.push(("optimizer", dict([("state", state), ("param_groups", groups)])));
    }
    Ok(dict(items))
}

/// A dict with these string keys.
pub(super) fn dict<'a>(items: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    Value::Dict(items.into_iter().map(|(key, value)| (Value::Str(key.into()), value)).collect())
}

/// Tensors to be written, dense and on the CPU; the position of one is its storage's key.
#[derive(Default)]
struct Storages(Vec<Tensor>);

impl Storages {
    fn tensor(&mut self, tensor: &Tensor) -> Result<Value, TorchError> {
        let failed = TorchError::during("copy a tensor");
        let dense =
            tensor.detach().f_to_device(Device::Cpu).and_then(|t| t.f_contiguous()).map_err(failed)?;
        let Some(dtype) = dtype_of(dense.kind()) else {
            let message = format!("its kind is {:?}", dense.kind());
            return Err(TorchError::Libtorch { operation: "save a tensor", message });
        };
        let shape = dense.size().iter().map(|&side| side as u64).collect();
        let value = Value::Tensor(Arc::new(TensorRef::dense(self.0.len(), dtype, shape)));
        self.0.push(dense);
        Ok(value)
    }

    fn dict(&mut self, tensors: &StateDict) -> Result<Value, TorchError> {
        let item =
            |(name, tensor): &(String, Tensor)| Ok((Value::Str(name.as_str().into()), self.tensor(tensor)?));
        Ok(Value::Dict(tensors.iter().map(item).collect::<Result<_, TorchError>>()?))
    }

    fn bytes(&self) -> io::Result<Vec<&[u8]>> {
        self.0.iter().map(|tensor| torch::as_bytes(tensor).map_err(io::Error::other)).collect()
    }
}
