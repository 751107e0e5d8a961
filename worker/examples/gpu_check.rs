//! Compares what a GPU computes with what the CPU does: forward, loss, gradients and 20 steps, in each precision, and
//! finished images.
//! `tests/gpu/check.sh` runs it. A line a check: `ok`, `FAILED` or `not run`, and why. Exits with 1 if one has failed.

use std::process::ExitCode;

use clap::Parser;
use relabel_config::{Config, Precision};
use relabel_core::Position;
use tch::{Device, Kind, Tensor};
use worker::collective::{AbortHandle, Solo, nccl};
use worker::data::augment::{Finishing, Step};
use worker::data::loader::Batch;
use worker::data::unfinished::{Paste, Unfinished};
use worker::model::{Model, ModelError, build, image_batch, published_batch_norm};
use worker::torch::{self, TorchError};
use worker::train::finish::finish;
use worker::train::learner::Learner;
use worker::train::loss::soft_cross_entropy;
use worker::train::step::{Ask, StepError};

/// How far the GPU may be from the CPU's float32: of logits and gradients the length of the difference over the
/// length, of the losses of 20 steps the largest difference over the loss.
struct Allowed {
    precision: Precision,
    logits: f64,
    gradients: f64,
    losses: f64,
}

const ALLOWED: [Allowed; 4] = [
    Allowed { precision: Precision::Fp32, logits: 1e-4, gradients: 1e-3, losses: 1e-2 },
    Allowed { precision: Precision::Tf32, logits: 5e-3, gradients: 3e-2, losses: 3e-2 },
    Allowed { precision: Precision::Bf16, logits: 5e-2, gradients: 2e-1, losses: 5e-2 },
    Allowed { precision: Precision::Fp16, logits: 1e-2, gradients: 5e-2, losses: 3e-2 },
];

const CLASSES: usize = 20;
const SIDE: i64 = 64;
const IMAGES: usize = 16;
const STEPS: u64 = 20;

#[derive(Parser)]
struct Args {
    /// The GPU, as --gpu of the worker.
    #[arg(long, default_value_t = 0)]
    gpu: u32,
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Torch(#[from] TorchError),
    #[error(transparent)]
    Step(#[from] StepError),
}

fn main() -> ExitCode {
    let Args { gpu } = Args::parse();
    let device = match torch::cuda::open(gpu) {
        Ok(device) => device,
        Err(error) => {
            for Allowed { precision, .. } in &ALLOWED {
                for what in ["forward and gradients", "20 steps"] {
                    println!("not run  {what} in {}: {error}", precision.name());
                }
            }
            println!("not run  images finished on it: {error}");
            println!("not run  NCCL: {error}");
            return ExitCode::SUCCESS;
        }
    };
    let mut failed = false;
    let mut say = |what: String, found: Result<(bool, String), Broken>| {
        let (word, words) = match found {
            Ok((true, words)) => ("ok", words),
            Ok((false, words)) => ("FAILED", words),
            Err(error) => ("FAILED", error.to_string()),
        };
        failed |= word == "FAILED";
        println!("{word:7}  {what}: {words}");
    };
    for allowed in &ALLOWED {
        let name = allowed.precision.name();
        say(format!("forward and gradients in {name}"), pass(device, allowed));
        say(format!("{STEPS} steps in {name}"), steps(device, allowed));
    }
    say("images finished on it".into(), finished(device));
    match nccl::find() {
        Ok(version) => println!("ok       NCCL: {}", nccl::version(version)),
        Err(error) => println!("not run  NCCL: {error}"),
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn images(n: usize) -> Vec<f32> {
    (0..n * 3 * (SIDE * SIDE) as usize)
        .map(|i| ((i as f32 * 0.37).sin() + (i as f32 * 0.011).cos()) * 0.9)
        .collect()
}

fn targets(n: usize) -> Vec<f32> {
    (0..n * CLASSES).map(|i| if i % CLASSES == (i / CLASSES * 7) % CLASSES { 0.905 } else { 0.005 }).collect()
}

fn network(device: Device, precision: Precision) -> Result<Model, Broken> {
    let mut model = build("resnet50", CLASSES as i64, published_batch_norm("resnet50"), device, 1)?;
    model.to_channels_last()?;
    model.set_precision(precision)?;
    Ok(model)
}

/// Logits and gradients of one pass, in main memory.
fn forward_and_backward(device: Device, precision: Precision) -> Result<(Tensor, Tensor), Broken> {
    let model = network(device, precision)?;
    let x = torch::to_device(&image_batch(&images(IMAGES), IMAGES as i64, SIDE)?, device)?;
    let target =
        torch::to_device(&torch::from_f32(&targets(IMAGES), &[IMAGES as i64, CLASSES as i64])?, device)?;
    let logits = model.forward(&x, true)?;
    soft_cross_entropy(&logits, &target)?.backward();
    let gradients: Vec<Tensor> = model.parameters().iter().map(|(_, p)| p.grad().reshape([-1])).collect();
    let here = |tensor: Tensor| torch::to_device(&tensor.detach().to_kind(Kind::Float), Device::Cpu);
    Ok((here(logits)?, here(Tensor::cat(&gradients, 0))?))
}

/// Length of the difference over the length.
fn apart(found: &Tensor, expected: &Tensor) -> f64 {
    ((found - expected).norm() / expected.norm()).double_value(&[])
}

fn pass(device: Device, allowed: &Allowed) -> Result<(bool, String), Broken> {
    let expected = forward_and_backward(Device::Cpu, Precision::Fp32)?;
    let found = forward_and_backward(device, allowed.precision)?;
    let (logits, gradients) = (apart(&found.0, &expected.0), apart(&found.1, &expected.1));
    let words = format!(
        "logits {logits:.1e} apart ({:.0e} allowed), gradients {gradients:.1e} ({:.0e})",
        allowed.logits, allowed.gradients
    );
    Ok((logits <= allowed.logits && gradients <= allowed.gradients, words))
}

/// Flipped, jittered, lit, normalized and pasted over each other.
fn finished(device: Device) -> Result<(bool, String), Broken> {
    let steps = [Step::Saturation(1.31), Step::Brightness(0.87), Step::Contrast(1.22)];
    let of = |image: usize| {
        let mut steps = steps;
        steps.rotate_left(image % 3);
        Finishing { flip: image.is_multiple_of(2), steps: Some(steps), light: [0.01, -0.02, 0.03] }
    };
    let bytes = IMAGES * 3 * (SIDE * SIDE) as usize;
    let lenders = (0..IMAGES).map(|image| (image + IMAGES - 1) % IMAGES).collect();
    let batch = Unfinished {
        planes: (0..bytes).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect(),
        finishing: (0..IMAGES).map(of).collect(),
        paste: Some(Paste { rows: 5..40, columns: 20..SIDE as usize, lenders }),
    };
    let expected = finish(&batch, 0..IMAGES, SIDE, Device::Cpu)?;
    let found = torch::to_device(&finish(&batch, 0..IMAGES, SIDE, device)?, Device::Cpu)?;
    let worst = (found - expected).abs().max().double_value(&[]);
    Ok((worst == 0.0, format!("{worst:.1e} apart at most (none allowed)")))
}

fn losses(device: Device, precision: Precision) -> Result<Vec<f64>, Broken> {
    let mut config = Config::default();
    config.model.arch = "resnet18".into();
    config.data.image_size = SIDE as u32;
    config.compute.seed = 3;
    config.compute.precision = precision.into();
    config.optim.warmup.epochs = 0;
    config.optim.lr.init = 0.005;
    let mut learner = Learner::new(&config, CLASSES as u32, STEPS, device)?;
    let mut ring = Solo::new(AbortHandle::new());
    (0..STEPS)
        .map(|step| {
            let (images, targets) = (images(IMAGES), targets(IMAGES));
            let batch =
                Batch { step, sample_ids: (0..IMAGES as u32).collect(), images, targets, ..Batch::default() };
            let position = Position { epoch: 0, step };
            let ask = Ask { position, planned: IMAGES as u64, leave: false, may_skip: false };
            Ok(learner.step(&batch, ask, &mut ring)?.loss_sum / IMAGES as f64)
        })
        .collect()
}

fn steps(device: Device, allowed: &Allowed) -> Result<(bool, String), Broken> {
    let (expected, found) = (losses(Device::Cpu, Precision::Fp32)?, losses(device, allowed.precision)?);
    // A NaN stays one, and does not pass.
    let differences = found.iter().zip(&expected).map(|(f, e)| (f - e).abs() / e.abs().max(1.0));
    let apart = differences.fold(0.0, |most: f64, next| if next <= most { most } else { next });
    let (first, last) = (expected[0], expected[STEPS as usize - 1]);
    let words =
        format!("losses from {first:.3} to {last:.3}, {apart:.1e} apart ({:.0e} allowed)", allowed.losses);
    // A NaN must not pass.
    Ok((apart <= allowed.losses, words))
}
