//! The record of which samples were trained on, for those who want to see that each was seen once.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use relabel_core::Position;

/// A text file of one line a step: `epoch step id id id ...`, written after the step is applied.
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

    /// Records a step's samples. On the disk's side of this process when it returns, so that a killed
    /// worker has recorded what it did.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&mut self, position: Position, samples: &[u32]) -> io::Result<()> {
        write!(self.file, "{} {}", position.epoch, position.step)?;
        for sample in samples {
            write!(self.file, " {sample}")?;
        }
        writeln!(self.file)?;
        self.file.flush()
    }
}
