//! One optimizer step: forward, loss, backward, all-reduce, update.
//!
//! The gradient is that of the mean loss over the global batch, whatever the number of ranks and however
//! unequal their slices. Each rank divides the sum of its losses by the planned size of the global batch;
//! the sum over ranks is then the mean, unless samples were left out as unreadable, in which case the
//! count that came with the sum puts it right. BatchNorm's running statistics and the sums that a report
//! needs travel in the same buffer, so that every rank holds the same state after every step.
//!
//! The masks of dropout and stochastic depth come from libtorch's generator, which is seeded anew for every step
//! from (seed, epoch, step, rank): a run that was interrupted draws the same ones again. They are other ones
//! with another number of ranks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use relabel_config::Config;
use relabel_core::Position;
use tch::Device;

use super::loss::soft_cross_entropy;
use crate::checkpoint::{CheckpointError, Progress, State};
use crate::collective::{Collective, CollectiveError, buckets};
use crate::data::loader::Batch;
use crate::model::{FlatGradients, Model, ModelError, seeded};
use crate::optim::{Ema, Optimizer, schedule};
use crate::torch::{self, TorchError};
use crate::weights::{self, Head, Loaded, Weights, WeightsError};

/// The sums that travel with the gradients.
const LOSS: usize = 0;
const SAMPLES: usize = 1;
const SKIPPED: usize = 2;
const LEAVING: usize = 3;
const SCALARS: usize = 4;

/// Why a step could not be done. The state is that before the step.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error(transparent)]
    Torch(#[from] TorchError),
    #[error(
        "the loss is {loss} at {position}: lower optim.lr.init or lengthen optim.warmup.epochs, then carry on from the \
         newest checkpoint with --resume (samples of this rank's slice: {samples:?})"
    )]
    NotFinite { loss: f64, position: Position, samples: Vec<u32> },
}

/// What a step found; the same numbers on every rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stepped {
    /// Sum of the losses over the global batch.
    pub loss_sum: f64,
    /// Samples that counted.
    pub samples: u64,
    /// Samples left out as unreadable.
    pub skipped: u64,
    pub learning_rate: f64,
    /// Some rank wants the generation to end after this step; all ranks learn of it together.
    pub leaving: bool,
    /// Whether the update was done: it is left out where the loss is no number, if that is wanted.
    pub updated: bool,
    /// How long this rank waited for the others and the wire.
    pub waited: Duration,
}

/// What is asked of a step, beside its batch.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    pub position: Position,
    /// Samples that were dealt to all ranks together.
    pub planned: u64,
    /// This rank wants the generation to end after the step.
    pub leave: bool,
    /// A loss that is no number leaves the update out, and is no error.
    pub may_skip: bool,
}

/// Model, optimizer and the weights' moving average of one rank.
pub struct Learner {
    /// What is trained.
    pub model: Model,
    pub optimizer: Optimizer,
    /// Where the run keeps one.
    pub ema: Option<Ema>,
    gradients: FlatGradients,
    config: Config,
    steps_per_epoch: u64,
}

impl Learner {
    /// Initial weights are a function of the run's seed.
    pub fn new(
        config: &Config,
        classes: u32,
        steps_per_epoch: u64,
        device: Device,
    ) -> Result<Self, ModelError> {
        let bn = (&config.optim.bn).into();
        let seed = config.compute.seed;
        let build = || {
            let mut model = crate::model::build(&config.model.arch, i64::from(classes), bn, device, seed)?;
            if config.model.is_script() {
                model.check_output(i64::from(config.data.image_size))?;
            }
            model.to_channels_last()?;
            Ok::<_, ModelError>(model)
        };
        let model = build()?;
        let decay = config.optim.ema.decay;
        let averages = decay > 0.0 && !config.util.test_only;
        let ema = averages.then(|| Ema::new(build()?, &model, decay)).transpose()?;
        let optimizer = Optimizer::new(model.parameters(), &config.optim);
        let gradients = FlatGradients::new(&model, SCALARS)?;
        Ok(Self { model, optimizer, ema, gradients, config: config.clone(), steps_per_epoch })
    }

    /// What is validated: the moving average where there is one.
    pub fn validated(&self) -> &Model {
        self.ema.as_ref().map_or(&self.model, Ema::model)
    }

    /// Begins with `weights`; their classifier is replaced by a fresh one where it is of other classes.
    ///
    /// # Errors
    /// As [`weights::load`].
    pub fn start_from(&mut self, weights: &Weights) -> Result<Loaded, WeightsError> {
        let loaded = weights::load(&mut self.model, weights, Head::Replace)?;
        if let Some(ema) = &mut self.ema {
            ema.begin_with(&self.model).map_err(|source| WeightsError::DoesNotFit {
                origin: weights.origin.clone(),
                arch: weights.arch.clone(),
                source: Box::new(source),
            })?;
        }
        Ok(loaded)
    }

    /// Everything that training goes on from, as [`State::of`] has it.
    pub fn state(&self, progress: Progress, metadata: BTreeMap<String, String>) -> State {
        State::of(&self.model, &self.optimizer, self.ema.as_ref(), progress, metadata)
    }

    /// Goes on from `state`.
    ///
    /// # Errors
    /// As [`State::restore`].
    pub fn restore(&mut self, state: &State) -> Result<(), CheckpointError> {
        state.restore(&mut self.model, &mut self.optimizer, self.ema.as_mut())
    }

    /// Does a step with this rank's slice of the global batch.
    ///
    /// # Errors
    /// The state is that before the step.
    pub fn step(&mut self, batch: &Batch, ask: Ask, ring: &mut dyn Collective) -> Result<Stepped, StepError> {
        self.gradients.zero();
        self.gradients.keep_buffers();
        let stepped = self.reduced(batch, ask, ring).inspect_err(|_| {
            // The forward pass has moved BatchNorm's statistics; the step is not done, and may be done again.
            self.gradients.restore_buffers();
        })?;
        if !stepped.updated {
            self.gradients.restore_buffers();
            return Ok(stepped);
        }
        // A batch of which nothing could be read moves nothing.
        if stepped.samples > 0 {
            if stepped.samples != ask.planned {
                self.gradients.scale(ask.planned as f64 / stepped.samples as f64);
            }
            self.optimizer.step(stepped.learning_rate)?;
            self.gradients.load_buffers();
            self.model.count_step();
            if let Some(ema) = &mut self.ema {
                ema.update(&self.model);
            }
        }
        Ok(stepped)
    }

    /// Fills the flat buffer with the gradient and statistics of the global batch.
    fn reduced(&mut self, batch: &Batch, ask: Ask, ring: &mut dyn Collective) -> Result<Stepped, StepError> {
        let Ask { position, planned, leave, may_skip } = ask;
        let own = batch.sample_ids.len();
        let masks = masks_seed(self.config.compute.seed, position, ring.rank());
        let loss_sum = match own {
            0 => 0.0,
            _ => seeded(masks, || self.backward(batch, planned))?,
        };
        self.gradients.store_buffers(own as f64 / planned as f64);
        let scalars = self.gradients.scalars_mut()?;
        scalars[LOSS] = loss_sum as f32;
        scalars[SAMPLES] = own as f32;
        scalars[SKIPPED] = batch.skipped.len() as f32;
        scalars[LEAVING] = f32::from(u8::from(leave));

        let began = Instant::now();
        buckets::all_reduce(ring, self.gradients.as_mut_slice()?, buckets::BUCKET_BYTES)?;
        let waited = began.elapsed();

        let scalars = self.gradients.scalars()?;
        let loss_sum = f64::from(scalars[LOSS]);
        let stepped = Stepped {
            loss_sum,
            samples: scalars[SAMPLES] as u64,
            skipped: scalars[SKIPPED] as u64,
            learning_rate: schedule::lr(
                &self.config.optim,
                position.epoch,
                position.step,
                self.steps_per_epoch,
            ),
            leaving: scalars[LEAVING] > 0.0,
            updated: loss_sum.is_finite(),
            waited,
        };
        if !stepped.updated && !may_skip {
            let (loss, samples) = (stepped.loss_sum, batch.sample_ids.clone());
            return Err(StepError::NotFinite { loss, position, samples });
        }
        Ok(stepped)
    }

    /// Adds the gradient of the slice's share of the mean loss, `compute.micro_batch` images at a time; returns the
    /// sum of the slice's losses.
    fn backward(&self, batch: &Batch, planned: u64) -> Result<f64, TorchError> {
        let (size, classes) = (i64::from(self.config.data.image_size), self.model.classes());
        let at_once = match self.config.compute.micro_batch as usize {
            0 => batch.sample_ids.len(),
            some => some,
        };
        let (pixels, scores) = (at_once * (3 * size * size) as usize, at_once * classes as usize);
        let mut sum = 0.0;
        for (images, targets) in batch.images.chunks(pixels).zip(batch.targets.chunks(scores)) {
            let n = targets.len() as i64 / classes;
            let images = crate::model::image_batch(images, n, size)?;
            let targets = torch::from_f32(targets, &[n, classes])?;
            let loss = soft_cross_entropy(&self.model.forward(&images, true), &targets);
            (&loss / planned as f64).backward();
            sum += loss.double_value(&[]);
        }
        Ok(sum)
    }
}

/// The seed of the masks of one rank's slice of one step.
fn masks_seed(seed: i64, position: Position, rank: u32) -> i64 {
    let mut key = blake3::Hasher::new();
    key.update(b"relabel masks v1");
    key.update(&seed.to_le_bytes());
    key.update(&position.epoch.to_le_bytes());
    key.update(&position.step.to_le_bytes());
    key.update(&rank.to_le_bytes());
    let mut bytes = [0; 8];
    key.finalize_xof().fill(&mut bytes);
    i64::from_le_bytes(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tch::Tensor;

    use super::*;
    use crate::collective::{AbortHandle, Solo};

    fn config() -> Config {
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
    fn batch(n: usize) -> Batch {
        let images = (0..n * 32 * 32 * 3).map(|i| (i % 17) as f32 / 8.0 - 1.0).collect();
        let targets = (0..n * 3).map(|i| f32::from(u8::from(i % 3 == 0))).collect();
        Batch { step: 0, sample_ids: (0..n as u32).collect(), images, targets, skipped: vec![] }
    }

    /// The first step of a run, of `planned` images.
    fn ask(planned: u64) -> Ask {
        Ask { position: Position::default(), planned, leave: false, may_skip: false }
    }

    fn tensors(learner: &Learner) -> Vec<Tensor> {
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
        assert!(stepped.updated && stepped.leaving);
        let before = tensors(&learner);
        let mut poisoned = batch(4);
        poisoned.images[5] = f32::NAN;
        let stepped = learner.step(&poisoned, ask, &mut Solo::default()).unwrap();
        assert!(!stepped.updated && stepped.loss_sum.is_nan());
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
}
