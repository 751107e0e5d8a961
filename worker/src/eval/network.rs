//! A network from a file of weights, and what is done to its images: shared by `worker eval` and `worker predict`.

use relabel_config::NetworkOptions;

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

/// A model in evaluation, and how its images are made.
pub struct Network {
    pub model: Model,
    pub transform: EvalTransform,
    /// Names of the outputs, if a file says them.
    pub classes: Option<Classes>,
    /// Images in one forward pass, at least 1.
    pub batch: usize,
    /// At least 1.
    pub threads: usize,
}

/// Builds the network and loads its weights. `threads` are those of libtorch, and those that load images.
///
/// # Errors
/// Weights that cannot be read or are of another architecture, an architecture that nobody named, more
/// classes than outputs.
pub fn open(options: &NetworkOptions, threads: usize) -> Result<Network, NetworkError> {
    crate::torch::set_num_threads(threads);
    let weights = weights::read(&options.weights)?;
    let origin = weights.origin.clone();
    let Some(arch) = options.arch.as_ref().or(weights.arch.as_ref()) else {
        return Err(NetworkError::NoArch { origin });
    };
    let Some(outputs) = weights.classes() else { return Err(NetworkError::NoClassifier { origin }) };
    let usual = weights.batch_norm(arch);
    let batch_norm = BatchNormOptions { eps: options.bn_eps.unwrap_or(usual.eps), ..usual };
    let mut model = model::build(arch, outputs, batch_norm, tch::Device::Cpu, 0)?;
    if arch.starts_with(relabel_config::SCRIPT) {
        model.check_output(i64::from(options.image_size))?;
    }
    weights::load(&mut model, &weights, Head::Strict)?;
    model.to_channels_last()?;
    model.set_precision(options.precision)?;
    let classes = options.classes.as_deref().map(Classes::read).transpose()?;
    let too_many = classes.as_ref().zip(options.classes.as_ref()).filter(|(c, _)| c.len() as i64 > outputs);
    if let Some((classes, path)) = too_many {
        let (path, known, outputs) = (path.clone(), classes.len(), outputs as usize);
        return Err(ClassesError::TooMany { path, known, outputs }.into());
    }
    let transform = EvalTransform {
        image_size: options.image_size,
        crop_ratio: options.crop_ratio,
        resize: if options.exact_resize { Resize::Exact } else { Resize::Fast },
    };
    Ok(Network { model, transform, classes, batch: options.batch_size as usize, threads })
}
