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
        let places: std::collections::BTreeMap<_, _> =
            self.ring.iter().map(|(id, rank)| (*rank, *id)).collect();
        assert_eq!(places.len(), self.ring.len(), "one worker a rank: {self:?}");
        assert_eq!(places, self.places, "the ring by rank is the ring: {self:?}");
        let indexed = self.members.iter().filter(|(_, m)| m.dataset.is_some()).count();
        assert_eq!(self.members.count_indexed() as usize, indexed, "the indexed are counted: {self:?}");
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
        self.places.keys().next_back().map_or(0, |rank| rank.0 as usize + 1)
    }
}
