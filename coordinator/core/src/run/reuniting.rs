//! A coordinator that was away: its workers trained on, and come back one by one. The cheapest way to go on is to
//! change nothing: where all ranks of the generation are back and their ring stands, it is taken up as it is.

use std::collections::BTreeSet;

use super::{Phase, Run};
use crate::{Observation, Position, Standing, ToWorker, WorkerId};

impl Run {
    /// A worker that has been here before has taken a seat.
    pub(super) fn is_back(&mut self, worker: WorkerId, standing: &Standing) {
        let Phase::Reuniting { world, .. } = self.phase else { return self.settle(worker) };
        let taken = self.places.contains_key(&standing.rank);
        if standing.generation != self.generation
            || standing.world != world
            || taken
            || standing.rank.0 >= world
        {
            return self.settle(worker);
        }
        if !standing.in_ring {
            let who = self.describe(worker);
            self.settle(worker);
            return self
                .end_reunion(format!("the ring broke while the coordinator was away: {who} has left it"));
        }
        if let Some(member) = self.members.get_mut(worker) {
            member.in_line = standing.held.is_some();
        }
        self.ring.insert(worker, standing.rank);
        self.places.insert(standing.rank, worker);
        if self.places.len() as u32 == world {
            self.take_up();
        }
    }

    /// Has a worker that is back leave what it is in, and asks what it holds: since it said so it may have trained on, or
    /// followed an order of before.
    fn settle(&mut self, worker: WorkerId) {
        let Some(member) = self.members.get_mut(worker) else { return };
        member.unsettled = true;
        if let Phase::Gathering { asked, .. } = &mut self.phase {
            asked.insert(worker);
        }
        let (generation, reason) = (self.generation, "the others have gone on without it".into());
        self.send(worker, ToWorker::Dissolve { generation, reason });
    }

    /// All are back and their ring stands: it is as if nothing had been.
    fn take_up(&mut self) {
        let generation = self.generation;
        let held: Vec<_> =
            self.ring.keys().filter_map(|id| Some((*id, self.members.get(*id)?.held?))).collect();
        let Some(furthest) = held.iter().map(|(_, at)| *at).max() else {
            return self.end_reunion("no rank holds a state".into());
        };
        self.decide(format!(
            "going on as before: all {} workers of generation {generation} trained on, to {furthest}, while the \
             coordinator was away",
            held.len()
        ));
        self.formations.trained_at = Some(self.now);
        self.epoch_began = self.now;
        self.show_heard();
        let Position { epoch, step } = furthest;
        if epoch >= self.settings.epochs {
            return self.save_and_finish();
        }
        let next = self.next_to_show(furthest);
        if next != furthest || self.settings.test_only {
            self.observe(Observation::Started { position: next });
            self.shown = Some(furthest);
            return self.begin_at_the_end(epoch);
        }
        if step >= self.steps_per_epoch() && self.shown.is_none() {
            self.observe(Observation::Started { position: furthest });
        }
        // Those at the end of the epoch say so once more, and what its steps were like.
        self.phase = Phase::Training { epoch, done: BTreeSet::new() };
        self.assign_within_epoch(furthest);
        for (worker, at) in held {
            // Whoever trains already does not heed it; whoever missed the order gets it now.
            let first_step = if at.epoch == epoch { at.step } else { 0 };
            self.send(worker, ToWorker::Train { generation, epoch, first_step });
        }
    }

    /// The generation cannot be taken up as it is: those that are back leave their ring, and another is formed.
    pub(super) fn end_reunion(&mut self, reason: String) {
        self.decide(reason.clone());
        self.dissolve(reason);
        self.try_form();
    }

    pub(super) fn waited_for_reunion(&mut self) {
        let Phase::Reuniting { world, .. } = self.phase else { return };
        let (back, seconds) = (self.ring.len(), self.settings.reunite_for.as_secs_f64());
        self.end_reunion(match back {
            0 => format!(
                "no worker of generation {} has come back within {seconds:.0} s (cluster.reunite_for)",
                self.generation
            ),
            _ => format!(
                "{back} of the {world} workers of generation {} have come back within {seconds:.0} s \
                 (cluster.reunite_for)",
                self.generation
            ),
        });
    }

    /// Nobody is left who could come back: every seat is taken by a worker that begins anew.
    pub(super) fn reunion_is_hopeless(&self) -> bool {
        if !matches!(self.phase, Phase::Reuniting { .. })
            || self.members.count_indexed() < self.settings.workers
        {
            return false;
        }
        let anew = self.members.iter().filter(|(_, m)| m.is_ready() && m.hello.standing.is_none()).count();
        anew as u32 >= self.settings.workers
    }
}
