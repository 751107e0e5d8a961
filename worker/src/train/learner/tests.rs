#![allow(clippy::unwrap_used)]

use tch::Tensor;

use super::*;
use crate::collective::{AbortHandle, Solo};

pub(super) fn config() -> Config {
    let mut config = Config::default();
    config.model.arch = "resnet18".into();
    config.data.image_size = 32;
    config.optim.warmup.epochs = 0;
    config
}

fn learner() -> Learner {
    Learner::new(&config(), 3, 10, Device::Cpu).unwrap()
}

/// `n` images of 32 pixels a side and as many one-hot targets.
pub(super) fn batch(n: usize) -> Batch {
    let images = (0..n * 32 * 32 * 3).map(|i| (i % 17) as f32 / 8.0 - 1.0).collect();
    let targets = (0..n * 3).map(|i| f32::from(u8::from(i % 3 == 0))).collect();
    Batch { step: 0, sample_ids: (0..n as u32).collect(), images, targets, ..Batch::default() }
}

/// The first step of a run, of `planned` images.
pub(super) fn ask(planned: u64) -> Ask {
    Ask { position: Position::default(), planned, leave: false, may_skip: false }
}

pub(super) fn tensors(learner: &Learner) -> Vec<Tensor> {
    let all = learner.model.state_dict().into_iter().chain(learner.optimizer.state());
    all.map(|(_, tensor)| tensor.copy()).collect()
}

#[test]
fn a_step_that_fails_leaves_the_state_as_it_was() {
    let mut learner = learner();
    let ask = ask(4);
    learner.step(&batch(4), ask, &mut Solo::default()).unwrap();
    let before = tensors(&learner);

    let abort = AbortHandle::new();
    abort.abort("a peer is gone");
    let failed = learner.step(&batch(4), ask, &mut Solo::new(abort));
    assert!(matches!(failed, Err(StepError::Collective(_))));
    let mut poisoned = batch(4);
    poisoned.images[5] = f32::NAN;
    let failed = learner.step(&poisoned, ask, &mut Solo::default());
    assert!(matches!(failed, Err(StepError::NotFinite { .. })));
    assert!(before == tensors(&learner));

    learner.step(&batch(4), ask, &mut Solo::default()).unwrap();
    assert!(before != tensors(&learner), "a step that is done moves it");
}

#[test]
fn a_slice_of_one_small_image_leaves_the_statistics_finite() {
    // The last stage of a ResNet sees 32 pixels as one: a variance over one value is not a number.
    let mut learner = learner();
    learner.step(&batch(1), ask(1), &mut Solo::default()).unwrap();
    for (name, tensor) in learner.model.state_dict() {
        assert!(tensor.isfinite().all().int64_value(&[]) == 1, "{name}");
    }
}
#[test]
fn an_update_that_is_left_out_leaves_the_state_as_it_was_too() {
    let mut learner = learner();
    let ask = Ask { may_skip: true, leave: true, ..ask(4) };
    let stepped = learner.step(&batch(4), ask, &mut Solo::default()).unwrap();
    assert!(stepped.update == Update::Done && stepped.leaving);
    let before = tensors(&learner);
    let mut poisoned = batch(4);
    poisoned.images[5] = f32::NAN;
    let stepped = learner.step(&poisoned, ask, &mut Solo::default()).unwrap();
    assert!(stepped.update == Update::NoLoss && stepped.loss_sum.is_nan());
    assert!(before == tensors(&learner));
}

#[test]
fn micro_batches_add_up_to_the_whole_slice() {
    let stepped = |micro_batch| {
        let mut config = config();
        config.compute.micro_batch = micro_batch;
        // With its statistics frozen, BatchNorm does not see how the batch is cut.
        config.optim.bn.frozen = true;
        let mut learner = Learner::new(&config, 3, 10, Device::Cpu).unwrap();
        let loss = learner.step(&batch(5), ask(5), &mut Solo::default()).unwrap().loss_sum;
        (loss, tensors(&learner))
    };
    let (whole, small) = (stepped(0), stepped(2));
    assert!((whole.0 - small.0).abs() < 1e-5 * whole.0, "{} against {}", whole.0, small.0);
    for (whole, small) in whole.1.iter().zip(&small.1) {
        assert!(whole.allclose(small, 1e-4, 1e-6, false));
    }
}

#[test]
fn a_copy_that_is_made_meanwhile_is_of_the_state_before_the_step() {
    let mut config = config();
    config.optim.ema.decay = 0.5;
    let mut learner = Learner::new(&config, 3, 10, Device::Cpu).unwrap();
    learner.step(&batch(4), ask(4), &mut Solo::default()).unwrap();
    let state = |learner: &Learner| learner.state(Progress { epoch: 0, step: 1, seed: 0 }, BTreeMap::new());
    let mut before = state(&learner).copied(None).unwrap();

    let (send, copied) = std::sync::mpsc::channel();
    let copying = state(&learner).copied_behind(None, move |copied| send.send(copied).unwrap()).unwrap();
    learner.is_copied(copying);
    learner.step(&batch(4), ask(4), &mut Solo::default()).unwrap();
    let mut copy = copied.recv().unwrap().unwrap();
    for ((name, copied), (_, before)) in copy.tensors_mut().zip(before.tensors_mut()) {
        assert!(*copied == *before, "{name}");
    }
    let mut after = state(&learner).copied(None).unwrap();
    assert!(after.tensors_mut().zip(before.tensors_mut()).any(|((_, after), (_, before))| *after != *before));
}

#[test]
fn an_update_waits_for_a_copy_however_long_it_takes() {
    let mut learner = learner();
    let (end, ended) = std::sync::mpsc::channel();
    learner.is_copied(Copying(ended));
    let weight = learner.model.parameters()[0].1.detach();
    let before = weight.copy();
    let slow = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        let untouched = weight == before;
        drop::<std::sync::mpsc::Sender<()>>(end);
        (untouched, weight, before)
    });
    learner.step(&batch(4), ask(4), &mut Solo::default()).unwrap();
    let (untouched, weight, before) = slow.join().unwrap();
    assert!(untouched);
    assert!(weight != before, "then the update is done");
}
