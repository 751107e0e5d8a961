//! What the networks compute in, and where their images lie in memory.
#![allow(clippy::unwrap_used)]

use tch::{Device, Kind, Tensor};

use super::*;
use crate::train::loss::soft_cross_entropy;

const FAMILIES: [&str; 5] = ["resnet18", "resnet50", "resnext50_32x4d", "efficientnet_b0", "rexnet_100"];

fn images(n: i64, side: i64) -> Tensor {
    let pixels = seeded(5, || Tensor::randn([n, side, side, 3], (Kind::Float, Device::Cpu)));
    pixels.permute([0, 3, 1, 2])
}

fn network(arch: &str, precision: Precision) -> Model {
    let mut model = build(arch, 10, published_batch_norm(arch), Device::Cpu, 7).unwrap();
    model.to_channels_last().unwrap();
    model.set_precision(precision).unwrap();
    model
}

#[test]
fn no_operator_falls_out_of_channels_last() {
    for precision in [Precision::Fp32, Precision::Bf16] {
        for arch in FAMILIES {
            let model = network(arch, precision);
            // At 64 the last maps are of 2 x 2, for which libtorch copies weights in rows on CPUs without AVX-512.
            let (x, target) = (images(2, 96), Tensor::full([2, 10], 0.1, (Kind::Float, Device::Cpu)));
            let (mut lines, looked_at) = torch::layouts::watch(|| {
                let loss =
                    soft_cross_entropy(&seeded(1, || model.forward(&x, true).unwrap()), &target).unwrap();
                // The gradient of a ReXNet's shortcuts, which reach only the first channels, is a slice that libtorch
                // copies in rows.
                if arch != "rexnet_100" {
                    loss.backward();
                }
            });
            // The gradient of a mean over an image, which libtorch spreads in rows, and what it goes through up to the
            // last BatchNorm: so it is in PyTorch, and the map is the smallest of all.
            let features = tch::no_grad(|| model.features(&x)).unwrap();
            assert!(torch::is_channels_last(&features), "{arch} in {precision:?}");
            let last = format!(" {:?} ", features.size());
            lines.retain(|line| !line.starts_with("aten::div ") && !line.contains(&last));
            let layers = model.parameters().iter().filter(|(_, p)| p.dim() == 4).count() as u64;
            assert!(looked_at > 2 * layers, "{arch}: only {looked_at} images were looked at");
            assert!(lines.is_empty(), "{arch} in {precision:?}: {lines:#?}");
        }
    }
    let nchw = Tensor::ones([2, 3, 8, 8], (Kind::Float, Device::Cpu));
    let (lines, _) = torch::layouts::watch(|| drop(nchw.relu()));
    assert!(lines.iter().any(|line| line.starts_with("aten::relu [2, 3, 8, 8]")), "{lines:?}");
}

#[test]
fn a_precision_is_that_of_convolutions_and_of_nothing_that_is_kept() {
    let x = images(2, 64);
    for (precision, kind) in
        [(Precision::Fp32, Kind::Float), (Precision::Bf16, Kind::BFloat16), (Precision::Fp16, Kind::Half)]
    {
        let model = network("resnet18", precision);
        let logits = model.forward(&x, true).unwrap();
        assert_eq!((logits.kind(), model.features(&x).unwrap().kind()), (kind, kind));
        logits.sum(Kind::Float).backward();
        for (name, tensor) in model.state_dict() {
            assert!(matches!(tensor.kind(), Kind::Float | Kind::Int64), "{name} is {:?}", tensor.kind());
        }
        assert!(model.parameters().iter().all(|(_, p)| p.grad().kind() == Kind::Float));
    }
    // The region has been left: what follows is float32.
    assert_eq!(network("resnet18", Precision::Fp32).forward(&x, false).unwrap().kind(), Kind::Float);
}

#[test]
fn a_panic_leaves_the_region() {
    let x = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
    let panicked = std::panic::catch_unwind(|| {
        torch::autocast(Device::Cpu, Precision::Bf16, || panic!("as an operator does that is given nonsense"))
    });
    assert!(panicked.is_err());
    assert_eq!(x.matmul(&x.tr()).kind(), Kind::Float);
    let inside = torch::autocast(Device::Cpu, Precision::Bf16, || x.matmul(&x.tr()).kind());
    assert_eq!(inside, Kind::BFloat16);
}

#[test]
fn the_casts_of_weights_do_not_outlive_a_region() {
    // As an optimizer does it: the weights change in place between two forward passes.
    let model = network("resnet18", Precision::Bf16);
    let x = images(1, 32);
    let before = tch::no_grad(|| model.forward(&x, false).unwrap());
    tch::no_grad(|| {
        let (mut weight, _) = model.head().unwrap();
        let _ = weight.g_add_scalar_(1.0);
    });
    let after = tch::no_grad(|| model.forward(&x, false).unwrap());
    assert!(before != after);
    let recorded = model.forward(&x, false).unwrap().detach();
    tch::no_grad(|| {
        let (mut weight, _) = model.head().unwrap();
        let _ = weight.g_add_scalar_(1.0);
    });
    assert!(recorded != model.forward(&x, false).unwrap().detach());
}
