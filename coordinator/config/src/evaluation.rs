//! What is evaluated, how and on what: flags of `worker eval` and of `coordinator eval`, which sends them to its
//! workers. The network's are those of `worker predict` too.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;

use crate::{Precision, arch};

/// A network from a file of weights, and what is done to its images.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct NetworkOptions {
    /// Weights: a checkpoint of a run, .pth or .safetensors
    #[arg(long, value_name = "FILE")]
    pub weights: PathBuf,
    /// Architecture, as model.arch [default: what the file says]
    #[arg(long, value_name = "ARCH")]
    pub arch: Option<String>,
    /// The network's classes in their order: a file with one a line, a JSON class index, or the folder of training folders
    #[arg(long, value_name = "FILE|DIR")]
    pub classes: Option<PathBuf>,
    /// Side of the network's input in pixels, as data.image_size
    #[arg(long, value_name = "PIXELS", default_value_t = 224, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub image_size: u32,
    /// Side of the input over the short side that images are resized to, as data.crop_ratio
    #[arg(long, value_name = "RATIO", default_value_t = 0.875, value_parser = ratio)]
    pub crop_ratio: f64,
    /// Resize to the last bit of Pillow's arithmetic, as data.resize exact
    #[arg(long)]
    pub exact_resize: bool,
    /// Epsilon of BatchNorm, as optim.bn.eps [default: as a checkpoint says, else that of the architecture's
    /// published weights]
    #[arg(long, value_name = "EPS")]
    pub bn_eps: Option<f64>,
    /// Images in one forward pass
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub batch_size: u32,
    /// What convolutions and matrix products compute in
    #[arg(long, value_name = "P", value_enum, default_value_t)]
    pub precision: Precision,
}

/// The options of an evaluation.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct EvalOptions {
    #[command(flatten)]
    pub network: NetworkOptions,
    /// Sets: folders of class folders, data sets with val/, or ImageNet-C's; as NAME=DIR to be called so in the table
    #[arg(long = "data", visible_alias = "set", value_name = "[NAME=]DIR", num_args = 1.., required = true)]
    pub sets: Vec<NamedSet>,
    /// ReaL's labels (real.json), for the sets that hold ImageNet's validation images
    #[arg(long, value_name = "FILE")]
    pub real: Option<PathBuf>,
    /// Multi-label annotations (human_accuracy_v3.0.0.json), for the same sets
    #[arg(long, value_name = "FILE")]
    pub multi_label: Option<PathBuf>,
    // Kept in parts of a pixel's range.
    /// Accuracy under the fast gradient sign attack too, with this epsilon in 1/255 (more than one may be given)
    #[arg(long, value_name = "EPS", num_args = 1.., value_parser = epsilon)]
    pub fgsm: Vec<f64>,
    /// Errors that normalize the mean corruption error: JSON, by corruption [default: AlexNet's, as published]
    #[arg(long, value_name = "FILE")]
    pub corruption_baseline: Option<PathBuf>,
    /// Let all outputs of the network be answers on a set that has only some of its classes
    #[arg(long)]
    pub all_outputs: bool,
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if ratio > 0.0 && ratio <= 1.0 => Ok(ratio),
        _ => Err("a number above 0 and at most 1 is wanted".to_owned()),
    }
}

/// In 1/255, as it is usual to say; returned in parts of a pixel's range.
fn epsilon(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(epsilon) if epsilon > 0.0 && epsilon <= 255.0 => Ok(epsilon / 255.0),
        _ => Err("a number of 255ths above 0 and at most 255 is wanted".to_owned()),
    }
}

/// A set as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSet {
    /// What it is called in the report.
    pub name: String,
    pub dir: PathBuf,
}

impl FromStr for NamedSet {
    type Err = Infallible;

    /// Takes `NAME=DIR` apart, unless there is a folder of the whole name. A folder alone is called by its own name.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let (name, dir) = match text.split_once('=').filter(|_| !Path::new(text).is_dir()) {
            Some((name, dir)) if !name.is_empty() => (name.to_owned(), PathBuf::from(dir)),
            _ => {
                let dir = PathBuf::from(text);
                let name = std::path::absolute(&dir).ok();
                let name =
                    name.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
                (name.unwrap_or_else(|| text.to_owned()), dir)
            }
        };
        Ok(Self { name, dir })
    }
}

impl EvalOptions {
    /// The same with paths that mean the same in whatever folder a program runs.
    ///
    /// # Errors
    /// The current folder cannot be told.
    pub fn absolute(&self) -> std::io::Result<Self> {
        let absolute = |path: &PathBuf| std::path::absolute(path);
        let optional = |path: &Option<PathBuf>| path.as_ref().map(absolute).transpose();
        let set = |set: &NamedSet| Ok(NamedSet { name: set.name.clone(), dir: absolute(&set.dir)? });
        let network = &self.network;
        Ok(Self {
            network: NetworkOptions {
                weights: absolute(&network.weights)?,
                arch: network.arch.as_deref().map(arch::absolute).transpose()?,
                classes: optional(&network.classes)?,
                ..network.clone()
            },
            sets: self.sets.iter().map(set).collect::<std::io::Result<_>>()?,
            real: optional(&self.real)?,
            multi_label: optional(&self.multi_label)?,
            corruption_baseline: optional(&self.corruption_baseline)?,
            ..self.clone()
        })
    }

    /// The files and folders that workers read.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let Self { network: NetworkOptions { weights, classes, .. }, sets, real, multi_label, .. } = self;
        let optional = [classes, real, multi_label].into_iter().flatten();
        let sets = sets.iter().map(|set| &set.dir);
        std::iter::once(weights).chain(optional).chain(sets).map(PathBuf::as_path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    fn options(flags: &[&str]) -> EvalOptions {
        let command = EvalOptions::augment_args(clap::Command::new("eval").no_binary_name(true));
        EvalOptions::from_arg_matches(&command.get_matches_from(flags)).unwrap()
    }

    #[test]
    fn sets_have_the_names_that_they_are_given_or_that_of_their_folder() {
        let here = std::env::current_dir().unwrap();
        let named = |text: &str| {
            let NamedSet { name, dir } = text.parse().unwrap();
            (name, dir.display().to_string())
        };
        let own = here.file_name().unwrap().to_string_lossy().into_owned();
        for (text, name, dir) in [
            ("v2=a/b", "v2", "a/b"),
            ("v2=a=b", "v2", "a=b"),
            ("a/b", "b", "a/b"),
            ("a/b/", "b", "a/b/"),
            ("=b", "=b", "=b"),
            (".", own.as_str(), "."),
        ] {
            assert_eq!(named(text), (name.to_owned(), dir.to_owned()), "{text}");
        }
    }

    #[test]
    fn paths_become_absolute_and_nothing_else_changes() {
        let here = std::env::current_dir().unwrap();
        let flags = ["--weights", "w", "--arch", "script:s.pt", "--classes", "c", "--data", "d", "n=e"];
        let more = ["--real", "r", "--multi-label", "m", "--corruption-baseline", "b", "--fgsm", "8"];
        let given = options(&[&flags[..], &more].concat());
        let absolute = given.absolute().unwrap();
        let network = NetworkOptions {
            weights: here.join("w"),
            arch: Some(format!("script:{}", here.join("s.pt").display())),
            classes: Some(here.join("c")),
            ..given.network.clone()
        };
        let set = |name: &str, dir: &str| NamedSet { name: name.into(), dir: here.join(dir) };
        let wanted = EvalOptions {
            network,
            sets: vec![set("d", "d"), set("n", "e")],
            real: Some(here.join("r")),
            multi_label: Some(here.join("m")),
            corruption_baseline: Some(here.join("b")),
            ..given.clone()
        };
        assert_eq!(absolute, wanted);
        assert_eq!(given.fgsm, [8.0 / 255.0]);
        let named: Vec<_> = given.paths().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(named, ["w", "c", "r", "m", "d", "e"]);
    }
}
