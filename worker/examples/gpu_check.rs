//! Compares what a GPU computes with what the CPU does: forward, loss, gradients and 20 steps, in each precision, and
//! finished images; and two deterministic runs with each other.
//! `tests/gpu/check.sh` runs it. A line a check: `ok`, `FAILED` or `not run`, and why. Exits with 1 if one has failed.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use relabel_config::{Config, FinishOn, OnError, Precision};
use relabel_core::Position;
use tch::{Device, Kind, Tensor};
use worker::collective::{AbortHandle, Solo, nccl};
use worker::data::DataError;
use worker::data::augment::{Augment, Finishing, Step};
use worker::data::cutmix::CutMix;
use worker::data::index::Split;
use worker::data::loader::{Batch, TrainLoader, TrainPlan};
use worker::data::unfinished::{Paste, Unfinished};
use worker::labels::SingleLabel;
use worker::model::{Model, ModelError, build, image_batch, published_batch_norm};
use worker::torch::{self, TorchError};
use worker::train::feed::{Feed, Form};
use worker::train::finish::finish;
use worker::train::learner::Learner;
use worker::train::loss::soft_cross_entropy;
use worker::train::step::{Ask, StepError, Update};
use worker::train::trainer::TrainError;

/// How far the GPU may be from the CPU's float32: of logits and gradients the length of the difference over the
/// length, of the losses of 20 steps the largest difference over the loss.
struct Allowed {
    precision: Precision,
    logits: f64,
    gradients: f64,
    losses: f64,
}

impl Allowed {
    /// Whether BatchNorm takes its statistics from the batch. With a fresh network it makes so much of the rounding of
    /// fewer digits that the CPU is as far from itself: logits by a third in bf16, gradients by all they are.
    fn trains(&self) -> bool {
        self.precision == Precision::Fp32
    }
}

const ALLOWED: [Allowed; 4] = [
    Allowed { precision: Precision::Fp32, logits: 1e-4, gradients: 1e-3, losses: 1e-2 },
    Allowed { precision: Precision::Tf32, logits: 5e-3, gradients: 5e-2, losses: 1e-2 },
    Allowed { precision: Precision::Bf16, logits: 5e-2, gradients: 2e-1, losses: 2e-2 },
    Allowed { precision: Precision::Fp16, logits: 1e-2, gradients: 5e-2, losses: 1e-2 },
];

const CLASSES: usize = 20;
const SIDE: i64 = 64;
const IMAGES: usize = 16;
const STEPS: u64 = 20;
const AHEAD: &str = "batches sent to it ahead";
const AGAIN: &str = "the same bits in two deterministic runs";

#[derive(Parser)]
struct Args {
    /// The GPU, as --gpu of the worker.
    #[arg(long, default_value_t = 0)]
    gpu: u32,
    /// Put the CPU in its place, to try the checks themselves: what it differs from its own float32 is to be allowed.
    #[arg(long)]
    cpu: bool,
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Torch(#[from] TorchError),
    #[error(transparent)]
    Step(#[from] StepError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error("pictures to load: {0}")]
    Pictures(#[source] std::io::Error),
}

fn main() -> ExitCode {
    let Args { gpu, cpu } = Args::parse();
    let device = match if cpu { Ok(Device::Cpu) } else { torch::cuda::open(gpu) } {
        Ok(device) => device,
        Err(error) => {
            for Allowed { precision, .. } in &ALLOWED {
                for what in ["forward and gradients", "20 steps"] {
                    println!("not run  {what} in {}: {error}", precision.name());
                }
            }
            for what in ["images finished on it", AHEAD, AGAIN] {
                println!("not run  {what}: {error}");
            }
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
    let mut references = [None, None];
    for allowed in &ALLOWED {
        let name = allowed.precision.name();
        say(format!("forward and gradients in {name}"), pass(device, allowed));
        say(format!("{STEPS} steps in {name}"), steps(device, allowed, &mut references));
    }
    say("images finished on it".into(), finished(device));
    say(AHEAD.into(), ahead(device));
    // Last: from then on it is so in the whole process.
    say(AGAIN.into(), again(device));
    match nccl::find() {
        Ok(version) => println!("ok       NCCL: {}", nccl::version(version)),
        Err(error) => println!("not run  NCCL: {error}"),
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Each another one, as images are: of near ones BatchNorm sees the differences, and the rounding of these.
fn images(n: usize) -> Vec<f32> {
    let side = SIDE as usize;
    let value = |at: usize| {
        let (channel, x, y, image) = (at % 3, at / 3 % side, at / 3 / side % side, at / 3 / side / side);
        let wave = |along: usize, factor: usize| {
            (along as f32 * (0.05 + 0.03 * ((image * factor + channel) % 7) as f32)).sin()
        };
        0.8 * wave(x, 3) + 0.8 * wave(y, 5) + (image * 5 % 16) as f32 / 8.0 - 1.0
    };
    (0..n * side * side * 3).map(value).collect()
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
fn forward_and_backward(
    device: Device,
    precision: Precision,
    train: bool,
) -> Result<(Tensor, Tensor), Broken> {
    let model = network(device, precision)?;
    let x = torch::to_device(&image_batch(&images(IMAGES), IMAGES as i64, SIDE)?, device)?;
    let target =
        torch::to_device(&torch::from_f32(&targets(IMAGES), &[IMAGES as i64, CLASSES as i64])?, device)?;
    let logits = model.forward(&x, train)?;
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
    let expected = forward_and_backward(Device::Cpu, Precision::Fp32, allowed.trains())?;
    let found = forward_and_backward(device, allowed.precision, allowed.trains())?;
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
    let expected = finish(&batch, IMAGES, SIDE, Device::Cpu)?;
    let found = torch::to_device(&finish(&batch, IMAGES, SIDE, device)?, Device::Cpu)?;
    let worst = (found - expected).abs().max().double_value(&[]);
    Ok((worst == 0.0, format!("{worst:.1e} apart at most (none allowed)")))
}

/// Images that the loader has made, sent while the device is kept busy, and those that it is sent when it is idle.
fn ahead(device: Device) -> Result<(bool, String), Broken> {
    let folder = std::env::temp_dir().join(format!("relabel-gpu-check-{}", std::process::id()));
    let made =
        write_pictures(&folder).map_err(Broken::Pictures).and_then(|()| compare_feeds(&folder, device));
    std::fs::remove_dir_all(&folder).map_err(Broken::Pictures)?;
    made
}

fn write_pictures(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder.join("noise"))?;
    for picture in 0..4 * IMAGES as u32 {
        let value = |x: u32, y: u32| {
            let noise = (x + 97 * y + 8191 * picture).wrapping_mul(2_654_435_761);
            image::Rgb([noise >> 8, noise >> 16, noise >> 24].map(|bits| bits as u8))
        };
        let file = folder.join("noise").join(format!("{picture:03}.png"));
        image::RgbImage::from_fn(96, 80, value).save(file).map_err(std::io::Error::other)?;
    }
    Ok(())
}

/// Batches that are sent ahead and compared.
const BATCHES: usize = 30;

fn compare_feeds(folder: &Path, device: Device) -> Result<(bool, String), Broken> {
    let split = Arc::new(Split::open(folder, None)?);
    let mut data = Config::default().data;
    (data.image_size, data.finish) = (SIDE as u32, FinishOn::Device);
    let loader = |epoch| {
        TrainLoader::start(TrainPlan {
            split: split.clone(),
            targets: Arc::new(SingleLabel::new(CLASSES as u32, Arc::new(|sample| sample % CLASSES as u32))),
            augment: Augment::from_config(&data),
            cutmix: CutMix { prob: 1.0, beta: 1.0, until: u32::MAX },
            seed: 5,
            shuffle_buffer: 0,
            epoch,
            global_batch: IMAGES as u32,
            first_step: 0,
            slice: 0..IMAGES as u32,
            on_error: OnError::Fail,
            threads: 2,
            prefetch: 2,
        })
    };
    let form = Form { side: SIDE, classes: CLASSES as i64, device };
    // Some milliseconds of a GPU.
    let mut busy = Tensor::f_randn([2048, 2048], (Kind::Float, device)).map_err(TorchError::from)?;
    let (mut compared, mut apart, mut epoch) = (0, 0, 0);
    loop {
        let mut fed = Feed::ahead(loader(epoch)?, form)?;
        let mut expected = Feed::new(loader(epoch)?, Form { device: Device::Cpu, ..form })?;
        while let (Some(fed_next), Some(expected)) = (fed.next(), expected.next()) {
            for _ in 0..if device.is_cuda() { 20 } else { 0 } {
                busy = busy.f_matmul(&busy).and_then(|busy| busy.f_tanh()).map_err(TorchError::from)?;
            }
            let ((batch, sent), (_, expected)) = (fed_next?, expected?);
            let (images, targets) = sent.arrived()?;
            // Queued behind what keeps it busy: read then, and dropped long before.
            let (images, targets) = (images * 1.0, targets * 1.0);
            drop(sent);
            fed.recycle(batch);
            let (right_images, right_targets) = expected.arrived()?;
            let same = |found: Tensor, right: &Tensor| -> Result<bool, Broken> {
                Ok(torch::to_device(&found, Device::Cpu)? == *right)
            };
            apart += usize::from(!same(images, right_images)? || !same(targets, right_targets)?);
            compared += 1;
            if compared == BATCHES {
                return Ok((apart == 0, format!("{apart} of {compared} differ (none allowed)")));
            }
        }
        epoch += 1;
    }
}

fn losses(
    device: Device,
    precision: Precision,
    train: bool,
    deterministic: bool,
) -> Result<Vec<f64>, Broken> {
    let mut config = Config::default();
    config.compute.deterministic = deterministic;
    config.optim.bn.frozen = !train;
    config.model.arch = "resnet18".into();
    config.data.image_size = SIDE as u32;
    config.compute.seed = 3;
    config.compute.precision = precision.into();
    config.optim.warmup.epochs = 0;
    config.optim.lr.init = 0.001;
    let mut learner = Learner::new(&config, CLASSES as u32, STEPS, device)?;
    let mut ring = Solo::new(AbortHandle::new());
    let (images, targets) = (images(IMAGES), targets(IMAGES));
    let batch = Batch { sample_ids: (0..IMAGES as u32).collect(), images, targets, ..Batch::default() };
    let mut losses = Vec::new();
    // In fp16 the first updates are left out, until the scale of the loss fits.
    for step in 0..2 * STEPS {
        let position = Position { epoch: 0, step };
        let ask = Ask { position, planned: IMAGES as u64, leave: false, may_skip: false };
        let stepped = learner.step(&batch, ask, &mut ring)?;
        if stepped.update == Update::Done {
            losses.push(stepped.loss_sum / IMAGES as f64);
        }
        if losses.len() == STEPS as usize {
            break;
        }
    }
    Ok(losses)
}

/// `references` are the CPU's losses without and with BatchNorm's training, once they are known.
fn steps(
    device: Device,
    allowed: &Allowed,
    references: &mut [Option<Vec<f64>>; 2],
) -> Result<(bool, String), Broken> {
    let expected = match &mut references[usize::from(allowed.trains())] {
        Some(known) => known,
        unknown => unknown.insert(losses(Device::Cpu, Precision::Fp32, allowed.trains(), false)?),
    };
    let found = losses(device, allowed.precision, allowed.trains(), false)?;
    // A NaN stays one, and does not pass.
    let differences = found.iter().zip(expected.iter()).map(|(f, e)| (f - e).abs() / e.abs().max(1.0));
    let apart = differences.fold(0.0, |most: f64, next| if next <= most { most } else { next });
    let (first, last) = (expected[0], expected[STEPS as usize - 1]);
    let words =
        format!("losses from {first:.3} to {last:.3}, {apart:.1e} apart ({:.0e} allowed)", allowed.losses);
    // A NaN must not pass.
    Ok((apart <= allowed.losses, words))
}

fn again(device: Device) -> Result<(bool, String), Broken> {
    let [first, second] = [(); 2].map(|()| losses(device, Precision::Bf16, true, true));
    let (first, second) = (first?, second?);
    let other = first.iter().zip(&second).position(|(first, second)| first.to_bits() != second.to_bits());
    Ok(match other {
        None => (true, format!("{} losses in bf16", first.len())),
        Some(step) => (false, format!("{} and {} in step {step}", first[step], second[step])),
    })
}
