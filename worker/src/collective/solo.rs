//! The collective of a world of one.

use super::{AbortHandle, Collective, CollectiveError};

/// A world of one rank: nothing has to be sent, and sums are what they were.
#[derive(Debug, Default)]
pub struct Solo {
    abort: AbortHandle,
}

impl Solo {
    /// A collective whose calls end when `abort` is used, like those of any other.
    pub fn new(abort: AbortHandle) -> Self {
        Self { abort }
    }
}

impl Collective for Solo {
    fn rank(&self) -> u32 {
        0
    }

    fn world(&self) -> u32 {
        1
    }

    fn all_reduce(&mut self, _values: &mut [f32]) -> Result<(), CollectiveError> {
        self.abort.check()
    }

    fn all_reduce_bf16(&mut self, _values: &mut [f32]) -> Result<(), CollectiveError> {
        self.abort.check()
    }

    fn broadcast(&mut self, _bytes: &mut [u8], root: u32) -> Result<(), CollectiveError> {
        if root != 0 {
            return Err(CollectiveError::Invalid(format!("broadcast from rank {root} in a world of 1")));
        }
        self.abort.check()
    }

    fn all_gather(&mut self, _slots: &mut [u8]) -> Result<(), CollectiveError> {
        self.abort.check()
    }

    fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_world_of_one_changes_nothing_until_it_is_aborted() {
        let mut solo = Solo::default();
        let mut values = [1.5, -2.0];
        solo.all_reduce(&mut values).unwrap();
        solo.barrier().unwrap();
        assert_eq!(values, [1.5, -2.0]);
        assert!(matches!(solo.broadcast(&mut [0], 1), Err(CollectiveError::Invalid(_))));

        solo.abort_handle().abort("stopped");
        assert!(matches!(solo.all_reduce(&mut values), Err(CollectiveError::Aborted { .. })));
    }
}
