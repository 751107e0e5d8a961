//! What the loss is scaled by after each of some steps: `tests/parity/precision.py` compares it with
//! torch.amp.GradScaler.

use std::path::PathBuf;

use clap::Args;
use tch::Tensor;
use worker::torch;
use worker::train::loss_scale::LossScale;

use super::ParityError;

/// `input`, a safetensors file: `finite` `[steps]`, 0 where the gradient overflowed. `output` receives `scale`
/// `[steps]`, after each of them.
#[derive(Debug, Args)]
pub(super) struct ScalesArgs {
    #[arg(long)]
    input: PathBuf,
    #[arg(long)]
    output: PathBuf,
}

pub(super) fn run(args: &ScalesArgs) -> Result<(), ParityError> {
    let given = super::read(&args.input)?;
    let reason = "no finite".to_owned();
    let (_, finite) = given
        .iter()
        .find(|(name, _)| name == "finite")
        .ok_or(ParityError::File { path: args.input.clone(), reason })?;
    let mut scale = LossScale::default();
    let scales: Vec<f32> = torch::as_f32(finite)?
        .iter()
        .map(|&finite| {
            scale.update(finite != 0.0);
            scale.scale
        })
        .collect();
    super::write(&args.output, &[("scale".to_owned(), Tensor::from_slice(&scales))], &[])
}
