//! Stochastic gradient descent with momentum, as `torch.optim.SGD`.

use tch::Tensor;

use crate::model::{Model, ModelError, StateDict, load_tensors};
use crate::torch::{self, SgdStep, TorchError};

/// The constants of a run; the learning rate comes with each step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdOptions {
    pub momentum: f64,
    /// L2 penalty, on every parameter, BatchNorm and biases too.
    pub weight_decay: f64,
    pub nesterov: bool,
}

impl From<&relabel_config::Optim> for SgdOptions {
    fn from(options: &relabel_config::Optim) -> Self {
        Self { momentum: options.momentum, weight_decay: options.wd.base, nesterov: options.nesterov }
    }
}

/// The optimizer and its state: one momentum buffer a parameter, with that parameter's name and strides.
///
/// For gradient g, parameter p and its buffer m (zeros at first):
/// `g += weight_decay * p; m = momentum * m + g; p -= lr * (nesterov ? g + momentum * m : m)`.
pub struct Sgd {
    options: SgdOptions,
    names: Vec<String>,
    parameters: Vec<Tensor>,
    momentum_buffers: Vec<Tensor>,
}

impl Sgd {
    /// For the parameters of `model`, after it has its device and memory format.
    pub fn new(model: &Model, options: SgdOptions) -> Self {
        Self::of(model.parameters(), options)
    }

    /// For any named parameters.
    pub fn of(parameters: &[(String, Tensor)], options: SgdOptions) -> Self {
        Self {
            options,
            names: parameters.iter().map(|(name, _)| name.clone()).collect(),
            parameters: parameters.iter().map(|(_, p)| p.shallow_clone()).collect(),
            momentum_buffers: parameters.iter().map(|(_, p)| p.detach().zeros_like()).collect(),
        }
    }

    /// One step with the gradients that stand in the parameters' `.grad`; allocates nothing.
    ///
    /// # Errors
    /// A parameter has no gradient, or one of other strides.
    pub fn step(&mut self, lr: f64) -> Result<(), TorchError> {
        let SgdOptions { momentum, weight_decay, nesterov } = self.options;
        // PyTorch refuses nesterov without momentum; without momentum there is nothing to look ahead with.
        let step = SgdStep { lr, momentum, weight_decay, nesterov: nesterov && momentum != 0.0 };
        torch::sgd_step(&self.parameters, &mut self.momentum_buffers, step)
    }

    /// Handles to the momentum buffers by parameter name, in the model's order; they share memory with
    /// the optimizer. Zeros before the first step.
    pub fn state(&self) -> StateDict {
        self.names.iter().cloned().zip(self.momentum_buffers.iter().map(Tensor::shallow_clone)).collect()
    }

    /// Fills the momentum buffers from `state`, in any order and memory format.
    ///
    /// # Errors
    /// Names or shapes that differ from the model's; nothing is changed then.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<(), ModelError> {
        load_tensors("the optimizer's momentum buffers", &self.state(), state)
    }
}
