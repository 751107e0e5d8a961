//! The layers that image classifiers are made of, with PyTorch's names, shapes and initial values.

use tch::{Device, Kind, Tensor};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// What a tensor of a layer is: trained by the optimizer, or kept beside the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Parameter,
    Buffer,
}

/// Is called with each tensor's state_dict name, the tensor and its role, in state_dict order.
pub type Visitor<'a> = dyn FnMut(String, &mut Tensor, Role) + 'a;

/// Something with weights and a forward pass.
pub trait Layer: Send {
    /// The output for `x`; `train` chooses batch statistics over running ones where a layer has both.
    fn forward(&self, x: &Tensor, train: bool) -> Tensor;

    /// The last feature map `[B, C, h, w]` of images, before it is pooled, with running statistics; for whole
    /// classifiers whose head is a global average pooling and one linear layer, none for others.
    fn features(&self, _images: &Tensor) -> Option<Tensor> {
        None
    }

    /// Shows every tensor below this layer, whose own name is `path`, to `visitor`.
    fn visit(&mut self, path: &str, visitor: &mut Visitor<'_>);
}

/// `child` of the layer called `path`; the root's path is empty.
pub(super) fn join(path: &str, child: impl std::fmt::Display) -> String {
    if path.is_empty() { child.to_string() } else { format!("{path}.{child}") }
}

/// Draws from U(-bound, bound) with bound = gain * sqrt(3 / fan_in), as `kaiming_uniform_(a=sqrt(5))`.
fn kaiming_uniform(shape: &[i64], fan_in: i64) -> Tensor {
    let gain = (2.0_f64 / (1.0 + 5.0)).sqrt();
    let bound = 3.0_f64.sqrt() * (gain / (fan_in as f64).sqrt());
    Tensor::empty(shape, CPU).uniform_(-bound, bound)
}

/// A 2-D convolution without bias, `[B, in, H, W]` to `[B, out, H', W']`.
#[derive(Debug)]
pub struct Conv2d {
    /// `[out, in, kernel, kernel]`
    weight: Tensor,
    stride: i64,
    padding: i64,
}

impl Conv2d {
    /// A square `kernel`, padded so that stride 1 keeps height and width.
    pub fn new(inputs: i64, outputs: i64, kernel: i64, stride: i64) -> Self {
        let weight = kaiming_uniform(&[outputs, inputs, kernel, kernel], inputs * kernel * kernel);
        Self { weight, stride, padding: kernel / 2 }
    }
}

impl Layer for Conv2d {
    fn forward(&self, x: &Tensor, _train: bool) -> Tensor {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        x.conv2d(&self.weight, None::<&Tensor>, stride, padding, [1, 1], 1)
    }

    fn visit(&mut self, path: &str, visitor: &mut Visitor<'_>) {
        visitor(join(path, "weight"), &mut self.weight, Role::Parameter);
    }
}

/// How BatchNorm layers keep and use their running statistics.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchNormOptions {
    /// Weight of the newest batch in the running statistics, in [0, 1]; PyTorch's `momentum`.
    pub momentum: f64,
    /// Added to the variance before the square root.
    pub eps: f64,
    /// Normalize with the running statistics in training too, and leave them as they are.
    pub frozen: bool,
}

impl Default for BatchNormOptions {
    fn default() -> Self {
        Self { momentum: 0.1, eps: 1e-5, frozen: false }
    }
}

impl From<&relabel_config::BatchNorm> for BatchNormOptions {
    /// The option's momentum is the share that is kept; PyTorch's is the share that is taken in.
    fn from(options: &relabel_config::BatchNorm) -> Self {
        Self { momentum: 1.0 - options.momentum, eps: options.eps, frozen: options.frozen }
    }
}

/// Normalizes each channel of `[B, C, H, W]`, then scales and shifts it.
#[derive(Debug)]
pub struct BatchNorm2d {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    options: BatchNormOptions,
}

impl BatchNorm2d {
    pub fn new(channels: i64, options: BatchNormOptions) -> Self {
        Self {
            weight: Tensor::ones([channels], CPU),
            bias: Tensor::zeros([channels], CPU),
            running_mean: Tensor::zeros([channels], CPU),
            running_var: Tensor::ones([channels], CPU),
            num_batches_tracked: Tensor::zeros([0; 0], (Kind::Int64, Device::Cpu)),
            options,
        }
    }
}

impl Layer for BatchNorm2d {
    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let update = train && !self.options.frozen;
        x.batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&self.running_mean),
            Some(&self.running_var),
            update,
            self.options.momentum,
            self.options.eps,
            true,
        )
    }

    fn visit(&mut self, path: &str, visitor: &mut Visitor<'_>) {
        visitor(join(path, "weight"), &mut self.weight, Role::Parameter);
        visitor(join(path, "bias"), &mut self.bias, Role::Parameter);
        visitor(join(path, "running_mean"), &mut self.running_mean, Role::Buffer);
        visitor(join(path, "running_var"), &mut self.running_var, Role::Buffer);
        visitor(join(path, "num_batches_tracked"), &mut self.num_batches_tracked, Role::Buffer);
    }
}

/// `[B, in]` to `[B, out]`.
#[derive(Debug)]
pub struct Linear {
    /// `[out, in]`
    weight: Tensor,
    /// `[out]`
    bias: Tensor,
}

impl Linear {
    pub fn new(inputs: i64, outputs: i64) -> Self {
        let weight = kaiming_uniform(&[outputs, inputs], inputs);
        let bound = 1.0 / (inputs as f64).sqrt();
        Self { weight, bias: Tensor::empty([outputs], CPU).uniform_(-bound, bound) }
    }
}

impl Layer for Linear {
    fn forward(&self, x: &Tensor, _train: bool) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }

    fn visit(&mut self, path: &str, visitor: &mut Visitor<'_>) {
        visitor(join(path, "weight"), &mut self.weight, Role::Parameter);
        visitor(join(path, "bias"), &mut self.bias, Role::Parameter);
    }
}
