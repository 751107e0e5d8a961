//! One pass over a set: every metric that it is judged by, from the same answers.

use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use tch::{Device, Kind, Tensor};

use super::Counts;
use super::attack;
use super::multi_label::{MultiLabel, MultiLabelCounts};
use super::network::Network;
use super::real::{Real, RealCounts, RealError};
use super::sets::EvalSet;
use crate::data::DataError;
use crate::data::loader::{EvalBatch, EvalLoader, EvalPlan};
use crate::model::image_batch;
use crate::torch::TorchError;

/// Batches that loader threads may be ahead.
const PREFETCH: usize = 3;

/// Why an evaluation ended early. One line.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Torch(#[from] TorchError),
    #[error(transparent)]
    Real(#[from] RealError),
    #[error("cannot read the answers: {0}")]
    Answers(#[source] tch::TchError),
}

/// What the sets are judged by, besides the classes of their folders.
#[derive(Debug, Default)]
pub(super) struct Judges {
    pub real: Option<Real>,
    pub multi_label: Option<MultiLabel>,
    /// Strengths of the fast gradient sign attack, in parts of a pixel's range.
    pub epsilons: Vec<f64>,
}

/// What was found on one set.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub counts: Counts,
    /// Only for ImageNet's validation set.
    pub real: Option<RealCounts>,
    pub multi_label: Option<MultiLabelCounts>,
    /// By epsilon.
    pub attacked: Vec<(f64, Counts)>,
}

/// Evaluates `network` on every image of `set`, once. With `restrict`, only the set's classes are answers.
/// `name` stands beside the progress bar, which is shown on a terminal only.
pub(super) fn evaluate(
    network: &Network,
    set: &EvalSet,
    restrict: bool,
    judges: &Judges,
    name: &str,
) -> Result<Found, EvalError> {
    let mut loader = EvalLoader::start(EvalPlan {
        split: Arc::clone(&set.split),
        class_ids: Arc::clone(&set.class_ids),
        transform: network.transform.clone(),
        positions: 0..set.split.len(),
        batch: network.batch,
        threads: network.threads,
        prefetch: PREFETCH,
    })?;
    let not_answers = restrict.then(|| not_among(&set.class_ids, network.model.classes()));
    let of_imagenet = set.is_imagenet_val();
    let mut found = Found {
        real: judges.real.as_ref().filter(|_| of_imagenet).map(|_| RealCounts::default()),
        multi_label: judges.multi_label.as_ref().filter(|_| of_imagenet).map(|_| MultiLabelCounts::default()),
        attacked: judges.epsilons.iter().map(|&epsilon| (epsilon, Counts::default())).collect(),
        ..Found::default()
    };
    let bar = progress(name, set.split.len());
    while let Some(batch) = loader.next() {
        let batch = batch?;
        add_batch(network, set, &batch, not_answers.as_ref(), judges, &mut found)?;
        bar.inc(batch.classes.len() as u64);
        loader.recycle(batch);
    }
    bar.finish_and_clear();
    Ok(found)
}

fn add_batch(
    network: &Network,
    set: &EvalSet,
    batch: &EvalBatch,
    not_answers: Option<&Tensor>,
    judges: &Judges,
    found: &mut Found,
) -> Result<(), EvalError> {
    let model = &network.model;
    let answers = |logits: Tensor| match not_answers {
        Some(mask) => logits.masked_fill(mask, f64::NEG_INFINITY),
        None => logits,
    };
    let (n, size) = (batch.classes.len() as i64, i64::from(network.transform.image_size));
    let x = image_batch(&batch.images, n, size)?;
    let classes = Tensor::from_slice(&batch.classes);
    let logits = tch::no_grad(|| answers(model.forward(&x, false)));
    found.counts.add_logits(&logits, &classes);
    if found.real.is_some() || found.multi_label.is_some() {
        let firsts = Vec::<i64>::try_from(logits.argmax(-1, false)).map_err(EvalError::Answers)?;
        for (index, (&first, &class)) in firsts.iter().zip(&batch.classes).enumerate() {
            let file = set.split.file_name((batch.first + index) as u32);
            if let Some((real, counts)) = judges.real.as_ref().zip(found.real.as_mut()) {
                real.add(counts, file, first as u32)?;
            }
            if let Some((labels, counts)) = judges.multi_label.as_ref().zip(found.multi_label.as_mut()) {
                labels.add(counts, file, class as u32, first as u32);
            }
        }
    }
    if !found.attacked.is_empty() {
        let direction = attack::direction(model, &x, &classes, answers)?;
        for (epsilon, counts) in &mut found.attacked {
            let moved = attack::perturb(&x, &direction, *epsilon);
            let logits = tch::no_grad(|| answers(model.forward(&moved, false)));
            counts.add_logits(&logits, &classes);
        }
    }
    Ok(())
}

/// True where an output is none of `class_ids`, `[outputs]`.
fn not_among(class_ids: &[u32], outputs: i64) -> Tensor {
    let ids: Vec<i64> = class_ids.iter().map(|&id| i64::from(id)).collect();
    Tensor::ones([outputs], (Kind::Bool, Device::Cpu)).index_fill(0, &Tensor::from_slice(&ids), 0)
}

fn progress(name: &str, images: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {wide_bar:.cyan/dim} {pos}/{len} images  {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(images as u64).with_style(style).with_prefix(name.to_owned())
}
