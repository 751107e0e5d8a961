//! From gradients to new weights: optimizers with their state by parameter name, the learning rate of a
//! step, and the moving average of the weights. Knows nothing of models beyond their named tensors.

use relabel_config::{OptimizerKind, WeightDecay};
use tch::Tensor;

use crate::model::{ModelError, StateDict};
use crate::torch::TorchError;

pub mod adamp;
pub mod ema;
pub mod schedule;
pub mod sgd;
#[cfg(test)]
mod tests;

pub use adamp::{AdamP, AdamPOptions};
pub use ema::Ema;
pub use sgd::{Sgd, SgdOptions};

/// The optimizer that a run has chosen (`optim.optimizer`), and its state.
pub enum Optimizer {
    Sgd(Sgd),
    AdamP(AdamP),
}

impl Optimizer {
    /// For named parameters that have their device and memory format.
    pub fn new(parameters: &[(String, Tensor)], options: &relabel_config::Optim) -> Self {
        match options.optimizer {
            OptimizerKind::Sgd => Self::Sgd(Sgd::of(parameters, options.into())),
            OptimizerKind::AdamP => Self::AdamP(AdamP::of(parameters, options.into())),
        }
    }

    /// As `optim.optimizer` has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sgd(_) => "sgd",
            Self::AdamP(_) => "adamp",
        }
    }

    /// One step with the gradients that stand in the parameters' `.grad`.
    ///
    /// # Errors
    /// A parameter has no gradient, or one that does not fit it.
    pub fn step(&mut self, lr: f64) -> Result<(), TorchError> {
        match self {
            Self::Sgd(sgd) => sgd.step(lr),
            Self::AdamP(adamp) => adamp.step(lr),
        }
    }

    /// Handles to the state as `<what PyTorch calls it>.<parameter>`; they share memory with the optimizer.
    pub fn state(&self) -> StateDict {
        match self {
            Self::Sgd(sgd) => sgd.state(),
            Self::AdamP(adamp) => adamp.state(),
        }
    }

    /// Fills the state from `state`, in any order and memory format.
    ///
    /// # Errors
    /// Names or shapes that differ from this optimizer's; nothing is changed then.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<(), ModelError> {
        match self {
            Self::Sgd(sgd) => sgd.load_state(state),
            Self::AdamP(adamp) => adamp.load_state(state),
        }
    }
}

/// The weight decay of one parameter: none for those of one dimension (BatchNorm's and biases) unless they
/// are to decay too.
fn decay_of(parameter: &Tensor, decay: WeightDecay) -> f64 {
    if parameter.dim() > 1 || decay.norm_and_bias { decay.base } else { 0.0 }
}

/// Handles to `tensors`, one a parameter of `names`, called `<kind>.<parameter>`.
fn named<'a>(
    kind: &'a str,
    names: &'a [String],
    tensors: &'a [Tensor],
) -> impl Iterator<Item = (String, Tensor)> + 'a {
    names.iter().zip(tensors).map(move |(name, tensor)| (format!("{kind}.{name}"), tensor.shallow_clone()))
}
