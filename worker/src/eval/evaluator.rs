//! A network and the folders that it is evaluated on, all open; and one pass over images of a folder, with every metric
//! that it is judged by from the same answers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use relabel_config::{EvalOptions, NamedSet, SCRIPT};
use relabel_core::evaluation::counts::{Counts, Found, MultiLabelCounts, RealCounts};
use relabel_core::evaluation::{EvalSeen, Evaluation, Folder};
use relabel_core::leases::Piece;
use tch::{Device, Kind, Tensor};

use super::classes::Classes;
use super::multi_label::MultiLabel;
use super::network::{self, Network};
use super::real::{Real, RealError};
use super::sets::{EvalSet, Layout, layout};
use super::{attack, count_logits};
use crate::data::loader::{EvalBatch, EvalLoader, EvalPlan};
use crate::data::{DataError, ImageError};
use crate::leases::{Holder, content_hash};
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
struct Judges {
    real: Option<Real>,
    multi_label: Option<MultiLabel>,
    /// Strengths of the fast gradient sign attack, in parts of a pixel's range.
    epsilons: Vec<f64>,
}

/// A folder of class folders, open.
struct Opened {
    /// The set that it belongs to, by its number.
    set: usize,
    /// In ImageNet-C, the corruption and its severity.
    corruption: Option<(String, u32)>,
    images: EvalSet,
    /// True where an output is no answer, `[outputs]`; none where all are answers.
    not_answers: Option<Tensor>,
    /// Whether its files are those of ImageNet's validation set.
    of_imagenet: bool,
}

/// Everything that is needed to evaluate.
pub(super) struct Evaluator {
    options: EvalOptions,
    network: Network,
    /// The network's classes, where something names them.
    known: Option<Classes>,
    /// In the order in which they are evaluated and numbered: those of ImageNet-C last.
    folders: Vec<Opened>,
    judges: Judges,
}

impl Evaluator {
    /// Opens everything.
    ///
    /// # Errors
    /// Sets, weights or labels that cannot be read or do not fit each other.
    pub(super) fn open(options: EvalOptions, threads: usize) -> Result<Self> {
        // What is wrong with the folders is found before the weights are read.
        let layouts = options.sets.iter().map(layout_of).collect::<Result<Vec<_>>>()?;
        let network = network::open(&options.network, threads)?;
        let outputs = network.model.classes() as usize;
        let known = match &network.classes {
            Some(classes) => Some(classes.clone()),
            None => trained_on(&options.sets, outputs)?,
        };
        // And all are indexed before the first is evaluated, for the same reason.
        let open = |set: usize, corruption: Option<(String, u32)>, path: &Path| -> Result<Opened> {
            let images = EvalSet::open(path, known.as_ref(), outputs)?;
            let restricted = images.subset && !options.all_outputs;
            let not_answers = restricted.then(|| not_among(&images.class_ids, network.model.classes()));
            let of_imagenet = images.is_imagenet_val();
            Ok(Opened { set, corruption, images, not_answers, of_imagenet })
        };
        let (mut folders, mut corrupted) = (Vec::new(), Vec::new());
        for (set, layout) in layouts.iter().enumerate() {
            match layout {
                Layout::Plain(path) => folders.push(open(set, None, path)?),
                Layout::Corrupted(corruptions) => {
                    for corruption in corruptions {
                        for (severity, path) in &corruption.severities {
                            corrupted.push(open(set, Some((corruption.name.clone(), *severity)), path)?);
                        }
                    }
                }
            }
        }
        let judges = judges(&options, &folders, known.as_ref())?;
        folders.extend(corrupted);
        Ok(Self { options, network, known, folders, judges })
    }

    /// Images of all folders.
    pub(super) fn images(&self) -> u64 {
        self.folders.iter().map(|folder| folder.images.split.len() as u64).sum()
    }

    /// Evaluates the images of `piece`, and passes on what is found by ranges of `length` images, whole batches; the
    /// last one may be shorter. `progress` is told of images that are done. Ends early where `over` is set.
    ///
    /// # Errors
    /// An image that cannot be read, no memory for a batch, and what `found` returns.
    pub(super) fn evaluate(
        &self,
        piece: &Piece,
        length: u64,
        over: &AtomicBool,
        progress: impl Fn(u64),
        mut found: impl FnMut(&Piece, Found) -> Result<()>,
    ) -> Result<()> {
        let Piece { folder: number, samples } = piece;
        let folder =
            self.folders.get(*number as usize).with_context(|| format!("there is no folder {number}"))?;
        let images = folder.images.split.len() as u64;
        ensure!(samples.end <= images, "images {samples:?} of {images} cannot be evaluated");
        // ImageNet-C's images are only told from their classes.
        let judges = if folder.corruption.is_some() { &Judges::default() } else { &self.judges };
        let mut loader = EvalLoader::start(EvalPlan {
            split: Arc::clone(&folder.images.split),
            class_ids: Arc::clone(&folder.images.class_ids),
            transform: self.network.transform.clone(),
            positions: samples.start as usize..samples.end as usize,
            batch: self.network.batch,
            threads: self.network.threads,
            prefetch: PREFETCH,
        })
        .map_err(EvalError::from)?;
        let (mut first, mut range) = (samples.start, judges.nothing(folder));
        while let Some(batch) = loader.next() {
            let batch = batch.map_err(EvalError::from)?;
            add_batch(&self.network, folder, &batch, judges, &mut range)?;
            let (start, done) = (batch.first as u64, batch.classes.len() as u64);
            loader.recycle(batch);
            progress(done);
            let end = start + done;
            if end - first >= length || end == samples.end {
                let piece = Piece { folder: *number, samples: first..end };
                found(&piece, std::mem::replace(&mut range, judges.nothing(folder)))?;
                first = end;
            }
            if over.load(Ordering::Relaxed) {
                break;
            }
        }
        Ok(())
    }

    fn seen_folder(&self, folder: &Opened) -> Folder {
        let Opened { set, corruption, images, not_answers, .. } = folder;
        let below = self.options.sets.get(*set).and_then(|set| images.path.strip_prefix(&set.dir).ok());
        Folder {
            set: *set as u32,
            below: below.unwrap_or(&images.path).to_string_lossy().into_owned(),
            corruption: corruption.clone(),
            samples: images.split.len() as u64,
            fingerprint: blake3::Hash::from(images.split.fingerprint()).to_hex().to_string(),
            classes: images.class_ids.len() as u64,
            restricted: not_answers.is_some(),
        }
    }

    /// A hash over the files of the weights.
    fn weights_hash(&self) -> Result<String> {
        let mut hash = content_hash(&self.options.network.weights)?;
        if let Some(file) = self.network.model.arch().strip_prefix(SCRIPT) {
            hash += &content_hash(Path::new(file))?;
        }
        Ok(hash)
    }

    /// A hash over what the answers are judged by.
    fn labels_hash(&self) -> Result<String> {
        let EvalOptions { real, multi_label, .. } = &self.options;
        let hash = |file: &Option<_>| file.as_deref().map(content_hash).transpose();
        let ids: Vec<&[u32]> = self.folders.iter().map(|folder| &*folder.images.class_ids).collect();
        let known = self.known.as_ref().map(Classes::by_key);
        let text = serde_json::to_vec(&(known, ids, hash(real)?, hash(multi_label)?));
        Ok(blake3::hash(&text.context("the classes cannot be written")?).to_hex().to_string())
    }
}

impl Holder for Evaluator {
    type Work = Evaluation;

    fn open(options: EvalOptions, threads: usize) -> Result<Self> {
        Self::open(options, threads)
    }

    fn seen(&self) -> Result<EvalSeen> {
        Ok(EvalSeen {
            arch: self.network.model.arch().to_owned(),
            outputs: self.network.model.classes() as u64,
            weights: self.weights_hash()?,
            labels: self.labels_hash()?,
            folders: self.folders.iter().map(|folder| self.seen_folder(folder)).collect(),
        })
    }

    fn work(&self, piece: &Piece, over: &AtomicBool) -> Result<Found> {
        let mut all = Found::default();
        self.evaluate(
            piece,
            piece.len(),
            over,
            |_| {},
            |_, found| {
                all = found;
                Ok(())
            },
        )?;
        Ok(all)
    }

    /// A damaged image is as damaged elsewhere; a disk that fails may not be.
    fn is_hopeless(error: &anyhow::Error) -> bool {
        match error.downcast_ref() {
            Some(EvalError::Data(DataError::Image { source, .. })) => !matches!(source, ImageError::Read(_)),
            Some(EvalError::Real(_)) => true,
            _ => false,
        }
    }
}

fn layout_of(set: &NamedSet) -> Result<Layout> {
    let dir = &set.dir;
    ensure!(dir.is_dir(), "--data {}: there is no such folder", dir.display());
    Ok(layout(dir)?)
}

/// The training folders beside a set's val/, if they are as many as the outputs: the classes that the network
/// was most likely trained on.
fn trained_on(sets: &[NamedSet], outputs: usize) -> Result<Option<Classes>> {
    let train = sets.iter().map(|set| set.dir.join("train")).find(|train| train.is_dir());
    let Some(train) = train else { return Ok(None) };
    let classes = Classes::read(&train)?;
    Ok((classes.len() == outputs).then_some(classes))
}

/// Reads the labels that the sets are judged by besides their folders'.
fn judges(options: &EvalOptions, plain: &[Opened], known: Option<&Classes>) -> Result<Judges> {
    let of_imagenet = plain.iter().find(|folder| folder.of_imagenet);
    for (flag, file) in [("--real", &options.real), ("--multi-label", &options.multi_label)] {
        if file.is_some() && of_imagenet.is_none() {
            bail!(
                "{flag}: no set holds images of ImageNet's validation set (ILSVRC2012_val_*), which it labels"
            );
        }
    }
    let real = options.real.as_deref().map(Real::read).transpose()?;
    let multi_label = match (&options.multi_label, known, of_imagenet) {
        (Some(file), Some(known), _) => Some(MultiLabel::read(file, known)?),
        // Nothing else is known of the classes than that they are the set's own.
        (Some(file), None, Some(folder)) => {
            let own = folder.images.split.classes().to_vec();
            Some(MultiLabel::read(file, &Classes::from_folders(own))?)
        }
        _ => None,
    };
    Ok(Judges { real, multi_label, epsilons: options.fgsm.clone() })
}

impl Judges {
    /// What is found on no images of `folder`.
    fn nothing(&self, folder: &Opened) -> Found {
        let of_imagenet = folder.of_imagenet;
        Found {
            counts: Counts::default(),
            real: self.real.as_ref().filter(|_| of_imagenet).map(|_| RealCounts::default()),
            multi_label: self
                .multi_label
                .as_ref()
                .filter(|_| of_imagenet)
                .map(|_| MultiLabelCounts::default()),
            attacked: self.epsilons.iter().map(|&epsilon| (epsilon, Counts::default())).collect(),
        }
    }
}

fn add_batch(
    network: &Network,
    folder: &Opened,
    batch: &EvalBatch,
    judges: &Judges,
    found: &mut Found,
) -> Result<(), EvalError> {
    let model = &network.model;
    let answers = |logits: Tensor| match &folder.not_answers {
        Some(mask) => logits.masked_fill(mask, f64::NEG_INFINITY),
        None => logits,
    };
    let (n, size) = (batch.classes.len() as i64, i64::from(network.transform.image_size));
    let x = image_batch(&batch.images, n, size)?;
    let classes = Tensor::from_slice(&batch.classes);
    let logits = tch::no_grad(|| model.forward(&x, false).map(answers))?;
    found.counts += count_logits(&logits, &classes);
    if found.real.is_some() || found.multi_label.is_some() {
        let firsts = Vec::<i64>::try_from(logits.argmax(-1, false)).map_err(EvalError::Answers)?;
        for (index, (&first, &class)) in firsts.iter().zip(&batch.classes).enumerate() {
            let file = folder.images.split.file_name((batch.first + index) as u32);
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
            let logits = tch::no_grad(|| model.forward(&moved, false).map(answers))?;
            *counts += count_logits(&logits, &classes);
        }
    }
    Ok(())
}

/// True where an output is none of `class_ids`, `[outputs]`.
fn not_among(class_ids: &[u32], outputs: i64) -> Tensor {
    let ids: Vec<i64> = class_ids.iter().map(|&id| i64::from(id)).collect();
    Tensor::ones([outputs], (Kind::Bool, Device::Cpu)).index_fill(0, &Tensor::from_slice(&ids), 0)
}
