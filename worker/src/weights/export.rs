//! `worker export`: weights for other programs.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use tch::Device;

use super::{Form, Head, SgdNotes, load, read, write};
use crate::model::{BatchNormOptions, build, known_archs};

/// Arguments of `worker export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Weights in any form that can be read: a checkpoint, .pth or .safetensors
    input: PathBuf,
    /// File to write; its ending, .pth or .safetensors, says in which form
    output: PathBuf,
    /// Check names and shapes against this architecture, and write its order and kinds [default: the one that
    /// the file names, if it is known here; else everything is written as it is]
    #[arg(long, value_name = "ARCH")]
    arch: Option<String>,
    /// Write the state_dict alone (the default)
    #[arg(long, conflicts_with = "reference")]
    bare: bool,
    /// Write a checkpoint as the reference does: epoch, arch, state_dict, accuracy, optimizer
    #[arg(long)]
    reference: bool,
}

/// Runs the command.
///
/// # Errors
/// A file that cannot be read, does not fit the architecture or cannot be written: one line.
pub fn run(args: &ExportArgs) -> Result<()> {
    let mut weights = read(&args.input)?;
    let known = |arch: &String| known_archs().contains(&arch.as_str());
    let arch = args.arch.clone().or_else(|| weights.arch.clone().filter(known));
    match &arch {
        Some(arch) => {
            let classes = weights.classes().context(format!(
                "{}: none of its tensors has the name of a classifier, so it is not of {arch}",
                args.input.display()
            ))?;
            // What it is built with is overwritten; only the names, shapes and kinds matter.
            let mut model = build(arch, classes, BatchNormOptions::default(), Device::Cpu, 0)?;
            tracing::info!("{}", load(&mut model, &weights, Head::Strict)?);
            weights.tensors = model.state_dict();
        }
        None => tracing::info!(
            "{} does not name an architecture that is known here, so its tensors are written unchecked; --arch checks them",
            args.input.display()
        ),
    }
    weights.arch = arch.or(weights.arch);
    let form = if args.reference { Form::Reference } else { Form::Bare };
    write(&args.output, &weights, form)?;
    let what = match form {
        Form::Bare => "",
        Form::Reference if SgdNotes::find(&weights).is_some() => " and the state of SGD",
        Form::Reference => ", without an optimizer's state, which the file does not hold",
    };
    tracing::info!("wrote {} tensors{what} to {}", weights.tensors.len(), args.output.display());
    Ok(())
}
