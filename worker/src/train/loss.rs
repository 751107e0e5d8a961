//! What is minimized.

use tch::{Kind, Tensor};

use crate::torch::TorchError;

/// Cross entropy of soft targets, summed over the batch: `sum(-target * log_softmax(logits))`.
///
/// `logits` and `target` are `[B, classes]`, each row of `target` a distribution; computed in f32 whatever
/// the kind of `logits`. The caller divides by the global batch, so that ranks with unequal slices add up.
///
/// # Errors
/// No memory left, or other shapes.
pub fn soft_cross_entropy(logits: &Tensor, target: &Tensor) -> Result<Tensor, TorchError> {
    Ok(target.f_mul(&logits.f_log_softmax(-1, Kind::Float)?)?.f_sum(Kind::Float)?.f_neg()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn equals_the_definition_and_its_gradient_is_softmax_minus_target() {
        let logits =
            Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 0.0, 0.0, 1.0]).view([2, 3]).set_requires_grad(true);
        let target = Tensor::from_slice(&[0.5_f32, 0.25, 0.25, 0.0, 0.0, 1.0]).view([2, 3]);
        let loss = soft_cross_entropy(&logits, &target).unwrap();
        let row = |row: [f64; 3], target: [f64; 3]| -> f64 {
            let sum: f64 = row.iter().map(|v| v.exp()).sum();
            row.iter().zip(target).map(|(v, t)| -t * (v - sum.ln())).sum()
        };
        let expected = row([1.0, 2.0, 3.0], [0.5, 0.25, 0.25]) + row([0.0, 0.0, 1.0], [0.0, 0.0, 1.0]);
        assert!((loss.double_value(&[]) - expected).abs() < 1e-6);
        loss.backward();
        let gradient = logits.detach().softmax(-1, Kind::Float) - &target;
        assert!((logits.grad() - gradient).abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn half_precision_logits_are_taken_in_f32() {
        let logits = Tensor::from_slice(&[60_000.0_f32, 0.0]).view([1, 2]).to_kind(Kind::BFloat16);
        let target = Tensor::from_slice(&[0.0_f32, 1.0]).view([1, 2]);
        let loss = soft_cross_entropy(&logits, &target).unwrap();
        assert_eq!(loss.kind(), Kind::Float);
        assert!((loss.double_value(&[]) - 59_904.0).abs() < 1.0);
    }
}
