#![allow(clippy::unwrap_used)]

use relabel_config::{Decay, Optim};
use tch::{Device, Kind, Tensor};

use super::schedule::lr;
use super::{Sgd, SgdOptions};

fn options(decay: Decay) -> Optim {
    let mut options = Optim { epochs: 100, ..Optim::default() };
    options.lr.init = 0.4;
    options.lr.decay_type = decay;
    options.warmup.lr = 0.1;
    options.warmup.epochs = 5;
    options
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-12, "{a} is not {b}");
}

#[test]
fn warmup_is_linear_in_steps() {
    for decay in [Decay::Cos, Decay::Linear, Decay::Default] {
        let options = options(decay);
        close(lr(&options, 0, 0, 10), 0.1);
        close(lr(&options, 2, 5, 10), 0.25);
        close(lr(&options, 4, 9, 10), 0.1 + 0.3 * 49.0 / 50.0);
        close(lr(&options, 5, 0, 10), 0.4);
    }
}

#[test]
fn cosine_is_half_way_in_the_middle_and_nothing_at_the_end() {
    let options = options(Decay::Cos);
    close(lr(&options, 52, 5, 10), 0.2);
    close(lr(&options, 28, 7, 10), 0.2 * (1.0 + (0.2494736842105263 * std::f64::consts::PI).cos()));
    let last = lr(&options, 99, 9, 10);
    assert!(last > 0.0 && last < 1e-5, "{last}");
    close(lr(&options, 100, 0, 10), 0.0);
    close(lr(&options, 150, 0, 10), 0.0);
}

#[test]
fn linear_and_default_decay() {
    let linear = options(Decay::Linear);
    close(lr(&linear, 52, 5, 10), 0.2);
    close(lr(&linear, 99, 9, 10), 0.4 / 950.0);
    let default = options(Decay::Default);
    close(lr(&default, 29, 9, 10), 0.4);
    close(lr(&default, 30, 0, 10), 0.04);
    close(lr(&default, 90, 0, 10), 0.0004);
}

#[test]
fn runs_without_warmup_or_without_anything_else_have_finite_rates() {
    let mut options = options(Decay::Cos);
    options.warmup.epochs = 0;
    close(lr(&options, 0, 0, 10), 0.4);
    options.warmup.epochs = 100;
    close(lr(&options, 99, 9, 10), 0.1 + 0.3 * 999.0 / 1000.0);
    options.epochs = 5;
    options.warmup.epochs = 5;
    assert!(lr(&options, 4, 1, 2).is_finite());
}

/// x of the quadratic sum((x - target)^2 * scale) / 2, whose gradient is (x - target) * scale.
const START: [f32; 4] = [1.0, -2.0, 0.5, 3.0];
const TARGET: [f32; 4] = [0.3, 0.7, -1.1, 2.0];
const SCALE: [f32; 4] = [1.0, 0.5, 2.0, 0.1];

// What torch.optim.SGD (PyTorch 2.11.0, CPU, float32) makes of it in 100 steps.
const FIXTURE_NESTEROV: [f32; 4] = [0.29718655, 0.684_126_4, -1.0944631, 1.8139715];
const FIXTURE_MOMENTUM: [f32; 4] = [0.30133373, 0.693_698_2, -1.0975503, 2.0002923];
const FIXTURE_PLAIN: [f32; 4] = [0.31351098, 0.27301466, -1.0937798, 2.6104918];

/// Learning rate of step i in the fixture.
fn rate(i: usize) -> f64 {
    0.1 / (1.0 + i as f64 / 20.0)
}

fn train(options: SgdOptions, steps: usize) -> Vec<f32> {
    let x = Tensor::from_slice(&START).set_requires_grad(true);
    let (target, scale) = (Tensor::from_slice(&TARGET), Tensor::from_slice(&SCALE));
    let mut sgd = Sgd::of(&[("x".to_owned(), x.shallow_clone())], options);
    for i in 0..steps {
        let difference = &x - &target;
        let mut held = x.shallow_clone();
        held.zero_grad();
        (&difference * &difference * &scale / 2.0).sum(Kind::Float).backward();
        sgd.step(rate(i)).unwrap();
    }
    Vec::try_from(&x.detach()).unwrap()
}

/// The definition, in f64.
fn by_hand(options: SgdOptions, steps: usize) -> Vec<f64> {
    let mut x = START.map(f64::from);
    let mut m = [0.0; 4];
    for step in 0..steps {
        for i in 0..4 {
            let g = (x[i] - f64::from(TARGET[i])) * f64::from(SCALE[i]) + options.weight_decay * x[i];
            m[i] = options.momentum * m[i] + g;
            let direction = if options.nesterov { g + options.momentum * m[i] } else { m[i] };
            x[i] -= rate(step) * direction;
        }
    }
    x.to_vec()
}

#[test]
fn sgd_equals_its_definition_and_pytorchs_numbers_over_100_steps() {
    let cases = [
        (SgdOptions { momentum: 0.9, weight_decay: 1e-2, nesterov: true }, FIXTURE_NESTEROV),
        (SgdOptions { momentum: 0.9, weight_decay: 0.0, nesterov: false }, FIXTURE_MOMENTUM),
        (SgdOptions { momentum: 0.0, weight_decay: 1e-2, nesterov: false }, FIXTURE_PLAIN),
    ];
    for (options, fixture) in cases {
        let ours = train(options, 100);
        let definition = by_hand(options, 100);
        for i in 0..4 {
            assert!(
                (f64::from(ours[i]) - definition[i]).abs() < 1e-5,
                "{options:?}: {ours:?} {definition:?}"
            );
            assert!((ours[i] - fixture[i]).abs() < 1e-5, "{options:?}: {ours:?} is not {fixture:?}");
        }
    }
}

#[test]
fn momentum_goes_on_after_its_state_is_loaded() {
    let options = SgdOptions { momentum: 0.9, weight_decay: 1e-2, nesterov: true };
    let new = || {
        let x = Tensor::from_slice(&START).set_requires_grad(true);
        let sgd = Sgd::of(&[("x".to_owned(), x.shallow_clone())], options);
        (x, sgd)
    };
    let step = |x: &Tensor, sgd: &mut Sgd| {
        crate::torch::set_grad(x, &Tensor::from_slice(&SCALE)).unwrap();
        sgd.step(0.1).unwrap();
    };
    let (x, mut sgd) = new();
    step(&x, &mut sgd);
    let (mut y, mut resumed) = new();
    tch::no_grad(|| y.copy_(&x));
    resumed.load_state(&sgd.state()).unwrap();
    step(&x, &mut sgd);
    step(&y, &mut resumed);
    assert_eq!(x.detach(), y.detach());
    let message =
        resumed.load_state(&[("y".to_owned(), Tensor::from_slice(&SCALE))]).unwrap_err().to_string();
    assert!(message.contains("1 missing (x)") && message.contains("1 unexpected (y)"), "{message}");
}

#[test]
fn a_parameter_without_gradient_is_an_error() {
    let x = Tensor::zeros([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let options = SgdOptions { momentum: 0.9, weight_decay: 0.0, nesterov: false };
    let message = Sgd::of(&[("x".to_owned(), x)], options).step(0.1).unwrap_err().to_string();
    assert!(message.contains("no gradient"), "{message}");
}
