//! What label maps are made of and with: flags of `worker label` and of `coordinator label`, which sends them to its
//! workers.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{Precision, arch};

/// The options of a labelling.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct LabelOptions {
    /// Data set whose training images (DIR/train) get maps, or a folder of class folders
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Folder for the maps, CLASS/IMAGE.pt; go on in it after an interruption with the same command
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Trained weights of the annotator: .pth, .safetensors or a checkpoint
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// The annotator: an architecture as in model.arch, or script:FILE, a TorchScript module that gives the
    /// feature map [B, C, h, w] of images (with --head) or the scores [B, classes, h, w] themselves
    #[arg(long, value_name = "ARCH")]
    pub arch: String,
    /// Weights with the fully connected layer for the feature map of script:FILE
    #[arg(long, value_name = "FILE")]
    pub head: Option<PathBuf>,
    /// Side in pixels that images are squashed to [default: 475, or 32 for each cell of --map]
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(32..=4096))]
    pub size: Option<u32>,
    /// Cells along a side of the map [default: as --size gives]
    #[arg(long, value_name = "CELLS", value_parser = clap::value_parser!(u32).range(1..=128))]
    pub map: Option<u32>,
    /// Classes kept a cell; all of them where the annotator has fewer
    #[arg(long, default_value_t = 5, value_name = "K", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub top_k: u16,
    /// Images in one forward pass
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub batch: u16,
    /// Write float16: half the size, logits rounded to 11 bits
    #[arg(long)]
    pub half: bool,
    /// What the network's convolutions compute in; scores are float32
    #[arg(long, value_name = "P", value_enum, default_value_t)]
    pub precision: Precision,
}

impl LabelOptions {
    /// The same with paths that mean the same in whatever folder a program runs.
    ///
    /// # Errors
    /// The current folder cannot be told.
    pub fn absolute(&self) -> std::io::Result<Self> {
        let absolute = |path: &PathBuf| std::path::absolute(path);
        Ok(Self {
            data: absolute(&self.data)?,
            out: absolute(&self.out)?,
            weights: self.weights.as_ref().map(absolute).transpose()?,
            head: self.head.as_ref().map(absolute).transpose()?,
            arch: arch::absolute(&self.arch)?,
            ..self.clone()
        })
    }

    /// The files and folders that workers read and write.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let Self { data, out, weights, head, .. } = self;
        [Some(data), Some(out), weights.as_ref(), head.as_ref()].into_iter().flatten().map(PathBuf::as_path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    fn options(flags: &[&str]) -> LabelOptions {
        let command = LabelOptions::augment_args(clap::Command::new("label").no_binary_name(true));
        LabelOptions::from_arg_matches(&command.get_matches_from(flags)).unwrap()
    }

    #[test]
    fn paths_become_absolute_and_nothing_else_changes() {
        let here = std::env::current_dir().unwrap();
        let given = options(&["--data", "d", "--out", "/o", "--arch", "script:s.pt", "--head", "h"]);
        let absolute = given.absolute().unwrap();
        let wanted = LabelOptions {
            data: here.join("d"),
            arch: format!("script:{}", here.join("s.pt").display()),
            head: Some(here.join("h")),
            ..given.clone()
        };
        assert_eq!(absolute, wanted);
        let network = options(&["--data", "/d", "--out", "/o", "--arch", "resnet18", "--weights", "/w"]);
        assert_eq!(network.absolute().unwrap(), network);
    }
}
