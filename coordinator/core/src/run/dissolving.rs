//! How a generation ends: a worker leaves its ring, or is lost, or all are told to leave; each says what it holds.

use std::collections::BTreeSet;

use super::{Phase, Run};
use crate::{Generation, Position, Rank, StepReport, ToWorker, WorkerId};

impl Run {
    /// A worker is out of the ring and says what it holds: because it was asked, or because its ring broke.
    pub(super) fn held(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        held: Option<Position>,
        steps: &[StepReport],
        reason: &str,
        blamed: Option<Rank>,
    ) {
        let current = generation == self.generation;
        if !current || !self.ring.contains_key(&worker) {
            // It has left a ring of long ago; what it holds may still be of use.
            if let Some(member) = self.members.get_mut(worker)
                && !self.ring.contains_key(&worker)
            {
                (member.held, member.in_line, member.unsettled) = (held, false, false);
                self.has_answered(worker);
                self.is_further(worker);
            }
            return;
        }
        self.hear(steps);
        if let Some(member) = self.members.get_mut(worker) {
            member.held = held;
            member.in_line &= held.is_some();
        }
        self.blame(blamed);
        let words = format!("{} left the ring: {reason}", self.describe(worker));
        match &self.phase {
            Phase::Gathering { .. } => {}
            Phase::Forming { .. } => {
                if !self.formation_failed(&words) {
                    return;
                }
                self.regroup(words);
            }
            Phase::Reuniting { .. } => {
                self.decide(words.clone());
                self.dissolve(words);
            }
            _ => self.regroup(words),
        }
        self.has_answered(worker);
    }

    /// A worker is back, outside of the generation: where it holds more than the others, they go on from there; where it
    /// was to leave, it may.
    pub(super) fn is_further(&mut self, worker: WorkerId) {
        let Some(member) = self.members.get(worker) else { return };
        let leaving = member.leaving.is_some();
        let at_work =
            matches!(self.phase, Phase::Forming { .. } | Phase::Training { .. } | Phase::Validating(_));
        let lost = !member.unsettled && !self.is_safe_without(worker);
        if at_work && self.stopping.is_none() && lost {
            let words = format!("{} is back, and has gone further than the others", member.describe());
            self.decide(words.clone());
            self.dissolve(words);
        } else if leaving {
            self.let_go_from_outside(worker);
        }
    }

    /// One of those that were asked has said what it holds.
    fn has_answered(&mut self, worker: WorkerId) {
        if let Phase::Gathering { asked, .. } = &mut self.phase
            && asked.remove(&worker)
        {
            self.stop_when_saved();
            self.try_form();
        }
    }

    /// The ranks of the generation that ends, and whoever has not yet said what it holds.
    pub(super) fn those_to_ask(&self) -> BTreeSet<WorkerId> {
        let unsettled = self.members.iter().filter(|(_, m)| m.unsettled).map(|(id, _)| id);
        self.ring.keys().copied().chain(unsettled).collect()
    }

    /// Ends the generation after a loss: everybody is told to leave the ring and asked what they hold.
    pub(super) fn regroup(&mut self, reason: String) {
        let left = self.members.iter().filter(|(_, m)| m.leaving.is_none()).count() as u32;
        self.decide_after_a_loss(match left < self.settings.min_workers {
            true => {
                let missing =
                    self.members.missing(self.settings.workers).unwrap_or_else(|| "a worker".into());
                format!("{reason}; waiting for {missing}")
            }
            false => reason.clone(),
        });
        self.dissolve(reason);
        // Nobody may be left to be asked.
        self.try_form();
    }

    /// Has every rank leave the ring and say what it holds.
    pub(super) fn dissolve(&mut self, reason: String) {
        let asked: BTreeSet<_> = self.ring.keys().copied().collect();
        self.tell_to_leave(&asked, &reason);
        self.phase = Phase::Gathering { since: self.now, asked: self.those_to_ask() };
        self.reason = reason;
    }

    /// Once a generation: when many are lost together, the rest are not told again for each of them.
    pub(super) fn tell_to_leave(&mut self, ranks: &BTreeSet<WorkerId>, reason: &str) {
        if std::mem::replace(&mut self.formations.dissolved, self.generation) == self.generation {
            return;
        }
        for worker in ranks {
            let (generation, reason) = (self.generation, reason.to_owned());
            self.send(*worker, ToWorker::Dissolve { generation, reason });
        }
    }
}
