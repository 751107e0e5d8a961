//! One row a key: what it is called, what it takes, what it means, and where it stands in [`Config`].
//! Parsing, range checks, `--help` and the documentation are all made from these rows; a test compares
//! them with the fields of [`Config`].

use crate::arch::{ARCHS, SCRIPT};
use crate::{Axes, Config, Decay, FinishOn, Mode, NonFinite, OnError, OptimizerKind, Resize, Stragglers};

/// A key's row.
pub struct Setting {
    /// Dotted key, as in `--optim.lr.init`.
    pub key: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// One line for `--help`.
    pub help: &'static str,
    /// Reads the key's value out of a configuration.
    pub get: fn(&Config) -> Value,
}

/// What a key takes. Bounds are inclusive unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// True or False, or another of YAML 1.1's spellings.
    Flag,
    /// Any text; it may be empty.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// One of [`ARCHS`], or `script:` and a file.
    Network,
    /// A whole number in `min..=max`; where `optional`, also `none`.
    Whole { min: i64, max: i64, optional: bool },
    /// A finite number in `min..=max`, without `min` where `above`, without `max` where `below`.
    Real { min: f64, max: f64, above: bool, below: bool },
}

/// A key's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    None,
    Flag(bool),
    Whole(i64),
    Real(f64),
    Text(String),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::None => f.write_str("none"),
            Value::Flag(v) => f.write_str(if *v { "True" } else { "False" }),
            Value::Whole(v) => write!(f, "{v}"),
            // 1e-5 rather than 0.00001, and 0.5 rather than 5e-1.
            Value::Real(v) if *v != 0.0 && v.abs() < 1e-3 => write!(f, "{v:e}"),
            Value::Real(v) => write!(f, "{v}"),
            Value::Text(v) if v.is_empty() => f.write_str("''"),
            Value::Text(v) => f.write_str(v),
        }
    }
}

impl std::fmt::Display for Kind {
    /// What the key takes, in words that end the sentence "it takes ...".
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Kind::Flag => f.write_str("True or False"),
            Kind::Text => f.write_str("text"),
            Kind::Choice(words) => match words {
                [one] => write!(f, "only {one}"),
                [first @ .., last] => write!(f, "{} or {last}", first.join(", ")),
                [] => Ok(()),
            },
            Kind::Network => write!(f, "{} or {SCRIPT}FILE", ARCHS.join(", ")),
            Kind::Whole { min, max, optional } => {
                match (min, max) {
                    (i64::MIN, i64::MAX) => f.write_str("a whole number")?,
                    (_, MANY | i64::MAX) => write!(f, "a whole number of at least {min}")?,
                    _ => write!(f, "a whole number from {min} to {max}")?,
                }
                if optional { f.write_str(", or none") } else { Ok(()) }
            }
            Kind::Real { min, max, above, below } => {
                write!(f, "a number {} {min}", if above { "above" } else { "of at least" })?;
                match (max.is_finite(), below) {
                    (false, _) => Ok(()),
                    (true, true) => write!(f, " and below {max}"),
                    (true, false) => write!(f, " and at most {max}"),
                }
            }
        }
    }
}

impl Kind {
    /// Reads `text` as this kind of value. Booleans have YAML 1.1's spellings in any case (true, yes, on, y,
    /// 1); numbers may have underscores between digits, and a whole number may be written `1e3` or `512.0`.
    /// None where it is not of this kind or out of range.
    pub fn parse(&self, text: &str) -> Option<Value> {
        let word = text.trim();
        let value = match self {
            Kind::Text => Value::Text(text.to_owned()),
            Kind::Choice(_) | Kind::Network => Value::Text(word.to_owned()),
            Kind::Flag => match word.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "y" | "1" => Value::Flag(true),
                "false" | "no" | "off" | "n" | "0" => Value::Flag(false),
                _ => return None,
            },
            Kind::Whole { optional: true, .. }
                if matches!(word.to_ascii_lowercase().as_str(), "" | "none" | "null" | "~") =>
            {
                Value::None
            }
            Kind::Whole { .. } => {
                let digits = word.replace('_', "");
                Value::Whole(digits.parse().ok().or_else(|| whole(digits.parse().ok()?))?)
            }
            Kind::Real { .. } => Value::Real(word.replace('_', "").parse().ok()?),
        };
        self.admits(&value).then_some(value)
    }

    /// Whether `value` is of this kind and in its range.
    pub fn admits(&self, value: &Value) -> bool {
        match (self, value) {
            (Kind::Flag, Value::Flag(_)) | (Kind::Text, Value::Text(_)) => true,
            (Kind::Choice(words), Value::Text(v)) => words.contains(&v.as_str()),
            (Kind::Network, Value::Text(v)) => match v.strip_prefix(SCRIPT) {
                Some(file) => !file.is_empty(),
                None => ARCHS.contains(&v.as_str()),
            },
            (Kind::Whole { optional, .. }, Value::None) => *optional,
            (Kind::Whole { min, max, .. }, Value::Whole(v)) => min <= v && v <= max,
            (Kind::Real { min, max, above, below }, Value::Real(v)) => {
                v.is_finite()
                    && (if *above { min < v } else { min <= v })
                    && (if *below { v < max } else { v <= max })
            }
            _ => false,
        }
    }
}

/// `number` as a whole number, where it is one exactly.
fn whole(number: f64) -> Option<i64> {
    // Above 2^53 a float no longer says which whole number was meant.
    (number.fract() == 0.0 && number.abs() <= (1_i64 << 53) as f64).then_some(number as i64)
}

/// The largest count that a key takes: it has to fit the 32 bits of its field.
const MANY: i64 = u32::MAX as i64;

const fn count(min: i64) -> Kind {
    Kind::Whole { min, max: MANY, optional: false }
}

const fn at_least(min: f64) -> Kind {
    Kind::Real { min, max: f64::INFINITY, above: false, below: false }
}

const fn above(min: f64) -> Kind {
    Kind::Real { min, max: f64::INFINITY, above: true, below: false }
}

/// From 0 to 1, both included.
const SHARE: Kind = Kind::Real { min: 0.0, max: 1.0, above: false, below: false };
/// From 0 to 1, without 0.
const PART: Kind = Kind::Real { min: 0.0, max: 1.0, above: true, below: false };
/// From 0 to 1, without 1.
const RATE: Kind = Kind::Real { min: 0.0, max: 1.0, above: false, below: true };

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

fn large(value: u64) -> Value {
    Value::Whole(i64::try_from(value).unwrap_or(i64::MAX))
}

/// The keys of the reference that this program has no use for. They are accepted, so that its files work
/// unchanged, and named in a warning with the reason.
pub const IGNORED: &[(&str, &str)] = &[
    ("compute.distributed.use", "the number of workers is `coordinator --workers`"),
    ("compute.distributed.num_processes_per_node", "the number of workers is `coordinator --workers`"),
    ("compute.distributed.url", "workers find the coordinator by `worker --coordinator`"),
    ("compute.distributed.backend", "a worker is given its device by `--gpu` or `--cpu`"),
];

/// Every key of a configuration, in the order of its fields.
pub fn schema() -> &'static [Setting] {
    SCHEMA
}

/// The key of the schema that `key` was most likely meant to be, if one is near enough: by the whole key, or by
/// its last part where a section is missing or wrong.
pub fn nearest(key: &str) -> Option<&'static str> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let key = key.to_ascii_lowercase().replace('-', "_");
    let likeness = |candidate: &str| {
        let whole = strsim::normalized_damerau_levenshtein(&key, candidate);
        // A right name in a wrong place is nearer than a wrong name in the right place.
        let part = 0.9 * strsim::normalized_damerau_levenshtein(&last(&key), &last(candidate));
        whole.max(part) + 0.1 * whole
    };
    let best = SCHEMA.iter().map(|s| (likeness(s.key), s.key)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= 0.6).then_some(best.1)
}

macro_rules! settings {
    ($($key:literal, $kind:expr, $get:expr, $help:literal;)*) => {
        &[$(Setting { key: $key, kind: $kind, help: $help, get: $get }),*]
    };
}

#[rustfmt::skip]
static SCHEMA: &[Setting] = settings! {
    "model.arch", Kind::Network, |c| text(&c.model.arch),
        "The network; a TorchScript module brings its weights, and lies on every worker's host";
    "model.num_classes", Kind::Whole { min: 2, max: 1 << 20, optional: true }, |c| c.model.num_classes.map_or(Value::None, |n| Value::Whole(n.into())),
        "Length of the output; none counts the class folders under data_path/train";
    "model.pretrained", Kind::Text, |c| text(&c.model.pretrained),
        "Weights that a fresh run starts from: .pth, .safetensors or a checkpoint, where rank 0 is";

    "data.dataset", Kind::Choice(&["imagenet"]), |c| text(&c.data.dataset),
        "Layout of the data set's folders";
    "data.data_path", Kind::Text, |c| text(&c.data.data_path),
        "Folder of train/<class>/<image> and val/<class>/<image>, or of tar files in train/ and val/";
    "data.shuffle_buffer", count(0), |c| Value::Whole(c.data.shuffle_buffer.into()),
        "Images of shuffled tar shards to shuffle together, for reading in order; 0 shuffles all";
    "data.image_size", Kind::Whole { min: 8, max: 1024, optional: false }, |c| Value::Whole(c.data.image_size.into()),
        "Side of the square training crop in pixels";
    "data.rrc_minimum", PART, |c| Value::Real(c.data.rrc_minimum),
        "Smallest part of an image's area that a random crop takes";
    "data.crop_ratio", PART, |c| Value::Real(c.data.crop_ratio),
        "Evaluation resizes the short side to image_size / crop_ratio, then crops the centre";
    "data.color_jitter", SHARE, |c| Value::Real(c.data.color_jitter),
        "Strength of brightness, contrast and saturation jitter; 0 turns it off";
    "data.lighting", SHARE, |c| Value::Real(c.data.lighting),
        "Standard deviation of the PCA lighting noise; 0 turns it off";
    "data.on_error", Kind::Choice(&["fail", "skip"]), |c| text(match c.data.on_error { OnError::Fail => "fail", OnError::Skip => "skip" }),
        "What an unreadable training image does: fail the run, or be skipped and counted";
    "data.resize", Kind::Choice(&["fast", "exact"]), |c| text(match c.data.resize { Resize::Fast => "fast", Resize::Exact => "exact" }),
        "How images are resized: fast, or exact to the last bit of Pillow's arithmetic";
    "data.finish", Kind::Choice(&["host", "device"]), |c| text(match c.data.finish { FinishOn::Host => "host", FinishOn::Device => "device" }),
        "Where training images are flipped, jittered, lit and normalized; device is sent bytes";
    "data.cutmix.prob", SHARE, |c| Value::Real(c.data.cutmix.prob),
        "Probability that CutMix mixes a batch";
    "data.cutmix.beta", at_least(0.0), |c| Value::Real(c.data.cutmix.beta),
        "Both parameters of the Beta distribution of CutMix's ratio";
    "data.cutmix.off_epoch", count(0), |c| Value::Whole(c.data.cutmix.off_epoch.into()),
        "The last epochs of a run that go without CutMix";
    "data.relabel.use", Kind::Flag, |c| Value::Flag(c.data.relabel.enabled),
        "Train on label maps; False trains on the class folders";
    "data.relabel.path", Kind::Text, |c| text(&c.data.relabel.path),
        "Folder that holds <class>/<image stem>.pt, or a file that `worker pack` made of it";
    "data.relabel.axes", Kind::Choice(&["hw", "reference"]), |c| text(match c.data.relabel.axes { Axes::Hw => "hw", Axes::Reference => "reference" }),
        "How a crop's box is read into a map: height, width, or swapped as the reference does it";
    "data.relabel.mode", Kind::Choice(&["localized", "global", "localized_single"]), |c| text(match c.data.relabel.mode { Mode::Localized => "localized", Mode::Global => "global", Mode::LocalizedSingle => "localized_single" }),
        "What a map teaches: what the crop shows, what the whole image does, or the crop's one class";

    "optim.optimizer", Kind::Choice(&["sgd", "adamp"]), |c| text(match c.optim.optimizer { OptimizerKind::Sgd => "sgd", OptimizerKind::AdamP => "adamp" }),
        "The optimizer";
    "optim.epochs", count(1), |c| Value::Whole(c.optim.epochs.into()),
        "Epochs of the whole run";
    "optim.start_epoch", count(0), |c| Value::Whole(c.optim.start_epoch.into()),
        "Epoch that a new run begins with, counted from 0: its learning rate and sample order";
    "optim.bn.momentum", SHARE, |c| Value::Real(c.optim.bn.momentum),
        "Share of BatchNorm's running statistics that a step keeps (1 minus PyTorch's)";
    "optim.bn.eps", above(0.0), |c| Value::Real(c.optim.bn.eps),
        "Added to BatchNorm's variance";
    "optim.bn.frozen", Kind::Flag, |c| Value::Flag(c.optim.bn.frozen),
        "Train with BatchNorm's running statistics and leave them as they are";
    "optim.bn.fused", Kind::Flag, |c| Value::Flag(c.optim.bn.fused),
        "On a CPU, BatchNorm, shortcut and ReLU in one operator; False: PyTorch's sums, to the last bit";
    "optim.batch_size", count(1), |c| Value::Whole(c.optim.batch_size.into()),
        "Images in one step, all workers together";
    "optim.lr.init", at_least(0.0), |c| Value::Real(c.optim.lr.init),
        "Learning rate after the warmup";
    "optim.lr.decay_type", Kind::Choice(&["cos", "linear", "default"]), |c| text(match c.optim.lr.decay_type { Decay::Cos => "cos", Decay::Linear => "linear", Decay::Default => "default" }),
        "After the warmup: half a cosine to 0, a line to 0, or x0.1 every 30 epochs";
    "optim.warmup.lr", at_least(0.0), |c| Value::Real(c.optim.warmup.lr),
        "Learning rate of the first step";
    "optim.warmup.epochs", count(0), |c| Value::Whole(c.optim.warmup.epochs.into()),
        "Epochs in which the learning rate rises to lr.init";
    "optim.nesterov", Kind::Flag, |c| Value::Flag(c.optim.nesterov),
        "Nesterov's momentum";
    "optim.momentum", RATE, |c| Value::Real(c.optim.momentum),
        "Momentum of SGD, first beta of AdamP";
    "optim.wd.base", at_least(0.0), |c| Value::Real(c.optim.wd.base),
        "Weight decay";
    "optim.wd.norm_and_bias", Kind::Flag, |c| Value::Flag(c.optim.wd.norm_and_bias),
        "Whether BatchNorm's parameters and biases decay too, as in the reference";
    "optim.label_smoothing", RATE, |c| Value::Real(c.optim.label_smoothing),
        "Part of each target that is spread over all classes";
    "optim.non_finite", Kind::Choice(&["stop", "skip"]), |c| text(match c.optim.non_finite { NonFinite::Stop => "stop", NonFinite::Skip => "skip" }),
        "A loss that is no number: stop with the state before it saved, or skip the update";
    "optim.non_finite_steps", count(1), |c| Value::Whole(c.optim.non_finite_steps.into()),
        "With skip, updates in a row that may be left out before the run stops";
    "optim.ema.decay", RATE, |c| Value::Real(c.optim.ema.decay),
        "Share of the averaged weights that a step keeps, as 0.9999; 0 keeps no average";

    "compute.seed", Kind::Whole { min: -1, max: i64::MAX, optional: false }, |c| Value::Whole(c.compute.seed),
        "Seed of everything random; -1 has the coordinator choose and record one";
    "compute.gpu", Kind::Whole { min: -1, max: 1023, optional: false }, |c| Value::Whole(c.compute.gpu),
        "The reference's key, without effect: a worker is given its device by --gpu or --cpu";
    "compute.opt_level", Kind::Choice(&["O0", "O1", "O2", "O3"]), |c| text(&c.compute.opt_level),
        "The reference's apex level, for GPUs and precision auto: O0 is fp32, O1 to O3 are fp16";
    "compute.precision", Kind::Choice(&["auto", "fp32", "tf32", "bf16", "fp16"]), |c| text(c.compute.precision.name()),
        "What convolutions and products compute in; auto: fp32 on a CPU, as opt_level says on a GPU";
    "compute.wire", Kind::Choice(&["fp32", "bf16"]), |c| text(c.compute.wire.name()),
        "What gradients are sent in between workers; bf16 halves the bytes and rounds each sum";
    "compute.micro_batch", Kind::Whole { min: -1, max: u32::MAX as i64, optional: false }, |c| Value::Whole(c.compute.micro_batch),
        "Images a worker takes at once; 0 for all of its slice, -1 (--auto-batch) for as many as fit";
    "compute.deterministic", Kind::Flag, |c| Value::Flag(c.compute.deterministic),
        "Whether a run computes the same bits each time on the same devices; slower on a GPU";
    "compute.num_workers", count(1), |c| Value::Whole(c.compute.num_workers.into()),
        "Loader threads of one worker at most; never more than its share of the cores";

    "checkpoint.every_steps", Kind::Whole { min: 0, max: i64::MAX, optional: false }, |c| large(c.checkpoint.every_steps),
        "Steps between checkpoints inside an epoch; 0 for none";
    "checkpoint.every_minutes", at_least(0.0), |c| Value::Real(c.checkpoint.every_minutes),
        "Minutes between checkpoints, in addition; 0 for none";
    "checkpoint.every_epochs", count(0), |c| Value::Whole(c.checkpoint.every_epochs.into()),
        "Epochs between checkpoints, in addition; 0 for none but the last";
    "checkpoint.keep", count(1), |c| Value::Whole(c.checkpoint.keep.into()),
        "Newest checkpoints that are kept, beside the best";
    "checkpoint.upload", Kind::Text, |c| text(&c.checkpoint.upload),
        "s3://bucket/prefix that the run goes to as well, to go on from there; empty for none";

    "cluster.heartbeat", above(0.0), |c| Value::Real(c.cluster.heartbeat),
        "Seconds between a worker's heartbeats";
    "cluster.dead_after", above(0.0), |c| Value::Real(c.cluster.dead_after),
        "Seconds of silence after which a worker counts as lost";
    "cluster.wait_for_workers", at_least(0.0), |c| Value::Real(c.cluster.wait_for_workers),
        "Seconds to wait for missing workers before the run fails";
    "cluster.gather_for", at_least(0.0), |c| Value::Real(c.cluster.gather_for),
        "Seconds that a beginning waits for all --workers where --min-workers are there";
    "cluster.admit_after", at_least(0.0), |c| Value::Real(c.cluster.admit_after),
        "Least seconds of training before newcomers are let in";
    "cluster.ring_timeout", above(0.0), |c| Value::Real(c.cluster.ring_timeout),
        "Seconds without an answer after which a peer in the ring is lost";
    "cluster.reunite_for", above(0.0), |c| Value::Real(c.cluster.reunite_for),
        "Seconds that a restarted coordinator waits for the workers that trained on";
    "cluster.wait_for_coordinator", at_least(0.0), |c| Value::Real(c.cluster.wait_for_coordinator),
        "Seconds that a worker looks for its coordinator before it gives up";
    "cluster.drain_deadline", above(0.0), |c| Value::Real(c.cluster.drain_deadline),
        "Seconds in which a worker that is told to leave is gone, its state safe or not";
    "cluster.stop_deadline", above(0.0), |c| Value::Real(c.cluster.stop_deadline),
        "Seconds in which a run that is stopped has to have saved, before it ends without";
    "cluster.spares", Kind::Whole { min: 0, max: 65_535, optional: false }, |c| Value::Whole(c.cluster.spares.into()),
        "Workers beyond --workers that may join, to stand by";
    "cluster.stragglers", Kind::Choice(&["report", "drop", "replace"]), |c| text(match c.cluster.stragglers { Stragglers::Report => "report", Stragglers::Drop => "drop", Stragglers::Replace => "replace" }),
        "What is done about a rank that holds the others up, beside naming it";
    "cluster.straggler_factor", Kind::Real { min: 1.0, max: f64::INFINITY, above: true, below: false }, |c| Value::Real(c.cluster.straggler_factor),
        "How many times the median rank's own time of a step makes a rank slow";

    "util.print_freq", Kind::Whole { min: 1, max: i64::MAX, optional: false }, |c| large(c.util.print_freq),
        "Steps between log lines";
    "util.val_batch_size", count(1), |c| Value::Whole(c.util.val_batch_size.into()),
        "Images in one evaluation batch, all workers together";
    "util.test_only", Kind::Flag, |c| Value::Flag(c.util.test_only),
        "Evaluate test_weight_file on data_path/val, divided among the workers, and stop";
    "util.test_weight_file", Kind::Text, |c| text(&c.util.test_weight_file),
        "Weights that test_only evaluates, as the worker of rank 0 finds them";
    "util.record_samples", Kind::Flag, |c| Value::Flag(c.util.record_samples),
        "Write the ids of the samples that each worker trained on to samples/ in the run directory";
    "util.tensorboard", Kind::Flag, |c| Value::Flag(c.util.tensorboard),
        "Write event files for TensorBoard to tensorboard/ in the run directory";
    "util.log_images", Kind::Whole { min: 0, max: 99, optional: false }, |c| Value::Whole(c.util.log_images.into()),
        "Images whose crop, label map and target are drawn each epoch, to images/ in the run directory";
};
