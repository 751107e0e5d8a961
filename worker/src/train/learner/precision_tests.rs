//! Steps in bf16 and fp16.
#![allow(clippy::unwrap_used)]

use relabel_config::PrecisionChoice;
use tch::Kind;

use super::tests::{ask, batch, config, tensors};
use super::*;
use crate::collective::Solo;
use crate::collective::tcp::tests::in_world;

fn learner(precision: PrecisionChoice) -> Learner {
    let mut config = config();
    config.compute.precision = precision;
    // So that a step does not learn all that there is: of nothing left to learn the gradient is 0 at any scale.
    config.optim.lr.init = 1e-3;
    let mut learner = Learner::new(&config, 3, 10, Device::Cpu).unwrap();
    // The first scale of a run is too large for the first gradients of so small a batch.
    learner.loss_scale = learner.loss_scale.map(|_| BEGUN);
    learner
}

const BEGUN: LossScale = LossScale { scale: 1024.0, good_steps: 0 };

/// A scale at which any gradient of float16 overflows that is not 0.
const FAR_TOO_LARGE: LossScale = LossScale { scale: 1.2676506e30, good_steps: 7 };

#[test]
fn half_precision_computes_other_bits_and_keeps_its_state_in_float32() {
    let step = |precision| {
        let mut learner = learner(precision);
        let stepped = learner.step(&batch(4), ask(4), &mut Solo::default()).unwrap();
        assert_eq!(stepped.update, Update::Done, "{precision:?}");
        for (name, tensor) in learner.model.state_dict().iter().chain(&learner.optimizer.state()) {
            assert!(matches!(tensor.kind(), Kind::Float | Kind::Int64), "{name} is {:?}", tensor.kind());
            assert!(tensor.isfinite().all().int64_value(&[]) == 1, "{precision:?}: {name}");
        }
        (stepped, learner)
    };
    let (exact, in_fp32) = step(PrecisionChoice::Fp32);
    assert_eq!(exact.loss_scale, None);
    for (precision, digits) in [(PrecisionChoice::Bf16, 3e-2), (PrecisionChoice::Fp16, 4e-3)] {
        let (rough, learner) = step(precision);
        let apart = (rough.loss_sum - exact.loss_sum).abs() / exact.loss_sum;
        assert!(apart > 1e-7 && apart < digits, "{precision:?}: {apart}");
        // The weights have gone the same way, and those that were averaged over all images as far.
        for ((name, a), (_, b)) in learner.model.parameters().iter().zip(in_fp32.model.parameters()) {
            if name == "fc.bias" {
                let apart = (a - b).abs().max() / b.abs().max();
                assert!(apart.double_value(&[]) < 10.0 * digits, "{precision:?}: {name} {apart}");
            }
        }
        assert_eq!(rough.loss_scale, (precision == PrecisionChoice::Fp16).then_some(BEGUN.scale));
    }
}

#[test]
fn a_gradient_that_overflows_halves_the_scale_and_leaves_the_rest_as_it_was() {
    let mut learner = learner(PrecisionChoice::Fp16);
    learner.step(&batch(4), ask(4), &mut Solo::default()).unwrap();
    assert_eq!(learner.loss_scale, Some(LossScale { good_steps: 1, ..BEGUN }));
    let before = tensors(&learner);
    learner.loss_scale = Some(FAR_TOO_LARGE);
    let stepped = learner.step(&batch(4), ask(4), &mut Solo::default()).unwrap();
    assert_eq!((stepped.update, stepped.loss_scale), (Update::Overflow, Some(FAR_TOO_LARGE.scale / 2.0)));
    assert!(stepped.loss_sum.is_finite());
    assert_eq!(learner.loss_scale, Some(LossScale { scale: FAR_TOO_LARGE.scale / 2.0, good_steps: 0 }));
    assert!(before == tensors(&learner));

    // A scale does not change the update, but for rounding.
    let moved = |scale| {
        let mut learner = self::learner(PrecisionChoice::Fp16);
        learner.loss_scale = Some(LossScale { scale, good_steps: 0 });
        learner.step(&batch(4), ask(4), &mut Solo::default()).unwrap();
        tensors(&learner)
    };
    for (small, large) in moved(128.0).iter().zip(&moved(1024.0)) {
        let apart = (small - large).abs().max().double_value(&[]);
        assert!(apart < 1e-2 * large.abs().max().double_value(&[]).max(1e-2), "{apart} {large:?}");
    }
}

#[test]
fn a_scale_that_no_halving_helps_ends_the_run_with_the_state_before_the_step() {
    let mut learner = learner(PrecisionChoice::Fp16);
    let before = tensors(&learner);
    let least = LossScale { scale: 1.0 / 65_536.0, good_steps: 3 };
    learner.loss_scale = Some(least);
    let mut poisoned = batch(4);
    poisoned.images[5] = f32::INFINITY;
    let lost = learner.step(&poisoned, Ask { may_skip: true, ..ask(4) }, &mut Solo::default());
    assert!(matches!(lost, Err(StepError::Overflow { .. })), "{lost:?}");
    assert!(before == tensors(&learner) && learner.loss_scale == Some(least));
}

#[test]
fn an_overflow_on_one_rank_leaves_the_update_out_on_all() {
    let found = in_world(2, |ring| {
        let mut learner = learner(PrecisionChoice::Fp16);
        learner.loss_scale = Some(FAR_TOO_LARGE);
        let before = tensors(&learner);
        let mut own = batch(2);
        if ring.rank() == 1 {
            // Nothing to learn: all its gradients are 0, however they are scaled.
            own.targets.fill(0.0);
        }
        let stepped = learner.step(&own, ask(4), ring).unwrap();
        (stepped.update, learner.loss_scale, before == tensors(&learner))
    });
    let scale = Some(LossScale { scale: FAR_TOO_LARGE.scale / 2.0, good_steps: 0 });
    assert_eq!(found, vec![(Update::Overflow, scale, true); 2]);
}

#[test]
fn ranks_in_different_precisions_do_not_train_together() {
    let failed = in_world(2, |ring| {
        let precision = [PrecisionChoice::Fp16, PrecisionChoice::Fp32][ring.rank() as usize];
        learner(precision).step(&batch(2), ask(4), ring).unwrap_err().to_string()
    });
    assert!(
        failed[0].contains("scales its loss by 1024, and the mean over the ranks is 512.5"),
        "{failed:?}"
    );
    assert!(failed[1].contains("scales its loss by 1, "), "{failed:?}");
}

#[test]
fn the_scale_goes_with_the_state() {
    let mut learner = learner(PrecisionChoice::Fp16);
    let scale = LossScale { scale: 512.0, good_steps: 1999 };
    learner.loss_scale = Some(scale);
    let state = learner.state(Progress { epoch: 0, step: 0, seed: 0 }, BTreeMap::new()).copied(None).unwrap();
    let mut other = self::learner(PrecisionChoice::Fp16);
    other.restore(&state).unwrap();
    assert_eq!(other.loss_scale, Some(scale));
    // One that was not trained in fp16 begins with the first, and a run in bf16 needs none.
    other.restore(&State { loss_scale: None, ..state }).unwrap();
    assert_eq!(other.loss_scale, Some(LossScale::default()));
    let state = learner.state(Progress { epoch: 0, step: 0, seed: 0 }, BTreeMap::new()).copied(None).unwrap();
    let mut other = self::learner(PrecisionChoice::Bf16);
    other.restore(&state).unwrap();
    assert_eq!(other.loss_scale, None);
}
