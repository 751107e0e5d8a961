//! What this program computes, written to a file that another implementation can be compared with:
//! `tests/parity/models.py` compares models with torchvision and timm, `optim.py`, `curve.py` and `precision.py`
//! optimizers and training with PyTorch.

#[path = "parity/curve.rs"]
mod curve;
#[path = "parity/optim.rs"]
mod optim;
#[path = "parity/scales.rs"]
mod scales;

use std::borrow::Cow;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tch::{Device, Tensor};

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use worker::checkpoint::safetensors_file::{self, Contents};
use worker::model::{BatchNormOptions, ModelError, build, published_batch_norm};
use worker::torch::TorchError;
use worker::train::loss::soft_cross_entropy;
use worker::train::step::StepError;

#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Without a command: what a model computes.
    #[command(flatten)]
    model: Option<ParityArgs>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Steps of an optimizer with given gradients
    Optim(optim::OptimArgs),
    /// Training steps on given batches
    Curve(curve::CurveArgs),
    /// What the loss is scaled by after each of some steps
    Scales(scales::ScalesArgs),
}

/// `input`, a safetensors file: a state_dict under torchvision's names, `input` `[B, 3, H, W]` and `target`
/// `[B, classes]`. `output` receives `logits_eval` and `logits` (train mode) `[B, classes]`, `loss`
/// (summed over the batch), and after one backward `grad.<parameter>` and `buffer.<buffer>`. BatchNorm is as
/// with the published weights; `seed` is that of dropout and stochastic depth.
/// Without `input` it receives `init.<name>`, the initial state_dict for `seed`. In both cases the header's
/// metadata have the names in the state_dict's order under `names`, and their number of parameters.
#[derive(Debug, Args)]
struct ParityArgs {
    /// Architecture, as model.arch.
    #[arg(long)]
    arch: String,
    /// Length of the output.
    #[arg(long, default_value_t = 1000)]
    classes: i64,
    /// Weights, input and target.
    #[arg(long)]
    input: Option<PathBuf>,
    /// Where the results go.
    #[arg(long)]
    output: PathBuf,
    /// Compute in channels_last memory format.
    #[arg(long)]
    channels_last: bool,
    /// Normalize with the running statistics in training too.
    #[arg(long)]
    frozen: bool,
    /// As `optim.bn.fused` has it.
    #[arg(long)]
    fused: bool,
    /// Seed of the initial weights, or of the masks of random layers.
    #[arg(long, default_value_t = 0)]
    seed: i64,
}

/// Why the comparison could not be made.
#[derive(Debug, thiserror::Error)]
enum ParityError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Torch(#[from] TorchError),
    #[error(transparent)]
    Step(#[from] StepError),
    #[error("{}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match (&cli.command, &cli.model) {
        (Some(Command::Optim(args)), _) => optim::run(args),
        (Some(Command::Curve(args)), _) => curve::run(args),
        (Some(Command::Scales(args)), _) => scales::run(args),
        (None, Some(args)) => run(args),
        (None, None) => {
            Cli::command().error(ErrorKind::MissingRequiredArgument, "name an architecture").exit()
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &ParityArgs) -> Result<(), ParityError> {
    let batch_norm =
        BatchNormOptions { frozen: args.frozen, fused: args.fused, ..published_batch_norm(&args.arch) };
    let mut model = build(&args.arch, args.classes, batch_norm, Device::Cpu, args.seed)?;
    let mut results: Vec<(String, Tensor)> = Vec::new();
    if let Some(path) = &args.input {
        let wrong = |reason: String| ParityError::File { path: path.clone(), reason };
        let mut given = read(path)?;
        let mut take = |name: &str| {
            let place =
                given.iter().position(|(n, _)| n == name).ok_or_else(|| wrong(format!("no {name}")))?;
            Ok::<_, ParityError>(given.swap_remove(place).1)
        };
        let (mut x, target) = (take("input")?, take("target")?);
        model.load_state_dict(&given)?;
        if args.channels_last {
            model.to_channels_last()?;
            x = worker::torch::to_channels_last(&x).map_err(ModelError::from)?;
        }
        results.push((
            "logits_eval".to_owned(),
            tch::no_grad(|| model.forward(&x, false)).map_err(ModelError::from)?,
        ));
        tch::manual_seed(args.seed);
        let logits = model.forward(&x, true).map_err(ModelError::from)?;
        let loss = soft_cross_entropy(&logits, &target).map_err(ModelError::from)?;
        loss.backward();
        model.count_step();
        results.push(("logits".to_owned(), logits.detach()));
        results.push(("loss".to_owned(), loss.detach()));
        results.extend(model.parameters().iter().map(|(name, p)| (format!("grad.{name}"), p.grad())));
        results.extend(model.buffers().iter().map(|(name, b)| (format!("buffer.{name}"), b.shallow_clone())));
    } else {
        results.extend(model.state_dict().into_iter().map(|(name, t)| (format!("init.{name}"), t.detach())));
    }
    let names: Vec<String> = model.state_dict().into_iter().map(|(name, _)| name).collect();
    let parameters: usize = model.parameters().iter().map(|(_, p)| p.numel()).sum();
    let notes = [("names", names.join(" ")), ("parameters", parameters.to_string())];
    write(&args.output, &results, &notes)
}

/// The tensors of a safetensors file.
fn read(path: &Path) -> Result<Vec<(String, Tensor)>, ParityError> {
    let wrong = |reason: String| ParityError::File { path: path.into(), reason };
    let file = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let (header, data_start) = safetensors_file::parse(&file).map_err(wrong)?;
    safetensors_file::tensors(&file, &header, data_start).map_err(wrong)
}

/// Writes tensors to a safetensors file, with `notes` in its header's metadata.
fn write(path: &Path, tensors: &[(String, Tensor)], notes: &[(&str, String)]) -> Result<(), ParityError> {
    let notes = notes.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    let contents = Contents::new(tensors.iter().map(|(name, tensor)| (Cow::from(name), tensor)), notes);
    File::create(path)
        .and_then(|file| contents.write(&mut BufWriter::new(file)))
        .map_err(|error| ParityError::File { path: path.into(), reason: error.to_string() })
}
