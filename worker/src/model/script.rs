//! Any TorchScript module as the network: `model.arch: script:FILE`.
//!
//! `FILE` is what `torch.jit.script(model).save(FILE)` wrote, on every worker's host. Its weights are the
//! initial ones; names and order of the state_dict are the module's. Parameters that were saved with
//! `requires_grad=False` stay as they are. BatchNorm is as the module has it: `optim.bn` has no say in it. A module
//! that was traced keeps the mode, training or evaluation, that it was traced in, so that scripting is to be
//! preferred.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::ModelError;
use super::layers::{Layer, Role, Visitor, join};
use crate::torch::{ScriptModule, ScriptTensor, TorchError};

/// What stands before the file in `model.arch`.
pub(super) const PREFIX: &str = relabel_config::SCRIPT;

/// The module and handles of its tensors.
pub(super) struct Script {
    module: ScriptModule,
    tensors: Vec<(String, Tensor, Role)>,
    file: String,
}

impl Script {
    /// Loads the module onto `device`.
    ///
    /// # Errors
    /// A file that is missing or no TorchScript; a module without parameters to train, or with some that are
    /// not f32.
    pub(super) fn load(file: &str, device: Device) -> Result<Self, ModelError> {
        let wrong = |reason: String| ModelError::Script { file: file.to_owned(), reason };
        // libtorch's own words about a missing file are of a stream reader.
        std::fs::File::open(Path::new(file)).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        let module = ScriptModule::load(Path::new(file), device).map_err(|error| {
            wrong(format!(
                "is no TorchScript module; save it with torch.jit.script(model).save(FILE) ({error})"
            ))
        })?;
        let mut tensors = Vec::new();
        for ScriptTensor { name, tensor, is_parameter } in module.tensors()? {
            let role = match is_parameter {
                true if tensor.requires_grad() => Role::Parameter,
                true => Role::Constant,
                false => Role::Buffer,
            };
            if role == Role::Parameter && tensor.kind() != Kind::Float {
                let kind = tensor.kind();
                return Err(wrong(format!(
                    "its parameter {name} is {kind:?}; convert it with model.float()"
                )));
            }
            tensors.push((name, tensor, role));
        }
        if !tensors.iter().any(|(_, _, role)| *role == Role::Parameter) {
            return Err(wrong("it has no parameters to train; save it before torch.jit.freeze".into()));
        }
        Ok(Self { module, tensors, file: file.to_owned() })
    }
}

impl Layer for Script {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, TorchError> {
        // The module counts its steps itself, but only where it runs: a rank without samples would fall behind.
        // `Model::count_step` does it for all.
        let counters = self.tensors.iter().filter(|(name, ..)| name.ends_with("num_batches_tracked"));
        let before: Vec<(Tensor, Tensor)> = counters
            .filter(|_| train)
            .map(|(_, counter, _)| (counter.shallow_clone(), counter.copy()))
            .collect();
        let output = self.module.forward(x, train);
        tch::no_grad(|| before.into_iter().for_each(|(mut counter, before)| counter.copy_(&before)));
        output
    }

    fn check(&self, image: &Tensor) -> Result<Vec<i64>, ModelError> {
        let output = tch::no_grad(|| self.forward(image, false));
        let failed = |error: TorchError| {
            let reason = format!("does not take images {:?}: {error}", image.size());
            ModelError::Script { file: self.file.clone(), reason }
        };
        output.map(|output| output.size()).map_err(failed)
    }

    fn visit(&mut self, path: &str, visitor: &mut Visitor<'_>) {
        for (name, tensor, role) in &mut self.tensors {
            visitor(join(path, name), tensor, *role);
        }
    }
}
