//! Image classifiers with torchvision's architecture, state_dict names and initial values, or of the user's
//! own as TorchScript. Knows nothing of data and optimizers.
//!
//! Dropout and stochastic depth draw from libtorch's global generator, in training only: who wants the same
//! numbers again seeds it before [`Model::forward`], as the learner does before each step.

use std::sync::{Mutex, PoisonError};

use relabel_config::Precision;
use tch::{Device, Kind, Tensor};

mod efficientnet;
#[cfg(test)]
mod family_tests;
mod flat_gradients;
pub mod layers;
#[cfg(test)]
mod precision_tests;
mod resnet;
pub mod rexnet;
mod script;
#[cfg(test)]
mod script_tests;
mod state_dict;
#[cfg(test)]
mod tests;

pub use flat_gradients::FlatGradients;
pub use layers::BatchNormOptions;
pub(crate) use state_dict::load_tensors;
pub use state_dict::{StateDict, StateDictError};

use crate::torch::{self, TorchError};
use layers::{Layer, Role};

/// Why a model could not be built or filled.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(
        "model.arch: {arch:?} is not known; did you mean {nearest}? (one of {}, or script:FILE)",
        known.join(", ")
    )]
    UnknownArch { arch: String, nearest: &'static str, known: Vec<&'static str> },
    #[error("model.num_classes: a classifier needs at least 1 class, not {0}")]
    NoClasses(i64),
    #[error(
        "{0} has no head of a global pooling and one linear layer, so it cannot score the cells of a map"
    )]
    NoFeatures(String),
    #[error("model.arch: script:{file} {reason}")]
    Script { file: String, reason: String },
    #[error(
        "model.arch: {arch} gives {found:?} for one image of {size} x {size} pixels, but the run needs [1, {classes}]: \
         set model.num_classes to its number of classes, or build it with {classes}"
    )]
    Output { arch: String, size: i64, found: Vec<i64>, classes: i64 },
    #[error("optim.bn.frozen: model.arch {0} keeps its BatchNorm as it was saved; leave the option out")]
    CannotFreeze(String),
    #[error(transparent)]
    Torch(#[from] TorchError),
    #[error(transparent)]
    StateDict(#[from] StateDictError),
}

/// Every architecture that [`build`] knows by name.
pub fn known_archs() -> Vec<&'static str> {
    resnet::names().chain(efficientnet::names()).chain(rexnet::names()).collect()
}

/// The BatchNorm that the published weights of `arch` were trained with: PyTorch's defaults, except for
/// EfficientNet-B5 to B7 (eps 1e-3, momentum 0.01). [`build`] takes what it is given, for these too: a run that
/// starts from their weights sets `optim.bn.eps` to 1e-3.
pub fn published_batch_norm(arch: &str) -> BatchNormOptions {
    efficientnet::published_batch_norm(arch).unwrap_or_default()
}

/// A classifier of images `[B, 3, H, W]` (normalized, f32) into `classes` logits, and its tensors by name.
///
/// A model may move to another thread but not be shared by two.
pub struct Model {
    arch: String,
    classes: i64,
    batch_norm: BatchNormOptions,
    precision: Precision,
    root: Box<dyn Layer>,
    /// State_dict order; handles to the very tensors that the layers hold.
    tensors: Vec<(String, Tensor)>,
    parameters: Vec<(String, Tensor)>,
    buffers: Vec<(String, Tensor)>,
}

static DRAWING: Mutex<()> = Mutex::new(());

/// What `draw` gives with libtorch's generator at `seed`. The generator is one for the whole process: nobody
/// else draws from it meanwhile who asks for it here. Not to be nested.
pub fn seeded<T>(seed: i64, draw: impl FnOnce() -> T) -> T {
    let _drawing = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    draw()
}

/// The network of that name. Draws its initial weights from libtorch's global generator.
fn named(arch: &str, classes: i64, options: BatchNormOptions) -> Option<Box<dyn Layer>> {
    fn boxed<L: Layer + 'static>(layer: L) -> Box<dyn Layer> {
        Box::new(layer)
    }
    let resnet = || resnet::ResNet::new(arch, classes, options).map(boxed);
    let efficientnet = || efficientnet::EfficientNet::new(arch, classes, options).map(boxed);
    let rexnet = || rexnet::ReXNet::new(arch, classes, options).map(boxed);
    resnet().or_else(efficientnet).or_else(rexnet)
}

/// Builds `arch` with `classes` outputs on `device`.
///
/// The initial weights of ResNets and EfficientNets are those of torchvision's constructor after
/// `torch.manual_seed(seed)`, whatever the device: they are drawn on the CPU. Those of ReXNets have the
/// distribution of the authors'. Those of `script:FILE` are in the file, and so is its number of classes, which
/// [`Model::check_output`] compares. Seeds libtorch's global generator.
///
/// # Errors
/// An unknown architecture, no classes, a device without room, or a file that is no TorchScript.
pub fn build(
    arch: &str,
    classes: i64,
    batch_norm: BatchNormOptions,
    device: Device,
    seed: i64,
) -> Result<Model, ModelError> {
    if classes < 1 {
        return Err(ModelError::NoClasses(classes));
    }
    let mut root: Box<dyn Layer> = match arch.strip_prefix(script::PREFIX) {
        Some(_) if batch_norm.frozen => return Err(ModelError::CannotFreeze(arch.to_owned())),
        Some(file) => Box::new(script::Script::load(file, device)?),
        None => {
            let drawn = seeded(seed, || tch::no_grad(|| named(arch, classes, batch_norm)));
            drawn.ok_or_else(|| unknown(arch))?
        }
    };
    let (mut tensors, mut parameters, mut buffers) = (Vec::new(), Vec::new(), Vec::new());
    let mut failed = None;
    root.visit("", &mut |name, tensor, role| {
        match tensor.f_to_device(device) {
            Ok(moved) => *tensor = moved.set_requires_grad(role == Role::Parameter),
            Err(error) => {
                failed.get_or_insert(TorchError::during("move a tensor to the device")(error));
            }
        }
        let handle = (name.clone(), tensor.shallow_clone());
        match role {
            Role::Parameter => parameters.push(handle),
            Role::Buffer => buffers.push(handle),
            Role::Constant => {}
        }
        tensors.push((name, tensor.shallow_clone()));
    });
    match failed {
        Some(error) => Err(error.into()),
        None => {
            let (arch, precision) = (arch.to_owned(), Precision::Fp32);
            Ok(Model { arch, classes, batch_norm, precision, root, tensors, parameters, buffers })
        }
    }
}

/// A batch of pixels `[n, size, size, 3]` as [`Model::forward`] takes it: `[n, 3, size, size]`, in
/// channels_last memory.
///
/// # Errors
/// Another number of values, or no memory left.
pub fn image_batch(pixels: &[f32], n: i64, size: i64) -> Result<Tensor, TorchError> {
    Ok(torch::from_f32(pixels, &[n, size, size, 3])?.permute([0, 3, 1, 2]))
}

fn unknown(arch: &str) -> ModelError {
    let known = known_archs();
    let distance = |name: &&str| strsim::damerau_levenshtein(name, &arch.to_lowercase());
    let nearest = known.iter().copied().min_by_key(distance).unwrap_or_default();
    ModelError::UnknownArch { arch: arch.to_owned(), nearest, known }
}

impl Model {
    pub fn arch(&self) -> &str {
        &self.arch
    }

    /// Length of the output.
    pub fn classes(&self) -> i64 {
        self.classes
    }

    pub fn batch_norm(&self) -> BatchNormOptions {
        self.batch_norm
    }

    /// What convolutions and matrix products compute in; fp32 unless told otherwise.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Has [`Self::forward`] and [`Self::features`] compute in `precision`. The tensors of the model stay f32.
    ///
    /// # Errors
    /// What libtorch throws where it cannot prepare the device.
    pub fn set_precision(&mut self, precision: Precision) -> Result<(), ModelError> {
        torch::prepare(self.device(), precision)?;
        self.precision = precision;
        Ok(())
    }

    pub fn device(&self) -> Device {
        self.tensors.first().map_or(Device::Cpu, |(_, tensor)| tensor.device())
    }

    /// What the optimizer trains, by torchvision's names and in its order.
    pub fn parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// Running statistics of BatchNorm and their counters, in state_dict order.
    pub fn buffers(&self) -> &[(String, Tensor)] {
        &self.buffers
    }

    /// Logits `[B, classes]` of `x` `[B, 3, H, W]`, of the kind that the precision gives. With `train`, BatchNorm uses
    /// and updates batch statistics unless frozen. Gradients are recorded unless the caller has turned them off.
    ///
    /// # Errors
    /// No memory left, or `x` is not `[B, 3, H, W]` of the parameters' kind and device.
    pub fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, TorchError> {
        torch::autocast(self.device(), self.precision, || self.root.forward(x, train))
    }

    /// Runs one black image of `size` x `size` pixels through a network that was not built here, to find out
    /// whether it takes such images and gives as many logits as the run has classes.
    ///
    /// # Errors
    /// It throws, or gives something else.
    pub fn check_output(&self, size: i64) -> Result<(), ModelError> {
        let image = Tensor::f_zeros([1, 3, size, size], (Kind::Float, self.device()))
            .map_err(TorchError::during("allocate an image"))?;
        let found = self.root.check(&image)?;
        match found == [1, self.classes] {
            true => Ok(()),
            false => Err(ModelError::Output { arch: self.arch.clone(), size, found, classes: self.classes }),
        }
    }

    /// The last feature map of images `[B, 3, H, W]`: `[B, C, h, w]`, before the global pooling, with
    /// running statistics. Of the kind that the precision gives.
    ///
    /// # Errors
    /// An architecture whose head is not a pooling and one linear layer, or as [`Model::forward`].
    pub fn features(&self, images: &Tensor) -> Result<Tensor, ModelError> {
        let features = torch::autocast(self.device(), self.precision, || self.root.features(images))?;
        features.ok_or_else(|| ModelError::NoFeatures(self.arch.clone()))
    }

    /// The linear layer of the head as a 1x1 convolution: weight `[classes, C, 1, 1]` and bias `[classes]`.
    /// Applied to [`Model::features`] it scores every cell.
    ///
    /// # Errors
    /// As [`Model::features`].
    pub fn head(&self) -> Result<(Tensor, Tensor), ModelError> {
        // A classifier's last layer is the last in its state_dict.
        if let [.., (_, weight), (_, bias)] = self.parameters.as_slice()
            && weight.dim() >= 2
            && weight.size()[0] == self.classes
            && bias.size() == [self.classes]
        {
            return Ok((weight.detach().reshape([self.classes, -1, 1, 1]), bias.detach()));
        }
        Err(ModelError::NoFeatures(self.arch.clone()))
    }

    /// Counts a step in every BatchNorm's `num_batches_tracked`, unless frozen. Apart from `forward`, so that
    /// a rank that had no samples in a step counts it too.
    pub fn count_step(&mut self) {
        if self.batch_norm.frozen {
            return;
        }
        for (name, buffer) in &mut self.buffers {
            if name.ends_with("num_batches_tracked") {
                let _ = buffer.g_add_scalar_(1);
            }
        }
    }

    /// Moves the weights of convolutions to channels_last. The names, shapes and values stay, so do
    /// optimizer state and checkpoints; gradients set before are dropped, as their strides no longer fit.
    ///
    /// # Errors
    /// No memory left.
    pub fn to_channels_last(&mut self) -> Result<(), ModelError> {
        for (_, parameter) in &self.parameters {
            if parameter.dim() == 4 && !torch::is_channels_last(parameter) {
                torch::set_data(parameter, &torch::to_channels_last(&parameter.detach())?)?;
            }
        }
        Ok(())
    }
}
