//! Weights by name, in and out: strict, as `load_state_dict(strict=True)`.

use std::collections::BTreeMap;

use tch::Tensor;

use super::{Model, ModelError};
use crate::torch::TorchError;

/// Tensors by torchvision's names, in its order.
pub type StateDict = Vec<(String, Tensor)>;

/// A state_dict that does not fit. Holds every name; the message shows the first few of each sort.
#[derive(Debug, thiserror::Error)]
#[error("the state_dict does not fit {target}: {}", self.differences())]
pub struct StateDictError {
    /// What was to be filled.
    pub target: String,
    /// Names that should be there.
    pub missing: Vec<String>,
    /// Names that are not known.
    pub unexpected: Vec<String>,
    /// Name, shape that it should have, shape that it has.
    pub misshapen: Vec<(String, Vec<i64>, Vec<i64>)>,
}

impl StateDictError {
    fn differences(&self) -> String {
        const SHOWN: usize = 5;
        let list = |what: &str, names: &[String]| {
            let more = if names.len() > SHOWN { ", ..." } else { "" };
            let shown = names[..names.len().min(SHOWN)].join(", ");
            (!names.is_empty()).then(|| format!("{} {what} ({shown}{more})", names.len()))
        };
        let shapes: Vec<String> = self
            .misshapen
            .iter()
            .map(|(name, wanted, found)| format!("{name} {found:?} where {wanted:?} is needed"))
            .collect();
        let parts = [
            list("missing", &self.missing),
            list("unexpected", &self.unexpected),
            list("of another shape", &shapes),
        ];
        parts.into_iter().flatten().collect::<Vec<_>>().join("; ")
    }
}

/// Copies each tensor of `source` into the one of the same name in `target`, across kinds, devices and
/// memory formats, or changes nothing if names or shapes differ.
pub(crate) fn load_tensors(
    what: &str,
    target: &[(String, Tensor)],
    source: &[(String, Tensor)],
) -> Result<(), ModelError> {
    let mut given: BTreeMap<&str, &Tensor> = source.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let mut error = StateDictError {
        target: what.to_owned(),
        missing: Vec::new(),
        unexpected: Vec::new(),
        misshapen: Vec::new(),
    };
    let mut pairs = Vec::with_capacity(target.len());
    for (name, to) in target {
        match given.remove(name.as_str()) {
            Some(from) if from.size() == to.size() => pairs.push((from, to)),
            Some(from) => error.misshapen.push((name.clone(), to.size(), from.size())),
            // Files from before PyTorch 0.4.1 lack the counter, which nothing computes with.
            None if name.ends_with(".num_batches_tracked") => {}
            None => error.missing.push(name.clone()),
        }
    }
    error.unexpected = given.into_keys().map(str::to_owned).collect();
    if !(error.missing.is_empty() && error.unexpected.is_empty() && error.misshapen.is_empty()) {
        return Err(error.into());
    }
    tch::no_grad(|| pairs.into_iter().try_for_each(|(from, to)| to.shallow_clone().f_copy_(from)))
        .map_err(|error| TorchError::during("copy a state_dict")(error).into())
}

impl Model {
    /// Handles to all parameters and buffers by name, in torchvision's order. They share memory with the
    /// model: copy them to keep them.
    pub fn state_dict(&self) -> StateDict {
        self.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }

    /// Fills parameters and buffers from `source`, in any order, kind, device and memory format.
    ///
    /// # Errors
    /// [`StateDictError`] names what is missing, unexpected or of another shape; the model is unchanged then.
    pub fn load_state_dict(&mut self, source: &[(String, Tensor)]) -> Result<(), ModelError> {
        load_tensors(&self.arch, &self.tensors, source)
    }
}
