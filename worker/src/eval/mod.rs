//! How good a model is: what is counted of its answers to images. The sums over sets, and what is printed of them, are
//! [`relabel_core::evaluation`]'s, for one process as for several.
//!
//! - [`count`]: top-1, top-5 and loss by the class of the folder; what a run validates with too.
//! - [`classes`]: which output of the network a class folder means.
//! - [`sets`]: the layouts of evaluation sets: ImageNet's, ImageNetV2's, class subsets, ImageNet-C.
//! - [`real`], [`multi_label`]: the same answers judged by other people's labels.
//! - [`attack`]: the fast gradient sign method.
//! - [`network`]: a model from a file of weights, as `worker eval` and `worker predict` open it.
//! - `evaluator`: ranges of a set's images, judged in every way at once.
//! - [`command`]: `worker eval`.

use relabel_core::evaluation::counts::Counts;
use tch::{Kind, Tensor};

pub mod attack;
pub mod classes;
pub mod command;
mod evaluator;
pub mod multi_label;
pub mod network;
pub mod real;
pub mod sets;
#[cfg(test)]
mod tests;

use crate::data::loader::EvalBatch;
use crate::model::{Model, image_batch};
use crate::torch::{self, TorchError};

/// Counts a batch of images `[n, size, size, 3]`, with the model in evaluation.
///
/// # Errors
/// No memory for the batch.
pub fn count(model: &Model, batch: &EvalBatch, size: u32) -> Result<Counts, TorchError> {
    let n = batch.classes.len() as i64;
    let x = torch::to_device(&image_batch(&batch.images, n, i64::from(size))?, model.device())?;
    let logits = tch::no_grad(|| model.forward(&x, false))?;
    let classes = torch::to_device(&Tensor::from_slice(&batch.classes), model.device())?;
    Ok(count_logits(&logits, &classes))
}

/// Counts samples by their logits `[n, outputs]` and class ids `[n]`. An output of -inf is no answer.
pub fn count_logits(logits: &Tensor, classes: &Tensor) -> Counts {
    tch::no_grad(|| {
        let log_probabilities = logits.log_softmax(-1, Kind::Float);
        let outputs = logits.size().last().copied().unwrap_or(0);
        let (_, answers) = log_probabilities.topk(outputs.min(5), -1, true, true);
        let right = answers.eq_tensor(&classes.unsqueeze(1));
        let loss = log_probabilities.gather(1, &classes.unsqueeze(1), false).sum(Kind::Double);
        Counts {
            samples: classes.size1().unwrap_or(0) as u64,
            top1: right.narrow(1, 0, 1).sum(Kind::Int64).int64_value(&[]) as u64,
            top5: right.sum(Kind::Int64).int64_value(&[]) as u64,
            loss_sum: -loss.double_value(&[]),
        }
    })
}
