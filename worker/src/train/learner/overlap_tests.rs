//! Steps with other ranks, over real rings.
#![allow(clippy::unwrap_used)]

use relabel_config::Wire;

use super::tests::{ask, batch, config, tensors};
use super::*;
use crate::collective::Solo;
use crate::collective::tcp::tests::in_world;

fn learner(arch: &str, micro_batch: i64) -> Learner {
    let mut config = config();
    config.model.arch = arch.to_owned();
    config.compute.micro_batch = micro_batch;
    let classes = if arch == "resnet18" { 3 } else { 4 };
    Learner::new(&config, classes, 10, Device::Cpu).unwrap()
}

fn script() -> String {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/testdata/small_net.pt");
    format!("script:{}", file.display())
}

/// Images `first..first + n`, for as many classes as the learner has.
fn slice(learner: &Learner, first: usize, n: usize) -> Batch {
    let (pixels, classes) = (32 * 32 * 3, learner.model.classes() as usize);
    let all = batch(first + n);
    let targets = (first * classes..(first + n) * classes).map(|i| f32::from(u8::from(i % classes == i % 3)));
    Batch {
        sample_ids: (first as u32..(first + n) as u32).collect(),
        images: all.images[first * pixels..].to_vec(),
        targets: targets.collect(),
        ..all
    }
}

fn fill(
    learner: &mut Learner,
    batch: &Batch,
    ask: Ask,
    masks: i64,
    ready: Option<&Arc<Ready>>,
) -> Result<(), StepError> {
    let sent = Sent::new(batch, learner.form())?;
    learner.fill(Slice::new(batch, &sent)?, ask, masks, ready)
}

/// All that a step sums, as bits.
fn buffer(learner: &Learner) -> Vec<f32> {
    let views = learner.gradients.views();
    views.iter().flat_map(|view| crate::torch::as_f32(view).unwrap().to_vec()).collect()
}

#[test]
fn what_ranks_sum_beside_backward_is_the_sum_of_what_each_computes_alone() {
    // The second rank has nothing to do, and the others take more than one micro-batch, the last a short one.
    for slices in [&[(0, 5), (5, 0)][..], &[(0, 3), (3, 2)], &[(0, 3), (3, 0), (3, 2)]] {
        for arch in ["resnet18", &script()] {
            let alone: Vec<Vec<f32>> = (0..slices.len())
                .map(|rank| {
                    let mut learner = learner(arch, 2);
                    learner.gradients.zero();
                    let (first, n) = slices[rank];
                    let masks = masks_seed(learner.config.compute.seed, Position::default(), rank as u32);
                    let own = slice(&learner, first, n);
                    fill(&mut learner, &own, ask(5), masks, None).unwrap();
                    buffer(&learner)
                })
                .collect();
            let ranks = in_world(slices.len(), |ring| {
                let mut learner = learner(arch, 2);
                let (first, n) = slices[ring.rank() as usize];
                let own = slice(&learner, first, n);
                let stepped = learner.step(&own, ask(5), ring).unwrap();
                assert_eq!(stepped.samples, 5);
                assert!(learner.timeline().is_some_and(|times| times.waited() == stepped.waited));
                (buffer(&learner), tensors(&learner))
            });
            for (sums, state) in &ranks {
                assert!(bits(sums) == bits(&ranks[0].0) && *state == ranks[0].1, "{arch} {slices:?}");
            }
            for (index, &sum) in ranks[0].0.iter().enumerate() {
                let exact = alone.iter().map(|own| f64::from(own[index])).sum::<f64>();
                let terms = alone.iter().map(|own| f64::from(own[index].abs())).sum::<f64>();
                // Two terms have one sum, which is rounded once; of more, every addition rounds.
                let right = match slices.len() {
                    2 => sum == exact as f32,
                    _ => (f64::from(sum) - exact).abs() <= 2.0 * f64::from(f32::EPSILON) * terms,
                };
                assert!(right, "{arch} {slices:?}: element {index} is {sum}, not {exact}");
            }
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn gradients_in_bfloat16_move_all_ranks_alike_and_the_rest_is_not_rounded() {
    let step = |wire| {
        let ranks = in_world(3, |ring| {
            let mut learner = learner("resnet18", 0);
            learner.config.compute.wire = wire;
            let own = slice(&learner, 2 * ring.rank() as usize, 2);
            let stepped = learner.step(&own, ask(6), ring).unwrap();
            (buffer(&learner), tensors(&learner), stepped.loss_sum)
        });
        for rank in &ranks {
            assert!(bits(&rank.0) == bits(&ranks[0].0) && rank.1 == ranks[0].1);
        }
        let gradients: usize = learner("resnet18", 0).gradients.buckets().ranges().map(|r| r.len()).sum();
        let [(sums, _, loss), ..] = &ranks[..] else { panic!() };
        (sums[..gradients].to_vec(), sums[gradients..].to_vec(), *loss)
    };
    let (exact, rounded) = (step(Wire::Fp32), step(Wire::Bf16));
    assert_eq!((&exact.1, exact.2), (&rounded.1, rounded.2));
    assert!(exact.1.iter().any(|value| value.to_bits() & 0xffff != 0), "there was something to round");
    assert!(rounded.0.iter().all(|value| value.to_bits() & 0xffff == 0), "bfloat16");
    let length = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v * v)).sum::<f64>().sqrt();
    let apart = length(&mut exact.0.iter().zip(&rounded.0).map(|(a, b)| a - b));
    let part = apart / length(&mut exact.0.iter().copied());
    assert!(part > 1e-4 && part < 3.0 / 256.0, "{part}");
}

#[test]
fn every_gradient_of_a_torchscript_module_is_told_of_once_and_before_its_backward_ends() {
    let learner = learner(&script(), 0);
    let hooks = GradientHooks::install(learner.model.parameters().iter().map(|(_, p)| p)).unwrap();
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let listener = Arc::clone(&told);
    let x = tch::Tensor::ones([2, 3, 32, 32], (tch::Kind::Float, Device::Cpu));
    // It has dropout, and others draw their weights from the same generator.
    let loss = seeded(1, || learner.model.forward(&x, true).unwrap()).square().sum(tch::Kind::Float);
    hooks.listen(Arc::new(move |gradient| listener.lock().unwrap().push(gradient)), || loss.backward());
    let mut told = told.lock().unwrap().clone();
    assert!(told[0] > told[told.len() - 1], "the last layer comes first: {told:?}");
    told.sort_unstable();
    assert_eq!(told, (0..learner.model.parameters().len()).collect::<Vec<_>>());
}

#[test]
fn a_rank_that_cannot_compute_its_gradients_fails_the_step_of_all_with_the_state_before_it() {
    let failed = in_world(3, |ring| {
        let mut learner = learner("resnet18", 2);
        learner.step(&slice(&learner, 0, 3), ask(9), ring).unwrap();
        let before = tensors(&learner);
        let mut own = slice(&learner, 0, 3);
        if ring.rank() == 1 {
            // The last micro-batch lacks a pixel; the statistics have been moved by the one before it.
            own.images.pop();
        }
        let error = learner.step(&own, ask(9), ring).unwrap_err();
        (error, before == tensors(&learner))
    });
    for (rank, (error, unchanged)) in failed.iter().enumerate() {
        assert!(*unchanged, "rank {rank}");
        assert_eq!(matches!(error, StepError::Torch(_)), rank == 1, "rank {rank}: {error}");
        assert_eq!(matches!(error, StepError::Collective(_)), rank != 1, "rank {rank}: {error}");
    }
}

#[test]
fn a_gradient_that_came_twice_is_an_error() {
    let mut learner = learner("resnet18", 0);
    learner.hooks = Some(GradientHooks::install(learner.model.parameters().iter().map(|(_, p)| p)).unwrap());
    let ready = Arc::new(Ready::new(learner.gradients.buckets().clone()));
    ready.arrived(1);
    let failed = fill(&mut learner, &batch(2), ask(2), 0, Some(&ready)).unwrap_err();
    assert!(matches!(&failed, StepError::Again { parameter, .. } if parameter == "bn1.weight"), "{failed}");
}

#[test]
fn a_world_of_one_has_no_hooks_and_waits_for_nobody() {
    let mut learner = learner("resnet18", 0);
    let stepped = learner.step(&batch(2), ask(2), &mut Solo::default()).unwrap();
    assert!(learner.hooks.is_none() && learner.timeline().is_none());
    assert_eq!(stepped.waited, Duration::ZERO);
}
