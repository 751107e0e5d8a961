//! Training steps on given batches, by the learner that a rank trains with: `tests/parity/curve.py` and `precision.py`
//! compare the losses, the weights and their average with those of PyTorch.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use relabel_config::{Config, Precision};
use relabel_core::Position;
use tch::{Device, Kind, Tensor};
use worker::collective::{AbortHandle, Solo};
use worker::data::loader::Batch;
use worker::data::{CropBox, ImageSize};
use worker::labels::derived::Smoothed;
use worker::labels::{LabelError, Targets};
use worker::torch;
use worker::train::learner::Learner;
use worker::train::step::Ask;

use super::ParityError;
use super::optim::Options;

/// `input`, a safetensors file: `images` `[steps, B, size, size, 3]` and `targets` `[steps, B, classes]`.
/// `output` receives `loss` `[steps]` (means over the batch), `model.<name>` and `ema.<name>`, and in fp16
/// `loss_scale` `[steps]`, that of the next step each.
#[derive(Debug, Args)]
pub(super) struct CurveArgs {
    #[command(flatten)]
    optim: Options,
    #[arg(long)]
    arch: String,
    /// Seed of the initial weights.
    #[arg(long)]
    seed: i64,
    #[arg(long)]
    lr: f64,
    #[arg(long)]
    warmup_epochs: u32,
    /// Steps in an epoch, of which the learning rate is a function.
    #[arg(long)]
    steps_per_epoch: u64,
    #[arg(long)]
    label_smoothing: f64,
    #[arg(long)]
    ema_decay: f64,
    #[arg(long, value_enum, default_value_t)]
    precision: Precision,
    /// As `optim.bn.fused` has it.
    #[arg(long)]
    fused: bool,
    #[arg(long)]
    input: PathBuf,
    #[arg(long)]
    output: PathBuf,
}

/// Targets that are given, a row a sample.
struct Given {
    rows: Vec<f32>,
    classes: usize,
}

impl Targets for Given {
    fn classes(&self) -> usize {
        self.classes
    }

    fn write(&self, sample: u32, _: ImageSize, _: CropBox, out: &mut [f32]) -> Result<(), LabelError> {
        out.copy_from_slice(&self.rows[sample as usize * self.classes..][..self.classes]);
        Ok(())
    }
}

pub(super) fn run(args: &CurveArgs) -> Result<(), ParityError> {
    let given = super::read(&args.input)?;
    let find = |wanted: &str| {
        let reason = format!("no {wanted}");
        let found = given.iter().find(|(name, _)| name == wanted);
        found.map(|(_, tensor)| tensor).ok_or(ParityError::File { path: args.input.clone(), reason })
    };
    let (images, targets) = (find("images")?, find("targets")?);
    let (steps, n, classes) = targets
        .size3()
        .map_err(|error| ParityError::File { path: args.input.clone(), reason: error.to_string() })?;
    let size = images.size()[2] as u32;

    let mut config = Config { optim: (&args.optim).into(), ..Config::default() };
    config.model.arch = args.arch.clone();
    config.data.image_size = size;
    config.compute.seed = args.seed;
    config.compute.precision = args.precision.into();
    config.optim.bn.fused = args.fused;
    config.optim.epochs = (steps as u64).div_ceil(args.steps_per_epoch) as u32;
    config.optim.lr.init = args.lr;
    config.optim.warmup.epochs = args.warmup_epochs;
    config.optim.ema.decay = args.ema_decay;

    let rows = torch::as_f32(targets)?.to_vec();
    let smoothed = Smoothed::new(Arc::new(Given { rows, classes: classes as usize }), args.label_smoothing);
    let pixels = torch::as_f32(images)?;
    let floats = pixels.len() / steps as usize;
    let mut learner = Learner::new(&config, classes as u32, args.steps_per_epoch, Device::Cpu)?;
    let mut ring = Solo::new(AbortHandle::new());
    let (mut losses, mut scales) = (Vec::new(), Vec::new());
    for step in 0..steps as usize {
        let first = step as u32 * n as u32;
        let sample_ids: Vec<u32> = (first..first + n as u32).collect();
        let mut targets = vec![0.0; (n * classes) as usize];
        let image = ImageSize { width: size, height: size };
        let whole = CropBox { top: 0, left: 0, height: size, width: size };
        for (&sample, row) in sample_ids.iter().zip(targets.chunks_exact_mut(classes as usize)) {
            smoothed
                .write(sample, image, whole, row)
                .map_err(|error| ParityError::File { path: args.input.clone(), reason: error.to_string() })?;
        }
        let images = pixels[step * floats..][..floats].to_vec();
        let (epoch, step) = (step as u64 / args.steps_per_epoch, step as u64 % args.steps_per_epoch);
        let batch = Batch { step, sample_ids, images, targets, ..Batch::default() };
        let position = Position { epoch: epoch as u32, step };
        let stepped = learner.step(
            &batch,
            Ask { position, planned: n as u64, leave: false, may_skip: false },
            &mut ring,
        )?;
        losses.push(stepped.loss_sum / n as f64);
        scales.extend(stepped.loss_scale);
    }

    let mut results = vec![("loss".to_owned(), Tensor::from_slice(&losses).to_kind(Kind::Float))];
    results.push(("loss_scale".to_owned(), Tensor::from_slice(&scales)));
    let named = |prefix: &'static str, model: &worker::model::Model| {
        let state = model.state_dict().into_iter();
        state.map(move |(name, tensor)| (format!("{prefix}.{name}"), tensor.detach())).collect::<Vec<_>>()
    };
    results.extend(named("model", &learner.model));
    results.extend(learner.ema.iter().flat_map(|ema| named("ema", ema.model())));
    super::write(&args.output, &results, &[])
}
