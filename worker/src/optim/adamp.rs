//! AdamP: Adam whose update of a scale-invariant weight has no radial part (Heo et al., "AdamP: Slowing
//! Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", ICLR 2021), with the numbers of
//! the authors' `adamp` package.

use relabel_config::WeightDecay;
use tch::{Kind, Tensor};

use super::{decay_of, named};
use crate::model::{ModelError, StateDict, load_tensors};
use crate::torch::TorchError;

/// The constants of a run; the learning rate comes with each step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamPOptions {
    /// What one step keeps of the means of the gradient and of its square.
    pub betas: (f64, f64),
    /// Added to denominators.
    pub eps: f64,
    /// Decoupled: a step takes `lr * weight_decay` of the parameter away.
    pub weight_decay: WeightDecay,
    /// Cosine between gradient and weight, times the square root of their length, under which the weight
    /// counts as scale-invariant.
    pub delta: f64,
    /// What is left of the weight decay of a scale-invariant weight.
    pub wd_ratio: f64,
    pub nesterov: bool,
}

impl From<&relabel_config::Optim> for AdamPOptions {
    fn from(options: &relabel_config::Optim) -> Self {
        Self {
            betas: (options.momentum, 0.999),
            eps: 1e-8,
            weight_decay: options.wd,
            delta: 0.1,
            wd_ratio: 0.1,
            nesterov: options.nesterov,
        }
    }
}

/// The optimizer and its state: two moments a parameter, with that parameter's name and strides, and the
/// number of steps.
///
/// For gradient g, parameter p and its moments m and v (zeros at first), in step t (from 1):
///
/// ```text
/// m = b1 * m + (1 - b1) * g;  v = b2 * v + (1 - b2) * g^2
/// d = (nesterov ? b1 * m + (1 - b1) * g : m) / (sqrt(v) / sqrt(1 - b2^t) + eps)
/// where p is scale-invariant:  n = p / (|p| + eps);  d -= n * (n . d);  weight_decay *= wd_ratio
/// p *= 1 - lr * weight_decay;  p -= lr / (1 - b1^t) * d
/// ```
///
/// p counts as scale-invariant, channel by channel or as a whole, where the gradient is nearly
/// orthogonal to it.
pub struct AdamP {
    options: AdamPOptions,
    names: Vec<String>,
    parameters: Vec<Tensor>,
    exp_avg: Vec<Tensor>,
    exp_avg_sq: Vec<Tensor>,
    /// Steps taken: one whole number, so that it is saved and shared as the moments are.
    step: Tensor,
}

/// How a parameter is cut into vectors.
#[derive(Debug, Clone, Copy, PartialEq)]
enum View {
    /// One for each output channel: over every dimension but the first.
    Channel,
    /// One.
    Layer,
}

impl View {
    /// The dimensions of one vector. Sums over them are the same in every memory format.
    fn dims(self, tensor: &Tensor) -> Vec<i64> {
        let first = match self {
            View::Channel => 1,
            View::Layer => 0,
        };
        (first..tensor.dim() as i64).collect()
    }

    /// Length of one vector.
    fn width(self, tensor: &Tensor) -> i64 {
        let size = tensor.size();
        self.dims(tensor).into_iter().map(|dim| size[dim as usize]).product()
    }

    /// Euclidean norm of each vector, its dimensions kept with length 1.
    fn norm(self, tensor: &Tensor) -> Tensor {
        tensor.norm_scalaropt_dim(2, self.dims(tensor), true)
    }

    /// Scalar product of each vector of `a` with that of `b`, its dimensions kept with length 1.
    fn dot(self, a: &Tensor, b: &Tensor) -> Tensor {
        (a * b).sum_dim_intlist(self.dims(a), true, Kind::Float)
    }
}

impl AdamP {
    /// For named parameters that have their device and memory format.
    pub fn of(parameters: &[(String, Tensor)], options: AdamPOptions) -> Self {
        let zeros = || parameters.iter().map(|(_, p)| p.detach().zeros_like()).collect();
        Self {
            options,
            names: parameters.iter().map(|(name, _)| name.clone()).collect(),
            parameters: parameters.iter().map(|(_, p)| p.shallow_clone()).collect(),
            exp_avg: zeros(),
            exp_avg_sq: zeros(),
            step: Tensor::from(0_i64),
        }
    }

    /// One step with the gradients that stand in the parameters' `.grad`.
    ///
    /// # Errors
    /// A parameter has no gradient; nothing is changed then.
    pub fn step(&mut self, lr: f64) -> Result<(), TorchError> {
        let gradients: Vec<Tensor> = self.parameters.iter().map(Tensor::grad).collect();
        if let Some(place) = gradients.iter().position(|gradient| !gradient.defined()) {
            let message = format!("{} has no gradient", self.names[place]);
            return Err(TorchError::Libtorch { operation: "take an AdamP step", message });
        }
        tch::no_grad(|| {
            let invariant = self.invariant(&gradients)?;
            let _ = self.step.g_add_scalar_(1);
            for (i, (gradient, view)) in gradients.iter().zip(invariant).enumerate() {
                self.update(i, gradient, view, lr);
            }
            Ok(())
        })
    }

    /// The view in which each parameter counts as scale-invariant, if there is one. What decides is read back
    /// from the device once a view, not once a parameter.
    fn invariant(&self, gradients: &[Tensor]) -> Result<Vec<Option<View>>, TorchError> {
        let mut found = vec![None; gradients.len()];
        for view in [View::Channel, View::Layer] {
            let open = |i: &usize| self.parameters[*i].dim() > 1 && found[*i].is_none();
            let open: Vec<usize> = (0..found.len()).filter(open).collect();
            if open.is_empty() {
                break;
            }
            let largest = |i: &usize| {
                let (g, p) = (&gradients[*i], &self.parameters[*i]);
                let length = |t: &Tensor| view.norm(t).clamp_min(self.options.eps);
                (view.dot(g, p) / (length(g) * length(p))).abs().max()
            };
            let largest = Tensor::stack(&open.iter().map(largest).collect::<Vec<_>>(), 0);
            let largest = Vec::<f32>::try_from(&largest).map_err(TorchError::during("read back cosines"))?;
            for (i, largest) in open.into_iter().zip(largest) {
                let bound = self.options.delta / (view.width(&self.parameters[i]) as f64).sqrt();
                if largest < bound as f32 {
                    found[i] = Some(view);
                }
            }
        }
        Ok(found)
    }

    fn update(&mut self, i: usize, gradient: &Tensor, view: Option<View>, lr: f64) {
        let AdamPOptions { betas: (b1, b2), eps, weight_decay, wd_ratio, nesterov, .. } = self.options;
        let (p, m, v) = (&mut self.parameters[i], &mut self.exp_avg[i], &mut self.exp_avg_sq[i]);
        let t = self.step.int64_value(&[]) as f64;
        let (correction1, correction2) = (1.0 - b1.powf(t), 1.0 - b2.powf(t));

        let _ = m.g_mul_scalar_(b1).g_add_(&(gradient * (1.0 - b1)));
        let _ = v.g_mul_scalar_(b2).g_add_(&(gradient * gradient * (1.0 - b2)));
        let denominator = v.sqrt() / correction2.sqrt() + eps;
        let mut direction = match nesterov {
            true => (&*m * b1 + gradient * (1.0 - b1)) / denominator,
            false => &*m / denominator,
        };
        let mut decay = lr * decay_of(p, weight_decay);
        if let Some(view) = view {
            let normal = &*p / (view.norm(p) + eps);
            direction -= &normal * view.dot(&normal, &direction);
            decay *= wd_ratio;
        }
        if decay > 0.0 {
            let _ = p.g_mul_scalar_(1.0 - decay);
        }
        let _ = p.g_sub_(&(direction * (lr / correction1)));
    }

    /// Handles to the state as `exp_avg.<parameter>`, `exp_avg_sq.<parameter>` and `step`; they share memory
    /// with the optimizer.
    pub fn state(&self) -> StateDict {
        let moments = named("exp_avg", &self.names, &self.exp_avg);
        let squares = named("exp_avg_sq", &self.names, &self.exp_avg_sq);
        moments.chain(squares).chain([("step".to_owned(), self.step.shallow_clone())]).collect()
    }

    /// Fills the state from `state`, in any order and memory format.
    ///
    /// # Errors
    /// Names or shapes that differ from the parameters'; nothing is changed then.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<(), ModelError> {
        load_tensors("the state of the optimizer adamp", &self.state(), state)
    }
}
