//! What the other families add to the ResNets: grouped convolutions, random layers, two sorts of names.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use tch::{Device, Kind, Tensor};

use super::*;
use crate::train::loss::soft_cross_entropy;

const ONE_OF_EACH: [&str; 3] = ["resnext50_32x4d", "efficientnet_b0", "rexnet_100"];

/// With BatchNorm frozen at the statistics of a batch: it neither hides what masks do nor magnifies rounding,
/// and features do not vanish.
fn model(arch: &str) -> Model {
    let newest = BatchNormOptions { momentum: 1.0, ..BatchNormOptions::default() };
    let [warm, mut model] = [newest, BatchNormOptions { frozen: true, ..newest }]
        .map(|options| build(arch, 10, options, Device::Cpu, 7).unwrap());
    let _ = seeded(2, || {
        tch::no_grad(|| {
            warm.forward(&Tensor::randn([8, 3, 64, 64], (Kind::Float, Device::Cpu)), true).unwrap()
        })
    });
    model.load_state_dict(&warm.state_dict()).unwrap();
    model
}

fn noise(batch: i64) -> Tensor {
    seeded(3, || Tensor::randn([batch, 3, 64, 64], (Kind::Float, Device::Cpu)))
}

/// Largest difference, as a share of the largest value.
fn far(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[]) / b.abs().max().double_value(&[])
}

fn gradient(model: &Model, name: &str) -> Tensor {
    model.parameters().iter().find(|(n, _)| n == name).unwrap().1.grad().copy()
}

#[test]
fn the_options_name_exactly_the_networks_that_can_be_built() {
    assert_eq!(relabel_config::ARCHS, known_archs());
}

#[test]
fn channels_last_computes_the_same_in_every_family() {
    let names = ["layer2.0.conv2.weight", "features.2.0.block.1.0.weight", "features.6.out.3.weight"];
    let target = Tensor::full([2, 10], 0.1, (Kind::Float, Device::Cpu));
    for (arch, name) in ONE_OF_EACH.into_iter().zip(names) {
        let mut model = model(arch);
        let run = |model: &Model, x: &Tensor| {
            // Fresh gradients: a depthwise weight has both memory formats at once and keeps its old one.
            let _flat = FlatGradients::new(model, 0).unwrap();
            let logits = seeded(1, || model.forward(x, true).unwrap());
            soft_cross_entropy(&logits, &target).unwrap().backward();
            (logits.detach(), gradient(model, name))
        };
        let x = noise(2);
        let before = run(&model, &x);
        model.to_channels_last().unwrap();
        let after = run(&model, &crate::torch::to_channels_last(&x).unwrap());
        // A rounded value on the other side of a ReLU moves single gradients: their norm is compared.
        let norm = |gradient: &Tensor| gradient.norm().double_value(&[]);
        let (logits, gradients) = (far(&after.0, &before.0), norm(&(after.1 - &before.1)) / norm(&before.1));
        assert!(
            logits < 1e-4 && gradients < 1e-2,
            "{arch}: logits {logits:.1e}, gradients {gradients:.1e} apart"
        );
        assert!(before.1.abs().max().double_value(&[]) > 0.0, "{arch}");
    }
}

#[test]
fn random_layers_are_on_in_training_only_and_follow_the_seed() {
    let x = noise(4);
    for (arch, random) in ONE_OF_EACH.into_iter().zip([false, true, true]) {
        let model = model(arch);
        let run = |seed, train| seeded(seed, || tch::no_grad(|| model.forward(&x, train).unwrap()));
        assert_eq!(far(&run(1, false), &run(2, false)), 0.0, "{arch}");
        assert_eq!(far(&run(1, true), &run(1, true)), 0.0, "{arch}");
        assert_eq!(far(&run(1, true), &run(2, true)) > 1e-3, random, "{arch}");
        assert_eq!(far(&run(1, true), &run(1, false)) > 1e-3, random, "{arch}");
    }
}

#[test]
fn stochastic_depth_leaves_out_whole_rows_and_keeps_the_mean() {
    let ones = Tensor::ones([4000, 2, 3, 1], (Kind::Float, Device::Cpu));
    let rows =
        seeded(5, || layers::stochastic_depth(ones.shallow_clone(), 0.2, true).unwrap()).view([4000, 6]);
    let kept = rows.select(1, 0);
    assert_eq!(far(&rows, &kept.unsqueeze(1).expand_as(&rows)), 0.0);
    let values: BTreeSet<String> =
        Vec::<f64>::try_from(&kept).unwrap().iter().map(|v| format!("{v:.4}")).collect();
    assert_eq!(values, ["0.0000", "1.2500"].map(String::from).into());
    // Four standard errors of a mean of 4000 draws.
    assert!((kept.mean(Kind::Double).double_value(&[]) - 1.0).abs() < 4.0 * 0.5 / 4000_f64.sqrt());
    assert_eq!(far(&layers::stochastic_depth(ones.shallow_clone(), 0.2, false).unwrap(), &ones), 0.0);
}

#[test]
fn features_and_head_give_the_logits_of_every_family() {
    let x = noise(2);
    for arch in ONE_OF_EACH {
        let model = model(arch);
        let (weight, bias) = model.head().unwrap();
        let maps = tch::no_grad(|| model.features(&x).unwrap());
        assert_eq!(maps.size()[2..], [2, 2], "{arch}");
        let scores = maps.conv2d(&weight, Some(&bias), [1, 1], [0, 0], [1, 1], 1);
        let logits = tch::no_grad(|| model.forward(&x, false).unwrap());
        assert!(far(&scores.mean_dim([2_i64, 3].as_slice(), false, Kind::Float), &logits) < 1e-5, "{arch}");
    }
}

#[test]
fn timms_names_of_rexnet_are_translated_both_ways() {
    let names: Vec<String> = model("rexnet_130").state_dict().into_iter().map(|(name, _)| name).collect();
    let timms: BTreeSet<String> = names.iter().map(|name| rexnet::to_timm(name).unwrap()).collect();
    assert_eq!(timms.len(), names.len());
    for name in &names {
        let timm = rexnet::to_timm(name).unwrap();
        assert_eq!(rexnet::from_timm(&timm).as_ref(), Some(name));
    }
    for (timm, authors) in [
        ("stem.bn.running_var", "features.1.running_var"),
        ("features.0.conv_dw.conv.weight", "features.3.out.0.weight"),
        ("features.2.conv_pwl.bn.bias", "features.5.out.7.bias"),
        ("features.3.se.bn.weight", "features.6.out.5.fc.1.weight"),
        ("features.15.conv_pwl.conv.weight", "features.18.out.7.weight"),
        ("features.16.conv.weight", "features.19.weight"),
        ("head.fc.bias", "output.1.bias"),
    ] {
        assert_eq!(rexnet::from_timm(timm).as_deref(), Some(authors));
        assert!(timms.contains(timm), "{timm}");
    }
    for neither in ["features.3.out.0.weight", "features.17.conv.weight", "features.0.se.fc1.weight", "fc"] {
        assert_eq!(rexnet::from_timm(neither), None, "{neither}");
    }
}

#[test]
fn only_weights_converted_from_tensorflow_have_another_batch_norm() {
    for arch in known_archs() {
        let tensorflow = ["efficientnet_b5", "efficientnet_b6", "efficientnet_b7"].contains(&arch);
        let found = published_batch_norm(arch);
        let expected = if tensorflow { (1e-3, 0.01) } else { (1e-5, 0.1) };
        assert_eq!((found.eps, found.momentum, found.frozen), (expected.0, expected.1, false), "{arch}");
    }
}
