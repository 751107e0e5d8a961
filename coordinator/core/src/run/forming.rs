//! From workers to a generation: enough of them are seated and see the same data, one of them is the source
//! of the state, the ring stands; and what is done where that fails.

use std::time::Duration;

use super::{Phase, Run};
use crate::history::Fact;
use crate::membership::Member;
use crate::{
    Command, Dataset, Formation, Generation, Observation, Position, Rank, Restore, ToWorker, Token, WorkerId,
    shards,
};

/// Formations in a row that may fail before any has trained: more would only repeat the reason.
const FORMATIONS: u32 = 3;

/// Longest pause before a formation is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// So many times longer than for workers that have not come does a beginning wait for those that have, and are
/// indexing their data.
const INDEXING: u32 = 4;

/// So many workers are looked over whenever one of them has indexed its data.
const FEW: u32 = 64;

/// In so many generations a worker has to be to blame before the others go on without it.
const BLAMED: usize = 2;

impl Run {
    pub(super) fn indexed(&mut self, worker: WorkerId, dataset: Dataset) {
        match &self.history.dataset {
            None => {
                let trains = !self.settings.test_only;
                if trains && dataset.train_samples == 0 || dataset.val_samples == 0 {
                    return self.fail("the data set has no images".into());
                }
                self.persist(Fact::Agreed { dataset: dataset.clone() });
            }
            Some(agreed) if *agreed != dataset => return self.disagrees(worker, &dataset),
            Some(_) => {}
        }
        if !std::mem::replace(&mut self.planned, true) {
            let steps_per_epoch = self.steps_per_epoch();
            self.observe(Observation::Planned { steps_per_epoch, dataset: dataset.clone() });
        }
        self.members.indexed(worker, dataset);
        if self.reunion_is_hopeless() {
            return self.end_reunion("every seat is taken by a worker that begins anew".into());
        }
        // Of many that come at once the last is looked for here, and whether the others are enough at the next tick:
        // each look goes over all of them.
        if self.members.len() <= FEW || self.members.count_indexed() >= self.settings.workers {
            self.try_form();
        }
    }

    /// A worker that sees other data: at the start nobody can say who is right; later it is the newcomer
    /// that is wrong, and the run goes on without it.
    fn disagrees(&mut self, worker: WorkerId, dataset: &Dataset) {
        let (Some(member), Some(agreed)) = (self.members.get(worker), &self.history.dataset) else { return };
        let (other, train) = match agreed.train_fingerprint == dataset.train_fingerprint {
            true => ((agreed.val_samples, &agreed.val_fingerprint), false),
            false => ((agreed.train_samples, &agreed.train_fingerprint), true),
        };
        let own = match train {
            true => (dataset.train_samples, &dataset.train_fingerprint),
            false => (dataset.val_samples, &dataset.val_fingerprint),
        };
        let short = |hash: &str| hash.chars().take(12).collect::<String>();
        let first = self.members.iter().find(|(_, m)| m.dataset.is_some()).map(|(_, m)| m.describe());
        let reason = format!(
            "{} sees other {} data than {}: {} images (fingerprint {}) instead of {} ({}): data.data_path must hold \
             the same files on every host",
            member.describe(),
            if train { "training" } else { "validation" },
            first.unwrap_or_else(|| "this run began with".into()),
            own.0,
            short(own.1),
            other.0,
            short(other.1),
        );
        if self.generation == Generation::default() {
            self.fail(reason);
        } else {
            self.command(Command::Expel { worker, reason: reason.clone(), back: false });
            self.lost(worker, &reason);
        }
    }

    /// Starts a generation if enough workers are here and everybody has said what they hold.
    pub(super) fn try_form(&mut self) {
        let Phase::Gathering { since, asked } = &self.phase else { return };
        let since = *since;
        if !asked.is_empty() || self.stopping.is_some() || self.now < self.formations.not_before {
            return;
        }
        if !self.drop_who_is_cut_off() || !matches!(self.phase, Phase::Gathering { .. }) {
            return;
        }
        if !self.release_those_that_leave() {
            return;
        }
        let members = self.members.len();
        let ready = self.members.iter().filter(|(_, m)| m.is_ready()).count() as u32;
        if ready < self.settings.min_workers {
            return self.save_what_is_held();
        }
        // Those that hold a state go on at once; a beginning waits a little for everybody.
        let goes_on = self.members.iter().any(|(_, m)| m.is_ready() && m.held.is_some());
        let patience = match ready == members {
            true => self.settings.gather_for,
            // Some are reading the names of their images.
            false => self.settings.gather_for * INDEXING,
        };
        let waited = self.now.saturating_sub(since) >= patience;
        if ready < self.settings.workers && !goes_on && !waited {
            return;
        }
        if let Some(reason) = self.unreachable_peer() {
            return self.fail(reason);
        }
        self.form();
    }

    /// Who trains in the next generation, in the order of their seats. Where there are more than are wanted, those
    /// that are not slow come first, then those that train already.
    fn chosen(&self) -> Vec<WorkerId> {
        let mut ready: Vec<_> = self
            .members
            .by_rank()
            .filter(|(_, m)| m.is_ready())
            .map(|(id, m)| (m.slow, !m.in_line, m.rank, id))
            .collect();
        ready.sort_unstable();
        // The state that all go on from must not stand by.
        if let Some((furthest, _)) = self.furthest()
            && let Some(place) = ready.iter().position(|(.., id)| *id == furthest)
        {
            ready[..=place].rotate_right(1);
        }
        ready.truncate(self.settings.workers as usize);
        ready.sort_unstable_by_key(|(_, _, rank, _)| *rank);
        ready.into_iter().map(|(.., id)| id).collect()
    }

    fn form(&mut self) {
        let chosen = self.chosen();
        let world = chosen.len() as u32;
        self.generation = Generation(self.generation.0 + 1);
        let generation = self.generation;
        self.ring = chosen.iter().zip(0..).map(|(id, rank)| (*id, Rank(rank))).collect();
        self.places = chosen.iter().zip(0..).map(|(id, rank)| (Rank(rank), *id)).collect();
        let (source, restore, position, origin) = self.source(&chosen);
        // What was done before it is shown now, if it has not been, here or in an earlier life of the coordinator.
        self.heard.retain(|at, _| *at < position);
        self.show_heard();
        self.shown = Some(position);
        if !self.settings.test_only {
            self.persist(Fact::Formed { generation, world, position });
        }
        let begins_a_line = restore.is_some()
            || !chosen.get(source.0 as usize).and_then(|id| self.members.get(*id)).is_some_and(|m| m.in_line);
        if begins_a_line {
            // Whoever takes the source's state holds it, whoever does not holds another: both at this position, perhaps.
            self.members.iter_mut().for_each(|(_, m)| m.in_line = false);
        }
        let holds_it = |m: &Member| m.in_line && m.held == Some(position);
        let all_hold_it = chosen.iter().filter_map(|id| self.members.get(*id)).all(holds_it);
        let addresses: Vec<String> =
            chosen.iter().filter_map(|id| Some(self.members.get(*id)?.hello.ring_address.clone())).collect();
        // What lies ahead of those that stand by is not going to be written.
        let (ring, members) = (&self.ring, &self.members);
        self.duties.forget_what_lies_ahead(|writer, at| {
            !ring.contains_key(&writer) && members.get(writer).is_none_or(|m| m.held < Some(at))
        });
        let token = Token::of(&self.settings.secret, generation);
        let nccl = self.common_nccl(&chosen);
        let by = nccl.map_or_else(String::new, |version| format!(" by NCCL {}", nccl_version(version)));
        self.decide(format!("generation {generation}: {}{by}, {origin}", counted(world)));
        for (rank, worker) in (0..world).zip(&chosen) {
            let shard = shards::deal(u64::from(self.settings.global_batch), world, rank);
            let neighbour = |rank: u32| addresses[(rank % world) as usize].clone();
            let formation = Formation {
                generation,
                rank: Rank(rank),
                world,
                previous: neighbour(rank + world - 1),
                next: neighbour(rank + 1),
                token,
                nccl: nccl.is_some(),
                shard: shard.start as u32..shard.end as u32,
                source,
                transfer: !all_hold_it,
                restore: restore.clone().filter(|_| Rank(rank) == source),
                position,
            };
            self.send(*worker, ToWorker::Form(formation));
        }
        self.phase = Phase::Forming { position, waiting: chosen.into_iter().collect() };
    }

    /// The version of NCCL that several workers have in common: versions do not talk to each other. Where one has
    /// another or none, the ring is there for all.
    fn common_nccl(&self, chosen: &[WorkerId]) -> Option<u32> {
        let mut versions = chosen.iter().map(|id| self.members.get(*id).and_then(|m| m.hello.nccl));
        let first = versions.next()??;
        (chosen.len() > 1 && versions.all(|version| version == Some(first))).then_some(first)
    }

    /// Passes the id on that rank 0 of the generation that forms has made for its peers.
    pub(super) fn nccl_id(&mut self, worker: WorkerId, generation: Generation, id: Vec<u8>) {
        let forms = matches!(self.phase, Phase::Forming { .. }) && generation == self.generation;
        if !forms || self.ring.get(&worker) != Some(&Rank(0)) {
            return;
        }
        let peers: Vec<WorkerId> = self.ring.keys().copied().filter(|peer| *peer != worker).collect();
        for peer in peers {
            self.send(peer, ToWorker::NcclId { generation, id: id.clone() });
        }
    }

    /// Words about a worker that only its own host could reach although there are others.
    fn unreachable_peer(&self) -> Option<String> {
        let loopback = |m: &&Member| {
            let host = m.hello.ring_address.parse::<std::net::SocketAddr>().map(|address| address.ip());
            host.is_ok_and(|ip| ip.is_loopback())
        };
        let own = self.members.iter().map(|(_, m)| m).find(loopback)?;
        let other = self.members.iter().map(|(_, m)| m).find(|m| !loopback(m))?;
        Some(format!(
            "{} is reached at {}, which {} cannot reach: start it with --advertise HOST, the name that the other \
             hosts know it by",
            own.describe(),
            own.hello.ring_address,
            other.describe()
        ))
    }

    /// Where the next generation's state comes from, cheapest first: a live worker that has gone
    /// furthest, the newest checkpoint, the beginning. And that as words.
    fn source(&mut self, chosen: &[WorkerId]) -> (Rank, Option<Restore>, Position, String) {
        if let Some((worker, position)) = self.furthest()
            && self.history.newest().is_none_or(|newest| newest.position <= self.as_saved(position))
            && let Some(rank) = chosen.iter().position(|id| *id == worker)
        {
            let who = self.members.get(worker).map_or(Rank(0), |m| m.rank);
            self.fall_back(position);
            let origin = format!("going on in memory from worker {who} at {position}");
            return (Rank(rank as u32), None, position, origin);
        }
        if let Some(newest) = self.history.newest() {
            let (restore, position) = (Restore::from(newest), newest.position);
            self.fall_back(position);
            let origin = format!("going on from checkpoint {} at {position}", restore.file);
            return (Rank(0), Some(restore), position, origin);
        }
        let position = self.beginning();
        self.fall_back(position);
        let first = chosen.first().and_then(|id| self.members.get(*id)).map_or(Rank(0), |m| m.rank);
        let origin = match position.epoch {
            _ if self.settings.test_only => format!("evaluating the weights of worker {first}"),
            0 => "starting afresh".into(),
            // As people count them in every other line.
            epoch => format!("starting afresh with epoch {}", epoch + 1),
        };
        (Rank(0), None, position, origin)
    }

    /// The end of an epoch may be saved as the beginning of the next.
    pub(super) fn as_saved(&self, position: Position) -> Position {
        match position.step >= self.steps_per_epoch() {
            true => Position { epoch: position.epoch.saturating_add(1), step: 0 },
            false => position,
        }
    }

    /// What was validated after `position` will be done again: where that is not the newest state of the run, which is
    /// lost.
    fn fall_back(&mut self, position: Position) {
        let position = self.as_saved(position);
        if self.history.validated.range(position.epoch..).next().is_some() {
            self.persist(Fact::FellBack { position });
        }
    }

    /// Where a run without history begins.
    pub(super) fn beginning(&self) -> Position {
        Position { epoch: self.settings.start_epoch, step: 0 }
    }

    pub(super) fn ready(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        held: Position,
        epoch_loss: Option<f64>,
    ) {
        let Phase::Forming { position, waiting } = &mut self.phase else { return };
        if generation != self.generation || held != *position || !waiting.remove(&worker) {
            return;
        }
        let (position, complete) = (*position, waiting.is_empty());
        if let Some(member) = self.members.get_mut(worker) {
            member.held = Some(held);
        }
        self.epoch_loss = epoch_loss.unwrap_or(f64::NAN);
        if complete {
            self.formations.failed = 0;
            self.formations.trained_at = Some(self.now);
            let ring = &self.ring;
            self.members.iter_mut().for_each(|(id, member)| member.in_line = ring.contains_key(&id));
            self.stragglers.begin();
            self.begin(position);
        }
    }

    pub(super) fn restore_failed(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        file: String,
        reason: String,
    ) {
        if generation != self.generation || !matches!(self.phase, Phase::Forming { .. }) {
            return;
        }
        self.persist(Fact::Retired { files: vec![file.clone()] });
        if self.history.checkpoints.is_empty() {
            return self.fail(format!(
                "no checkpoint is left to resume from ({file}: {reason}): start afresh in another --run-dir"
            ));
        }
        self.formations.failed = 0;
        self.decide_after_a_loss(format!(
            "checkpoint {file} cannot be used: {reason}; falling back to the one before"
        ));
        self.dissolve("falling back to the checkpoint before".into());
        if let Phase::Gathering { since, asked } = &mut self.phase {
            // Whoever was to come has had the time.
            *since = self.now.saturating_sub(self.settings.gather_for);
            asked.remove(&worker);
        }
        if let Some(member) = self.members.get_mut(worker) {
            (member.held, member.in_line) = (None, false);
        }
        self.stop_when_saved();
        self.try_form();
    }

    /// Counts a formation that came to nothing, and says whether to try again.
    pub(super) fn formation_failed(&mut self, words: &str) -> bool {
        let formations = &mut self.formations;
        if formations.failed == 0 {
            formations.failing_since = self.now;
        }
        formations.failed += 1;
        let failed = formations.failed;
        let failing_for = self.now.saturating_sub(formations.failing_since);
        let beginning = Position { epoch: self.settings.start_epoch, step: 0 };
        let anew = formations.trained_at.is_none()
            && self.history.newest().is_none()
            && self.members.iter().all(|(_, m)| m.held <= Some(beginning));
        if anew && failed >= FORMATIONS {
            self.fail(format!("{FORMATIONS} generations in a row could not be formed: {words}"));
            return false;
        }
        let limit = self.settings.wait_for_workers;
        if failing_for > limit {
            self.give_up(format!(
                "no generation could be formed for {:.0} s (cluster.wait_for_workers): {words}",
                limit.as_secs_f64()
            ));
            return false;
        }
        let pause = match failed {
            0 | 1 => Duration::ZERO,
            n => Duration::from_secs(1 << (n - 2).min(3)).min(LONGEST_PAUSE),
        };
        formations.not_before = self.now + pause;
        true
    }

    /// Notes that a ring ended because of the worker of this rank.
    pub(super) fn blame(&mut self, blamed: Option<Rank>) {
        if let Some(worker) = blamed.and_then(|rank| self.places.get(&rank)) {
            self.formations.blamed.entry(*worker).or_default().insert(self.generation);
        }
    }

    /// Where formations fail because of one worker that the others cannot reach, they go on without it, if they are
    /// enough. The one that most generations ended by goes; of two, the one on the higher seat. Returns whether that is
    /// settled: one that has gone further than all others goes once that is saved.
    fn drop_who_is_cut_off(&mut self) -> bool {
        if self.formations.failed == 0 {
            return true;
        }
        if self.members.iter().filter(|(_, m)| m.is_ready()).count() as u32 <= self.settings.min_workers {
            return true;
        }
        let blamed = self.formations.blamed.iter().filter(|(_, generations)| generations.len() >= BLAMED);
        let worst = blamed
            .filter_map(|(id, generations)| Some((generations.len(), self.members.get(*id)?.rank, *id)))
            .max();
        let Some((times, _, worker)) = worst else { return true };
        let others = self.members.iter().filter(|(id, _)| *id != worker).filter_map(|(_, m)| m.held).max();
        let safe =
            others.max(self.history.newest().map(|written| written.position)).max(Some(self.beginning()));
        let held = self.members.get(worker).and_then(|m| m.held);
        if let Some(at) = held.filter(|at| Some(*at) > safe && !self.failed_writers.contains(&worker)) {
            if !self.duties.writes(at) {
                self.assign_to(worker, at);
            }
            return false;
        }
        let reason = format!("its peers could not reach it in {times} generations");
        self.decide_after_a_loss(format!("going on without {}: {reason}", self.describe(worker)));
        self.formations.blamed.clear();
        self.command(Command::Expel { worker, reason: reason.clone(), back: true });
        self.lost(worker, &reason);
        true
    }

    /// Nobody has come, or said what it holds, for `cluster.wait_for_workers`.
    pub(super) fn waited_enough(&mut self) {
        let Phase::Gathering { asked, .. } = &self.phase else { return };
        let seconds = self.settings.wait_for_workers.as_secs_f64();
        if asked.is_empty() {
            let missing = self.members.missing(self.settings.workers).unwrap_or_else(|| "a worker".into());
            let saved = match self.history.newest() {
                Some(written) => format!("; {} is saved: go on with --resume", written.position),
                None => String::new(),
            };
            return self.fail(format!(
                "waited {seconds:.0} s (cluster.wait_for_workers) for {missing}: start it with `worker --coordinator \
                 URL`{saved}"
            ));
        }
        for worker in asked.clone() {
            let reason =
                format!("it has not said for {seconds:.0} s (cluster.wait_for_workers) what it holds");
            self.command(Command::Expel { worker, reason: reason.clone(), back: true });
            self.lost(worker, &reason);
        }
    }
}

/// As NCCL counts since 2.9: 23003 is 2.30.3.
fn nccl_version(version: u32) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

fn counted(workers: u32) -> String {
    match workers {
        1 => "1 worker".into(),
        n => format!("{n} workers"),
    }
}
