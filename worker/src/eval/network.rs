//! A network from a file of weights, and what is done to its images: shared by `worker eval` and `worker predict`.

use std::path::PathBuf;

use clap::Args;

use super::classes::{Classes, ClassesError};
use crate::data::augment::{EvalTransform, Resize};
use crate::model::{self, BatchNormOptions, Model, ModelError};
use crate::weights::{self, Head, WeightsError};

/// Why there is no network. One line.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Classes(#[from] ClassesError),
    #[error("{origin} does not say of which architecture it is: add --arch (one of {})", model::known_archs().join(", "))]
    NoArch { origin: String },
    #[error(
        "{origin}: no classifier in it whose rows would be the classes; is it a whole network's state_dict?"
    )]
    NoClassifier { origin: String },
}

/// Network
#[derive(Debug, Args)]
pub struct NetworkArgs {
    /// Weights: a checkpoint of a run, .pth or .safetensors
    #[arg(long, value_name = "FILE")]
    pub weights: PathBuf,
    /// Architecture, as model.arch [default: what the file says]
    #[arg(long, value_name = "ARCH")]
    pub arch: Option<String>,
    /// The network's classes in their order: a file with one a line, a JSON class index, or the folder of training folders
    #[arg(long, value_name = "FILE|DIR")]
    pub classes: Option<PathBuf>,
    /// Side of the network's input in pixels, as data.image_size
    #[arg(long, value_name = "PIXELS", default_value_t = 224, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub image_size: u32,
    /// Side of the input over the short side that images are resized to, as data.crop_ratio
    #[arg(long, value_name = "RATIO", default_value_t = 0.875, value_parser = ratio)]
    pub crop_ratio: f64,
    /// Resize to the last bit of Pillow's arithmetic, as data.resize exact
    #[arg(long)]
    pub exact_resize: bool,
    /// Epsilon of BatchNorm, as optim.bn.eps [default: as a checkpoint says, else that of the architecture's
    /// published weights]
    #[arg(long, value_name = "EPS")]
    pub bn_eps: Option<f64>,
    /// Images in one forward pass
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch_size: u32,
    /// Threads of libtorch, and threads that load images [default: the machine's cores]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if ratio > 0.0 && ratio <= 1.0 => Ok(ratio),
        _ => Err("a number above 0 and at most 1 is wanted".to_owned()),
    }
}

/// A model in evaluation, and how its images are made.
pub struct Network {
    pub model: Model,
    /// The file of the weights.
    pub origin: String,
    pub transform: EvalTransform,
    /// Names of the outputs, if a file says them.
    pub classes: Option<Classes>,
    /// Images in one forward pass, at least 1.
    pub batch: usize,
    /// At least 1.
    pub threads: usize,
}

impl NetworkArgs {
    /// Builds the network and loads its weights.
    ///
    /// # Errors
    /// Weights that cannot be read or are of another architecture, an architecture that nobody named, more
    /// classes than outputs.
    pub fn open(&self) -> Result<Network, NetworkError> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.threads.map_or_else(cores, usize::from);
        crate::torch::set_num_threads(threads);
        let weights = weights::read(&self.weights)?;
        let origin = weights.origin.clone();
        let Some(arch) = self.arch.as_ref().or(weights.arch.as_ref()) else {
            return Err(NetworkError::NoArch { origin });
        };
        let Some(outputs) = weights.classes() else { return Err(NetworkError::NoClassifier { origin }) };
        let usual = weights.batch_norm(arch);
        let batch_norm = BatchNormOptions { eps: self.bn_eps.unwrap_or(usual.eps), ..usual };
        let mut model = model::build(arch, outputs, batch_norm, tch::Device::Cpu, 0)?;
        if arch.starts_with(relabel_config::SCRIPT) {
            model.check_output(i64::from(self.image_size))?;
        }
        weights::load(&mut model, &weights, Head::Strict)?;
        model.to_channels_last()?;
        let classes = self.classes.as_deref().map(Classes::read).transpose()?;
        let too_many = classes.as_ref().zip(self.classes.as_ref()).filter(|(c, _)| c.len() as i64 > outputs);
        if let Some((classes, path)) = too_many {
            let (path, known, outputs) = (path.clone(), classes.len(), outputs as usize);
            return Err(ClassesError::TooMany { path, known, outputs }.into());
        }
        let transform = EvalTransform {
            image_size: self.image_size,
            crop_ratio: self.crop_ratio,
            resize: if self.exact_resize { Resize::Exact } else { Resize::Fast },
        };
        Ok(Network { model, origin, transform, classes, batch: self.batch_size as usize, threads })
    }
}
