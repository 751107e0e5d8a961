//! Real backward passes beside real rings, or beside a collective that tells what it is asked.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, mpsc};

use tch::{Kind, Tensor};

use super::*;
use crate::collective::buckets::Buckets;
use crate::collective::tcp::tests::in_world;
use crate::model::{BatchNormOptions, FlatGradients, Model, build};
use crate::torch::GradientHooks;

/// Guards against hangs alone.
const PATIENCE: Duration = Duration::from_secs(60);

/// The collective of a world of two whose other rank has the same values; tells of each sum.
struct Twin {
    abort: AbortHandle,
    sums: mpsc::Sender<usize>,
}

impl Collective for Twin {
    fn rank(&self) -> u32 {
        0
    }

    fn world(&self) -> u32 {
        2
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        self.abort.check()?;
        values.iter_mut().for_each(|value| *value *= 2.0);
        self.sums.send(values.len()).unwrap();
        Ok(())
    }

    fn all_reduce_bf16(&mut self, _: &mut [f32]) -> Result<(), CollectiveError> {
        unimplemented!()
    }

    fn broadcast(&mut self, _: &mut [u8], _: u32) -> Result<(), CollectiveError> {
        unimplemented!()
    }

    fn all_gather(&mut self, _: &mut [u8]) -> Result<(), CollectiveError> {
        unimplemented!()
    }

    fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }
}

/// A network whose gradients are a few buckets.
struct Network {
    model: Model,
    gradients: FlatGradients,
    hooks: GradientHooks,
    ready: Arc<Ready>,
}

impl Network {
    fn new() -> Self {
        let model = build("resnet18", 10, BatchNormOptions::default(), Device::Cpu, 7).unwrap();
        let gradients = FlatGradients::new(&model, 1).unwrap();
        let hooks = GradientHooks::install(model.parameters().iter().map(|(_, p)| p)).unwrap();
        let ready = Arc::new(Ready::new(gradients.buckets().clone()));
        Self { model, gradients, hooks, ready }
    }

    fn loss(&self) -> Tensor {
        let images = Tensor::arange(2 * 3 * 32 * 32, (Kind::Float, Device::Cpu)).sin().view([2, 3, 32, 32]);
        self.model.forward(&images, true).unwrap().square().sum(Kind::Float)
    }

    fn values(&self) -> Vec<f32> {
        self.gradients.views().iter().flat_map(|view| torch::as_f32(view).unwrap().to_vec()).collect()
    }

    /// The backward pass of `loss`, which does `at` with the number of each gradient that is there.
    fn backward(&self, loss: &Tensor, at: impl Fn(usize) + Send + Sync + 'static) -> Result<(), StepError> {
        let ready = Arc::clone(&self.ready);
        let listener = Arc::new(move |gradient| {
            ready.arrived(gradient);
            at(gradient);
        });
        let done = self.hooks.listen(listener, || loss.f_backward());
        Ok(done.map_err(TorchError::during("compute the gradients"))?)
    }
}

#[test]
fn buckets_are_summed_while_backward_still_runs() {
    let (own, network) = (Network::new(), Network::new());
    own.loss().backward();
    let (said, sums) = mpsc::channel();
    let mut twin = Twin { abort: AbortHandle::new(), sums: said };
    let ranges: Vec<usize> = network.gradients.buckets().ranges().map(|range| range.len()).collect();
    assert!(ranges.len() > 2, "{ranges:?}");
    let (sums, heard) = (Arc::new(Mutex::new(sums)), Arc::new(Mutex::new(Vec::new())));
    let (early, kept) = (Arc::clone(&sums), Arc::clone(&heard));
    let loss = network.loss();
    let wanted = ranges.len() - 1;
    let summed = overlapped(&mut twin, network.gradients.views(), Wire::Fp32, &network.ready, || {
        network.backward(&loss, move |gradient| {
            // The first weights are the last to get a gradient. Backward goes no further until all buckets but theirs
            // have been summed.
            if gradient == 0 {
                let sums = early.lock().unwrap();
                let before = (0..wanted).map_while(|_| sums.recv_timeout(PATIENCE).ok());
                kept.lock().unwrap().extend(before);
            }
        })
    });
    let ((), timeline) = summed.unwrap();
    assert_eq!(*heard.lock().unwrap(), ranges[..wanted]);
    assert_eq!(timeline.buckets.len(), ranges.len() + 1, "and what comes after the gradients");
    for (passage, next) in timeline.buckets.iter().zip(&timeline.buckets[1..]) {
        assert!(
            passage.ready <= passage.begun && passage.begun <= passage.done && passage.done <= next.begun
        );
    }
    assert_eq!(sums.lock().unwrap().try_iter().count(), 2, "the last bucket, and what comes after it");
    let doubled: Vec<f32> = own.values().iter().map(|value| 2.0 * value).collect();
    assert!(network.values() == doubled);
}

#[test]
fn a_backward_that_fails_half_way_ends_the_step_on_every_rank() {
    let failed = in_world(2, |ring| {
        let network = Network::new();
        let rank = ring.rank();
        let step = overlapped(ring, network.gradients.views(), Wire::Fp32, &network.ready, || {
            let loss = network.loss();
            if rank == 0 {
                // What backward needs of the third stage is not there any more when it gets so far.
                let (_, weight) = &network.model.parameters()[45];
                let _ = tch::no_grad(|| weight.shallow_clone().zero_());
            }
            network.backward(&loss, |_| ())
        });
        let first = network.ready.wait(0).is_some();
        (step.unwrap_err().to_string(), first, ring.barrier().unwrap_err().to_string())
    });
    let [(own, _, own_later), (other, other_first, other_later)] = &failed[..] else { panic!() };
    assert!(own.contains("compute the gradients") && own.contains("inplace"), "{own}");
    assert!(own_later.contains("could not compute its gradients"), "{own_later}");
    assert!(other.contains("lost rank 0") && *other_first, "{other}");
    assert!(other_later.contains("ended with an earlier error"), "{other_later}");
}

#[test]
fn a_panic_lets_go_of_the_other_thread() {
    let (said, sums) = mpsc::channel();
    let mut twin = Twin { abort: AbortHandle::new(), sums: said };
    let network = Network::new();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let views = network.gradients.views();
        overlapped(&mut twin, views, Wire::Fp32, &network.ready, || -> Result<(), _> {
            panic!("in the network")
        })
    }));
    assert_eq!(*caught.err().unwrap().downcast_ref::<&str>().unwrap(), "in the network");
    assert!(sums.try_recv().is_err() && twin.abort.reason().is_some());
}

#[test]
fn an_abort_ends_the_sum_that_waits_for_a_peer() {
    let (hold, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let ended = in_world(2, |ring| {
        if ring.rank() == 1 {
            // There, but with nothing to say until the other rank is through.
            assert!(held.lock().unwrap().recv_timeout(PATIENCE).is_ok());
            return String::new();
        }
        let network = Network::new();
        let (loss, abort) = (network.loss(), ring.abort_handle());
        let step = overlapped(ring, network.gradients.views(), Wire::Fp32, &network.ready, || {
            network.backward(&loss, move |gradient| {
                if gradient == 0 {
                    abort.abort("rank 1 is to go");
                }
            })
        });
        hold.send(()).unwrap();
        step.unwrap_err().to_string()
    });
    assert_eq!(ended[0], "aborted: rank 1 is to go");
}

#[test]
fn a_parameter_that_is_not_used_blocks_nothing() {
    let mut flat = Tensor::zeros([6], (Kind::Float, Device::Cpu));
    let [used, unused] = [0, 2].map(|at| {
        let parameter = Tensor::from_slice(&[3.0_f32, 4.0]).set_requires_grad(true);
        torch::set_grad(&parameter, &flat.narrow(0, at, 2)).unwrap();
        parameter
    });
    let buckets = Buckets::new(&[2, 2], 8, 8);
    let views = buckets.ranges().chain(std::iter::once(4..6));
    let views = views.map(|part| flat.narrow(0, part.start as i64, part.len() as i64)).collect();
    let ready = Arc::new(Ready::new(buckets));
    let hooks = GradientHooks::install([&used, &unused]).unwrap();
    let (said, sums) = mpsc::channel();
    let mut twin = Twin { abort: AbortHandle::new(), sums: said };
    let told = Arc::clone(&ready);
    overlapped(&mut twin, views, Wire::Fp32, &ready, || {
        let listener = Arc::new(move |gradient| told.arrived(gradient));
        hooks.listen(listener, || used.square().sum(Kind::Float).backward());
        Ok(())
    })
    .unwrap();
    assert_eq!(sums.try_iter().collect::<Vec<_>>(), [2, 2, 2]);
    assert_eq!(torch::as_f32_mut(&mut flat).unwrap(), [12.0, 16.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn what_was_waited_for_and_what_was_on_its_way_are_told_apart() {
    let began = Instant::now();
    let at = |ms| began + Duration::from_millis(ms);
    let passage =
        |ready, begun, done| Passage { bytes: 4, ready: at(ready), begun: at(begun), done: at(done) };
    let mut timeline = Timeline {
        began,
        computed: at(50),
        ended: at(72),
        buckets: vec![passage(5, 5, 20), passage(10, 20, 40), passage(50, 50, 72)],
    };
    assert_eq!((timeline.waited().as_millis(), timeline.communicated().as_millis()), (22, 15 + 20 + 22));
    // All at once, as over NCCL.
    timeline.buckets = vec![passage(5, 5, 60), passage(10, 20, 60), passage(50, 50, 60)];
    assert_eq!(timeline.communicated().as_millis(), 55);
}
