//! Gives every rank the state of the source: weights, buffers, their moving average, optimizer state, what the loss
//! is scaled by, and the epoch's sums.

use std::collections::BTreeMap;

use relabel_core::Rank;
use tch::Device;

use super::learner::Learner;
use super::loss_scale::LossScale;
use crate::checkpoint::{CheckpointError, Progress, State};
use crate::collective::{Collective, CollectiveError};
use crate::torch::{self, TorchError};

/// Why the state did not arrive. What the rank held, it still holds.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    #[error(transparent)]
    Restore(#[from] CheckpointError),
    #[error(transparent)]
    Torch(#[from] TorchError),
    #[error("the source sent {0}")]
    Nonsense(String),
}

impl TransferError {
    /// The rank that does not answer, if it is one.
    pub(super) fn blamed(&self) -> Option<Rank> {
        match self {
            Self::Collective(error) => error.blamed().map(Rank),
            _ => None,
        }
    }
}

/// Broadcasts the state from rank `source`, and returns what the others received; the learner stays as it
/// was. `tally` is given on the source and received on the others.
pub(super) fn share(
    learner: &Learner,
    tally: Tally,
    source: u32,
    ring: &mut dyn Collective,
) -> Result<(Tally, Option<State>), TransferError> {
    if ring.world() == 1 {
        return Ok((tally, None));
    }
    let mut header = tally.to_bytes();
    ring.broadcast(&mut header, source)?;
    let tally = Tally::from_bytes(header);
    // The names, shapes and order are the same everywhere; where the run stands is in the formation.
    let progress = Progress { epoch: 0, step: 0, seed: 0 };
    let mut state = learner.state(progress, Default::default());
    state.loss_scale = share_scale(state.loss_scale, source, ring)?;
    for (_, tensor) in state.tensors_mut() {
        let dense = tensor.detach().to_device(Device::Cpu).contiguous();
        let mut bytes = torch::as_bytes(&dense)?.to_vec();
        ring.broadcast(&mut bytes, source)?;
        *tensor = torch::from_bytes(&bytes, &dense.size(), dense.kind())?;
    }
    Ok((tally, (ring.rank() != source).then_some(state)))
}

/// The source's loss scale, or none.
fn share_scale(
    own: Option<LossScale>,
    source: u32,
    ring: &mut dyn Collective,
) -> Result<Option<LossScale>, TransferError> {
    // A scale of 0 stands for none.
    let (scale, steps) = own.map_or((0.0, 0), |own| (own.scale, own.good_steps));
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&f32::to_le_bytes(scale));
    bytes[4..].copy_from_slice(&u32::to_le_bytes(steps));
    ring.broadcast(&mut bytes, source)?;
    let [s0, s1, s2, s3, n0, n1, n2, n3] = bytes;
    let (scale, steps) = (f32::from_le_bytes([s0, s1, s2, s3]), u32::from_le_bytes([n0, n1, n2, n3]));
    match scale == 0.0 {
        true => Ok(None),
        false => LossScale::new(scale, steps).map(Some).map_err(TransferError::Nonsense),
    }
}

/// Sums since the epoch began; they are part of the state.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Tally {
    pub loss_sum: f64,
    pub samples: u64,
    /// Updates in a row that were left out because of a loss that was no number.
    pub left_out: u32,
}

const LOSS_SUM: &str = "epoch_loss_sum";
const SAMPLES: &str = "epoch_samples";
const LEFT_OUT: &str = "updates_left_out";

/// Bytes of a tally on the wire.
const BYTES: usize = 20;

impl Tally {
    /// Mean loss of the samples so far, if there are any.
    pub(super) fn mean(self) -> Option<f64> {
        (self.samples > 0).then(|| self.loss_sum / self.samples as f64)
    }

    fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&self.loss_sum.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.samples.to_le_bytes());
        bytes[16..].copy_from_slice(&self.left_out.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; BYTES]) -> Self {
        let (sum, rest) = bytes.split_at(8);
        let (samples, left_out) = rest.split_at(8);
        let eight = |part: &[u8]| part.try_into().unwrap_or([0; 8]);
        Self {
            loss_sum: f64::from_le_bytes(eight(sum)),
            samples: u64::from_le_bytes(eight(samples)),
            left_out: left_out.try_into().map_or(0, u32::from_le_bytes),
        }
    }

    /// As it stands in a checkpoint.
    pub(super) fn to_metadata(self) -> BTreeMap<String, String> {
        let entries = [
            (LOSS_SUM, self.loss_sum.to_string()),
            (SAMPLES, self.samples.to_string()),
            (LEFT_OUT, self.left_out.to_string()),
        ];
        entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
    }

    /// Zero where a checkpoint says nothing.
    pub(super) fn from_metadata(metadata: &BTreeMap<String, String>) -> Self {
        Self {
            loss_sum: metadata.get(LOSS_SUM).and_then(|text| text.parse().ok()).unwrap_or(0.0),
            samples: metadata.get(SAMPLES).and_then(|text| text.parse().ok()).unwrap_or(0),
            left_out: metadata.get(LEFT_OUT).and_then(|text| text.parse().ok()).unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::collective::tcp::tests::in_world;

    #[test]
    fn the_scale_is_the_sources_or_none() {
        let own = |rank| LossScale { scale: f32::exp2(rank as f32), good_steps: rank };
        let shared = in_world(3, |ring| share_scale(Some(own(ring.rank())), 2, ring).unwrap());
        assert_eq!(shared, [Some(own(2)); 3]);
        let shared = in_world(2, |ring| share_scale((ring.rank() == 1).then(|| own(1)), 0, ring).unwrap());
        assert_eq!(shared, [None; 2]);
    }
}
