//! Stochastic gradient descent with momentum, as `torch.optim.SGD`.

use relabel_config::WeightDecay;
use tch::Tensor;

use super::{decay_of, named};
use crate::model::{ModelError, StateDict, load_tensors};
use crate::torch::{self, SgdStep, TorchError};

/// The constants of a run; the learning rate comes with each step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdOptions {
    pub momentum: f64,
    /// L2 penalty, added to the gradient.
    pub weight_decay: WeightDecay,
    pub nesterov: bool,
}

impl From<&relabel_config::Optim> for SgdOptions {
    fn from(options: &relabel_config::Optim) -> Self {
        Self { momentum: options.momentum, weight_decay: options.wd, nesterov: options.nesterov }
    }
}

/// The optimizer and its state: one momentum buffer a parameter, with that parameter's name and strides.
///
/// For gradient g, parameter p and its buffer m (zeros at first):
/// `g += weight_decay * p; m = momentum * m + g; p -= lr * (nesterov ? g + momentum * m : m)`.
pub struct Sgd {
    options: SgdOptions,
    groups: Vec<Group>,
}

/// Parameters with the same weight decay: one call of the fused kernel.
struct Group {
    weight_decay: f64,
    names: Vec<String>,
    parameters: Vec<Tensor>,
    momentum_buffers: Vec<Tensor>,
}

impl Sgd {
    /// For named parameters that have their device and memory format.
    pub fn of(parameters: &[(String, Tensor)], options: SgdOptions) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        for (name, parameter) in parameters {
            let weight_decay = decay_of(parameter, options.weight_decay);
            let place = groups.iter().position(|group| group.weight_decay == weight_decay);
            let place = place.unwrap_or_else(|| {
                groups.push(Group {
                    weight_decay,
                    names: Vec::new(),
                    parameters: Vec::new(),
                    momentum_buffers: Vec::new(),
                });
                groups.len() - 1
            });
            let group = &mut groups[place];
            group.names.push(name.clone());
            group.parameters.push(parameter.shallow_clone());
            group.momentum_buffers.push(parameter.detach().zeros_like());
        }
        Self { options, groups }
    }

    /// One step with the gradients that stand in the parameters' `.grad`; allocates nothing.
    ///
    /// # Errors
    /// A parameter has no gradient, or one of other strides.
    pub fn step(&mut self, lr: f64) -> Result<(), TorchError> {
        let SgdOptions { momentum, nesterov, .. } = self.options;
        // PyTorch refuses nesterov without momentum; without momentum there is nothing to look ahead with.
        let nesterov = nesterov && momentum != 0.0;
        for Group { weight_decay, parameters, momentum_buffers, .. } in &mut self.groups {
            let step = SgdStep { lr, momentum, weight_decay: *weight_decay, nesterov };
            torch::sgd_step(parameters, momentum_buffers, step)?;
        }
        Ok(())
    }

    /// Handles to the momentum buffers as `momentum_buffer.<parameter>`; they share memory with the
    /// optimizer. Zeros before the first step.
    pub fn state(&self) -> StateDict {
        let buffers = |group: &'_ Group| {
            named("momentum_buffer", &group.names, &group.momentum_buffers).collect::<StateDict>()
        };
        self.groups.iter().flat_map(buffers).collect()
    }

    /// Fills the momentum buffers from `state`, in any order and memory format.
    ///
    /// # Errors
    /// Names or shapes that differ from the parameters'; nothing is changed then.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<(), ModelError> {
        load_tensors("the state of the optimizer sgd", &self.state(), state)
    }
}
