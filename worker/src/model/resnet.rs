//! ResNet (He et al. 2015, "Deep Residual Learning for Image Recognition") as torchvision builds it: the
//! v1.5 bottleneck, which strides in its 3x3 convolution; and its wide (Zagoruyko and Komodakis 2016) and
//! grouped (ResNeXt: Xie et al. 2017) variants. Names, the order of the state_dict and the initial values are
//! torchvision's.

use tch::Tensor;

use super::layers::{After, BatchNormOptions, ConvBn, Layer, Linear, Visitor, join};
use crate::torch::TorchError;

/// The residual function of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// 3x3, 3x3
    Basic,
    /// 1x1 down to the inner channels, 3x3 in `groups`, 1x1 up to four times the stage's width. In the first
    /// stage, of width 64, each group has `base_width` inner channels; they grow with the stage's width.
    Bottleneck { groups: i64, base_width: i64 },
}

const PLAIN: Kind = Kind::Bottleneck { groups: 1, base_width: 64 };
const WIDE: Kind = Kind::Bottleneck { groups: 1, base_width: 128 };

/// A row of table 1 of the papers: name, kind of block, blocks in each of the four stages.
type Row = (&'static str, Kind, [usize; 4]);

const TABLE: [Row; 10] = [
    ("resnet18", Kind::Basic, [2, 2, 2, 2]),
    ("resnet34", Kind::Basic, [3, 4, 6, 3]),
    ("resnet50", PLAIN, [3, 4, 6, 3]),
    ("resnet101", PLAIN, [3, 4, 23, 3]),
    ("resnet152", PLAIN, [3, 8, 36, 3]),
    ("wide_resnet50_2", WIDE, [3, 4, 6, 3]),
    ("wide_resnet101_2", WIDE, [3, 4, 23, 3]),
    ("resnext50_32x4d", Kind::Bottleneck { groups: 32, base_width: 4 }, [3, 4, 6, 3]),
    ("resnext101_32x8d", Kind::Bottleneck { groups: 32, base_width: 8 }, [3, 4, 23, 3]),
    ("resnext101_64x4d", Kind::Bottleneck { groups: 64, base_width: 4 }, [3, 4, 23, 3]),
];

/// The architectures of this family.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, ..)| *name)
}

/// y = relu(F(x) + shortcut(x)): F is two or three convolutions, the shortcut the identity, or a strided
/// 1x1 convolution where the shape changes.
struct Block {
    residual: Vec<ConvBn>,
    downsample: Option<ConvBn>,
}

impl Block {
    fn new(kind: Kind, inputs: i64, width: i64, stride: i64, options: BatchNormOptions) -> Self {
        let outputs = kind.outputs(width);
        let conv_bn = |inputs, outputs, kernel, stride| ConvBn::new(inputs, outputs, kernel, stride, options);
        // The shortcut is drawn first, as torchvision does, so that equal seeds give equal weights.
        let downsample = (stride != 1 || inputs != outputs).then(|| conv_bn(inputs, outputs, 1, stride));
        let residual = match kind {
            Kind::Basic => vec![conv_bn(inputs, width, 3, stride), conv_bn(width, outputs, 3, 1)],
            Kind::Bottleneck { groups, base_width } => {
                let inner = width * base_width / 64 * groups;
                vec![
                    conv_bn(inputs, inner, 1, 1),
                    ConvBn::grouped(inner, inner, 3, stride, groups, options),
                    conv_bn(inner, outputs, 1, 1),
                ]
            }
        };
        Self { residual, downsample }
    }
}

impl Kind {
    /// Channels that leave a block of `width`.
    fn outputs(self, width: i64) -> i64 {
        match self {
            Self::Basic => width,
            Self::Bottleneck { .. } => 4 * width,
        }
    }
}

impl Layer for Block {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, TorchError> {
        let downsample = self.downsample.as_ref();
        let shortcut = downsample.map(|layer| layer.forward(x, train, After::NOTHING)).transpose()?;
        let shortcut = shortcut.as_ref().unwrap_or(x);
        let Some((last, first)) = self.residual.split_last() else {
            return Ok(x.f_add(shortcut)?.f_relu_()?);
        };
        let y = first.iter().try_fold(x.shallow_clone(), |y, layer| layer.forward(&y, train, After::RELU))?;
        last.forward(&y, train, After { shortcut: Some(shortcut), relu: true })
    }

    fn visit(&mut self, path: &str, visitor: &mut Visitor<'_>) {
        for (i, layer) in (1..).zip(&mut self.residual) {
            layer.visit(&join(path, format!("conv{i}")), &join(path, format!("bn{i}")), visitor);
        }
        if let Some(layer) = &mut self.downsample {
            layer.visit(&join(path, "downsample.0"), &join(path, "downsample.1"), visitor);
        }
    }
}

/// Images `[B, 3, H, W]` to logits `[B, classes]`.
pub(super) struct ResNet {
    stem: ConvBn,
    stages: Vec<Vec<Block>>,
    fc: Linear,
}

impl ResNet {
    /// None if `arch` is not one of [`names`]. Draws from libtorch's global generator.
    pub(super) fn new(arch: &str, classes: i64, options: BatchNormOptions) -> Option<Self> {
        let &(_, kind, depths) = TABLE.iter().find(|(name, ..)| *name == arch)?;
        let stem = ConvBn::new(3, 64, 7, 2, options);
        let mut inputs = 64;
        let mut stages = Vec::with_capacity(4);
        for (stage, depth) in (0..).zip(depths) {
            let width = 64 << stage;
            let mut blocks = Vec::with_capacity(depth);
            for block in 0..depth {
                let stride = if block == 0 && stage > 0 { 2 } else { 1 };
                blocks.push(Block::new(kind, inputs, width, stride, options));
                inputs = kind.outputs(width);
            }
            stages.push(blocks);
        }
        let mut resnet = Self { stem, stages, fc: Linear::new(inputs, classes) };
        resnet.initialize();
        Some(resnet)
    }

    /// Convolutions (the parameters with four dimensions) from N(0, 2 / fan_out), as He et al. 2015,
    /// "Delving Deep into Rectifiers", which keeps the variance of gradients through ReLUs.
    fn initialize(&mut self) {
        self.visit("", &mut |_, tensor, _| {
            if let &[outputs, _, height, width] = tensor.size().as_slice() {
                let std = 2.0_f64.sqrt() / ((outputs * height * width) as f64).sqrt();
                let _ = tensor.normal_(0.0, std);
            }
        });
    }
}

impl ResNet {
    /// Images `[B, 3, H, W]` to features `[B, C, H/32, W/32]`, rounded up.
    fn body(&self, x: &Tensor, train: bool) -> Result<Tensor, TorchError> {
        let mut y = self.stem.forward(x, train, After::RELU)?;
        y = y.f_max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)?;
        for block in self.stages.iter().flatten() {
            y = block.forward(&y, train)?;
        }
        Ok(y)
    }
}

impl Layer for ResNet {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor, TorchError> {
        let pooled = self.body(x, train)?.f_adaptive_avg_pool2d([1, 1])?.f_flatten(1, -1)?;
        self.fc.forward(&pooled, train)
    }

    fn features(&self, images: &Tensor) -> Result<Option<Tensor>, TorchError> {
        self.body(images, false).map(Some)
    }

    fn visit(&mut self, path: &str, visitor: &mut Visitor<'_>) {
        self.stem.visit(&join(path, "conv1"), &join(path, "bn1"), visitor);
        for (s, stage) in (1..).zip(&mut self.stages) {
            for (b, block) in stage.iter_mut().enumerate() {
                block.visit(&join(path, format!("layer{s}.{b}")), visitor);
            }
        }
        self.fc.visit(&join(path, "fc"), visitor);
    }
}
