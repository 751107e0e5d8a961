//! The facts that outlive a coordinator, and what they amount to. The driver writes each into the
//! journal before it acts on what follows, and a restarted coordinator folds them back.

use serde::{Deserialize, Serialize};

use crate::{Dataset, Generation, Position, Restore, Written};

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
pub enum Fact {
    /// The run began, with the configuration (as JSON) and the seed that it keeps.
    Started { run_id: String, version: String, seed: u64, config: String },
    /// Another life of the coordinator took the run up.
    Resumed,
    /// A generation of so many ranks was told to form and to go on from here.
    Formed { generation: Generation, world: u32, position: Position },
    /// The workers agreed on what the data set is.
    Agreed { dataset: Dataset },
    /// A checkpoint can be resumed from.
    Committed { written: Written },
    /// These checkpoint files are to be removed, and not to be resumed from.
    Retired { files: Vec<String> },
    /// An epoch was validated.
    Validated { epoch: u32, top1: f64, top5: f64 },
    /// Nobody was left who held a state: what was done and validated after this position is done again.
    FellBack { position: Position },
    /// The checkpoint of this epoch, the best so far, went with its writer.
    BestLost { epoch: u32 },
    /// All epochs are done and saved.
    Finished,
}

/// What the facts so far amount to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// Lives of the coordinator after the first.
    pub resumed: u32,
    /// The last generation that was told to form, and its world size.
    pub generation: Generation,
    pub world: u32,
    pub dataset: Option<Dataset>,
    /// Checkpoints that can be resumed from, in the order of their positions.
    pub checkpoints: Vec<Written>,
    /// Whether there has ever been one.
    pub saved: bool,
    /// Top-1 of every validated epoch that the kept state can have come from, by epoch.
    pub validated: std::collections::BTreeMap<u32, f64>,
    pub finished: bool,
}

impl History {
    /// Folds the facts of a journal.
    pub fn replay<'a>(facts: impl IntoIterator<Item = &'a Fact>) -> Self {
        let mut history = Self::default();
        for fact in facts {
            history.apply(fact);
        }
        history
    }

    pub(crate) fn apply(&mut self, fact: &Fact) {
        match fact {
            Fact::Started { .. } => {}
            Fact::Resumed => self.resumed += 1,
            Fact::Formed { generation, world, .. } => {
                (self.generation, self.world) = (*generation, *world);
            }
            Fact::Agreed { dataset } => self.dataset = Some(dataset.clone()),
            Fact::Committed { written } => {
                // The same steps can be done and saved again after a fall back to an older file.
                self.checkpoints.retain(|old| old.file != written.file);
                // One that was ordered earlier may be written later, by another worker.
                let place = self.checkpoints.partition_point(|old| old.position <= written.position);
                self.checkpoints.insert(place, written.clone());
                self.saved = true;
            }
            Fact::Retired { files } => self.checkpoints.retain(|old| !files.contains(&old.file)),
            Fact::Validated { epoch, top1, .. } => {
                self.validated.insert(*epoch, *top1);
            }
            Fact::FellBack { position } => self.validated.retain(|epoch, _| *epoch < position.epoch),
            Fact::BestLost { epoch } => {
                self.validated.remove(epoch);
            }
            Fact::Finished => self.finished = true,
        }
    }

    /// The best validated epoch and its top-1; the earlier one of two equals.
    pub fn best(&self) -> Option<(u32, f64)> {
        self.validated.iter().fold(None, |best, (&epoch, &top1)| match best {
            Some((_, held)) if held >= top1 => best,
            _ => Some((epoch, top1)),
        })
    }

    /// The checkpoint to resume from: the one that is furthest.
    pub fn newest(&self) -> Option<&Written> {
        self.checkpoints.last()
    }
}

impl From<&Written> for Restore {
    fn from(written: &Written) -> Self {
        Restore { file: written.file.clone(), blake3: written.blake3.clone() }
    }
}
