#![allow(clippy::unwrap_used)]

use relabel_config::{Decay, Optim, WeightDecay};
use tch::{Device, Kind, Tensor};

use super::schedule::lr;
use super::{AdamP, AdamPOptions, Ema, Sgd, SgdOptions};
use crate::model::{BatchNormOptions, build};
use crate::torch;

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

/// On every parameter.
fn decay(base: f64) -> WeightDecay {
    WeightDecay { base, norm_and_bias: true }
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
            let g = (x[i] - f64::from(TARGET[i])) * f64::from(SCALE[i]) + options.weight_decay.base * x[i];
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
        (SgdOptions { momentum: 0.9, weight_decay: decay(1e-2), nesterov: true }, FIXTURE_NESTEROV),
        (SgdOptions { momentum: 0.9, weight_decay: decay(0.0), nesterov: false }, FIXTURE_MOMENTUM),
        (SgdOptions { momentum: 0.0, weight_decay: decay(1e-2), nesterov: false }, FIXTURE_PLAIN),
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
    let options = SgdOptions { momentum: 0.9, weight_decay: decay(1e-2), nesterov: true };
    let new = || {
        let x = Tensor::from_slice(&START).set_requires_grad(true);
        let sgd = Sgd::of(&[("x".to_owned(), x.shallow_clone())], options);
        (x, sgd)
    };
    let step = |x: &Tensor, sgd: &mut Sgd| {
        torch::set_grad(x, &Tensor::from_slice(&SCALE)).unwrap();
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
    assert!(
        message.contains("1 missing (momentum_buffer.x)") && message.contains("1 unexpected (y)"),
        "{message}"
    );
}

#[test]
fn a_parameter_without_gradient_is_an_error() {
    let x = Tensor::zeros([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let options = SgdOptions { momentum: 0.9, weight_decay: decay(0.0), nesterov: false };
    let named = [("x".to_owned(), x)];
    let message = Sgd::of(&named, options).step(0.1).unwrap_err().to_string();
    assert!(message.contains("no gradient"), "{message}");
    let message = AdamP::of(&named, adamp(0.0, true)).step(0.1).unwrap_err().to_string();
    assert!(message.contains("x has no gradient"), "{message}");
}

fn adamp(base: f64, nesterov: bool) -> AdamPOptions {
    let options = Optim { wd: decay(base), nesterov, ..Optim::default() };
    AdamPOptions::from(&options)
}

/// Values that look random and are the same everywhere.
fn noise(i: usize) -> f64 {
    (i as f64 * 12.9898).sin() * 43_758.547 % 1.0
}

/// AdamP on one parameter that is cut into rows of `width` for the channel view, in f64 and one value after the
/// other.
struct ByHand {
    options: AdamPOptions,
    width: usize,
    projects: bool,
    p: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
    t: i32,
    /// Steps that found the parameter scale-invariant by channel, as a whole, and not.
    found: [u32; 3],
}

impl ByHand {
    fn step(&mut self, g: &[f64], lr: f64) {
        let AdamPOptions { betas: (b1, b2), eps, weight_decay, delta, wd_ratio, nesterov } = self.options;
        self.t += 1;
        let (c1, c2) = (1.0 - b1.powi(self.t), 1.0 - b2.powi(self.t));
        let mut d = Vec::new();
        for (i, g) in g.iter().enumerate() {
            self.m[i] = b1 * self.m[i] + (1.0 - b1) * g;
            self.v[i] = b2 * self.v[i] + (1.0 - b2) * g * g;
            let ahead = if nesterov { b1 * self.m[i] + (1.0 - b1) * g } else { self.m[i] };
            d.push(ahead / ((self.v[i] / c2).sqrt() + eps));
        }
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let widths = if self.projects { vec![self.width, g.len()] } else { Vec::new() };
        let orthogonal = |width: usize| {
            let cosine = |(g, p): (&[f64], &[f64])| (dot(g, p) / (dot(g, g) * dot(p, p)).sqrt()).abs();
            g.chunks(width).zip(self.p.chunks(width)).map(cosine).fold(0.0, f64::max)
                < delta / (width as f64).sqrt()
        };
        let view = widths.iter().position(|&width| orthogonal(width));
        self.found[view.unwrap_or(2)] += 1;
        let mut decay = lr * weight_decay.base;
        if let Some(view) = view {
            for (d, p) in d.chunks_mut(widths[view]).zip(self.p.chunks(widths[view])) {
                let length = dot(p, p).sqrt() + eps;
                let radial = dot(d, p) / length;
                d.iter_mut().zip(p).for_each(|(d, p)| *d -= p / length * radial);
            }
            decay *= wd_ratio;
        }
        for (p, d) in self.p.iter_mut().zip(d) {
            *p = *p * (1.0 - decay) - lr / c1 * d;
        }
    }
}

/// What is taken out of a gradient, so that each of the three cases of AdamP occurs.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Radial {
    Kept,
    OutOfEachRow,
    OutOfTheWhole,
}

#[test]
fn adamp_equals_its_definition_in_every_view_and_memory_format() {
    let shapes: [&[i64]; 4] = [&[6, 4, 3, 3], &[5, 7], &[8, 1, 3, 3], &[40]];
    for (case, shape) in shapes.into_iter().enumerate() {
        for radial in [Radial::Kept, Radial::OutOfEachRow, Radial::OutOfTheWhole] {
            for (nesterov, channels_last) in [(true, false), (false, false), (true, true)] {
                let n = shape.iter().product::<i64>() as usize;
                let start: Vec<f64> = (0..n).map(|i| noise(i + 1000 * case)).collect();
                let width = n / shape[0] as usize;
                let options = adamp(0.5, nesterov);
                let (zeros, projects) = (vec![0.0; n], shape.len() > 1);
                let (m, v, p) = (zeros.clone(), zeros, start.clone());
                let mut by_hand = ByHand { options, width, projects, p, m, v, t: 0, found: [0; 3] };

                let mut x = Tensor::from_slice(&start).to_kind(Kind::Float).view(shape);
                if channels_last && shape.len() == 4 {
                    x = torch::to_channels_last(&x).unwrap();
                }
                let x = x.set_requires_grad(true);
                let mut ours = AdamP::of(&[("x".to_owned(), x.shallow_clone())], options);
                for step in 0..100 {
                    let mut g: Vec<f64> = (0..n).map(|i| noise(i + 7919 * (step + 1))).collect();
                    let rows = match radial {
                        Radial::Kept => {
                            // Along the weight: far from orthogonal in every view.
                            g.iter_mut().zip(&by_hand.p).for_each(|(g, p)| *g = 0.3 * *g + p);
                            n
                        }
                        Radial::OutOfEachRow => width,
                        Radial::OutOfTheWhole => n,
                    };
                    if radial != Radial::Kept {
                        for (g, p) in g.chunks_mut(rows).zip(by_hand.p.chunks(rows)) {
                            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                            let part = dot(g, p) / dot(p, p);
                            g.iter_mut().zip(p).for_each(|(g, p)| *g -= part * p);
                        }
                    }
                    let mut gradient = x.detach().zeros_like();
                    gradient.copy_(&Tensor::from_slice(&g).view(shape));
                    torch::set_grad(&x, &gradient).unwrap();
                    ours.step(rate(step) * 0.1).unwrap();
                    by_hand.step(&g, rate(step) * 0.1);
                }
                let what = format!("{shape:?} {radial:?} nesterov {nesterov} channels_last {channels_last}");
                let found = match (projects, radial) {
                    (false, _) | (_, Radial::Kept) => 2,
                    (_, Radial::OutOfEachRow) => 0,
                    (_, Radial::OutOfTheWhole) => 1,
                };
                assert!(by_hand.found[found] >= 90, "{what}: {:?}", by_hand.found);
                let ours: Vec<f32> = Vec::try_from(&x.detach().contiguous().view(-1)).unwrap();
                for (a, b) in ours.iter().zip(&by_hand.p) {
                    assert!((f64::from(*a) - b).abs() < 1e-5, "{what}: {a} is not {b}");
                }
            }
        }
    }
}

#[test]
fn norms_and_biases_can_go_without_weight_decay() {
    let weight = Tensor::from_slice(&START).view([2, 2]).set_requires_grad(true);
    let bias = Tensor::from_slice(&START).set_requires_grad(true);
    let named = [("weight".to_owned(), weight.shallow_clone()), ("bias".to_owned(), bias.shallow_clone())];
    for p in [&weight, &bias] {
        torch::set_grad(p, &p.detach().zeros_like()).unwrap();
    }
    let wd = WeightDecay { base: 0.5, norm_and_bias: false };
    let mut steps: [Box<dyn FnMut()>; 2] = [
        {
            let options = SgdOptions { momentum: 0.9, weight_decay: wd, nesterov: true };
            let mut sgd = Sgd::of(&named, options);
            assert_eq!(sgd.state().len(), 2);
            Box::new(move || sgd.step(0.1).unwrap())
        },
        {
            let mut adamp = AdamP::of(&named, AdamPOptions { weight_decay: wd, ..adamp(0.0, true) });
            Box::new(move || adamp.step(0.1).unwrap())
        },
    ];
    for step in &mut steps {
        let before = weight.detach().copy();
        step();
        assert!(weight.detach().norm().double_value(&[]) < 0.999 * before.norm().double_value(&[]));
        assert_eq!(bias.detach(), Tensor::from_slice(&START), "without a gradient only decay could move it");
    }
}

#[test]
fn the_average_follows_weights_and_statistics_and_copies_counters() {
    let new = |seed| build("resnet18", 3, BatchNormOptions::default(), Device::Cpu, seed).unwrap();
    let mut model = new(1);
    let mut ema = Ema::new(new(2), &model, 0.75).unwrap();
    assert_eq!(ema.model().state_dict(), model.state_dict(), "it begins as a copy");
    let other = new(3).state_dict();
    let begun: Vec<Tensor> = model.state_dict().iter().map(|(_, t)| t.detach().copy()).collect();
    model.load_state_dict(&other).unwrap();
    model.count_step();
    ema.update(&model);
    ema.update(&model);
    for (((name, average), (_, newest)), begun) in
        ema.model().state_dict().iter().zip(model.state_dict()).zip(begun)
    {
        if name.ends_with("num_batches_tracked") {
            assert_eq!(*average, newest);
            continue;
        }
        let expected = begun * (0.75 * 0.75) + newest * (1.0 - 0.75 * 0.75);
        let far = (average - expected).abs().max().double_value(&[]);
        assert!(far < 1e-6, "{name} is {far} away");
    }
    ema.begin_with(&model).unwrap();
    assert_eq!(ema.model().state_dict(), model.state_dict());
}
