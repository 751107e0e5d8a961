//! How good a model is: counts and sums over a set, which add up exactly over ranks.
//!
//! - [`Counts`]: top-1, top-5 and loss by the class of the folder; what a run validates with too.
//! - [`classes`]: which output of the network a class folder means.
//! - [`sets`]: the layouts of evaluation sets: ImageNet's, ImageNetV2's, class subsets, ImageNet-C.
//! - [`real`], [`multi_label`]: the same answers judged by other people's labels.
//! - [`corruption`]: ImageNet-C's error for each corruption, and their mean.
//! - [`attack`]: the fast gradient sign method.
//! - [`network`]: a model from a file of weights, as `worker eval` and `worker predict` open it.
//! - [`command`], [`report`]: `worker eval` and what it prints.

use tch::{Kind, Tensor};

pub mod attack;
pub mod classes;
pub mod command;
pub mod corruption;
mod evaluator;
pub mod multi_label;
pub mod network;
pub mod real;
pub mod report;
pub mod sets;
#[cfg(test)]
mod tests;

use crate::data::loader::EvalBatch;
use crate::model::{Model, image_batch};
use crate::torch::TorchError;

/// Single-label accuracy of the samples so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    pub samples: u64,
    /// Samples whose class was the first, and among the first five, of the model's answers. With fewer
    /// than five classes every answer is among the first five.
    pub top1: u64,
    pub top5: u64,
    /// Sum of the cross entropies, in nats.
    pub loss_sum: f64,
}

impl Counts {
    /// Evaluates a batch of images `[n, size, size, 3]` in evaluation mode and adds it.
    ///
    /// # Errors
    /// No memory for the batch.
    pub fn add(&mut self, model: &Model, batch: &EvalBatch, size: u32) -> Result<(), TorchError> {
        let n = batch.classes.len() as i64;
        let x = image_batch(&batch.images, n, i64::from(size))?;
        let logits = tch::no_grad(|| model.forward(&x, false));
        self.add_logits(&logits, &Tensor::from_slice(&batch.classes));
        Ok(())
    }

    /// Adds samples by their logits `[n, outputs]` and class ids `[n]`. An output of -inf is no answer.
    pub fn add_logits(&mut self, logits: &Tensor, classes: &Tensor) {
        tch::no_grad(|| {
            let log_probabilities = logits.log_softmax(-1, Kind::Float);
            let outputs = logits.size().last().copied().unwrap_or(0);
            let (_, answers) = log_probabilities.topk(outputs.min(5), -1, true, true);
            let right = answers.eq_tensor(&classes.unsqueeze(1));
            let loss = log_probabilities.gather(1, &classes.unsqueeze(1), false).sum(Kind::Double);
            self.samples += classes.size1().unwrap_or(0) as u64;
            self.top1 += right.narrow(1, 0, 1).sum(Kind::Int64).int64_value(&[]) as u64;
            self.top5 += right.sum(Kind::Int64).int64_value(&[]) as u64;
            self.loss_sum -= loss.double_value(&[]);
        });
    }

    /// Share of samples whose class was the first answer, in [0, 1]; NaN of none.
    pub fn top1_share(&self) -> f64 {
        self.top1 as f64 / self.samples as f64
    }

    /// Share of samples whose class was among the first five answers, in [0, 1]; NaN of none.
    pub fn top5_share(&self) -> f64 {
        self.top5 as f64 / self.samples as f64
    }

    /// Mean cross entropy in nats; NaN of none.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.samples as f64
    }
}
