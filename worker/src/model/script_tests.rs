//! A TorchScript module as the network. `tests/testdata/small_net.py` made it.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::*;
use crate::checkpoint::{Progress, State};
use crate::optim::Optimizer;
use crate::train::loss::soft_cross_entropy;

fn arch() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/testdata/small_net.pt");
    format!("script:{}", file.display())
}

fn small_net() -> Model {
    build(&arch(), 4, BatchNormOptions::default(), Device::Cpu, 0).unwrap()
}

fn images(batch: i64) -> Tensor {
    seeded(3, || Tensor::randn([batch, 3, 32, 32], (Kind::Float, Device::Cpu)))
}

fn names(tensors: &[(String, Tensor)]) -> Vec<&str> {
    tensors.iter().map(|(name, _)| name.as_str()).collect()
}

fn differ(a: &Tensor, b: &Tensor) -> bool {
    (a - b).abs().max().double_value(&[]) > 1e-5
}

fn find(model: &Model, name: &str) -> Tensor {
    model.state_dict().into_iter().find(|(n, _)| n == name).unwrap().1
}

#[test]
fn tensors_have_the_modules_names_order_and_roles() {
    let model = small_net();
    let parameters = ["conv.weight", "bn.weight", "bn.bias", "fc.weight", "fc.bias"];
    assert_eq!(names(model.parameters()), parameters);
    let buffers = ["mean", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"];
    assert_eq!(names(model.buffers()), buffers);
    let all = ["scale", "mean", "conv.weight", "bn.weight", "bn.bias"];
    assert_eq!(names(&model.state_dict())[..5], all);
    assert_eq!(model.state_dict().len(), 10);
    assert!(!find(&model, "scale").requires_grad() && find(&model, "fc.bias").requires_grad());
}

#[test]
fn a_step_reaches_the_module_and_a_checkpoint_brings_it_back() {
    let mut model = small_net();
    model.to_channels_last().unwrap();
    let mut flat = FlatGradients::new(&model, 0).unwrap();
    let mut optimizer = Optimizer::new(model.parameters(), &relabel_config::Optim::default());
    let x = images(4);
    let evaluated = |model: &Model| tch::no_grad(|| model.forward(&x, false).unwrap());
    let progress = Progress { epoch: 0, step: 0, seed: 0 };
    let state = State::of(&model, &optimizer, None, progress, Default::default()).copied(None).unwrap();
    let before = evaluated(&model);

    flat.zero();
    let target = Tensor::full([4, 4], 0.25, (Kind::Float, Device::Cpu));
    soft_cross_entropy(&seeded(1, || model.forward(&x, true).unwrap()), &target).unwrap().backward();
    assert!(torch::as_f32(&find(&model, "fc.weight").grad()).unwrap().iter().any(|&value| value != 0.0));
    optimizer.step(0.5).unwrap();
    model.count_step();
    assert!(differ(&evaluated(&model), &before));
    assert_eq!(find(&model, "bn.num_batches_tracked").int64_value(&[]), 1, "counted once");
    assert!(differ(&find(&model, "bn.running_mean"), &Tensor::zeros([8], (Kind::Float, Device::Cpu))));
    assert_eq!(find(&model, "scale").double_value(&[0, 0, 0]), 1.5);

    state.restore(&mut model, &mut optimizer, None).unwrap();
    assert!(!differ(&evaluated(&model), &before));
}

#[test]
fn training_and_evaluation_are_the_modules_own_modes() {
    let model = small_net();
    let x = images(4);
    let run = |seed, train| seeded(seed, || tch::no_grad(|| model.forward(&x, train).unwrap()));
    let (train, again, other) = (run(1, true), run(1, true), run(2, true));
    assert!(!differ(&train, &again) && differ(&train, &other), "dropout follows the seed");
    assert!(!differ(&run(1, false), &run(2, false)), "no dropout in evaluation");
}

#[test]
fn what_cannot_be_trained_is_said_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.pt");
    std::fs::write(&other, b"no module").unwrap();
    let bn = BatchNormOptions::default();
    let frozen = BatchNormOptions { frozen: true, ..bn };
    let error = |arch: &str, bn| build(arch, 4, bn, Device::Cpu, 0).err().unwrap().to_string();
    let not_there = format!("script:{}", folder.path().join("none.pt").display());
    for (message, part) in [
        (error(&not_there, bn), "none.pt cannot be read: No such file"),
        (
            error(&format!("script:{}", other.display()), bn),
            "other.pt is no TorchScript module; save it with",
        ),
        (error(&format!("script:{}", folder.path().display()), bn), "is no TorchScript module"),
        (error(&arch(), frozen), "optim.bn.frozen"),
    ] {
        assert!(message.contains(part) && !message.contains('\n'), "{message}");
        assert!(message.len() < 500, "{message}");
    }
}

#[test]
fn the_probe_compares_the_number_of_classes_and_the_size_of_images() {
    small_net().check_output(32).unwrap();
    let five = build(&arch(), 5, BatchNormOptions::default(), Device::Cpu, 0).unwrap();
    let message = five.check_output(32).unwrap_err().to_string();
    assert!(
        message.contains("gives [1, 4] for one image of 32 x 32 pixels, but the run needs [1, 5]"),
        "{message}"
    );
    let message = small_net().check_output(1).unwrap_err().to_string();
    assert!(message.contains("small_net.pt does not take images [1, 3, 1, 1]"), "{message}");
    assert!(!message.contains('\n') && message.len() < 500, "{message}");
}
