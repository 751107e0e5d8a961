//! Convolutions to small maps beside libtorch's in f64.
#![allow(clippy::unwrap_used)]

use relabel_config::Precision;

use super::*;
use crate::model::seeded;

/// Values in channels_last memory.
fn drawn(seed: i64, [n, channels, height, width]: [i64; 4]) -> Tensor {
    let rows = seeded(seed, || Tensor::randn([n, height, width, channels], (Kind::Float, Device::Cpu)));
    rows.permute([0, 3, 1, 2]).set_requires_grad(true)
}

/// The largest difference of `found` from `right`, as a part of the largest value.
fn difference(found: &Tensor, right: &Tensor) -> f64 {
    assert_eq!(found.size(), right.size());
    (found.to_kind(Kind::Double) - right).abs().max().double_value(&[]) / right.abs().max().double_value(&[])
}

fn in_f64(tensor: &Tensor) -> Tensor {
    tensor.detach().to_kind(Kind::Double).set_requires_grad(true)
}

/// The output and both gradients of `convolve`, where what comes from above is no constant.
fn all_of(x: &Tensor, weight: &Tensor, convolve: impl FnOnce() -> Tensor) -> [Tensor; 3] {
    let y = convolve();
    let above = drawn(3, <[i64; 4]>::try_from(y.size()).unwrap()).detach();
    (y.to_kind(Kind::Double) * above).sum(Kind::Double).backward();
    [y.detach(), x.grad(), weight.grad()]
}

/// Height and width of an image, side of the kernel, stride.
const SHAPES: [([i64; 2], i64, i64); 9] = [
    ([2, 2], 3, 1),
    ([4, 4], 3, 2),
    ([3, 3], 3, 2),
    ([1, 1], 3, 1),
    ([1, 4], 3, 1),
    ([4, 1], 3, 1),
    ([2, 2], 7, 1),
    ([5, 7], 5, 4),
    ([8, 3], 2, 4),
];

#[test]
fn output_and_gradients_equal_libtorchs() {
    for (sides, kernel, stride) in SHAPES {
        for batch in [1, 7] {
            let x = drawn(1, [batch, 6, sides[0], sides[1]]);
            let weight = drawn(2, [5, 6, kernel, kernel]);
            let padding = kernel / 2;
            let found =
                all_of(&x, &weight, || convolve_small_map(&x, &weight, stride, padding).unwrap().unwrap());
            let (x, weight) = (in_f64(&x), in_f64(&weight));
            let right = all_of(&x, &weight, || {
                x.conv2d(&weight, None::<Tensor>, [stride; 2], [padding; 2], [1, 1], 1)
            });
            for (name, (found, right)) in ["y", "dx", "dw"].into_iter().zip(found.iter().zip(&right)) {
                let what = format!("{name} of {batch} x {sides:?} by {kernel} / {stride}");
                assert_eq!(found.kind(), Kind::Float, "{what}");
                assert!(is_channels_last(found), "{what}");
                assert!(difference(found, right) < 2e-6, "{what}: {:e}", difference(found, right));
            }
        }
    }
}

/// Of the same values, rounded to bf16: what is left are roundings of the results, 1 in 256 each.
#[test]
fn in_bf16_they_do_so_too() {
    let rounded = |tensor: Tensor| {
        let tensor = tensor.detach().to_kind(Kind::BFloat16).to_kind(Kind::Float);
        tensor.set_requires_grad(true)
    };
    for (sides, kernel, stride) in SHAPES.into_iter().chain([([4, 4], 3, 1), ([8, 7], 3, 2)]) {
        let x = rounded(drawn(1, [7, 32, sides[0], sides[1]]));
        let weight = rounded(drawn(2, [48, 32, kernel, kernel]));
        let padding = kernel / 2;
        let convolved = || convolve_small_map(&x, &weight, stride, padding).unwrap().unwrap();
        let found = all_of(&x, &weight, || autocast(Device::Cpu, Precision::Bf16, convolved));
        assert_eq!(found.each_ref().map(Tensor::kind), [Kind::BFloat16, Kind::Float, Kind::Float]);
        let (x, weight) = (in_f64(&x), in_f64(&weight));
        let right =
            all_of(&x, &weight, || x.conv2d(&weight, None::<Tensor>, [stride; 2], [padding; 2], [1, 1], 1));
        for (name, (found, right)) in ["y", "dx", "dw"].into_iter().zip(found.iter().zip(&right)) {
            let what = format!("{name} of {sides:?} by {kernel} / {stride}");
            assert!(is_channels_last(found), "{what}");
            assert!(difference(found, right) < 6e-3, "{what}: {:e}", difference(found, right));
        }
    }
}

#[test]
fn what_needs_no_gradient_gets_none() {
    for precision in [Precision::Fp32, Precision::Bf16] {
        let convolved = |x: &Tensor, weight: &Tensor| {
            autocast(Device::Cpu, precision, || convolve_small_map(x, weight, 1, 1).unwrap().unwrap())
        };
        let (x, weight) = (drawn(1, [4, 6, 2, 2]), drawn(2, [5, 6, 3, 3]));
        convolved(&x.detach(), &weight).sum(Kind::Float).backward();
        assert!(weight.grad().defined() && !x.grad().defined());
        let weight = weight.detach();
        convolved(&x, &weight).sum(Kind::Float).backward();
        assert!(x.grad().defined() && !weight.grad().defined());
        assert!(!tch::no_grad(|| convolved(&x, &weight)).requires_grad());
    }
}

#[test]
fn it_is_left_to_libtorch_where_it_cannot_be_done_or_gains_nothing() {
    let (x, weight) = (drawn(1, [4, 6, 2, 2]), drawn(2, [5, 6, 3, 3]));
    let done = |x: &Tensor, weight: &Tensor| convolve_small_map(x, weight, 1, 1).unwrap().is_some();
    assert!(done(&x, &weight));
    assert!(!done(&x.contiguous(), &weight), "rows");
    assert!(!done(&x, &weight.contiguous()), "rows of the kernel");
    assert!(!done(&x.to_kind(Kind::Double), &weight.to_kind(Kind::Double)), "f64");
    assert!(!done(&x.to_kind(Kind::BFloat16), &weight.to_kind(Kind::BFloat16)), "bf16");
    assert!(autocast(Device::Cpu, Precision::Bf16, || done(&x, &weight)), "bf16 by autocast");
    assert!(
        autocast(Device::Cpu, Precision::Bf16, || done(&drawn(1, [4, 6, 4, 4]), &weight)),
        "sixteen pixels"
    );
    assert!(!autocast(Device::Cpu, Precision::Bf16, || done(&drawn(1, [4, 6, 4, 5]), &weight)), "twenty");
    assert!(!autocast(Device::Cpu, Precision::Fp16, || done(&x, &weight)), "fp16");
    assert!(!done(&x, &drawn(2, [5, 3, 3, 3])), "other channels, of groups for one");
    assert!(!done(&drawn(1, [4, 6, 2, 3]), &weight), "six pixels");
    assert!(!done(&x, &drawn(2, [5, 6, 1, 1])), "a kernel of one pixel, padded to sixteen");
    assert!(convolve_small_map(&x, &drawn(2, [5, 6, 1, 1]), 1, 0).unwrap().is_none(), "one pixel");
    assert!(convolve_small_map(&x, &weight, 1, 0).unwrap().is_none(), "a kernel larger than the image");
}
