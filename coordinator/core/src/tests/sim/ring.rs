//! The rings of the generations, after `worker/src/collective/tcp`: neighbours that find each other or do not, an
//! operation that ends once all ranks have come to it, failures that spread, and the rank that is to blame.

use super::trainer::{Pending, Work};
use super::world::World;
use super::*;

/// `cluster.ring_timeout`, and how long the ranks look for each other, in milliseconds.
const PEER: u64 = 2000;
pub(super) const FORM: u64 = 5000;

pub(super) struct Ring {
    /// Who has come, by rank.
    joined: Vec<Option<u64>>,
    /// Whether a rank has closed its connections.
    left: Vec<bool>,
    /// Whether rank r has ever been connected to the next one.
    linked: Vec<bool>,
    /// Operations that a rank has begun.
    begun: Vec<u64>,
    /// The first of them gives every rank the state of this one.
    source: Option<usize>,
    pub shared: Option<State>,
    /// By operation: where the step is, whether a rank wants to leave after it, and the state that it leads to.
    pub steps: BTreeMap<u64, (Position, bool, Option<State>)>,
}

use std::collections::BTreeMap;

impl World {
    /// A rank looks for its neighbours.
    pub fn join_ring(&mut self, id: u64, formation: &Formation) {
        let world = formation.world as usize;
        let ring = self.rings.entry(formation.generation).or_insert_with(|| Ring {
            joined: vec![None; world],
            left: vec![false; world],
            linked: vec![false; world],
            begun: vec![0; world],
            source: formation.transfer.then_some(formation.source.0 as usize),
            shared: None,
            steps: BTreeMap::new(),
        });
        let place = &mut ring.joined[formation.rank.0 as usize];
        assert_eq!(*place, None, "seed {}: one worker a rank", self.seed);
        *place = Some(id);
        self.ring_changed(formation.generation);
    }

    /// A rank begins its next operation; returns its number, from 1.
    pub fn begin_operation(&mut self, generation: Generation, rank: Rank) -> u64 {
        let ring = self.rings.get_mut(&generation).expect("a ring that was joined");
        let begun = &mut ring.begun[rank.0 as usize];
        *begun += 1;
        *begun
    }

    /// The worker is in no ring any more: its neighbours' connections close.
    pub fn left_ring(&mut self, id: u64) {
        let worker = self.worker(id);
        worker.member = false;
        let Some(formation) = worker.formation.take() else { return };
        if let Some(ring) = self.rings.get_mut(&formation.generation)
            && ring.joined[formation.rank.0 as usize] == Some(id)
        {
            ring.left[formation.rank.0 as usize] = true;
            self.ring_changed(formation.generation);
        }
    }

    pub fn rings_changed(&mut self) {
        for generation in self.rings.keys().copied().collect::<Vec<_>>() {
            self.ring_changed(generation);
        }
    }

    pub fn ring_changed_for(&mut self, id: u64) {
        let generation = self.worker(id).generation;
        if self.rings.contains_key(&generation) {
            self.ring_changed(generation);
        }
        self.look_at_ring(id);
    }

    /// Nothing passes between two workers: their hosts are cut off from each other, or one is gone.
    fn is_silent(&self, a: u64, b: u64) -> bool {
        let gone = |id: &u64| self.workers.get(id).is_some_and(|worker| worker.dead);
        self.is_cut(a, b) || gone(&a) || gone(&b)
    }

    fn ring_changed(&mut self, generation: Generation) {
        let Some(ring) = self.rings.get(&generation) else { return };
        let world = ring.joined.len();
        let looking = |id: &u64| {
            self.workers.get(id).is_some_and(|worker| matches!(worker.work, Work::Joining) && !worker.frozen)
        };
        let mut linked = ring.linked.clone();
        for (rank, linked) in linked.iter_mut().enumerate() {
            let next = (rank + 1) % world;
            let (Some(a), Some(b)) = (ring.joined[rank], ring.joined[next]) else { continue };
            let here = !ring.left[rank] && !ring.left[next];
            *linked |= here && looking(&a) && looking(&b) && !self.is_silent(a, b);
        }
        let members = ring.joined.clone();
        if let Some(ring) = self.rings.get_mut(&generation) {
            ring.linked = linked;
        }
        for id in members.into_iter().flatten() {
            self.look_at_ring(id);
        }
    }

    /// What a rank that waits in its ring is going to find.
    pub fn look_at_ring(&mut self, id: u64) {
        let Some(worker) = self.workers.get(&id) else { return };
        let waits = matches!(worker.work, Work::Joining | Work::Sharing | Work::InStep);
        let (Some(formation), true) = (&worker.formation, waits && !worker.dead) else { return };
        let (generation, rank) = (formation.generation, formation.rank.0 as usize);
        let pending = worker.pending;
        if matches!(pending, Some(Pending::Aborted | Pending::Lost)) {
            return;
        }
        if worker.aborted {
            return self.wait(id, Pending::Aborted, 1);
        }
        let Some(ring) = self.rings.get(&generation) else { return };
        let world = ring.joined.len();
        let previous = (rank + world - 1) % world;
        if matches!(worker.work, Work::Joining) {
            if pending == Some(Pending::NotFormed) && ring.linked[rank] && ring.linked[previous] {
                let delay = self.rng.between(1, 30);
                self.wait(id, Pending::Joined, delay);
            }
            return;
        }
        let left = ring.left.iter().any(|left| *left);
        let complete = ring.is_complete(rank);
        let silent = ring.joined[previous].is_some_and(|peer| self.is_silent(peer, id));
        let broken = (0..world).any(|r| {
            let (a, b) = (ring.joined[r], ring.joined[(r + 1) % world]);
            a.zip(b).is_some_and(|(a, b)| self.is_silent(a, b))
        });
        match pending {
            // It may have been through before the others were gone.
            Some(Pending::Done) if (left || broken) && self.rng.one_in(2) => {
                let delay = self.rng.between(1, 30);
                self.wait(id, Pending::Lost, delay);
            }
            Some(Pending::Done) => {}
            _ if left => {
                let delay = self.rng.between(1, 30);
                self.wait(id, Pending::Lost, delay);
            }
            _ if complete && !broken => {
                let delay = self.rng.between(1, 6);
                self.wait(id, Pending::Done, delay);
            }
            Some(Pending::Silent) if !silent => self.stop_waiting(id),
            Some(Pending::Silent) => {}
            _ if silent => self.wait(id, Pending::Silent, PEER),
            _ => {}
        }
    }

    /// The rank that a worker blames for what it has come to.
    pub fn blamed(&self, id: u64, pending: Pending) -> Option<Rank> {
        let formation = self.workers.get(&id)?.formation.as_ref()?;
        let ring = self.rings.get(&formation.generation)?;
        let (rank, world) = (formation.rank.0 as usize, ring.joined.len());
        let (previous, next) = ((rank + world - 1) % world, (rank + 1) % world);
        let blamed = match (pending, ring.linked[previous], ring.linked[rank]) {
            (Pending::Silent, ..) => Some(previous),
            (Pending::NotFormed, true, false) => Some(next),
            (Pending::NotFormed, false, true) => Some(previous),
            (Pending::NotFormed, ..) => Some(next).filter(|next| *next == previous),
            _ => None,
        };
        blamed.map(|rank| Rank(rank as u32))
    }
}

impl Ring {
    /// Whether a rank's operation has what it needs of the others.
    fn is_complete(&self, rank: usize) -> bool {
        let (world, begun) = (self.joined.len(), self.begun[rank]);
        match self.source.filter(|_| begun == 1) {
            // What goes round from the source: whoever stands before it, and the next one to pass it on to.
            Some(source) => {
                let distance = (rank + world - source) % world;
                let last = (distance + 1).min(world - 1);
                (0..=last).all(|d| self.begun[(source + d) % world] >= 1)
            }
            None => self.begun.iter().all(|other| *other >= begun),
        }
    }
}
