//! What is wrong with a whole configuration: values out of range, and keys that contradict each other.

use crate::{Cluster, Config, OptimizerKind, schema};

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

/// Checks every range and every combination of keys.
///
/// # Errors
/// The first thing that is wrong, in the order of the schema, then contradictions.
pub fn validate(config: &Config) -> Result<(), Invalid> {
    for setting in schema() {
        let value = (setting.get)(config);
        if !setting.kind.admits(&value) {
            let message = format!("{} is {value}, but it takes {}", setting.key, setting.kind);
            return Err(Invalid::new(&[setting.key], message));
        }
    }
    contradiction(config).map_or(Ok(()), Err)
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
    if !c.checkpoint.upload.is_empty() && s3_folder(&c.checkpoint.upload).is_none() {
        let message = format!(
            "checkpoint.upload is {}, but it takes a folder of an object store, as s3://bucket/prefix, and no password: \
             that is taken from the environment",
            c.checkpoint.upload
        );
        return Some(Invalid::new(&["checkpoint.upload"], message));
    }
    if c.optim.start_epoch >= c.optim.epochs {
        let message = format!(
            "optim.start_epoch {} leaves nothing to train: it has to be below optim.epochs {}",
            c.optim.start_epoch, c.optim.epochs
        );
        return Some(Invalid::new(&["optim.start_epoch", "optim.epochs"], message));
    }
    if c.optim.nesterov && c.optim.momentum == 0.0 && c.optim.optimizer == OptimizerKind::Sgd {
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
    waiting(&c.cluster)
}

/// Times that contradict each other: what waits for something else has to wait longer than that takes.
fn waiting(cluster: &Cluster) -> Option<Invalid> {
    let rules: [(&'static str, f64, &'static str, f64, &str); 5] = [
        (
            "cluster.wait_for_workers",
            cluster.wait_for_workers,
            "cluster.dead_after",
            cluster.dead_after,
            "or the run fails before it is known who is missing",
        ),
        (
            "cluster.wait_for_workers",
            cluster.wait_for_workers,
            "cluster.gather_for",
            cluster.gather_for,
            "or the run fails while it waits for the rest of its workers",
        ),
        (
            "cluster.wait_for_workers",
            cluster.wait_for_workers,
            "cluster.ring_timeout",
            cluster.ring_timeout,
            "or the run fails while its ranks still look for each other",
        ),
        (
            "cluster.reunite_for",
            cluster.reunite_for,
            "cluster.dead_after",
            cluster.dead_after,
            "or a restarted coordinator gives up workers that are on their way back",
        ),
        (
            "cluster.wait_for_coordinator",
            cluster.wait_for_coordinator,
            "cluster.dead_after",
            cluster.dead_after,
            "or a worker gives up a coordinator that only pauses",
        ),
    ];
    rules.into_iter().find(|(_, longer, _, shorter, _)| longer < shorter).map(
        |(longer_key, longer, shorter_key, shorter, why)| {
            let message = format!(
                "{longer_key} {longer} is shorter than {shorter_key} {shorter}: it has to be at least as long, {why}"
            );
            Invalid::new(&[longer_key, shorter_key], message)
        },
    )
}

/// The bucket and the prefix of `s3://bucket/prefix`; the prefix may be empty. None for anything else: a user and
/// password in it too would end up in logs.
pub fn s3_folder(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("s3://")?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = prefix.trim_end_matches('/');
    let fits = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let whole = |part: &str| !part.is_empty() && part != "." && part != ".." && part.chars().all(fits);
    let named = whole(bucket) && (prefix.is_empty() || prefix.split('/').all(whole));
    named.then_some((bucket, prefix))
}
