//! ReXNet (Han et al. 2021, "Rethinking Channel Dimensions for Efficient Model Design"): widths that grow a
//! little with every block. The state_dict has the authors' names, in their order; [`from_timm`] and
//! [`to_timm`] translate those of timm. Initial values are drawn in the order of the authors' constructor from
//! PyTorch's defaults, as theirs are: U(-b, b) with b = 1 / sqrt(fan_in) for weights and biases of convolutions.

use tch::Tensor;

use super::layers::{After, BatchNorm2d, BatchNormOptions, Conv2d, ConvBn, Layer, Visitor, join};
use crate::torch::TorchError;

/// timm's names, and the multiplier of the widths.
const TABLE: [(&str, f64); 5] =
    [("rexnet_100", 1.0), ("rexnet_130", 1.3), ("rexnet_150", 1.5), ("rexnet_200", 2.0), ("rexnet_300", 3.0)];

/// Blocks, and stride of the first, in each stage; stages from the third on squeeze and excite.
const STAGES: [(usize, i64); 6] = [(1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (5, 2)];
const BLOCKS: usize = 16;
/// Channels after the stem, after the first block, added up to the last block, and before the classifier.
const STEM: f64 = 32.0;
const FIRST: f64 = 16.0;
const GROWTH: f64 = 180.0;
const HEAD: f64 = 1280.0;
const EXPANSION: i64 = 6;
const SQUEEZE: i64 = 12;
const DROPOUT: f64 = 0.2;

/// The architectures of this family.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, _)| *name)
}

/// What does not depend on the widths: of block `b`, from 0.
struct Plan {
    stride: i64,
    expands: bool,
    excites: bool,
}

fn plans() -> impl Iterator<Item = Plan> {
    STAGES.into_iter().enumerate().flat_map(|(stage, (blocks, stride))| {
        (0..blocks).map(move |block| Plan {
            stride: if block == 0 { stride } else { 1 },
            expands: stage > 0,
            excites: stage > 1,
        })
    })
}

/// Channels weighed by what the whole image shows, with a BatchNorm between the two layers.
struct SqueezeExcitation {
    squeeze: Conv2d,
    bn: BatchNorm2d,
    excite: Conv2d,
}

impl SqueezeExcitation {
    fn new(channels: i64, options: BatchNormOptions) -> Self {
        let squeezed = channels / SQUEEZE;
        let squeeze = Conv2d::pointwise(channels, squeezed);
        Self {
            squeeze,
            bn: BatchNorm2d::new(squeezed, options),
            excite: Conv2d::pointwise(squeezed, channels),
        }
    }
}

impl Layer for SqueezeExcitation {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, TorchError> {
        let squeezed = self.squeeze.forward(&x.f_adaptive_avg_pool2d([1, 1])?, train)?;
        let squeezed = self.bn.forward(&squeezed, train)?.f_relu_()?;
        Ok(x.f_mul(&self.excite.forward(&squeezed, train)?.f_sigmoid()?)?)
    }

    fn visit(&mut self, path: &str, visitor: &mut Visitor<'_>) {
        self.squeeze.visit(&join(path, "fc.0"), visitor);
        self.bn.visit(&join(path, "fc.1"), visitor);
        self.excite.visit(&join(path, "fc.3"), visitor);
    }
}

/// The linear bottleneck: expand, a depthwise convolution, squeeze and excite, project.
struct Block {
    expand: Option<ConvBn>,
    depthwise: ConvBn,
    excite: Option<SqueezeExcitation>,
    project: ConvBn,
    /// Channels that the input is added to, the first ones of the output; 0 for none.
    shortcut: i64,
}

impl Block {
    fn new(plan: &Plan, inputs: i64, outputs: i64, options: BatchNormOptions) -> Self {
        let inner = if plan.expands { EXPANSION * inputs } else { inputs };
        Self {
            expand: plan.expands.then(|| ConvBn::new(inputs, inner, 1, 1, options)),
            depthwise: ConvBn::grouped(inner, inner, 3, plan.stride, inner, options),
            excite: plan.excites.then(|| SqueezeExcitation::new(inner, options)),
            project: ConvBn::new(inner, outputs, 1, 1, options),
            shortcut: if plan.stride == 1 && inputs <= outputs { inputs } else { 0 },
        }
    }
}

impl Layer for Block {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, TorchError> {
        let expanded = match &self.expand {
            Some(expand) => &expand.forward(x, train, After::NOTHING)?.f_silu()?,
            None => x,
        };
        let mut y = self.depthwise.forward(expanded, train, After::NOTHING)?;
        if let Some(excite) = &self.excite {
            y = excite.forward(&y, train)?;
        }
        let y = self.project.forward(&y.f_relu6()?, train, After::NOTHING)?;
        if self.shortcut > 0 {
            let _ = y.f_narrow(1, 0, self.shortcut)?.f_add_(x)?;
        }
        Ok(y)
    }

    fn visit(&mut self, path: &str, visitor: &mut Visitor<'_>) {
        let Layout { expand, depthwise, excite, project } =
            Layout::new(self.expand.is_some(), self.excite.is_some());
        let at = |place: usize| join(path, format!("out.{place}"));
        if let Some(layer) = &mut self.expand {
            layer.visit(&at(expand), &at(expand + 1), visitor);
        }
        self.depthwise.visit(&at(depthwise), &at(depthwise + 1), visitor);
        if let Some(layer) = &mut self.excite {
            layer.visit(&at(excite), visitor);
        }
        self.project.visit(&at(project), &at(project + 1), visitor);
    }
}

/// Where the layers of a block stand in the authors' sequence `out`; each BatchNorm follows its convolution.
struct Layout {
    expand: usize,
    depthwise: usize,
    excite: usize,
    project: usize,
}

impl Layout {
    fn new(expands: bool, excites: bool) -> Self {
        // Convolution, BatchNorm and SiLU; convolution and BatchNorm; squeeze-excitation; ReLU6.
        let depthwise = if expands { 3 } else { 0 };
        let excite = depthwise + 2;
        let project = excite + usize::from(excites) + 1;
        Self { expand: 0, depthwise, excite, project }
    }
}

/// Images `[B, 3, H, W]` to logits `[B, classes]`.
pub(super) struct ReXNet {
    stem: ConvBn,
    blocks: Vec<Block>,
    last: ConvBn,
    output: Conv2d,
}

impl ReXNet {
    /// None if `arch` is not one of [`names`]. Draws from libtorch's global generator.
    pub(super) fn new(arch: &str, classes: i64, options: BatchNormOptions) -> Option<Self> {
        let &(_, multiplier) = TABLE.iter().find(|(name, _)| *name == arch)?;
        // Halves to the even neighbour, as Python rounds.
        let scaled = |channels: f64| (channels * multiplier).round_ties_even() as i64;
        let mut inputs = scaled(STEM);
        let stem = ConvBn::new(3, inputs, 3, 2, options);
        let mut width = FIRST;
        let mut blocks = Vec::with_capacity(BLOCKS);
        for plan in plans() {
            let outputs = scaled(width);
            blocks.push(Block::new(&plan, inputs, outputs, options));
            inputs = outputs;
            width += GROWTH / BLOCKS as f64;
        }
        let last = (HEAD * multiplier) as i64;
        let (last, output) = (ConvBn::new(inputs, last, 1, 1, options), Conv2d::pointwise(last, classes));
        Some(Self { stem, blocks, last, output })
    }

    /// Images `[B, 3, H, W]` to features `[B, C, H/32, W/32]`, rounded up.
    fn body(&self, x: &Tensor, train: bool) -> Result<Tensor, TorchError> {
        let mut y = self.stem.forward(x, train, After::NOTHING)?.f_silu()?;
        for block in &self.blocks {
            y = block.forward(&y, train)?;
        }
        Ok(self.last.forward(&y, train, After::NOTHING)?.f_silu()?)
    }
}

impl Layer for ReXNet {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, TorchError> {
        let pooled = self.body(x, train)?.f_adaptive_avg_pool2d([1, 1])?;
        Ok(self.output.forward(&pooled.f_dropout(DROPOUT, train)?, train)?.f_flatten(1, -1)?)
    }

    fn features(&self, images: &Tensor) -> Result<Option<Tensor>, TorchError> {
        self.body(images, false).map(Some)
    }

    fn visit(&mut self, path: &str, visitor: &mut Visitor<'_>) {
        let at = |place: usize| join(path, format!("features.{place}"));
        self.stem.visit(&at(0), &at(1), visitor);
        // A SiLU stands between the stem and the blocks.
        for (place, block) in (3..).zip(&mut self.blocks) {
            block.visit(&at(place), visitor);
        }
        let last = 3 + self.blocks.len();
        self.last.visit(&at(last), &at(last + 1), visitor);
        self.output.visit(&join(path, "output.1"), visitor);
    }
}

/// Every layer with tensors: the authors' name and timm's. The same for all widths.
fn layers() -> Vec<(String, String)> {
    let mut layers = Vec::new();
    let conv_bn = |at: String, place: usize, timm: &str, layers: &mut Vec<(String, String)>| {
        layers.push((join(&at, place), format!("{timm}.conv")));
        layers.push((join(&at, place + 1), format!("{timm}.bn")));
    };
    conv_bn("features".into(), 0, "stem", &mut layers);
    for (b, plan) in plans().enumerate() {
        let (at, timm) = (format!("features.{}.out", b + 3), format!("features.{b}"));
        let layout = Layout::new(plan.expands, plan.excites);
        if plan.expands {
            conv_bn(at.clone(), layout.expand, &format!("{timm}.conv_exp"), &mut layers);
        }
        conv_bn(at.clone(), layout.depthwise, &format!("{timm}.conv_dw"), &mut layers);
        if plan.excites {
            for (ours, theirs) in [("fc.0", "fc1"), ("fc.1", "bn"), ("fc.3", "fc2")] {
                layers.push((format!("{at}.{}.{ours}", layout.excite), format!("{timm}.se.{theirs}")));
            }
        }
        conv_bn(at, layout.project, &format!("{timm}.conv_pwl"), &mut layers);
    }
    conv_bn("features".into(), BLOCKS + 3, &format!("features.{BLOCKS}"), &mut layers);
    layers.push(("output.1".into(), "head.fc".into()));
    layers
}

/// The authors' name of a tensor that timm calls `name`; none if timm has no such tensor. All widths have the same
/// names. Shapes are the same too, except of the classifier's weight: `[classes, C, 1, 1]` here,
/// `[classes, C]` in timm.
pub fn from_timm(name: &str) -> Option<String> {
    renamed(name, |(ours, timm)| (timm, ours))
}

/// The reverse of [`from_timm`].
pub fn to_timm(name: &str) -> Option<String> {
    renamed(name, |layer| layer)
}

fn renamed(name: &str, direction: fn((String, String)) -> (String, String)) -> Option<String> {
    let (layer, tensor) = name.rsplit_once('.')?;
    let (_, to) = layers().into_iter().map(direction).find(|(from, _)| from == layer)?;
    Some(join(&to, tensor))
}
