//! SGD's constants beside its momentum buffers: torch's optimizers keep both in one state, our checkpoints
//! only the buffers, so the trainer notes the constants in the checkpoint's metadata.

use std::collections::BTreeMap;

use relabel_config::Optim;

use super::Weights;
use super::write::dict;
use crate::pt::pickle::Value;

const LR: &str = "sgd.lr";
const MOMENTUM: &str = "sgd.momentum";
const WEIGHT_DECAY: &str = "sgd.weight_decay";
const NESTEROV: &str = "sgd.nesterov";

/// The constants of SGD when a checkpoint was written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdNotes {
    pub lr: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    pub nesterov: bool,
}

impl SgdNotes {
    /// Of a run with these options, at learning rate `lr`; none if it trains with another optimizer.
    pub fn of(options: &Optim, lr: f64) -> Option<Self> {
        (options.optimizer == "sgd").then_some(Self {
            lr,
            momentum: options.momentum,
            weight_decay: options.wd.base,
            nesterov: options.nesterov,
        })
    }

    /// As they stand in a checkpoint.
    pub fn to_metadata(self) -> BTreeMap<String, String> {
        let Self { lr, momentum, weight_decay, nesterov } = self;
        let numbers = [(LR, lr), (MOMENTUM, momentum), (WEIGHT_DECAY, weight_decay)];
        let numbers = numbers.map(|(key, value)| (key.to_owned(), value.to_string()));
        numbers.into_iter().chain([(NESTEROV.to_owned(), nesterov.to_string())]).collect()
    }

    /// What `weights` note; none if they do not, or if they do not hold a momentum buffer a parameter.
    pub(super) fn find(weights: &Weights) -> Option<Self> {
        let parameters = weights.parameters().map(|(name, _)| name);
        if weights.momentum.is_empty() || !parameters.eq(weights.momentum.iter().map(|(name, _)| name)) {
            return None;
        }
        let number = |key| weights.notes.get(key)?.parse().ok();
        Some(Self {
            lr: number(LR)?,
            momentum: number(MOMENTUM)?,
            weight_decay: number(WEIGHT_DECAY)?,
            nesterov: weights.notes.get(NESTEROV)?.parse().ok()?,
        })
    }

    /// The one entry of `param_groups` in the state of `torch.optim.SGD`.
    pub(super) fn param_group(&self, parameters: usize) -> Value {
        dict([
            ("lr", Value::Float(self.lr)),
            ("momentum", Value::Float(self.momentum)),
            ("dampening", Value::Int(0)),
            ("weight_decay", Value::Float(self.weight_decay)),
            ("nesterov", Value::Bool(self.nesterov)),
            ("maximize", Value::Bool(false)),
            ("foreach", Value::None),
            ("differentiable", Value::Bool(false)),
            ("fused", Value::None),
            ("params", Value::List((0..parameters as i128).map(Value::Int).collect())),
        ])
    }
}
