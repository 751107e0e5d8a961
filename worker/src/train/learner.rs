//! One optimizer step: forward, loss, backward, all-reduce, update.
//!
//! The gradient is that of the mean loss over the global batch, whatever the number of ranks and however
//! unequal their slices. Each rank divides the sum of its losses by the planned size of the global batch;
//! the sum over ranks is then the mean, unless samples were left out as unreadable, in which case the
//! count that came with the sum puts it right. BatchNorm's running statistics and the sums that a report
//! needs travel in the same buffer, so that every rank holds the same state after every step.
//!
//! Where there are other ranks, gradients are summed while backward computes others: see [`overlap`].
//!
//! In fp16 the loss is scaled, and a gradient that overflowed is an update that no rank does: see [`LossScale`].
//!
//! The masks of dropout and stochastic depth come from libtorch's generator, which is seeded anew for every step
//! from (seed, epoch, step, rank): a run that was interrupted draws the same ones again. They are other ones
//! with another number of ranks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use relabel_config::{Config, Precision};
use relabel_core::Position;
use tch::Device;

use super::feed::{Form, Sent};
use super::loss_scale::LossScale;
use super::overlap::{self, Timeline};
use super::step::{Ask, StepError, Stepped, Update};
use crate::checkpoint::{CheckpointError, Copying, Progress, State};
use crate::collective::buckets::Ready;
use crate::collective::{Collective, Region};
use crate::data::loader::Batch;
use crate::model::{FlatGradients, Model, ModelError, seeded};
use crate::optim::{Ema, Optimizer, schedule};
use crate::torch::{self, GradientHooks};
use crate::weights::{self, Head, Loaded, Weights, WeightsError};

mod micro_batch;

use micro_batch::{MicroBatch, Slice};

/// The sums that travel with the gradients.
const LOSS: usize = 0;
const SAMPLES: usize = 1;
const SKIPPED: usize = 2;
const LEAVING: usize = 3;
const SCALE: usize = 4;
const SCALARS: usize = 5;

/// Model, optimizer and the weights' moving average of one rank.
pub struct Learner {
    /// What is trained.
    pub model: Model,
    pub optimizer: Optimizer,
    /// Where the run keeps one.
    pub ema: Option<Ema>,
    /// In fp16.
    loss_scale: Option<LossScale>,
    gradients: FlatGradients,
    micro_batch: MicroBatch,
    /// From the first step with other ranks on.
    hooks: Option<GradientHooks>,
    timeline: Option<Timeline>,
    /// A copy of the state that is being made, for whose end the next update waits.
    copying: Option<Copying>,
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
        let precision = config.compute.precision_on(device.is_cuda());
        let build = || {
            let mut model = crate::model::build(&config.model.arch, i64::from(classes), bn, device, seed)?;
            if config.model.is_script() {
                model.check_output(i64::from(config.data.image_size))?;
            }
            model.to_channels_last()?;
            model.set_precision(precision)?;
            Ok::<_, ModelError>(model)
        };
        let model = build()?;
        let decay = config.optim.ema.decay;
        let averages = decay > 0.0 && !config.util.test_only;
        let ema = averages.then(|| Ema::new(build()?, &model, decay)).transpose()?;
        let optimizer = Optimizer::new(model.parameters(), &config.optim);
        let gradients = FlatGradients::new(&model, SCALARS)?;
        if config.compute.deterministic {
            // After the model, which has cuDNN try its algorithms.
            torch::compute_deterministically(device)?;
        }
        let loss_scale = (precision == Precision::Fp16).then(LossScale::default);
        Ok(Self {
            model,
            optimizer,
            ema,
            loss_scale,
            gradients,
            micro_batch: MicroBatch::new(&config.compute),
            hooks: None,
            timeline: None,
            copying: None,
            config: config.clone(),
            steps_per_epoch,
        })
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
        self.wait_for_copy();
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

    /// When what was done in the last step that had other ranks.
    pub fn timeline(&self) -> Option<&Timeline> {
        self.timeline.as_ref()
    }

    /// Where the gradients lie in main memory.
    pub fn region(&self) -> Option<&Arc<Region>> {
        self.gradients.region()
    }

    /// Everything that training goes on from, as [`State::of`] has it.
    pub fn state(&self, progress: Progress, metadata: BTreeMap<String, String>) -> State {
        let state = State::of(&self.model, &self.optimizer, self.ema.as_ref(), progress, metadata);
        State { loss_scale: self.loss_scale, ..state }
    }

    /// Has the next update wait for a copy of the [state](Self::state).
    pub fn is_copied(&mut self, copying: Copying) {
        self.wait_for_copy();
        self.copying = Some(copying);
    }

    fn wait_for_copy(&mut self) {
        if let Some(copying) = self.copying.take() {
            // Not within the macro, which looks at its arguments only where somebody reads them.
            let waited = copying.wait();
            tracing::debug!("waited {waited:.2?} for the copy of the state");
        }
    }

    /// Goes on from `state`.
    ///
    /// # Errors
    /// As [`State::restore`].
    pub fn restore(&mut self, state: &State) -> Result<(), CheckpointError> {
        self.wait_for_copy();
        state.restore(&mut self.model, &mut self.optimizer, self.ema.as_mut())?;
        // A state that was not trained in fp16 has none to go on with.
        self.loss_scale = self.loss_scale.map(|_| state.loss_scale.unwrap_or_default());
        Ok(())
    }

    /// How the model takes a batch.
    pub fn form(&self) -> Form {
        let side = i64::from(self.config.data.image_size);
        Form { side, classes: self.model.classes(), device: self.model.device() }
    }

    /// Sends this rank's slice of the global batch, and does a [step](Self::step_with) with it.
    ///
    /// # Errors
    /// The state is that before the step.
    pub fn step(&mut self, batch: &Batch, ask: Ask, ring: &mut dyn Collective) -> Result<Stepped, StepError> {
        self.step_with(batch, &Sent::new(batch, self.form())?, ask, ring)
    }

    /// Does a step with this rank's slice of the global batch, which was sent as `sent`. Where the update is left out, the
    /// state is that before the step but for the loss scale.
    ///
    /// # Errors
    /// The state is that before the step.
    pub fn step_with(
        &mut self,
        batch: &Batch,
        sent: &Sent,
        ask: Ask,
        ring: &mut dyn Collective,
    ) -> Result<Stepped, StepError> {
        let slice = Slice::new(batch, sent)?;
        self.gradients.keep_buffers();
        let masks = masks_seed(self.config.compute.seed, ask.position, ring.rank());
        self.find_micro_batch(slice, ask, masks)?;
        self.gradients.zero();
        let mut stepped = self.reduced(slice, ask, masks, ring).inspect_err(|_| {
            // The forward pass has moved BatchNorm's statistics; the step is not done, and may be done again.
            self.gradients.restore_buffers();
        })?;
        if let Some(scale) = self.loss_scale {
            stepped = self.unscaled(stepped, scale, ask).inspect_err(|_| self.gradients.restore_buffers())?;
        }
        if stepped.update != Update::Done {
            self.gradients.restore_buffers();
            return Ok(stepped);
        }
        // A batch of which nothing could be read moves nothing.
        if stepped.samples > 0 {
            if stepped.samples != ask.planned {
                self.gradients.scale(ask.planned as f64 / stepped.samples as f64);
            }
            self.wait_for_copy();
            self.optimizer.step(stepped.learning_rate)?;
            self.gradients.load_buffers();
            self.model.count_step();
            if let Some(ema) = &mut self.ema {
                ema.update(&self.model);
            }
        }
        Ok(stepped)
    }

    /// Makes the reduced gradient that of the loss itself, and the scale that of the next step.
    fn unscaled(&mut self, stepped: Stepped, scale: LossScale, ask: Ask) -> Result<Stepped, StepError> {
        let finite = self.gradients.unscale(scale.inverse())?;
        let mut next = scale;
        next.update(finite);
        if next.is_exhausted() {
            return Err(StepError::Overflow { position: ask.position, scale: scale.scale });
        }
        self.loss_scale = Some(next);
        let update = match stepped.update {
            Update::Done if !finite => Update::Overflow,
            update => update,
        };
        Ok(Stepped { update, loss_scale: Some(next.scale), ..stepped })
    }

    /// Fills the flat buffer with the gradient and statistics of the global batch.
    fn reduced(
        &mut self,
        slice: Slice,
        ask: Ask,
        masks: i64,
        ring: &mut dyn Collective,
    ) -> Result<Stepped, StepError> {
        let Ask { position, may_skip, .. } = ask;
        let waited = if ring.world() == 1 {
            self.fill(slice, ask, masks, None)?;
            // There is nothing to sum, but the generation may be over.
            ring.all_reduce(&mut [])?;
            Duration::ZERO
        } else {
            if self.hooks.is_none() {
                let parameters = self.model.parameters().iter().map(|(_, parameter)| parameter);
                self.hooks = Some(GradientHooks::install(parameters)?);
            }
            let ready = Arc::new(Ready::new(self.gradients.buckets().clone()));
            let (views, wire) = (self.gradients.views(), self.config.compute.wire);
            let fill = || self.fill(slice, ask, masks, Some(&ready));
            let ((), timeline) = overlap::overlapped(ring, views, wire, &ready, fill)?;
            self.timeline.insert(timeline).waited()
        };

        let scalars = self.gradients.scalars()?;
        // Exact: a power of two times a small whole number.
        let world = ring.world() as f32;
        let scale = self.loss_scale.map_or(1.0, |scale| scale.scale);
        if scalars[SCALE] != scale * world {
            return Err(StepError::Scales { position, own: scale, mean: scalars[SCALE] / world });
        }
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
            update: if loss_sum.is_finite() { Update::Done } else { Update::NoLoss },
            loss_scale: None,
            waited,
        };
        if stepped.update == Update::NoLoss && !may_skip {
            let (loss, samples) = (stepped.loss_sum, slice.batch.sample_ids.clone());
            return Err(StepError::NotFinite { loss, position, samples });
        }
        Ok(stepped)
    }

    /// Fills the buffer with what this rank brings to the step, and tells `ready` which gradients are there.
    fn fill(
        &mut self,
        slice: Slice,
        ask: Ask,
        masks: i64,
        ready: Option<&Arc<Ready>>,
    ) -> Result<(), StepError> {
        let own = slice.len();
        let loss_sum = match own {
            0 => 0.0,
            _ => seeded(masks, || self.backward(slice, self.micro_batch.of(own), ask.planned, ready))?,
        };
        if let Some(gradient) = ready.and_then(|ready| ready.again()) {
            let parameter = self.model.parameters()[gradient].0.clone();
            return Err(StepError::Again { position: ask.position, parameter });
        }
        self.gradients.store_buffers(own as f64 / ask.planned as f64);
        let mut scalars = [0.0; SCALARS];
        scalars[LOSS] = loss_sum as f32;
        scalars[SAMPLES] = own as f32;
        scalars[SKIPPED] = slice.batch.skipped.len() as f32;
        scalars[LEAVING] = f32::from(u8::from(ask.leave));
        scalars[SCALE] = self.loss_scale.map_or(1.0, |scale| scale.scale);
        Ok(self.gradients.set_scalars(&scalars)?)
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
mod overlap_tests;
#[cfg(test)]
mod precision_tests;
#[cfg(test)]
mod tests;
