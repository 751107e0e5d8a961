//! The layers that image classifiers are made of, with PyTorch's names, shapes and initial values.

use tch::{Device, Kind, Tensor};

use super::ModelError;
use crate::torch::{self, TorchError};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

/// What a tensor of a layer is: trained by the optimizer, or kept beside the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Parameter,
    Buffer,
    /// A weight that is not trained and that no step changes.
    Constant,
}

/// Is called with each tensor's state_dict name, the tensor and its role, in state_dict order.
pub type Visitor<'a> = dyn FnMut(String, &mut Tensor, Role) + 'a;

/// Something with weights and a forward pass.
pub trait Layer: Send {
    /// The output for `x`; `train` chooses batch statistics over running ones where a layer has both.
    ///
    /// # Errors
    /// No memory left, or an `x` of another shape or kind than the layer takes.
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, TorchError>;

    /// The last feature map `[B, C, h, w]` of images, before it is pooled, with running statistics; for whole
    /// classifiers whose head is a global average pooling and one linear layer, none for others.
    ///
    /// # Errors
    /// As [`Layer::forward`].
    fn features(&self, _images: &Tensor) -> Result<Option<Tensor>, TorchError> {
        Ok(None)
    }

    /// The shape of what this gives for `image` `[1, 3, H, W]` in evaluation.
    ///
    /// # Errors
    /// It does not take such images.
    fn check(&self, image: &Tensor) -> Result<Vec<i64>, ModelError> {
        Ok(tch::no_grad(|| self.forward(image, false))?.size())
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

/// A 2-D convolution, `[B, in, H, W]` to `[B, out, H', W']`.
#[derive(Debug)]
pub struct Conv2d {
    /// `[out, in / groups, kernel, kernel]`
    weight: Tensor,
    /// `[out]`
    bias: Option<Tensor>,
    stride: i64,
    padding: i64,
    groups: i64,
}

impl Conv2d {
    /// A square `kernel`, padded so that stride 1 keeps height and width; no bias.
    pub fn new(inputs: i64, outputs: i64, kernel: i64, stride: i64) -> Self {
        Self::grouped(inputs, outputs, kernel, stride, 1)
    }

    /// As [`Conv2d::new`], with the channels in `groups` that do not see each other; with a group a channel
    /// it is a depthwise convolution. `groups` divides `inputs` and `outputs`.
    pub fn grouped(inputs: i64, outputs: i64, kernel: i64, stride: i64, groups: i64) -> Self {
        let inputs = inputs / groups;
        let weight = kaiming_uniform(&[outputs, inputs, kernel, kernel], inputs * kernel * kernel);
        Self { weight, bias: None, stride, padding: kernel / 2, groups }
    }

    /// 1x1, with a bias.
    pub fn pointwise(inputs: i64, outputs: i64) -> Self {
        let conv = Self::new(inputs, outputs, 1, 1);
        let bound = 1.0 / (inputs as f64).sqrt();
        Self { bias: Some(Tensor::empty([outputs], CPU).uniform_(-bound, bound)), ..conv }
    }
}

impl Layer for Conv2d {
    fn forward(&self, x: &Tensor, _train: bool) -> Result<Tensor, TorchError> {
        if self.groups == 1
            && self.bias.is_none()
            && let Some(y) = torch::convolve_small_map(x, &self.weight, self.stride, self.padding)?
        {
            return Ok(y);
        }
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        Ok(x.f_conv2d(&self.weight, self.bias.as_ref(), stride, padding, [1, 1], self.groups)?)
    }

    fn visit(&mut self, path: &str, visitor: &mut Visitor<'_>) {
        visitor(join(path, "weight"), &mut self.weight, Role::Parameter);
        if let Some(bias) = &mut self.bias {
            visitor(join(path, "bias"), bias, Role::Parameter);
        }
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
    /// Normalize, add a shortcut and rectify in one operator where there is one, whose last digits are its own.
    pub fused: bool,
}

impl Default for BatchNormOptions {
    fn default() -> Self {
        Self { momentum: 0.1, eps: 1e-5, frozen: false, fused: true }
    }
}

impl From<&relabel_config::BatchNorm> for BatchNormOptions {
    /// The option's momentum is the share that is kept; PyTorch's is the share that is taken in.
    fn from(options: &relabel_config::BatchNorm) -> Self {
        Self {
            momentum: 1.0 - options.momentum,
            eps: options.eps,
            frozen: options.frozen,
            fused: options.fused,
        }
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

/// What follows a BatchNorm: y + shortcut where there is one, then relu(y) where that is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct After<'a> {
    pub(super) shortcut: Option<&'a Tensor>,
    pub(super) relu: bool,
}

impl After<'_> {
    pub(super) const NOTHING: Self = Self { shortcut: None, relu: false };
    pub(super) const RELU: Self = Self { shortcut: None, relu: true };
}

impl BatchNorm2d {
    /// As [`Layer::forward`], and what follows it.
    fn followed(&self, x: &Tensor, train: bool, after: After<'_>) -> Result<Tensor, TorchError> {
        let update = train && !self.options.frozen;
        if update
            && self.options.fused
            && let Some(y) = self.fused(x, after)?
        {
            return Ok(y);
        }
        let mut y = self.forward(x, train)?;
        if let Some(shortcut) = after.shortcut {
            y = y.f_add_(shortcut)?;
        }
        if after.relu { Ok(y.f_relu_()?) } else { Ok(y) }
    }

    /// All in one operator, where there is one for such images.
    fn fused(&self, x: &Tensor, After { shortcut, relu }: After<'_>) -> Result<Option<Tensor>, TorchError> {
        let norm = torch::BatchNorm {
            weight: &self.weight,
            bias: &self.bias,
            running_mean: &self.running_mean,
            running_var: &self.running_var,
            momentum: self.options.momentum,
            eps: self.options.eps,
        };
        torch::batch_norm(x, &norm, shortcut, relu)
    }
}

impl Layer for BatchNorm2d {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, TorchError> {
        let update = train && !self.options.frozen;
        let statistics = [&self.running_mean, &self.running_var];
        // One value a channel has no variance: a rank's slice of one small image says nothing about the data.
        let [mean, var] = match update && x.numel() as i64 == self.running_mean.numel() as i64 {
            true => statistics.map(Tensor::copy),
            false => statistics.map(Tensor::shallow_clone),
        };
        let y = x.f_batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&mean),
            Some(&var),
            update,
            self.options.momentum,
            self.options.eps,
            true,
        );
        Ok(y?)
    }

    fn visit(&mut self, path: &str, visitor: &mut Visitor<'_>) {
        visitor(join(path, "weight"), &mut self.weight, Role::Parameter);
        visitor(join(path, "bias"), &mut self.bias, Role::Parameter);
        visitor(join(path, "running_mean"), &mut self.running_mean, Role::Buffer);
        visitor(join(path, "running_var"), &mut self.running_var, Role::Buffer);
        visitor(join(path, "num_batches_tracked"), &mut self.num_batches_tracked, Role::Buffer);
    }
}

/// A convolution and the BatchNorm after it.
pub(super) struct ConvBn {
    conv: Conv2d,
    bn: BatchNorm2d,
}

impl ConvBn {
    pub(super) fn new(
        inputs: i64,
        outputs: i64,
        kernel: i64,
        stride: i64,
        options: BatchNormOptions,
    ) -> Self {
        Self::grouped(inputs, outputs, kernel, stride, 1, options)
    }

    /// As [`Conv2d::grouped`].
    pub(super) fn grouped(
        inputs: i64,
        outputs: i64,
        kernel: i64,
        stride: i64,
        groups: i64,
        options: BatchNormOptions,
    ) -> Self {
        let conv = Conv2d::grouped(inputs, outputs, kernel, stride, groups);
        Self { conv, bn: BatchNorm2d::new(outputs, options) }
    }

    /// The BatchNorm of the convolution of `x`, and what follows it.
    pub(super) fn forward(&self, x: &Tensor, train: bool, after: After<'_>) -> Result<Tensor, TorchError> {
        self.bn.followed(&self.conv.forward(x, train)?, train, after)
    }

    /// Shows the tensors of both, which are called `conv` and `bn`.
    pub(super) fn visit(&mut self, conv: &str, bn: &str, visitor: &mut Visitor<'_>) {
        self.conv.visit(conv, visitor);
        self.bn.visit(bn, visitor);
    }
}

/// Leaves out each row of a batch with probability `drop`, in [0, 1), and scales the others up so that the
/// mean stays (Huang et al. 2016, "Deep Networks with Stochastic Depth"; torchvision's mode "row"). Draws from
/// libtorch's global generator; does and draws nothing outside of training.
///
/// # Errors
/// No memory left.
pub(super) fn stochastic_depth(x: Tensor, drop: f64, train: bool) -> Result<Tensor, TorchError> {
    if !train || drop == 0.0 {
        return Ok(x);
    }
    let kept = 1.0 - drop;
    let mut rows = vec![1; x.dim()];
    rows[0] = x.size()[0];
    let noise = Tensor::f_empty(rows, (x.kind(), x.device()))?.f_bernoulli_float_(kept)?;
    Ok(x.f_mul(&noise.f_div_scalar(kept)?)?)
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
    fn forward(&self, x: &Tensor, _train: bool) -> Result<Tensor, TorchError> {
        Ok(x.f_linear(&self.weight, Some(&self.bias))?)
    }

    fn visit(&mut self, path: &str, visitor: &mut Visitor<'_>) {
        visitor(join(path, "weight"), &mut self.weight, Role::Parameter);
        visitor(join(path, "bias"), &mut self.bias, Role::Parameter);
    }
}
