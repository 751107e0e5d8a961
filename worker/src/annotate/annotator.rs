//! A trained classifier that scores every cell of its last feature map.
//!
//! Global average pooling and a linear layer can change places: the linear layer applied to each cell, as a
//! 1x1 convolution, gives scores whose mean over the cells are the classifier's logits.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use relabel_config::Precision;
use tch::{CModule, Device, Kind, Tensor};

use crate::labels::LabelMap;
use crate::model::{Model, build, image_batch};
use crate::torch::{TorchError, as_f32, autocast};
use crate::weights;

/// What `--arch` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arch {
    /// One of our networks, by the name of `model.arch`.
    Network(String),
    /// A TorchScript module.
    Script(PathBuf),
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("script:") {
            Some("") => Err("script: needs a file, as script:annotator.pt".into()),
            Some(file) => Ok(Self::Script(file.into())),
            None => Ok(Self::Network(text.to_owned())),
        }
    }
}

/// The network, ready to label.
pub struct Annotator {
    body: Body,
    /// Weight `[classes, C, 1, 1]` and bias `[classes]`; none for a script that gives scores.
    head: Option<(Tensor, Tensor)>,
    top_k: usize,
    precision: Precision,
}

enum Body {
    Network(Model),
    Script(CModule, PathBuf),
}

impl Annotator {
    /// Loads the annotator onto the CPU. The feature map is computed in `precision`, the scores of it in f32.
    ///
    /// # Errors
    /// A file that is missing, unreadable or of another network; one that is needed, or not, and is not
    /// given, or is.
    pub fn open(
        arch: &Arch,
        weights: Option<&Path>,
        head: Option<&Path>,
        top_k: u16,
        precision: Precision,
    ) -> Result<Self> {
        let (body, head) = match arch {
            Arch::Network(name) => {
                ensure!(head.is_none(), "--head goes with --arch script:FILE; {name} has its own");
                let Some(file) = weights else {
                    bail!("--weights FILE is needed: trained weights of {name}");
                };
                let mut model = network(name, file)?;
                model.set_precision(precision)?;
                let head = model.head()?;
                (Body::Network(model), Some(head))
            }
            Arch::Script(file) => {
                ensure!(
                    weights.is_none(),
                    "a script has its weights in it: leave --weights out, or name its fully connected layer with --head"
                );
                let mut module = CModule::load(file).map_err(|why| {
                    anyhow!("{} cannot be loaded as TorchScript: {}", file.display(), first_line(&why))
                })?;
                module.set_eval();
                (Body::Script(module, file.clone()), head.map(linear).transpose()?)
            }
        };
        let top_k = usize::from(top_k);
        let classes = head.as_ref().map(|(weight, _)| weight.size()[0] as usize);
        Ok(Self { body, head, top_k: classes.map_or(top_k, |classes| top_k.min(classes)), precision })
    }

    /// Number of classes, unless only the scores will show it.
    pub fn classes(&self) -> Option<u32> {
        self.head.as_ref().map(|(weight, _)| weight.size()[0] as u32)
    }

    /// Classes kept a cell.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// The maps of `n` images `[n, side, side, 3]`, normalized.
    ///
    /// # Errors
    /// A script that fails or gives something else than a feature map, and scores that are not finite.
    pub fn label(&self, images: &[f32], n: usize, side: u32) -> Result<Vec<LabelMap>> {
        let x = image_batch(images, n as i64, i64::from(side))?;
        let scores = tch::no_grad(|| self.scores(&x))?;
        let (values, ids) = scores.topk(self.top_k as i64, 1, true, true);
        let size = values.size();
        let (height, width) = (size[2] as usize, size[3] as usize);
        let (values, ids) = (values.contiguous(), ids.to_kind(Kind::Float).contiguous());
        let (values, ids) = (as_f32(&values)?, as_f32(&ids)?);
        if let Some(bad) = values.iter().find(|value| !value.is_finite()) {
            bail!("the annotator gives a score of {bad}: its weights are damaged, or of another network");
        }
        let each = self.top_k * height * width;
        let maps = values.chunks_exact(each).zip(ids.chunks_exact(each)).map(|(logits, ids)| LabelMap {
            k: self.top_k,
            height,
            width,
            logits: logits.to_vec(),
            classes: ids.iter().map(|&id| id as u32).collect(),
        });
        Ok(maps.collect())
    }

    /// Scores `[B, classes, h, w]` of images `[B, 3, H, W]`.
    fn scores(&self, x: &Tensor) -> Result<Tensor> {
        let features = match &self.body {
            Body::Network(model) => model.features(x)?.to_kind(Kind::Float),
            Body::Script(module, file) => {
                let shown = file.display();
                let output =
                    autocast(x.device(), self.precision, || module.forward_ts(&[x])).map_err(|why| {
                        anyhow!("{shown} failed on images {:?}: {}", x.size(), first_line(&why))
                    })?;
                let size = output.size();
                let cells = output.dim() == 4 && size[0] == x.size()[0];
                ensure!(cells, "{shown} gives {size:?} for images {:?}; wanted [B, C, h, w]", x.size());
                output.to_kind(Kind::Float)
            }
        };
        let Some((weight, bias)) = &self.head else {
            let classes = features.size()[1];
            let k = self.top_k;
            ensure!(classes >= k as i64, "the script scores {classes} classes, fewer than --top-k {k}");
            return Ok(features);
        };
        let (channels, wanted) = (features.size()[1], weight.size()[1]);
        ensure!(channels == wanted, "the feature map has {channels} channels, but --head is for {wanted}");
        features
            .f_conv2d(weight, Some(bias), [1, 1], [0, 0], [1, 1], 1)
            .map_err(|error| TorchError::during("apply the head to each cell")(error).into())
    }
}

fn network(name: &str, file: &Path) -> Result<Model> {
    let weights = weights::read(file)?;
    let classes = weights.classes().with_context(|| {
        format!("{}: it has no classifier of a name that is known, so it labels nothing", file.display())
    })?;
    let mut model = build(name, classes, weights.batch_norm(name), Device::Cpu, 0)?;
    weights::load(&mut model, &weights, weights::Head::Strict)?;
    model.to_channels_last()?;
    Ok(model)
}

/// The linear layer of a weights file, which may hold a whole network: its last weight `[classes, C]` (or as
/// a 1x1 convolution) and that one's bias.
fn linear(file: &Path) -> Result<(Tensor, Tensor)> {
    let weights = weights::read(file)?;
    let is_linear = |tensor: &Tensor| matches!(tensor.size()[..], [_, _] | [_, _, 1, 1]);
    let last =
        weights.tensors.iter().rev().find(|(name, tensor)| name.ends_with("weight") && is_linear(tensor));
    let (name, weight) = last.with_context(|| {
        format!("{}: it holds no linear layer's weight [classes, channels]", file.display())
    })?;
    let classes = weight.size()[0];
    let bias_name = format!("{}bias", name.strip_suffix("weight").unwrap_or(name));
    let bias = match weights.tensors.iter().find(|(name, _)| *name == bias_name) {
        Some((_, bias)) => bias.to_kind(Kind::Float),
        None => Tensor::zeros([classes], (Kind::Float, Device::Cpu)),
    };
    let shown = file.display();
    ensure!(bias.size() == [classes], "{shown}: {bias_name} has not {classes} values, as {name} has");
    Ok((weight.to_kind(Kind::Float).reshape([classes, -1, 1, 1]), bias))
}

/// Without libtorch's trace, which fills a screen.
fn first_line(error: &tch::TchError) -> String {
    error.to_string().lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}
