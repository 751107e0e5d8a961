//! Opens what a run trains on and is validated on, as its configuration says, and checks it before the
//! first step.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use relabel_config::Config;
use relabel_core::Dataset;

use crate::data::DataError;
use crate::data::index::Split;
use crate::eval::classes::{Classes, ClassesError, class_ids};
use crate::labels::derived::derived;
use crate::labels::{LabelMaps, SingleLabel, Targets};

/// Label maps that are read at the start, so that a wrong folder or shape fails at once.
const CHECKED_MAPS: usize = 16;

/// The data of a run.
pub struct Inputs {
    /// Without samples in a run that only evaluates.
    pub train: Arc<Split>,
    pub val: Arc<Split>,
    /// Class id of each validation folder, by its position.
    pub val_classes: Arc<[u32]>,
    /// What training crops are taught.
    pub targets: Arc<dyn Targets>,
    /// The label maps that these come from, if they do.
    pub maps: Option<Arc<LabelMaps>>,
    /// Length of the model's output.
    pub classes: u32,
    /// Whether the order of training depends on how the images are packed.
    pub by_shards: bool,
}

/// Why the data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Classes(#[from] ClassesError),
    #[error("{}: validation folder {val} stands where the training folders have {train}: both must hold the same classes", path.display())]
    ClassesDiffer { path: PathBuf, train: String, val: String },
    #[error("{}: {val} class folders for validation, but {train} for training: both must hold the same classes", path.display())]
    ClassCount { path: PathBuf, train: usize, val: usize },
    #[error("data.shuffle_buffer is {buffer}, but {} holds no tar files to read in order: leave it out, or pack the images", path.display())]
    NoShards { path: PathBuf, buffer: u32 },
    #[error("model.num_classes is {wanted}, but {} holds {found} class folders: leave it out, or raise it", path.display())]
    TooFewOutputs { path: PathBuf, wanted: u32, found: usize },
}

impl Inputs {
    /// Indexes `data_path` (from `cache` where it has not changed) and opens the label maps.
    ///
    /// # Errors
    /// Whatever would make the run fail later: a missing folder, an empty class, other classes for
    /// validation than for training, a label map that is missing or of a wrong shape.
    pub fn open(config: &Config, cache: Option<&Path>) -> Result<Self, InputError> {
        let root = Path::new(&config.data.data_path);
        if config.util.test_only {
            return Self::open_for_test(config, root, cache);
        }
        let train = Arc::new(Split::open(&root.join("train"), cache)?);
        let buffer = config.data.shuffle_buffer;
        if buffer > 0 && !train.has_shards() {
            return Err(InputError::NoShards { path: root.join("train"), buffer });
        }
        let val = Arc::new(Split::open(&root.join("val"), cache)?);
        same_classes(root, &train, &val)?;

        let found = train.classes().len();
        let classes = config.model.num_classes.unwrap_or(found as u32);
        if (classes as usize) < found {
            let path = root.join("train");
            return Err(InputError::TooFewOutputs { path, wanted: classes, found });
        }
        let (targets, maps) = targets(config, &train, classes)?;
        let targets = derived(targets, config);
        let val_classes = (0..found as u32).collect();
        Ok(Self { train, val, val_classes, targets, maps, classes, by_shards: buffer > 0 })
    }

    /// The validation images alone. The training folders name the classes if they are there; no training
    /// image and no label map needs to be.
    fn open_for_test(config: &Config, root: &Path, cache: Option<&Path>) -> Result<Self, InputError> {
        let (train_dir, val_dir) = (root.join("train"), root.join("val"));
        let val = Arc::new(Split::open(&val_dir, cache)?);
        let known = train_dir.is_dir().then(|| Classes::read(&train_dir)).transpose()?;
        let folders = val.classes().len();
        let found = known.as_ref().map_or(folders, Classes::len);
        let classes = config.model.num_classes.unwrap_or(found as u32);
        if (classes as usize) < found {
            return Err(InputError::TooFewOutputs { path: val_dir, wanted: classes, found });
        }
        let val_classes = class_ids(&val_dir, val.classes(), known.as_ref(), classes as usize)?;
        if folders != found {
            return Err(InputError::ClassCount { path: val_dir, train: found, val: folders });
        }
        let train = Arc::new(Split::without_samples(&train_dir, val.classes().to_vec()));
        let targets = Arc::new(SingleLabel::new(classes, Arc::new(|_| 0)));
        Ok(Self {
            train,
            val,
            val_classes: val_classes.into(),
            targets,
            maps: None,
            classes,
            by_shards: false,
        })
    }

    /// What the coordinator compares between workers.
    pub fn dataset(&self) -> Dataset {
        let hex = |hash: [u8; 32]| blake3::Hash::from_bytes(hash).to_hex().to_string();
        let train = match self.by_shards {
            true => self.train.packing_fingerprint(),
            false => self.train.fingerprint(),
        };
        Dataset {
            train_samples: self.train.len() as u64,
            train_fingerprint: hex(train),
            val_samples: self.val.len() as u64,
            val_fingerprint: hex(self.val.fingerprint()),
            classes: self.train.classes().len() as u32,
        }
    }
}

fn same_classes(root: &Path, train: &Split, val: &Split) -> Result<(), InputError> {
    let path = root.join("val");
    let (t, v) = (train.classes(), val.classes());
    if let Some((train, val)) = t.iter().zip(v.iter()).find(|(t, v)| t != v) {
        return Err(InputError::ClassesDiffer { path, train: train.to_string(), val: val.to_string() });
    }
    if t.len() != v.len() {
        return Err(InputError::ClassCount { path, train: t.len(), val: v.len() });
    }
    Ok(())
}

/// What training images are taught, and the label maps that say so, if any do.
type Taught = (Arc<dyn Targets>, Option<Arc<LabelMaps>>);

fn targets(config: &Config, train: &Arc<Split>, classes: u32) -> Result<Taught, DataError> {
    let split = Arc::clone(train);
    if !config.data.relabel.enabled {
        return Ok((Arc::new(SingleLabel::new(classes, Arc::new(move |sample| split.class(sample)))), None));
    }
    let keys = Arc::new(move |sample| split.key(sample));
    let relabel = &config.data.relabel;
    let maps = LabelMaps::new(PathBuf::from(&relabel.path), classes, relabel.axes, keys)?;
    maps.check_present(train.len() as u32)?;
    // Spread over the whole set: the first folder alone could be the one that is there.
    let every = (train.len() / CHECKED_MAPS).max(1);
    maps.check((0..train.len() as u32).step_by(every))?;
    let maps = Arc::new(maps);
    Ok((Arc::clone(&maps) as Arc<dyn Targets>, Some(maps)))
}
