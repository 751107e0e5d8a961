//! The fast gradient sign method (Goodfellow et al. 2015, "Explaining and Harnessing Adversarial Examples"): each
//! pixel moved by epsilon in the direction that raises the loss.

use tch::{Kind, Tensor};

use crate::data::augment::{MEAN, STD};
use crate::model::Model;
use crate::torch::TorchError;

/// The sign of the gradient of each image's cross entropy with its class, by its pixels: `x` normalized
/// `[n, 3, H, W]`, `classes` `[n]`. `answers` turns the logits into those that are judged.
///
/// # Errors
/// No memory for the passes.
pub fn direction(
    model: &Model,
    x: &Tensor,
    classes: &Tensor,
    answers: impl Fn(Tensor) -> Tensor,
) -> Result<Tensor, TorchError> {
    let failed = TorchError::during("compute the gradient of the pixels");
    let x = x.detach().set_requires_grad(true);
    let log_probabilities = answers(model.forward(&x, false)?).log_softmax(-1, Kind::Float);
    // A sum, so that an image's gradient does not depend on its batch; its scale has no part in the sign.
    let loss = -log_probabilities.gather(1, &classes.unsqueeze(1), false).sum(Kind::Float);
    let gradients = Tensor::f_run_backward(&[loss], &[&x], false, false).map_err(failed)?;
    // Normalizing scales each channel by a positive number, which leaves the sign as it is.
    gradients[0].f_sign().map_err(failed)
}

/// `x` moved by `epsilon`, in parts of the range of a pixel, along `direction`, and back into that range:
/// all three normalized, `[n, 3, H, W]`.
pub fn perturb(x: &Tensor, direction: &Tensor, epsilon: f64) -> Tensor {
    let channels = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]);
    let step = channels(STD.map(|deviation| (epsilon / f64::from(deviation)) as f32));
    let black = channels([0, 1, 2].map(|c| -MEAN[c] / STD[c]));
    let white = channels([0, 1, 2].map(|c| (1.0 - MEAN[c]) / STD[c]));
    (x + direction * step).maximum(&black).minimum(&white)
}
