//! What stands for a worker's weights, and the files that they are saved in.

use std::path::Path;

use relabel_core::{Dataset, Generation, Position, StepReport};
use serde::{Deserialize, Serialize};

/// Of the run: its epochs, the images of one and of a step, and the steps of one.
pub const EPOCHS: u32 = 4;
pub const IMAGES: u64 = 96;
pub const BATCH: u32 = 8;
pub const STEPS: u64 = IMAGES / BATCH as u64;
pub const VALIDATION: u64 = 33;

/// The finalizer of splitmix64, over two numbers.
fn mix(a: u64, b: u64) -> u64 {
    let mut z = a ^ b.wrapping_mul(0xff51_afd7_ed55_8ccd);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The steps that made it, in their order: the same whatever ranks did them.
    pub steps: u64,
    /// Its bits: the sums of other ranks round otherwise, so two lines of generations never agree.
    pub bits: u64,
}

impl State {
    /// What every worker begins with.
    pub const BEGINNING: State = State { steps: 1, bits: 1 };

    pub fn after(self, step: Position, generation: Generation) -> Self {
        let code = u64::from(step.epoch) << 32 | step.step;
        Self { steps: mix(self.steps, code), bits: mix(mix(self.bits, code), generation.0) }
    }

    /// [`State::steps`] at `position` in a run that nothing disturbs.
    pub fn undisturbed(position: Position) -> u64 {
        let mut state = Self::BEGINNING;
        for epoch in 0..=position.epoch {
            let end = if epoch == position.epoch { position.step } else { STEPS };
            for step in 0..end {
                state = state.after(Position { epoch, step }, Generation(0));
            }
        }
        state.steps
    }
}

/// A checkpoint's file.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Saved {
    pub epoch: u32,
    pub step: u64,
    pub state: State,
}

impl Saved {
    /// Writes the file, atomically, and returns its size in bytes and its checksum.
    pub fn write(&self, path: &Path) -> std::io::Result<(u64, String)> {
        let text = serde_json::to_string(self)?;
        let temporary = path.with_extension("tmp");
        std::fs::write(&temporary, &text)?;
        std::fs::rename(&temporary, path)?;
        Ok((text.len() as u64, blake3::hash(text.as_bytes()).to_hex().to_string()))
    }

    /// Reads the file, if it is the one with that checksum.
    pub fn read(path: &Path, checksum: &str) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        let same = blake3::hash(text.as_bytes()).to_hex().as_str() == checksum;
        same.then(|| serde_json::from_str(&text).expect("a whole file"))
    }
}

/// What every worker sees.
pub fn dataset() -> Dataset {
    Dataset {
        train_samples: IMAGES,
        train_fingerprint: "train".into(),
        val_samples: VALIDATION,
        val_fingerprint: "val".into(),
        classes: 10,
    }
}

pub fn report(position: Position, duration: std::time::Duration) -> StepReport {
    StepReport {
        position,
        loss: 1.0,
        learning_rate: 0.1,
        samples: u64::from(BATCH),
        skipped: 0,
        duration,
        data_wait: std::time::Duration::ZERO,
        epoch_loss_sum: (position.step + 1) as f64 * f64::from(BATCH),
        epoch_samples: (position.step + 1) * u64::from(BATCH),
        loss_scale: None,
    }
}
