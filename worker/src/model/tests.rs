#![allow(clippy::unwrap_used)]

use tch::{Device, Kind, Tensor};

use super::*;
use crate::train::loss::soft_cross_entropy;

const FROZEN: BatchNormOptions = BatchNormOptions { momentum: 0.1, eps: 1e-5, frozen: true, fused: true };

fn small(options: BatchNormOptions) -> Model {
    build("resnet18", 10, options, Device::Cpu, 7).unwrap()
}

/// `[batch, 3, side, side]` of sin(i / 100), i counting in row-major order.
fn waves(batch: i64, side: i64) -> Tensor {
    let i = Tensor::arange(batch * 3 * side * side, (Kind::Double, Device::Cpu));
    (i * 0.01).sin().to_kind(Kind::Float).view([batch, 3, side, side])
}

fn targets(batch: i64) -> Tensor {
    let target = Tensor::full([batch, 10], 0.05, (Kind::Float, Device::Cpu));
    for row in 0..batch {
        let _ = target.get(row).get(3 + 4 * (row % 2)).g_add_scalar_(0.5);
    }
    target
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(&tensor.detach().contiguous().view(-1).to_kind(Kind::Double)).unwrap()
}

fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= tolerance * e.abs().max(1.0), "{found:?} is not {expected:?}");
    }
}

fn named<'a>(tensors: &'a [(String, Tensor)], name: &str) -> &'a Tensor {
    &tensors.iter().find(|(n, _)| n == name).unwrap().1
}

#[test]
fn parameter_counts_are_the_published_ones() {
    // Of so few classes that the classifier's share of the published number shows.
    const CLASSES: u32 = 7;
    assert_eq!(relabel_config::ARCHS, known_archs());
    for arch in relabel_config::ARCHS {
        let model = build(arch, CLASSES.into(), BatchNormOptions::default(), Device::Cpu, 0).unwrap();
        let count: usize = model.parameters().iter().map(|(_, p)| p.numel()).sum();
        assert_eq!(Some(count as u64), relabel_config::parameters(arch, CLASSES), "{arch}");
    }
}

#[test]
fn names_order_roles_and_shapes_are_torchvisions() {
    let fixtures = [
        ("resnet18", include_str!("fixtures/resnet18.txt")),
        ("resnet50", include_str!("fixtures/resnet50.txt")),
    ];
    for (arch, fixture) in fixtures {
        let model = build(arch, 1000, BatchNormOptions::default(), Device::Cpu, 0).unwrap();
        let role = |name: &str| match model.parameters().iter().any(|(n, _)| n == name) {
            true => "parameter",
            false => "buffer",
        };
        let lines = model
            .state_dict()
            .iter()
            .map(|(n, t)| format!("{n} {} {:?}\n", role(n), t.size()))
            .collect::<String>();
        assert_eq!(lines, fixture, "{arch}");
    }
}

/// The numbers of torchvision 0.26 with PyTorch 2.11: `torch.manual_seed(7); resnet18(num_classes=10)`.
#[test]
fn initial_weights_logits_and_gradients_are_torchvisions() {
    let model = small(BatchNormOptions::default());
    let start = |name: &str, count| {
        values(&named(&model.state_dict(), name).contiguous().view(-1).narrow(0, 0, count))
    };
    assert_close(&start("conv1.weight", 4), &[0.036433354, -0.0032187109, -0.015894279, 0.026667718], 1e-6);
    assert_close(
        &start("layer4.0.downsample.0.weight", 4),
        &[-0.055584162, -0.047826283, -0.037047215, 0.048310477],
        1e-6,
    );
    assert_close(&start("fc.bias", 4), &[-0.015220349, -0.019218029, -0.011951718, 0.0072286953], 1e-6);

    let (x, target) = (waves(2, 64), targets(2));
    let logits = model.forward(&x, true).unwrap();
    let expected = [
        0.67353457,
        0.9472819,
        0.0080687962,
        0.57023799,
        -0.46074978,
        0.16021858,
        0.35652229,
        -0.57741189,
        0.11541537,
        0.31742883,
        0.72337955,
        0.10872182,
        -0.22446087,
        0.16577362,
        -0.66182822,
        -0.12031625,
        -0.058361072,
        0.078005604,
        0.10824939,
        -0.21176891,
    ];
    assert_close(&values(&logits), &expected, 1e-4);
    let loss = soft_cross_entropy(&logits, &target).unwrap();
    assert!((loss.double_value(&[]) - 4.537496566772461).abs() < 1e-4);
    loss.backward();
    for (name, norm) in [
        ("conv1.weight", 128.18111364283376),
        ("layer1.0.bn1.weight", 1.0476337617665075),
        ("layer3.0.downsample.0.weight", 3.5550609125379826),
        ("fc.weight", 14.251332033243864),
    ] {
        let found = named(model.parameters(), name).grad().to_kind(Kind::Double).norm().double_value(&[]);
        assert!((found - norm).abs() < 1e-3 * norm, "{name}: {found} is not {norm}");
    }
    assert_close(&start("bn1.running_var", 3), &[0.90419859, 0.90032727, 0.90072745], 1e-5);
    assert_close(&start("layer4.1.bn2.running_mean", 3), &[0.044396304, -0.015069887, -0.00027519403], 1e-5);
    let expected = [
        0.15789247,
        0.16840518,
        0.031965267,
        0.13892666,
        -0.15136471,
        0.044009816,
        0.12439784,
        -0.053785585,
        -0.15126729,
        0.010374129,
        0.14204696,
        0.24213105,
        0.0076799169,
        0.14167392,
        -0.10875762,
        -0.0045786165,
        0.049725872,
        0.065373376,
        -0.050477915,
        0.08352913,
    ];
    assert_close(&values(&tch::no_grad(|| model.forward(&x, false).unwrap())), &expected, 1e-4);
}

#[test]
fn the_bottleneck_computes_torchvisions_logits() {
    let model = build("resnet50", 10, BatchNormOptions::default(), Device::Cpu, 7).unwrap();
    let expected = [
        0.48322588,
        -0.02720846,
        -0.89922893,
        -0.27709135,
        0.87318069,
        0.45572236,
        -0.1678787,
        -0.19706455,
        -0.6940003,
        -0.25079602,
        0.3970384,
        0.053448342,
        -0.87899554,
        -0.67678356,
        -0.21774626,
        -0.6091432,
        -0.82110023,
        0.62422854,
        -0.38574761,
        0.53913271,
    ];
    assert_close(&values(&tch::no_grad(|| model.forward(&waves(2, 64), true).unwrap())), &expected, 1e-4);
}

#[test]
fn channels_last_computes_the_same() {
    let mut model = small(FROZEN);
    let (x, target) = (waves(2, 64), targets(2));
    let run = |model: &Model, x: &Tensor| {
        let flat = FlatGradients::new(model, 0).unwrap();
        let logits = model.forward(x, true).unwrap();
        soft_cross_entropy(&logits, &target).unwrap().backward();
        let gradient = named(model.parameters(), "layer2.0.conv1.weight").grad();
        (values(&logits), values(&gradient), flat.len())
    };
    let before = run(&model, &x);
    model.to_channels_last().unwrap();
    let weight = named(model.parameters(), "layer2.0.conv1.weight");
    assert!(crate::torch::is_channels_last(weight) && weight.requires_grad());
    let after = run(&model, &crate::torch::to_channels_last(&x).unwrap());
    assert!(crate::torch::is_channels_last(&weight.grad()));
    assert_close(&after.0, &before.0, 1e-4);
    assert_close(&after.1, &before.1, 1e-4);
}

#[test]
fn frozen_batch_norm_leaves_its_buffers_and_still_learns() {
    let model = small(FROZEN);
    let before: Vec<Vec<f64>> = model.buffers().iter().map(|(_, b)| values(b)).collect();
    let x = waves(2, 32);
    let logits = model.forward(&x, true).unwrap();
    assert_close(&values(&logits), &values(&model.forward(&x, false).unwrap()), 0.0);
    soft_cross_entropy(&logits, &targets(2)).unwrap().backward();
    let after: Vec<Vec<f64>> = model.buffers().iter().map(|(_, b)| values(b)).collect();
    assert_eq!(before, after);
    assert!(named(model.parameters(), "bn1.weight").grad().abs().sum(Kind::Float).double_value(&[]) > 0.0);
}

#[test]
fn evaluation_changes_nothing_and_training_does() {
    let model = small(BatchNormOptions::default());
    let x = waves(2, 32);
    let variance = || values(named(model.buffers(), "bn1.running_var"));
    let before = variance();
    let evaluated = values(&tch::no_grad(|| model.forward(&x, false).unwrap()));
    assert_eq!(variance(), before);
    let trained = values(&tch::no_grad(|| model.forward(&x, true).unwrap()));
    assert_ne!(variance(), before);
    assert_ne!(evaluated, trained);
}

#[test]
fn an_unknown_architecture_names_the_nearest() {
    let message = build("ResNet51", 10, FROZEN, Device::Cpu, 0).err().unwrap().to_string();
    assert!(message.contains("\"ResNet51\"") && message.contains("did you mean resnet50?"), "{message}");
    assert!(message.contains("resnet152"), "{message}");
}

#[test]
fn a_state_dict_loads_strictly_or_not_at_all() {
    let mut model = small(FROZEN);
    let other = build("resnet18", 10, FROZEN, Device::Cpu, 8).unwrap();
    let conv1 = |model: &Model| values(named(model.parameters(), "conv1.weight"));

    let mut wrong = other.state_dict();
    wrong.retain(|(name, _)| name != "fc.bias");
    wrong.push(("module.fc.bias".to_owned(), Tensor::zeros([10], (Kind::Float, Device::Cpu))));
    let fc = wrong.iter_mut().find(|(name, _)| name == "fc.weight").unwrap();
    fc.1 = Tensor::zeros([7, 512], (Kind::Float, Device::Cpu));
    let before = conv1(&model);
    let message = model.load_state_dict(&wrong).unwrap_err().to_string();
    for part in ["1 missing (fc.bias)", "1 unexpected (module.fc.bias)", "fc.weight [7, 512] where [10, 512]"]
    {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(conv1(&model), before);

    model.load_state_dict(&other.state_dict()).unwrap();
    assert_eq!(conv1(&model), conv1(&other));
    assert!(named(model.parameters(), "conv1.weight").requires_grad());
}

/// The values of each view, one after the other.
fn copied(flat: &mut FlatGradients) -> Vec<f32> {
    flat.views().iter().flat_map(|view| crate::torch::as_f32(view).unwrap().to_vec()).collect()
}

/// Backward of a slice of a batch, into the rank's own buffer.
fn rank(model: &Model, flat: &mut FlatGradients, slice: (i64, i64), global: f64) {
    let x = waves(3, 32).narrow(0, slice.0, slice.1);
    let target = targets(3).narrow(0, slice.0, slice.1);
    flat.zero();
    let loss = soft_cross_entropy(&model.forward(&x, true).unwrap(), &target).unwrap();
    loss.backward();
    flat.scale(1.0 / global);
    flat.store_buffers(slice.1 as f64 / global);
    flat.set_scalars(&[loss.double_value(&[]) as f32, slice.1 as f32]).unwrap();
}

#[test]
fn two_ranks_with_unequal_slices_sum_to_the_gradient_of_one() {
    let model = small(FROZEN);
    let mut flat = FlatGradients::new(&model, 2).unwrap();
    let mut buffer_of = |slice| {
        rank(&model, &mut flat, slice, 3.0);
        copied(&mut flat)
    };
    let whole = buffer_of((0, 3));
    for (name, parameter) in model.parameters() {
        assert!(parameter.grad().abs().max().double_value(&[]) > 0.0, "{name}");
    }
    let (first, second) = (buffer_of((0, 1)), buffer_of((1, 2)));
    for (i, w) in whole.iter().enumerate() {
        let sum = first[i] + second[i];
        assert!((sum - w).abs() < 1e-4 * w.abs().max(1.0), "{i}: {sum} is not {w}");
    }
    assert_eq!(flat.scalars().unwrap().len(), 2);
    assert_eq!(first[first.len() - 1] + second[second.len() - 1], 3.0);
}

#[test]
fn running_statistics_become_the_weighted_mean_of_the_ranks() {
    let models = [small(BatchNormOptions::default()), small(BatchNormOptions::default())];
    let slices = [(0, 1), (1, 2)];
    let mut flats = models.each_ref().map(|model| FlatGradients::new(model, 2).unwrap());
    for i in 0..2 {
        rank(&models[i], &mut flats[i], slices[i], 3.0);
    }
    let name = "layer3.1.bn2.running_var";
    let [a, b] = models.each_ref().map(|model| values(named(model.buffers(), name)));
    let other = copied(&mut flats[1]);
    let mut other = other.iter();
    for view in &mut flats[0].views() {
        let values = crate::torch::as_f32_mut(view).unwrap();
        values.iter_mut().zip(&mut other).for_each(|(sum, b)| *sum += b);
    }
    flats[0].load_buffers();
    let expected: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a / 3.0 + b * 2.0 / 3.0).collect();
    assert_close(&values(named(models[0].buffers(), name)), &expected, 1e-6);
}

#[test]
fn a_step_is_counted_once_unless_frozen() {
    for (options, expected) in [(BatchNormOptions::default(), 1.0), (FROZEN, 0.0)] {
        let mut model = small(options);
        let _ = model.forward(&Tensor::zeros([2, 3, 32, 32], (Kind::Float, Device::Cpu)), true).unwrap();
        model.count_step();
        assert_eq!(values(named(model.buffers(), "bn1.num_batches_tracked")), [expected]);
    }
}

#[test]
fn an_sgd_step_reads_the_flat_gradients_and_moves_channels_last_weights() {
    let mut models = [small(FROZEN), small(FROZEN)];
    models[1].to_channels_last().unwrap();
    let mut options = relabel_config::Optim::default();
    options.wd.base = 1e-4;
    let [plain, channels_last] = models.each_ref().map(|model| {
        let mut flat = FlatGradients::new(model, 2).unwrap();
        let mut sgd = crate::optim::Optimizer::new(model.parameters(), &options);
        for _ in 0..2 {
            rank(model, &mut flat, (0, 3), 3.0);
            sgd.step(0.01).unwrap();
        }
        values(named(model.parameters(), "layer2.0.conv1.weight"))
    });
    assert_ne!(plain, values(named(small(FROZEN).parameters(), "layer2.0.conv1.weight")));
    assert_close(&channels_last, &plain, 1e-4);
}
