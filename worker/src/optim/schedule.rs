//! The learning rate of a step: a pure function of the options and the step's number.

use std::f64::consts::PI;

use relabel_config::{Decay, Optim};

/// The learning rate of step `step` (from 0) of epoch `epoch` (from 0), an epoch having
/// `steps_per_epoch` steps. With t = epoch * steps_per_epoch + step counted in steps, W and N the steps of
/// the warmup and of the whole run:
///
/// - t < W: `warmup.lr + (lr.init - warmup.lr) * t / W`
/// - cos: `lr.init / 2 * (1 + cos(pi * (t - W) / (N - W)))`
/// - linear: `lr.init * (1 - (t - W) / (N - W))`
/// - default: `lr.init * 0.1 ^ floor(epoch / 30)`, epochs counted from the start of the run
///
/// as in the reference implementation (naver-ai/relabel_imagenet). Past the end of the run cos and linear
/// stay at 0.
pub fn lr(options: &Optim, epoch: u32, step: u64, steps_per_epoch: u64) -> f64 {
    let init = options.lr.init;
    let steps = |epochs: u32| f64::from(epochs) * steps_per_epoch as f64;
    let now = steps(epoch) + step as f64;
    let warmup = steps(options.warmup.epochs);
    if epoch < options.warmup.epochs {
        return options.warmup.lr + (init - options.warmup.lr) * now / warmup;
    }
    let rest = steps(options.epochs) - warmup;
    let progress = if rest > 0.0 { ((now - warmup) / rest).min(1.0) } else { 1.0 };
    match options.lr.decay_type {
        Decay::Cos => init / 2.0 * (1.0 + (PI * progress).cos()),
        Decay::Linear => init * (1.0 - progress),
        Decay::Default => init * 0.1_f64.powi((epoch / 30) as i32),
    }
}
