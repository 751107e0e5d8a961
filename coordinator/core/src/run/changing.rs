//! Who trains may change while it goes on: newcomers are let in, those that have to go are let go, slow ranks are
//! named and, where that is wanted, dropped or replaced. For all of these the generation ends with a step that
//! every rank has taken, so that no work is lost.

use super::{Phase, Run};
use crate::membership::Member;
use crate::straggler::Verdict;
use crate::{Command, StragglerAction, ToWorker, WorkerId};

impl Run {
    /// A worker's host is wanted for something else.
    pub(super) fn wants_to_leave(&mut self, worker: WorkerId, reason: &str) {
        let Some(member) = self.members.get_mut(worker) else { return };
        if member.leaving.is_some() {
            return;
        }
        member.leaving = Some(reason.to_owned());
        let words = format!("{} is leaving ({reason})", self.describe(worker));
        self.let_go(worker, words);
    }

    /// Ends what `worker`, which is marked as leaving, takes part in.
    fn let_go(&mut self, worker: WorkerId, words: String) {
        let in_ring = self.ring.contains_key(&worker);
        match &self.phase {
            Phase::Training { .. } if in_ring => self.drain(words),
            Phase::Forming { .. } | Phase::Validating(_) if in_ring => {
                self.decide(words.clone());
                self.dissolve(words);
            }
            Phase::Reuniting { .. } if in_ring => self.end_reunion(words),
            Phase::Gathering { .. } => {
                self.decide(words);
                self.try_form();
            }
            Phase::Saving if !self.duties.is_empty() => self.note(words),
            Phase::Ended => {}
            _ => {
                self.note(words);
                self.let_go_from_outside(worker);
            }
        }
    }

    /// Releases `worker`, which is in no generation, unless something is lost with it: then what it holds is seen to
    /// when the next one is formed.
    pub(super) fn let_go_from_outside(&mut self, worker: WorkerId) {
        if !matches!(self.phase, Phase::Gathering { .. } | Phase::Ended) && self.is_safe_without(worker) {
            self.release(worker);
        }
    }

    fn is_unsettled(&self, worker: WorkerId) -> bool {
        self.members.get(worker).is_some_and(|m| m.unsettled)
    }

    /// Whether what `worker`, which is in no generation, holds is held by one of the generation as well, or saved.
    pub(super) fn is_safe_without(&self, worker: WorkerId) -> bool {
        let Some(member) = self.members.get(worker) else { return true };
        let Some(held) = member.held.filter(|held| *held > self.beginning()) else {
            return !member.unsettled;
        };
        let ring = self.ring.keys().filter_map(|id| self.members.get(*id)?.held).max();
        let saved = self.history.newest().map(|written| written.position);
        !member.unsettled && (ring >= Some(held) || saved >= Some(held))
    }

    /// Lets those go whose state is safe without them, and has the state of the others written. Returns whether that
    /// is done: before it is, nobody goes on from an older state.
    pub(super) fn release_those_that_leave(&mut self) -> bool {
        let leaving = |m: &Member| m.leaving.is_some() && !m.released;
        let leavers: Vec<_> =
            self.members.iter().filter(|(_, m)| leaving(m)).map(|(id, m)| (id, m.held)).collect();
        if leavers.is_empty() {
            return true;
        }
        let staying =
            self.members.iter().filter(|(_, m)| m.leaving.is_none()).filter_map(|(_, m)| m.held).max();
        let safe = staying.max(self.history.newest().map(|written| written.position));
        let beginning = self.beginning();
        let is_lost = |held: &Option<_>| held.is_some_and(|held| Some(held) > safe && held > beginning);
        let all_safe = !leavers.iter().any(|(_, held)| is_lost(held));
        for (worker, held) in leavers {
            if self.duties.burdens(worker, held) {
                continue;
            }
            match held.filter(|held| is_lost(&Some(*held))) {
                None => self.release(worker),
                // One of them is enough.
                Some(at) if !self.duties.writes(at) => drop(self.assign_to(worker, at)),
                Some(_) => {}
            }
        }
        all_safe
    }

    fn release(&mut self, worker: WorkerId) {
        if let Some(member) = self.members.get_mut(worker)
            && !member.released
        {
            member.released = true;
            let reason = member.leaving.clone().unwrap_or_default();
            self.send(worker, ToWorker::Release { reason });
        }
    }

    /// Ends the generation with the next step that all its ranks take.
    fn drain(&mut self, reason: String) {
        self.decide(reason.clone());
        let asked = self.those_to_ask();
        self.phase = Phase::Gathering { since: self.now, asked };
        self.send_ring(&ToWorker::Drain { generation: self.generation, reason });
    }

    /// A seat for one that comes back and holds a state: a worker that holds none, and does nothing yet, goes.
    pub(super) fn make_room(&mut self) {
        let idle = |id: WorkerId, m: &Member| m.held.is_none() && !self.ring.contains_key(&id);
        let last = self.members.by_rank().filter(|(id, m)| idle(*id, m)).last().map(|(id, _)| id);
        if let Some(worker) = last {
            let reason = "its seat is needed by a worker that has come back with the state".to_owned();
            self.command(Command::Expel { worker, reason: reason.clone(), back: true });
            self.lost(worker, &reason);
        }
    }

    /// Looks, while training, whether the generation should be another: newcomers that are ready, ranks that are slow.
    pub(super) fn consider_changes(&mut self) {
        self.save_if_time();
        let outside: Vec<_> =
            self.members.ids().into_iter().filter(|id| !self.ring.contains_key(id)).collect();
        if let Some(worker) =
            outside.into_iter().find(|id| !self.is_safe_without(*id) && !self.is_unsettled(*id))
        {
            return self.is_further(worker);
        }
        for verdict in self.stragglers.judge(self.now) {
            self.judged(&verdict);
        }
        if let Some(words) = self.change_due() {
            self.drain(words);
        }
    }

    /// Why the generation should be formed anew although nothing is wrong with it, if it should.
    pub(super) fn change_due(&self) -> Option<String> {
        let settled = self
            .formations
            .trained_at
            .is_some_and(|at| self.now.saturating_sub(at) >= self.settings.admit_after);
        if self.stopping.is_some() || !settled || self.ring.len() as u32 == self.members.len() {
            return None;
        }
        let waits = |id: &WorkerId, m: &Member| m.is_ready() && !self.ring.contains_key(id);
        let mut waiting = self.members.by_rank().filter(|(id, m)| waits(id, m) && !m.slow).map(|(_, m)| m);
        let (world, most) = (self.ring.len() as u32, self.settings.workers);
        if world < most {
            let first = waiting.next()?;
            let more = waiting.count();
            return Some(match more {
                0 => format!("{} joins the {world} that train", first.describe()),
                _ => format!("{} and {more} more join the {world} that train", first.describe()),
            });
        }
        if self.stragglers.policy().action != StragglerAction::Replace {
            return None;
        }
        let slow = self.ring.keys().filter_map(|id| self.members.get(*id)).find(|m| m.slow)?;
        let spare = waiting.next()?;
        Some(format!("{} takes the place of {}, which is slow", spare.describe(), slow.describe()))
    }

    fn judged(&mut self, verdict: &Verdict) {
        let Verdict { worker, slow, times, median } = *verdict;
        let Some(member) = self.members.get_mut(worker) else { return };
        member.slow = slow;
        let who = member.describe();
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        if !slow {
            return self.note(format!("{who} is as fast as the others again"));
        }
        let words = format!(
            "{who} is slow: {:.0} ms of its own a step ({:.0} ms of it waiting for data), where the median rank takes \
             {:.0} ms; the ring loses {:.0}% of its time to it",
            ms(times.own()),
            ms(times.data),
            ms(median),
            100.0 * times.lost
        );
        let enough = self.ring.len() as u32 > self.settings.min_workers;
        if self.stragglers.policy().action == StragglerAction::Drop && enough {
            if let Some(member) = self.members.get_mut(worker) {
                member.leaving = Some("it is too slow for the others".into());
            }
            return self.let_go(worker, format!("going on without a rank: {words}"));
        }
        self.warn(words);
    }
}
