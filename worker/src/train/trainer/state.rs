//! The state that a rank trains on: where it comes from, and its copies that are written.

use std::path::Path;
use std::time::Instant;

use relabel_core::{Position, Rank};

use super::{Duty, TrainError, Trainer};
use crate::checkpoint::{self, CheckpointError, Progress, Remote};
use crate::collective::Collective;
use crate::optim::schedule;
use crate::train::saver::Save;
use crate::train::transfer::{self, Tally, TransferError};
use crate::weights::{self, Head, SgdNotes};

impl Trainer<'_> {
    /// Has the state go round from rank `source`.
    pub(super) fn take_state(
        &mut self,
        source: Rank,
        ring: &mut dyn Collective,
    ) -> Result<(), TransferError> {
        let (tally, state) = transfer::share(&self.learner, self.tally, source.0, ring)?;
        if let Some(state) = state {
            // From here on it is neither the old state nor the new.
            self.hold(None);
            self.learner.restore(&state)?;
        }
        self.tally = tally;
        Ok(())
    }

    /// Takes the state of `position` out of a checkpoint, which may have to come from the object store.
    pub(super) fn restore(
        &mut self,
        folder: &Path,
        file: &str,
        blake3: &str,
        position: Position,
    ) -> Result<(), CheckpointError> {
        let path = folder.join(file);
        let state =
            match (checkpoint::load_verified(&path, blake3), Remote::of(&self.setup.config.checkpoint)?) {
                (Err(here), Some(remote)) if here.may_be_elsewhere() => {
                    tracing::info!("{here}; fetching {file} from the object store");
                    remote.fetch(folder, file, blake3)?;
                    checkpoint::load_verified(&path, blake3)?
                }
                (loaded, _) => loaded?,
            };
        self.learner.restore(&state)?;
        self.tally = Tally::from_metadata(&state.metadata);
        tracing::info!("restored {file}, {position}");
        Ok(())
    }

    /// A fresh start begins with the weights of `model.pretrained`, if it is set, of which a classifier of other
    /// classes stays as it was initialized; an evaluation with those of `util.test_weight_file`. The other ranks are
    /// given the source's state and need no file.
    pub(super) fn start_from_weights(&mut self) -> Result<(), TrainError> {
        let config = &self.setup.config;
        if config.util.test_only {
            let loaded = weights::read(Path::new(&config.util.test_weight_file))
                .and_then(|weights| weights::load(&mut self.learner.model, &weights, Head::Strict));
            tracing::info!("{}", loaded.map_err(TrainError::Tested)?);
        } else if !config.model.pretrained.is_empty() {
            let loaded = weights::read(Path::new(&config.model.pretrained))
                .and_then(|weights| self.learner.start_from(&weights));
            tracing::info!("{}", loaded.map_err(TrainError::Pretrained)?);
        }
        Ok(())
    }

    /// Carries out the duties whose step boundary has come. Copying and writing are the saver's.
    pub(super) fn do_duties(&mut self) -> Result<(), TrainError> {
        let Some(held) = self.held else { return Ok(()) };
        let end = self.steps_per_epoch();
        // The end of an epoch may be saved as the beginning of the next.
        let turns = |at: Position| held.step == end && at == Position { epoch: held.epoch + 1, step: 0 };
        let due = |duty: &Duty| held >= duty.at || turns(duty.at);
        // A later order may come due before an earlier one: a stop does not wait for the next checkpoint.
        while let Some(duty) = self.duties.iter().position(due).and_then(|next| self.duties.remove(next)) {
            let (position, tally) = match held >= duty.at {
                true => (held, self.tally),
                false => (duty.at, Tally::default()),
            };
            let seed = self.setup.config.compute.seed;
            let progress = Progress { epoch: position.epoch, step: position.step, seed };
            let mut metadata = tally.to_metadata();
            metadata.extend(duty.top1.map(|top1| ("top1".to_string(), top1.to_string())));
            let optim = &self.setup.config.optim;
            let lr = schedule::lr(optim, position.epoch, position.step, end);
            metadata.extend(SgdNotes::of(optim, lr).map(SgdNotes::to_metadata).unwrap_or_default());
            metadata.insert(weights::BN_EPS.to_string(), self.learner.model.batch_norm().eps.to_string());
            let began = Instant::now();
            let state = self.learner.state(progress, metadata);
            let save = Save { duty: duty.id, state, position, best: duty.best };
            self.learner.is_copied(self.saver.save(save).map_err(TrainError::Saver)?);
            tracing::debug!("the copy of the state of {position} was begun within {:.2?}", began.elapsed());
        }
        Ok(())
    }
}
