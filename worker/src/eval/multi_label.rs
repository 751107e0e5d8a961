//! Multi-label accuracy after Shankar et al. 2020 ("Evaluating Machine Accuracy on ImageNet"), by
//! `human_accuracy_v3.0.0.json`, in the two ways that it is reported.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use relabel_core::evaluation::counts::MultiLabelCounts;
use serde::Deserialize;
use serde_json::Value;

use super::classes::Classes;

/// Why the annotations cannot be used. One line.
#[derive(Debug, thiserror::Error)]
pub enum MultiLabelError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: not the multi-label annotations (human_accuracy_v3.0.0.json): {reason}", path.display())]
    Format { path: PathBuf, reason: String },
    #[error("{}: {count} WordNet ids, none of which is one of the network's classes ({first}, ...): \
             name the classes with --classes FILE", path.display())]
    OtherClasses { path: PathBuf, count: usize, first: String },
}

/// As the file has it; keys that an image lacks are empty.
#[derive(Deserialize)]
struct File {
    initial_annots: BTreeMap<String, Annotation>,
    /// An object or a list, by file name.
    #[serde(default)]
    problematic_images: Value,
}

#[derive(Deserialize)]
struct Annotation {
    #[serde(default)]
    correct: Vec<String>,
    #[serde(default)]
    unclear: Vec<String>,
}

/// The annotated images that are not problematic, by file name, with class ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MultiLabel {
    images: BTreeMap<String, Labels>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Labels {
    correct: BTreeSet<u32>,
    unclear: BTreeSet<u32>,
}

impl MultiLabel {
    /// Reads annotations by WordNet id, for a network with these classes.
    ///
    /// # Errors
    /// An unreadable file, something else in it, or other classes.
    pub fn read(path: &Path, classes: &Classes) -> Result<Self, MultiLabelError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| MultiLabelError::Read { path: path.to_path_buf(), source })?;
        Self::parse(&text, path, classes)
    }

    pub(super) fn parse(text: &str, path: &Path, classes: &Classes) -> Result<Self, MultiLabelError> {
        let format = |reason| MultiLabelError::Format { path: path.to_path_buf(), reason };
        let file: File = serde_json::from_str(text).map_err(|error| format(error.to_string()))?;
        let problematic: BTreeSet<String> = match file.problematic_images {
            Value::Null => BTreeSet::new(),
            Value::Object(images) => images.into_iter().map(|(name, _)| name).collect(),
            Value::Array(images) => images.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            _ => return Err(format("problematic_images is neither an object nor a list".to_owned())),
        };
        let ids = classes.by_key();
        let mut named: BTreeSet<&str> = BTreeSet::new();
        let mut images = BTreeMap::new();
        for (name, annotation) in &file.initial_annots {
            named.extend(annotation.correct.iter().chain(&annotation.unclear).map(String::as_str));
            // A class that the network does not have is none of its answers.
            let known =
                |keys: &[String]| keys.iter().filter_map(|key| ids.get(key.as_str()).copied()).collect();
            let labels = Labels { correct: known(&annotation.correct), unclear: known(&annotation.unclear) };
            if !problematic.contains(name) {
                images.insert(name.clone(), labels);
            }
        }
        if let Some(first) = named.first().filter(|_| named.iter().all(|key| !ids.contains_key(key))) {
            let (path, first) = (path.to_path_buf(), (*first).to_owned());
            return Err(MultiLabelError::OtherClasses { path, count: named.len(), first });
        }
        Ok(Self { images })
    }

    /// Judges `answer`, the class id that was scored first for the image `file` of the original class
    /// `class`. An image without annotation or a problematic one is not counted.
    pub fn add(&self, counts: &mut MultiLabelCounts, file: &str, class: u32, answer: u32) {
        let Some(labels) = self.images.get(file) else { return };
        let correct = labels.correct.contains(&answer);
        counts.images += 1;
        counts.correct += u64::from(correct);
        let (images, right) = counts.by_class.entry(class).or_default();
        *images += 1;
        *right += u64::from(correct || labels.unclear.contains(&answer));
    }
}
