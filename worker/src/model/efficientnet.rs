//! EfficientNet (Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"),
//! B0 to B7, as torchvision builds it: names, the order of the state_dict, initial values, dropout and
//! stochastic depth are torchvision's.

use tch::Tensor;

use super::layers::{
    After, BatchNormOptions, Conv2d, ConvBn, Layer, Linear, Visitor, join, stochastic_depth,
};
use crate::torch::TorchError;

/// How B0 is scaled: name, multipliers of its widths and depths, dropout before the classifier.
type Row = (&'static str, f64, f64, f64);

const TABLE: [Row; 8] = [
    ("efficientnet_b0", 1.0, 1.0, 0.2),
    ("efficientnet_b1", 1.0, 1.1, 0.2),
    ("efficientnet_b2", 1.1, 1.2, 0.3),
    ("efficientnet_b3", 1.2, 1.4, 0.3),
    ("efficientnet_b4", 1.4, 1.8, 0.4),
    ("efficientnet_b5", 1.6, 2.2, 0.4),
    ("efficientnet_b6", 1.8, 2.6, 0.5),
    ("efficientnet_b7", 2.0, 3.1, 0.5),
];

/// A stage of B0, table 1 of the paper.
struct Stage {
    expansion: i64,
    kernel: i64,
    stride: i64,
    outputs: i64,
    blocks: i64,
}

const fn stage(expansion: i64, kernel: i64, stride: i64, outputs: i64, blocks: i64) -> Stage {
    Stage { expansion, kernel, stride, outputs, blocks }
}

const STEM: i64 = 32;
const STAGES: [Stage; 7] = [
    stage(1, 3, 1, 16, 1),
    stage(6, 3, 2, 24, 2),
    stage(6, 5, 2, 40, 2),
    stage(6, 3, 2, 80, 3),
    stage(6, 5, 1, 112, 3),
    stage(6, 5, 2, 192, 4),
    stage(6, 3, 1, 320, 1),
];

/// Probability of leaving a block out, were there one after the last; it grows from 0 at the first.
const STOCHASTIC_DEPTH: f64 = 0.2;

/// The architectures of this family.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, ..)| *name)
}

/// The BatchNorm that torchvision trained its weights with: B5 to B7 were converted from TensorFlow.
pub(super) fn published_batch_norm(arch: &str) -> Option<BatchNormOptions> {
    let of_tensorflow = ["efficientnet_b5", "efficientnet_b6", "efficientnet_b7"].contains(&arch);
    of_tensorflow.then(|| BatchNormOptions { momentum: 0.01, eps: 1e-3, ..BatchNormOptions::default() })
}

/// `channels` times `multiplier` to the nearest multiple of 8, but not more than a tenth below.
fn scaled(channels: i64, multiplier: f64) -> i64 {
    let exact = channels as f64 * multiplier;
    let nearest = (((exact + 4.0) as i64) / 8 * 8).max(8);
    if (nearest as f64) < 0.9 * exact { nearest + 8 } else { nearest }
}

/// Channels weighed by what the whole image shows (Hu et al. 2018, "Squeeze-and-Excitation Networks").
struct SqueezeExcitation {
    fc1: Conv2d,
    fc2: Conv2d,
}

impl SqueezeExcitation {
    fn new(channels: i64, squeezed: i64) -> Self {
        Self { fc1: Conv2d::pointwise(channels, squeezed), fc2: Conv2d::pointwise(squeezed, channels) }
    }
}

impl Layer for SqueezeExcitation {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, TorchError> {
        let squeezed = self.fc1.forward(&x.f_adaptive_avg_pool2d([1, 1])?, train)?.f_silu()?;
        Ok(self.fc2.forward(&squeezed, train)?.f_sigmoid()?.f_mul(x)?)
    }

    fn visit(&mut self, path: &str, visitor: &mut Visitor<'_>) {
        self.fc1.visit(&join(path, "fc1"), visitor);
        self.fc2.visit(&join(path, "fc2"), visitor);
    }
}

/// The inverted bottleneck: expand, a depthwise convolution, squeeze and excite, project.
struct MbConv {
    expand: Option<ConvBn>,
    depthwise: ConvBn,
    excite: SqueezeExcitation,
    project: ConvBn,
    /// Whether the input is added to the output.
    residual: bool,
    /// Probability that a row of the batch leaves the block out.
    drop: f64,
}

impl MbConv {
    fn new(
        stage: &Stage,
        inputs: i64,
        outputs: i64,
        stride: i64,
        drop: f64,
        options: BatchNormOptions,
    ) -> Self {
        let inner = scaled(inputs, stage.expansion as f64);
        Self {
            expand: (inner != inputs).then(|| ConvBn::new(inputs, inner, 1, 1, options)),
            depthwise: ConvBn::grouped(inner, inner, stage.kernel, stride, inner, options),
            excite: SqueezeExcitation::new(inner, (inputs / 4).max(1)),
            project: ConvBn::new(inner, outputs, 1, 1, options),
            residual: stride == 1 && inputs == outputs,
            drop,
        }
    }
}

impl Layer for MbConv {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, TorchError> {
        let expanded = match &self.expand {
            Some(expand) => &expand.forward(x, train, After::NOTHING)?.f_silu()?,
            None => x,
        };
        let y = self.depthwise.forward(expanded, train, After::NOTHING)?.f_silu()?;
        let y = self.project.forward(&self.excite.forward(&y, train)?, train, After::NOTHING)?;
        match self.residual {
            true => Ok(stochastic_depth(y, self.drop, train)?.f_add(x)?),
            false => Ok(y),
        }
    }

    fn visit(&mut self, path: &str, visitor: &mut Visitor<'_>) {
        let mut places = (0..).map(|place| join(path, format!("block.{place}")));
        let mut next = || places.next().unwrap_or_default();
        let conv_bn = |layer: &mut ConvBn, at: String, visitor: &mut Visitor<'_>| {
            layer.visit(&join(&at, 0), &join(&at, 1), visitor);
        };
        if let Some(expand) = &mut self.expand {
            conv_bn(expand, next(), visitor);
        }
        conv_bn(&mut self.depthwise, next(), visitor);
        self.excite.visit(&next(), visitor);
        conv_bn(&mut self.project, next(), visitor);
    }
}

/// Images `[B, 3, H, W]` to logits `[B, classes]`.
pub(super) struct EfficientNet {
    stem: ConvBn,
    stages: Vec<Vec<MbConv>>,
    last: ConvBn,
    dropout: f64,
    classifier: Linear,
}

impl EfficientNet {
    /// None if `arch` is not one of [`names`]. Draws from libtorch's global generator.
    pub(super) fn new(arch: &str, classes: i64, options: BatchNormOptions) -> Option<Self> {
        let &(_, width, depth, dropout) = TABLE.iter().find(|(name, ..)| *name == arch)?;
        let repeats = |stage: &Stage| (stage.blocks as f64 * depth).ceil() as i64;
        let total: i64 = STAGES.iter().map(repeats).sum();
        let mut inputs = scaled(STEM, width);
        let stem = ConvBn::new(3, inputs, 3, 2, options);
        let mut built = 0;
        let mut stages = Vec::with_capacity(STAGES.len());
        for stage in &STAGES {
            let outputs = scaled(stage.outputs, width);
            let mut blocks = Vec::new();
            for block in 0..repeats(stage) {
                let stride = if block == 0 { stage.stride } else { 1 };
                let drop = STOCHASTIC_DEPTH * built as f64 / total as f64;
                blocks.push(MbConv::new(stage, inputs, outputs, stride, drop, options));
                inputs = outputs;
                built += 1;
            }
            stages.push(blocks);
        }
        let last = ConvBn::new(inputs, 4 * inputs, 1, 1, options);
        let classifier = Linear::new(4 * inputs, classes);
        let mut network = Self { stem, stages, last, dropout, classifier };
        network.initialize();
        Some(network)
    }

    /// Convolutions from N(0, 2 / fan_out), the classifier from U(-b, b) with b = 1 / sqrt(classes), biases 0.
    fn initialize(&mut self) {
        self.visit("", &mut |name, tensor, _| match *tensor.size().as_slice() {
            [outputs, _, height, width] => {
                let std = 2.0_f64.sqrt() / ((outputs * height * width) as f64).sqrt();
                let _ = tensor.normal_(0.0, std);
            }
            [classes, _] => {
                let bound = 1.0 / (classes as f64).sqrt();
                let _ = tensor.uniform_(-bound, bound);
            }
            _ if name.ends_with("bias") => {
                let _ = tensor.zero_();
            }
            _ => {}
        });
    }

    /// Images `[B, 3, H, W]` to features `[B, C, H/32, W/32]`, rounded up.
    fn body(&self, x: &Tensor, train: bool) -> Result<Tensor, TorchError> {
        let mut y = self.stem.forward(x, train, After::NOTHING)?.f_silu()?;
        for block in self.stages.iter().flatten() {
            y = block.forward(&y, train)?;
        }
        Ok(self.last.forward(&y, train, After::NOTHING)?.f_silu()?)
    }
}

impl Layer for EfficientNet {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, TorchError> {
        let pooled = self.body(x, train)?.f_adaptive_avg_pool2d([1, 1])?.f_flatten(1, -1)?;
        self.classifier.forward(&pooled.f_dropout(self.dropout, train)?, train)
    }

    fn features(&self, images: &Tensor) -> Result<Option<Tensor>, TorchError> {
        self.body(images, false).map(Some)
    }

    fn visit(&mut self, path: &str, visitor: &mut Visitor<'_>) {
        let at = |place: usize| join(path, format!("features.{place}"));
        self.stem.visit(&join(&at(0), 0), &join(&at(0), 1), visitor);
        let last = self.stages.len() + 1;
        for (s, stage) in (1..).zip(&mut self.stages) {
            for (b, block) in stage.iter_mut().enumerate() {
                block.visit(&join(&at(s), b), visitor);
            }
        }
        self.last.visit(&join(&at(last), 0), &join(&at(last), 1), visitor);
        self.classifier.visit(&join(path, "classifier.1"), visitor);
    }
}
