//! The record of which samples were trained on, for those who want to see that each was seen once.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use relabel_core::{Generation, Position};

/// A text file of two lines a step: `begun generation epoch step id id id ...` before the ranks' gradients are summed,
/// `done generation epoch step` once the sum is applied. A step counts where any rank has done it, with the samples of
/// all ranks that had begun it in the same generation, those included that died before they could say more: their
/// gradients are in the sum. Of several generations that did a step the last one counts: the state of the others
/// went with their last worker.
pub struct SampleLog {
    path: PathBuf,
    file: BufWriter<File>,
}

impl SampleLog {
    /// Creates `folder/rank-<rank>-<process id>.txt`; every life of a rank has its own.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(folder: &Path, rank: u32) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join(format!("rank-{rank}-{}.txt", std::process::id()));
        let file = BufWriter::new(File::create(&path)?);
        Ok(Self { path, file })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Records the samples that this rank takes into a step. On the disk's side of this process when it returns, so
    /// that a killed worker has recorded what it did.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn begun(&mut self, generation: Generation, position: Position, samples: &[u32]) -> io::Result<()> {
        write!(self.file, "begun {generation} {} {}", position.epoch, position.step)?;
        for sample in samples {
            write!(self.file, " {sample}")?;
        }
        writeln!(self.file)?;
        self.file.flush()
    }

    /// Records that the step is part of the state.
    ///
    /// # Errors
    /// As [`Self::begun`].
    pub fn done(&mut self, generation: Generation, position: Position) -> io::Result<()> {
        writeln!(self.file, "done {generation} {} {}", position.epoch, position.step)?;
        self.file.flush()
    }
}
