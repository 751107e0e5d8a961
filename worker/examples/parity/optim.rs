//! Steps of an optimizer with given gradients: `tests/parity/optim.py` compares them with torch.optim.SGD and
//! the adamp package.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use relabel_config::{Optim, OptimizerKind, WeightDecay};
use tch::{Kind, Tensor};
use worker::optim::Optimizer;
use worker::torch;

use super::ParityError;

/// `input`, a safetensors file: `p.<name>` the parameters, `g.<name>` `[steps, ...]` their gradients, `lr`
/// `[steps]`. `output` receives `p.<name>` `[steps, ...]`, the parameters after each step.
#[derive(Debug, Args)]
pub(super) struct OptimArgs {
    #[command(flatten)]
    options: Options,
    #[arg(long)]
    input: PathBuf,
    #[arg(long)]
    output: PathBuf,
    /// Keep weights of four dimensions in channels_last memory format.
    #[arg(long)]
    channels_last: bool,
}

/// As the options of the same names under `optim`.
#[derive(Debug, Args)]
pub(super) struct Options {
    #[arg(long, value_enum)]
    optimizer: Kinds,
    #[arg(long)]
    momentum: f64,
    #[arg(long)]
    wd: f64,
    /// No weight decay of parameters of one dimension.
    #[arg(long)]
    only_weights_decay: bool,
    #[arg(long)]
    nesterov: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kinds {
    Sgd,
    Adamp,
}

impl From<&Options> for Optim {
    fn from(options: &Options) -> Self {
        Self {
            optimizer: match options.optimizer {
                Kinds::Sgd => OptimizerKind::Sgd,
                Kinds::Adamp => OptimizerKind::AdamP,
            },
            momentum: options.momentum,
            wd: WeightDecay { base: options.wd, norm_and_bias: !options.only_weights_decay },
            nesterov: options.nesterov,
            ..Self::default()
        }
    }
}

pub(super) fn run(args: &OptimArgs) -> Result<(), ParityError> {
    let given = super::read(&args.input)?;
    let wrong = |reason: String| ParityError::File { path: args.input.clone(), reason };
    let find = |wanted: &str| {
        let found = given.iter().find(|(name, _)| name == wanted);
        found.map(|(_, tensor)| tensor).ok_or_else(|| wrong(format!("no {wanted}")))
    };
    let (mut parameters, mut gradients) = (Vec::new(), Vec::new());
    for (name, start) in given.iter().filter_map(|(name, p)| Some((name.strip_prefix("p.")?, p))) {
        let p = match args.channels_last && start.dim() == 4 {
            true => torch::to_channels_last(start)?,
            false => start.copy(),
        };
        parameters.push((name.to_owned(), p.set_requires_grad(true)));
        gradients.push(find(&format!("g.{name}"))?);
    }
    let mut optimizer = Optimizer::new(&parameters, &(&args.options).into());
    let rates = torch::as_f32(find("lr")?)?;
    let mut after: Vec<Vec<Tensor>> = parameters.iter().map(|_| Vec::new()).collect();
    for (step, &lr) in rates.iter().enumerate() {
        for ((_, p), given) in parameters.iter().zip(&gradients) {
            let mut gradient = p.detach().zeros_like();
            gradient.copy_(&given.get(step as i64));
            torch::set_grad(p, &gradient)?;
        }
        optimizer.step(f64::from(lr))?;
        for ((_, p), after) in parameters.iter().zip(&mut after) {
            after.push(p.detach().copy().to_kind(Kind::Float).contiguous());
        }
    }
    let named = parameters.iter().zip(after);
    let results: Vec<_> =
        named.map(|((name, _), steps)| (format!("p.{name}"), Tensor::stack(&steps, 0))).collect();
    super::write(&args.output, &results, &[])
}
