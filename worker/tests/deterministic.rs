//! `compute.deterministic`, in a process of its own, as it is libtorch's for all of a process.
#![allow(clippy::unwrap_used)]

use relabel_config::Config;
use relabel_core::Position;
use tch::{Device, Kind, TchError, Tensor};
use worker::collective::Solo;
use worker::data::loader::Batch;
use worker::train::learner::Learner;
use worker::train::step::Ask;

const CLASSES: usize = 10;

/// An operator of which libtorch says that it may write in any order: at one place, one value of two.
fn write_in_any_order() -> Result<(), TchError> {
    let index = Tensor::zeros([2], (Kind::Int64, Device::Cpu));
    let zeros = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    zeros.f_put(&index, &Tensor::from_slice(&[1.0_f32, 2.0]), false).map(drop)
}

/// The losses of three steps on two threads, and the state after them.
fn trained() -> (Vec<f64>, Vec<Tensor>) {
    let mut config = Config::default();
    config.model.arch = "resnet18".into();
    config.data.image_size = 32;
    config.compute.deterministic = true;
    let mut learner = Learner::new(&config, CLASSES as u32, 3, Device::Cpu).unwrap();
    let losses = (0..3).map(|step| {
        let batch = Batch {
            step,
            sample_ids: (0..8).collect(),
            images: (0..8 * 3 * 32 * 32).map(|i| (i as f32 * 0.37 + step as f32).sin()).collect(),
            targets: (0..8 * CLASSES).map(|i| f32::from(u8::from(i % 11 == 0))).collect(),
            ..Batch::default()
        };
        let ask = Ask { position: Position { epoch: 0, step }, planned: 8, leave: false, may_skip: false };
        learner.step(&batch, ask, &mut Solo::default()).unwrap().loss_sum
    });
    let losses = losses.collect();
    let state = learner.model.state_dict().into_iter().chain(learner.optimizer.state());
    (losses, state.map(|(_, tensor)| tensor.copy()).collect())
}

#[test]
fn a_deterministic_run_computes_the_same_bits_and_has_no_operator_that_might_not() {
    worker::torch::set_num_threads(2);
    write_in_any_order().unwrap();
    let first = trained();
    assert!(first == trained());
    let refused = write_in_any_order().unwrap_err().to_string();
    assert!(refused.contains("does not have a deterministic implementation"), "{refused}");
}
