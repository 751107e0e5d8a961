//! The values that several messages carry, and what a peer may have made of them.

use std::time::Duration;

use relabel_core as core;
use relabel_core::{Generation, Position, Rank};

use crate::text::name;
use crate::v1;

/// A message that does not make sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("the message {0} lacks its content")]
    Empty(&'static str),
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{field} is {value}, which is out of range")]
    Range { field: &'static str, value: String },
    #[error("{0} came where it does not belong")]
    Unexpected(&'static str),
}

pub(crate) fn required<T>(value: Option<T>, field: &'static str) -> Result<T, Invalid> {
    value.ok_or(Invalid::Missing(field))
}

pub(crate) fn duration(seconds: f64, field: &'static str) -> Result<Duration, Invalid> {
    Duration::try_from_secs_f64(seconds).map_err(|_| Invalid::Range { field, value: seconds.to_string() })
}

pub(crate) fn ordered<T: PartialOrd + ToString>(
    first: T,
    end: T,
    field: &'static str,
) -> Result<std::ops::Range<T>, Invalid> {
    if first > end {
        return Err(Invalid::Range { field, value: format!("{}..{}", first.to_string(), end.to_string()) });
    }
    Ok(first..end)
}

impl TryFrom<v1::Standing> for core::Standing {
    type Error = Invalid;

    fn try_from(m: v1::Standing) -> Result<Self, Invalid> {
        if m.rank >= m.world {
            return Err(Invalid::Range { field: "Standing.rank", value: m.rank.to_string() });
        }
        Ok(core::Standing {
            run_id: name(m.run_id, "Standing.run_id")?,
            generation: Generation(m.generation),
            rank: Rank(m.rank),
            world: m.world,
            in_ring: m.in_ring,
            held: m.held.map(Into::into),
        })
    }
}

impl From<core::Standing> for v1::Standing {
    fn from(s: core::Standing) -> Self {
        v1::Standing {
            run_id: s.run_id,
            generation: s.generation.0,
            rank: s.rank.0,
            world: s.world,
            in_ring: s.in_ring,
            held: s.held.map(Into::into),
        }
    }
}

impl From<v1::Position> for Position {
    fn from(p: v1::Position) -> Self {
        Position { epoch: p.epoch, step: p.step }
    }
}

impl From<Position> for v1::Position {
    fn from(p: Position) -> Self {
        v1::Position { epoch: p.epoch, step: p.step }
    }
}

impl TryFrom<v1::StepReport> for core::StepReport {
    type Error = Invalid;

    fn try_from(m: v1::StepReport) -> Result<Self, Invalid> {
        Ok(core::StepReport {
            position: required(m.position, "StepReport.position")?.into(),
            loss: m.loss,
            learning_rate: m.learning_rate,
            samples: m.samples,
            skipped: m.skipped,
            duration: duration(m.duration, "StepReport.duration")?,
            data_wait: duration(m.data_wait, "StepReport.data_wait")?,
            epoch_loss_sum: m.epoch_loss_sum,
            epoch_samples: m.epoch_samples,
            loss_scale: m.loss_scale,
        })
    }
}

impl From<core::StepReport> for v1::StepReport {
    fn from(s: core::StepReport) -> Self {
        v1::StepReport {
            position: Some(s.position.into()),
            loss: s.loss,
            learning_rate: s.learning_rate,
            samples: s.samples,
            skipped: s.skipped,
            duration: s.duration.as_secs_f64(),
            data_wait: s.data_wait.as_secs_f64(),
            epoch_loss_sum: s.epoch_loss_sum,
            epoch_samples: s.epoch_samples,
            loss_scale: s.loss_scale,
        }
    }
}
