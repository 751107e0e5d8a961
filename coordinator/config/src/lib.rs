//! The options of a run: names, types and defaults, the same on the coordinator, which reads them, and
//! on the workers, which are sent them. The keys and defaults are those of the reference's `base.yaml`;
//! what this project adds stands beside them under names of its own.
//!
//! This crate only describes and validates: [`schema`] is the one table of keys, help and ranges, and
//! [`validate`] says what is wrong with a whole configuration. Files, environment and flags are
//! `coordinator/src/config`.

mod arch;
mod defaults;
mod evaluation;
mod labelling;
mod picture;
mod precision;
mod processor;
mod schema;
#[cfg(test)]
mod tests;
mod validate;

pub use arch::{ARCHS, SCRIPT, file_stem, parameters};
pub use evaluation::{EvalOptions, NamedSet, NetworkOptions};
pub use labelling::LabelOptions;
pub use picture::{PICTURES, Picture};
pub use precision::{Precision, PrecisionChoice, Wire};
pub use processor::unfit_processor;
pub use schema::{IGNORED, Kind, Setting, Value, nearest, schema};
pub use validate::{Invalid, s3_folder, validate};

use serde::{Deserialize, Serialize};

/// Every option of a run. `Config::default()` is the built-in base.yaml.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub model: Model,
    pub data: Data,
    pub optim: Optim,
    pub compute: Compute,
    pub checkpoint: Checkpoint,
    pub cluster: Cluster,
    pub util: Util,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// One of [`ARCHS`], or `script:FILE`, a TorchScript module.
    pub arch: String,
    /// Length of the output; none takes the number of class folders under `data_path/train`.
    pub num_classes: Option<u32>,
    /// Weights to start from: .pth, .safetensors or a checkpoint; empty starts from random ones.
    pub pretrained: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// Name of the data set's layout: imagenet.
    pub dataset: String,
    /// Folder that holds `train/<class>/<image>` and `val/<class>/<image>`, or tar files in `train/` and `val/`.
    pub data_path: String,
    /// Images of consecutive tar shards, these in a random order, that are shuffled together, so that shards are read
    /// nearly from beginning to end; 0 shuffles all images, wherever they are.
    pub shuffle_buffer: u32,
    /// Side of the square training crop in pixels.
    pub image_size: u32,
    /// Smallest part of the image's area that RandomResizedCrop may take, in (0, 1].
    pub rrc_minimum: f64,
    /// Evaluation resizes the short side to ceil(image_size / crop_ratio) before the centre crop.
    pub crop_ratio: f64,
    /// Strength of brightness, contrast and saturation jitter; 0 turns it off.
    pub color_jitter: f64,
    /// Standard deviation of the PCA lighting noise; 0 turns it off.
    pub lighting: f64,
    /// What an unreadable training image does: fail the run, or skip, which counts and names it.
    pub on_error: OnError,
    /// How images are resized, in training and evaluation.
    pub resize: Resize,
    /// Where training images are flipped, jittered, lit and normalized.
    pub finish: FinishOn,
    pub cutmix: CutMix,
    pub relabel: Relabel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    Fail,
    Skip,
}

/// The pixels are the same to the bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishOn {
    /// By the loader's threads; the device is sent floats.
    Host,
    /// By the device, which is sent bytes: a quarter of them, and less work for the processor.
    Device,
}

/// Both are Pillow's antialiased bilinear filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resize {
    /// With coarser weights, for which there are fast instructions, and in training a JPEG's components before they are
    /// mixed into colours: a third of a 255th apart on average.
    Fast,
    /// Pillow's arithmetic to the last bit.
    Exact,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CutMix {
    /// Probability that a batch is mixed, in [0, 1].
    pub prob: f64,
    /// Both parameters of the Beta distribution of the mixing ratio.
    pub beta: f64,
    /// The last epochs of a run that go without CutMix.
    pub off_epoch: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Relabel {
    /// Train on label maps; false trains on the class folders' names.
    #[serde(rename = "use")]
    pub enabled: bool,
    /// Folder that holds `<class>/<image stem>.pt`, or a file that `worker pack` made of it.
    pub path: String,
    /// How a crop's box is read into the map: hw is right for maps stored as height, width; reference
    /// swaps the axes as the published code does.
    pub axes: Axes,
    /// What is taken from a map: the published method, or one of the paper's ablations.
    pub mode: Mode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axes {
    Hw,
    Reference,
}

/// What a label map teaches a crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The distribution over what the crop shows.
    Localized,
    /// The distribution over what the whole image shows, whatever the crop.
    Global,
    /// Only the likeliest class of what the crop shows.
    LocalizedSingle,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Optim {
    pub optimizer: OptimizerKind,
    pub epochs: u32,
    /// Epoch, counted from 0, that a new run begins with: its learning rates and its order of the samples.
    pub start_epoch: u32,
    pub bn: BatchNorm,
    /// Images in one optimizer step, all workers together.
    pub batch_size: u32,
    pub lr: LearningRate,
    pub warmup: Warmup,
    pub nesterov: bool,
    pub momentum: f64,
    pub wd: WeightDecay,
    /// Part of each target that is spread evenly over all classes.
    pub label_smoothing: f64,
    /// What a loss that is no number does.
    pub non_finite: NonFinite,
    /// With skip, updates in a row that may be left out.
    pub non_finite_steps: u32,
    pub ema: Ema,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NonFinite {
    /// The run saves the state before the step and stops.
    Stop,
    /// The step's update is left out.
    Skip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    Sgd,
    AdamP,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchNorm {
    /// Share of the running statistics that one step keeps (PyTorch's momentum is 1 minus this).
    pub momentum: f64,
    pub eps: f64,
    /// Normalize with the running statistics in training too and leave them as they are.
    pub frozen: bool,
    /// On a CPU, one operator with the addition of a shortcut and the ReLU that follow.
    pub fused: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LearningRate {
    pub init: f64,
    /// After the warmup: cos (half cosine to 0), linear, or default (x0.1 every 30 epochs).
    pub decay_type: Decay,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    Cos,
    Linear,
    Default,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Warmup {
    /// Learning rate of the first step.
    pub lr: f64,
    pub epochs: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WeightDecay {
    pub base: f64,
    /// Whether parameters of one dimension (BatchNorm's and biases) decay too.
    pub norm_and_bias: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ema {
    /// What one step keeps of the moving average of the weights, in [0, 1); 0 keeps no average.
    pub decay: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compute {
    /// Seed of everything random; -1 lets the coordinator choose one, which the run records.
    pub seed: i64,
    /// The reference's key; a worker is given its device by `--gpu` or `--cpu`.
    pub gpu: i64,
    /// The reference's apex level, O0 to O3; [`Compute::precision_on`] says what it means.
    pub opt_level: String,
    /// What convolutions and matrix products compute in.
    pub precision: PrecisionChoice,
    /// What gradients are sent in.
    pub wire: Wire,
    /// Images that a worker takes through the network at once; 0 for all of its slice, -1 for as many as fit its memory.
    pub micro_batch: i64,
    /// Whether a run is to compute the same bits each time, on the same devices; slower on a GPU.
    pub deterministic: bool,
    /// Loader threads of one worker at most; never more than its share of the machine's cores.
    pub num_workers: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// Steps between checkpoints inside an epoch; 0 for none.
    pub every_steps: u64,
    /// Minutes between checkpoints, in addition; 0 for none.
    pub every_minutes: f64,
    /// Epochs between checkpoints, in addition; 0 for none but the last.
    pub every_epochs: u32,
    /// Newest checkpoints that are kept, beside the best.
    pub keep: u32,
    /// Folder `s3://bucket/prefix` of an object store that journal, metrics and checkpoints go to as well; empty for
    /// none.
    pub upload: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// Seconds between a worker's heartbeats.
    pub heartbeat: f64,
    /// Seconds of silence after which a worker counts as lost.
    pub dead_after: f64,
    /// Seconds to wait for missing workers, at the start and after a loss, before the run fails.
    pub wait_for_workers: f64,
    /// Seconds that a beginning waits for all workers where the fewest are there.
    pub gather_for: f64,
    /// Least seconds of training before newcomers are let in.
    pub admit_after: f64,
    /// Seconds without an answer after which a peer in the ring is lost; the ranks find each other in 2.5 times that.
    pub ring_timeout: f64,
    /// Seconds that a restarted coordinator waits for the workers that trained on.
    pub reunite_for: f64,
    /// Seconds that a worker looks for its coordinator before it gives up.
    pub wait_for_coordinator: f64,
    /// Seconds in which a worker that is told to leave has to be gone.
    pub drain_deadline: f64,
    /// Seconds in which a run that is stopped has to have saved.
    pub stop_deadline: f64,
    /// Workers beyond the most that train, which may stand by.
    pub spares: u32,
    /// What is done about a rank that holds the others up, beside naming it.
    pub stragglers: Stragglers,
    /// How many times the median rank's own time of a step makes a rank slow, above 1.
    pub straggler_factor: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stragglers {
    /// Nothing.
    Report,
    /// The others go on without it, where they are enough.
    Drop,
    /// One that stands by takes its place.
    Replace,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Util {
    /// Steps between log lines.
    pub print_freq: u64,
    /// Images in one evaluation batch, all workers together.
    pub val_batch_size: u32,
    pub test_only: bool,
    pub test_weight_file: String,
    /// Write the ids of the samples that each worker trained on to `samples/` in the run directory.
    pub record_samples: bool,
    /// Write event files for TensorBoard to `tensorboard/` in the run directory.
    pub tensorboard: bool,
    /// Training images whose label maps the worker of rank 0 draws at the start of each epoch.
    pub log_images: u32,
}
