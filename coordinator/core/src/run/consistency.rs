//! What is true of a run after every event, for tests: cheap enough to be looked at each time.

use super::{Phase, Run};

impl Run {
    /// # Panics
    /// If the run contradicts itself.
    pub(crate) fn check(&self) {
        let member = |id: &crate::WorkerId| self.members.get(*id).is_some();
        assert!(self.ring.keys().all(member), "the ring consists of members: {self:?}");
        assert!(self.duties.writers().iter().all(member), "who is to write is a member: {self:?}");
        assert!(self.formations.blamed.keys().all(member), "who is blamed is a member: {self:?}");
        let ranks: std::collections::BTreeSet<_> = self.ring.values().collect();
        assert_eq!(ranks.len(), self.ring.len(), "one worker a rank: {self:?}");
        match &self.phase {
            Phase::Gathering { asked, .. } => {
                assert!(asked.iter().all(member), "who is asked is a member: {self:?}")
            }
            Phase::Forming { waiting, .. } => {
                assert!(
                    !waiting.is_empty() && waiting.iter().all(|id| self.ring.contains_key(id)),
                    "{self:?}"
                );
                assert_eq!(self.reach(), self.ring.len(), "a generation that forms is whole: {self:?}");
            }
            Phase::Training { epoch, done } => {
                assert!(done.len() < self.ring.len(), "somebody is waited for: {self:?}");
                assert!(done.iter().all(|id| self.ring.contains_key(id)), "{self:?}");
                assert!(*epoch < self.settings.epochs, "{self:?}");
                assert_eq!(self.reach(), self.ring.len(), "a generation that trains is whole: {self:?}");
            }
            Phase::Validating(validation) => {
                assert!(validation.is_open(), "somebody is waited for: {self:?}");
                assert_eq!(self.reach(), self.ring.len(), "a generation that validates is whole: {self:?}");
            }
            Phase::Reuniting { .. } | Phase::Saving | Phase::Ended => {}
        }
    }

    pub(crate) fn is_generation(&self, generation: crate::Generation) -> bool {
        generation == self.generation
    }

    /// Ranks up to the highest that is there.
    fn reach(&self) -> usize {
        self.ring.values().max().map_or(0, |rank| rank.0 as usize + 1)
    }
}
