//! The fused BatchNorm beside libtorch's operators in f64.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use super::*;
use crate::model::seeded;

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// `[n, channels, side, side]` in channels_last memory, around `mean` in each channel.
fn images(seed: i64, [n, channels, side]: [i64; 3], mean: f64, kind: Kind) -> Tensor {
    let rows = seeded(seed, || Tensor::randn([n, side, side, channels], CPU) + mean);
    rows.permute([0, 3, 1, 2]).to_kind(kind)
}

/// A BatchNorm layer's tensors and what came of a step through it.
struct Layer {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl Layer {
    fn new(channels: i64, kind: Kind) -> Self {
        let draw = |seed, shift: f64| {
            seeded(seed, || Tensor::randn([channels], CPU) * 0.3 + shift)
                .to_kind(kind)
                .set_requires_grad(false)
        };
        Self {
            weight: draw(1, 1.0).set_requires_grad(true),
            bias: draw(2, 0.0).set_requires_grad(true),
            running_mean: draw(3, 0.0),
            running_var: draw(4, 1.0).abs(),
        }
    }

    fn fused(&self, x: &Tensor, shortcut: Option<&Tensor>, relu: bool) -> Option<Tensor> {
        let Self { weight, bias, running_mean, running_var } = self;
        let norm = BatchNorm { weight, bias, running_mean, running_var, momentum: 0.1, eps: 1e-5 };
        batch_norm(x, &norm, shortcut, relu).unwrap()
    }

    /// Operator after operator.
    fn plain(&self, x: &Tensor, shortcut: Option<&Tensor>) -> Tensor {
        let (mean, var) = (Some(&self.running_mean), Some(&self.running_var));
        let y = x.batch_norm(Some(&self.weight), Some(&self.bias), mean, var, true, 0.1, 1e-5, false);
        shortcut.map_or_else(|| y.shallow_clone(), |shortcut| &y + shortcut)
    }
}

/// The largest difference of `found` from `right`, as a part of the largest value.
fn difference(found: &Tensor, right: &Tensor) -> f64 {
    assert_eq!(found.size(), right.size());
    let scale = right.abs().max().double_value(&[]).max(1e-3);
    (found.to_kind(Kind::Double) - right).abs().max().double_value(&[]) / scale
}

#[test]
fn every_form_of_it_equals_the_operators_one_after_the_other() {
    for (kind, bound) in [(Kind::Float, 3e-6), (Kind::BFloat16, 6e-3)] {
        // More rows than one span, one more than blocks of whole spans; few rows of many channels; odd sides.
        for shape in [[3, 8, 65], [2, 64, 3], [5, 70, 7], [1, 3, 4]] {
            for (with_shortcut, relu) in [(false, false), (false, true), (true, false), (true, true)] {
                let x = images(5, shape, 2.0, kind).set_requires_grad(true);
                let shortcut = images(6, shape, 0.0, kind).set_requires_grad(true);
                let given = with_shortcut.then_some(&shortcut);
                let layer = Layer::new(shape[1], Kind::Float);
                let y = layer.fused(&x, given, relu).unwrap();
                assert!(is_channels_last(&y) && y.kind() == kind);

                let double = |tensor: &Tensor| tensor.detach().to_kind(Kind::Double).set_requires_grad(true);
                let (right_x, right_shortcut) = (double(&x), double(&shortcut));
                let right = Layer {
                    weight: double(&Layer::new(shape[1], Kind::Float).weight),
                    bias: double(&Layer::new(shape[1], Kind::Float).bias),
                    running_mean: Layer::new(shape[1], Kind::Float).running_mean.to_kind(Kind::Double),
                    running_var: Layer::new(shape[1], Kind::Float).running_var.to_kind(Kind::Double),
                };
                let sum = right.plain(&right_x, with_shortcut.then_some(&right_shortcut));
                let right_y = if relu { sum.detach().relu() } else { sum.detach() };

                // A gradient in rows, as a mean over the image gives it; rounded as the images are.
                let above = images(7, shape, 0.0, kind).contiguous();
                // Where rounding decides whether a ReLU lets through, both shall see what the fused one has seen.
                let open = if relu { y.detach().gt(0.0) } else { y.detach().isfinite() };
                y.backward_with(&above);
                let passed = above.to_kind(Kind::Double) * open.to_kind(Kind::Double);
                sum.backward_with(&passed);

                let what = format!("{kind:?} {shape:?} shortcut {with_shortcut} relu {relu}");
                let mut pairs = vec![
                    ("y", y.detach(), right_y),
                    ("x", x.grad(), right_x.grad()),
                    ("weight", layer.weight.grad(), right.weight.grad()),
                    ("bias", layer.bias.grad(), right.bias.grad()),
                    ("mean", layer.running_mean.shallow_clone(), right.running_mean.shallow_clone()),
                    ("var", layer.running_var.shallow_clone(), right.running_var.shallow_clone()),
                ];
                if with_shortcut {
                    pairs.push(("shortcut", shortcut.grad(), right_shortcut.grad()));
                }
                for (name, found, right) in pairs {
                    let difference = difference(&found, &right);
                    assert!(difference < bound, "{name} differs by {difference:e} in {what}");
                }
            }
        }
    }
}

/// Backward from a tensor that is no loss.
trait BackwardWith {
    fn backward_with(&self, above: &Tensor);
}

impl BackwardWith for Tensor {
    fn backward_with(&self, above: &Tensor) {
        (self * above).sum(Kind::Double).backward();
    }
}

#[test]
fn a_large_mean_leaves_a_small_variance() {
    let x = images(5, [4, 6, 20], 0.0, Kind::Float) * 1e-3 + 100.0;
    let layer = Layer::new(6, Kind::Float);
    let y = layer.fused(&to_channels_last(&x).unwrap(), None, false).unwrap();
    let right = Layer::new(6, Kind::Double).plain(&x.to_kind(Kind::Double), None);
    // The mean has been rounded to f32, which is a part of 4e-3 of the deviation.
    assert!(difference(&y, &right) < 5e-3, "{}", difference(&y, &right));
}

#[test]
fn what_is_no_number_stays_none() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let x = images(5, [2, 4, 9], 0.0, kind);
        let _ = x.get(0).get(2).get(3).get(3).fill_(f64::NAN);
        let y = Layer::new(4, Kind::Float).fused(&x, None, true).unwrap();
        let by_channel = y.to_kind(Kind::Float).sum_dim_intlist([0, 2, 3].as_slice(), false, Kind::Float);
        let found: Vec<f32> = Vec::try_from(by_channel).unwrap();
        assert_eq!(found.iter().map(|sum| sum.is_nan()).collect::<Vec<_>>(), [false, false, true, false]);
    }
}

#[test]
fn it_is_left_to_libtorch_where_it_cannot_be_done() {
    let layer = Layer::new(4, Kind::Float);
    let images = |kind| images(5, [2, 4, 9], 0.0, kind);
    let x = images(Kind::Float);
    let before = layer.running_mean.copy();
    assert!(layer.fused(&x.contiguous(), None, true).is_none(), "rows");
    assert!(layer.fused(&images(Kind::Double), None, true).is_none(), "f64");
    assert!(layer.fused(&images(Kind::Half), None, true).is_none(), "f16");
    assert!(layer.fused(&x, Some(&images(Kind::BFloat16)), true).is_none(), "another kind of shortcut");
    assert!(layer.fused(&x, Some(&x.narrow(0, 0, 1)), true).is_none(), "another shape of shortcut");
    assert!(
        layer.fused(&x.narrow(0, 0, 1).narrow(2, 0, 1).narrow(3, 0, 1), None, true).is_none(),
        "one value"
    );
    assert!(Layer::new(5, Kind::Float).fused(&x, None, true).is_none(), "another number of channels");
    assert_eq!(layer.running_mean, before);
    assert!(layer.fused(&x, Some(&x), true).is_some());
}

/// Not a test: prints what a step gives, to the last bit.
#[test]
#[ignore = "the child process of another test"]
fn child_step() {
    let Ok(threads) = std::env::var("CHILD_THREADS") else { return };
    set_num_threads(threads.parse().unwrap());
    let (x, layer) =
        (images(5, [3, 24, 65], 2.0, Kind::Float).set_requires_grad(true), Layer::new(24, Kind::Float));
    let y = layer.fused(&x, None, true).unwrap();
    y.backward_with(&images(7, [3, 24, 65], 0.0, Kind::Float));
    let mut all = blake3::Hasher::new();
    for tensor in [&y.detach(), &x.grad(), &layer.weight.grad(), &layer.running_var] {
        all.update(as_bytes(&tensor.contiguous()).unwrap());
    }
    println!("\nthe step is {} with {} threads", all.finalize(), tch::get_num_threads());
}

#[test]
fn the_result_is_the_same_with_any_number_of_threads() {
    let with = |threads: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "torch::normalize_tests::child_step", "--ignored", "--nocapture"])
            .env("CHILD_THREADS", threads)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("the step is ")).unwrap();
        let (hash, ran_with) = line.split_once(" with ").unwrap();
        assert_eq!(ran_with, format!("{threads} threads"));
        hash.to_owned()
    };
    let alone = with("1");
    assert_eq!([with("2"), with("5")], [alone.clone(), alone]);
}
