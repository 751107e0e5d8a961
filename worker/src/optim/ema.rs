//! The exponential moving average of the weights: what is validated in place of the weights themselves.

use tch::Kind;

use crate::model::{Model, ModelError};

/// A model whose tensors are the average of another's over its steps.
///
/// As timm's `ModelEmaV2`: it begins as a copy, and after each step every floating-point tensor of the
/// state_dict, parameters and BatchNorm's running statistics alike, becomes
/// `decay * average + (1 - decay) * tensor`. The counters `num_batches_tracked` are copied.
pub struct Ema {
    model: Model,
    decay: f64,
}

impl Ema {
    /// Makes `copy`, another model of the same architecture, the average of `model`, so far equal to it.
    /// `decay` is in [0, 1).
    ///
    /// # Errors
    /// The two differ in names or shapes.
    pub fn new(copy: Model, model: &Model, decay: f64) -> Result<Self, ModelError> {
        let mut ema = Self { model: copy, decay };
        ema.begin_with(model)?;
        Ok(ema)
    }

    /// Forgets what was averaged and becomes a copy of `model`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn begin_with(&mut self, model: &Model) -> Result<(), ModelError> {
        self.model.load_state_dict(&model.state_dict())
    }

    /// Takes the tensors that `model` has after a step into the average.
    pub fn update(&mut self, model: &Model) {
        tch::no_grad(|| {
            for ((_, mut average), (_, newest)) in self.model.state_dict().into_iter().zip(model.state_dict())
            {
                match average.kind() {
                    Kind::Int64 => average.copy_(&newest),
                    _ => drop(average.lerp_(&newest, 1.0 - self.decay)),
                }
            }
        });
    }

    /// The average, as a model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// As [`Self::model`], to fill from a checkpoint.
    pub fn model_mut(&mut self) -> &mut Model {
        &mut self.model
    }
}
