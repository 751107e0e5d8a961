//! How good a model is: counts and sums over a set, which add up exactly over ranks.

use tch::{Kind, Tensor};

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
        let classes = Tensor::from_slice(&batch.classes);
        tch::no_grad(|| {
            let log_probabilities = model.forward(&x, false).log_softmax(-1, Kind::Float);
            let k = model.classes().min(5);
            let (_, answers) = log_probabilities.topk(k, -1, true, true);
            let right = answers.eq_tensor(&classes.unsqueeze(1));
            let loss = log_probabilities.gather(1, &classes.unsqueeze(1), false).sum(Kind::Double);
            self.samples += n as u64;
            self.top1 += right.narrow(1, 0, 1).sum(Kind::Int64).int64_value(&[]) as u64;
            self.top5 += right.sum(Kind::Int64).int64_value(&[]) as u64;
            self.loss_sum -= loss.double_value(&[]);
        });
        Ok(())
    }
}
