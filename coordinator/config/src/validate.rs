//! What is wrong with a whole configuration: values out of range, keys that contradict each other, and what
//! this version cannot do yet. [`NOT_SUPPORTED_YET`] is the one place that knows the last.

use crate::{Config, Value, schema};

/// Why a configuration is refused. The message is one line; `keys` are the keys that it is about, so that a
/// caller who knows where their values came from can add it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    pub keys: Vec<&'static str>,
    pub message: String,
}

impl Invalid {
    fn new(keys: &[&'static str], message: impl Into<String>) -> Self {
        Self { keys: keys.to_vec(), message: message.into() }
    }
}

/// A feature: the keys that ask for it, whether they do, and its name.
type Feature = (&'static [&'static str], fn(&Config) -> bool, &'static str);

/// What the keys can say and the program cannot do yet. A line goes when its feature comes.
const NOT_SUPPORTED_YET: &[Feature] = &[
    (&["optim.optimizer"], |c| c.optim.optimizer == "adamp", "the AdamP optimizer"),
    (&["data.cutmix.prob"], |c| c.data.cutmix.prob > 0.0, "CutMix"),
    (&["optim.label_smoothing"], |c| c.optim.label_smoothing > 0.0, "label smoothing"),
    (
        &["optim.start_epoch"],
        |c| c.optim.start_epoch > 0,
        "starting at a later epoch, other than by --resume",
    ),
];

/// Checks every range and every combination of keys.
///
/// # Errors
/// The first thing that is wrong, in the order of the schema, then contradictions, then what is not supported.
pub fn validate(config: &Config) -> Result<(), Invalid> {
    for setting in schema() {
        let value = (setting.get)(config);
        if !setting.kind.admits(&value) {
            let message = format!("{} is {value}, but it takes {}", setting.key, setting.kind);
            return Err(Invalid::new(&[setting.key], message));
        }
    }
    contradiction(config).map_or(Ok(()), Err)?;
    for (keys, asks, feature) in NOT_SUPPORTED_YET {
        if asks(config) {
            let named: Vec<String> = keys.iter().map(|key| format!("{key} {}", value(config, key))).collect();
            return Err(Invalid::new(keys, format!("not supported yet: {feature} ({})", named.join(", "))));
        }
    }
    Ok(())
}

/// The value of a key of the schema.
fn value(config: &Config, key: &str) -> Value {
    schema().iter().find(|s| s.key == key).map_or(Value::None, |s| (s.get)(config))
}

/// The first contradiction between keys, if there is one.
fn contradiction(c: &Config) -> Option<Invalid> {
    if c.data.data_path.is_empty() {
        return Some(Invalid::new(
            &["data.data_path"],
            "data.data_path is empty: name the folder that holds train/ and val/, as in --data.data_path FOLDER",
        ));
    }
    if c.data.relabel.enabled && c.data.relabel.path.is_empty() && !c.util.test_only {
        return Some(Invalid::new(
            &["data.relabel.use", "data.relabel.path"],
            "data.relabel.use is True but data.relabel.path is not set: name the folder of label maps, \
             as in --data.relabel.path FOLDER, or train on class labels with --data.relabel.use False",
        ));
    }
    if c.optim.start_epoch >= c.optim.epochs {
        let message = format!(
            "optim.start_epoch {} leaves nothing to train: it has to be below optim.epochs {}",
            c.optim.start_epoch, c.optim.epochs
        );
        return Some(Invalid::new(&["optim.start_epoch", "optim.epochs"], message));
    }
    if c.optim.nesterov && c.optim.momentum == 0.0 && c.optim.optimizer == "sgd" {
        let message =
            "optim.nesterov is True but optim.momentum is 0: Nesterov's momentum needs a momentum above 0";
        return Some(Invalid::new(&["optim.nesterov", "optim.momentum"], message));
    }
    if c.data.cutmix.prob > 0.0 && c.data.cutmix.beta <= 0.0 {
        let message = format!(
            "data.cutmix.prob is {} but data.cutmix.beta is {}: CutMix needs a beta above 0",
            c.data.cutmix.prob, c.data.cutmix.beta
        );
        return Some(Invalid::new(&["data.cutmix.prob", "data.cutmix.beta"], message));
    }
    if c.util.test_only && c.util.test_weight_file.is_empty() {
        let message =
            "util.test_only is True but util.test_weight_file is not set: name the weights to evaluate";
        return Some(Invalid::new(&["util.test_only", "util.test_weight_file"], message));
    }
    if c.cluster.dead_after <= 2.0 * c.cluster.heartbeat {
        let message = format!(
            "cluster.dead_after {} is too short for cluster.heartbeat {}: it has to be more than twice as long, \
             or one late heartbeat loses a worker",
            c.cluster.dead_after, c.cluster.heartbeat
        );
        return Some(Invalid::new(&["cluster.dead_after", "cluster.heartbeat"], message));
    }
    None
}
