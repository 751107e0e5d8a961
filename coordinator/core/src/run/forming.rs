//! From workers to a generation: everybody is seated and sees the same data, one of them is the source
//! of the state, the ring stands. And back, when a generation ends.

use super::{Phase, Run};
use crate::history::Fact;
use crate::membership::{Holding, Member};
use crate::{
    Command, Dataset, Formation, Generation, Observation, Position, Rank, Restore, StepReport, ToWorker,
    Token, WorkerId, shards,
};

/// Formations in a row that may fail before the run is given up: more would only repeat the reason.
const FORMATIONS: u32 = 3;

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
        if let Some(member) = self.members.get_mut(worker) {
            member.dataset = Some(dataset);
        }
        self.try_form();
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
            self.command(Command::Expel { worker, reason: reason.clone() });
            self.lost(worker, &reason);
        }
    }

    /// Starts a generation if everybody is here and has said what they hold.
    pub(super) fn try_form(&mut self) {
        let settled = |m: &Member| m.dataset.is_some() && !matches!(m.holding, Holding::Asked);
        let complete =
            self.members.len() == self.settings.workers && self.members.iter().all(|(_, m)| settled(m));
        if !matches!(self.phase, Phase::Gathering { .. }) || !complete || self.stopping.is_some() {
            return;
        }
        if let Some(reason) = self.unreachable_peer() {
            return self.fail(reason);
        }
        self.generation = Generation(self.generation.0 + 1);
        let generation = self.generation;
        let (source, restore, position, origin) = self.source();
        // What was done before it has been shown, here or in an earlier life of the coordinator.
        self.shown = position;
        let peers: Vec<String> =
            self.members.by_rank().iter().map(|(_, m)| m.hello.ring_address.clone()).collect();
        let world = peers.len() as u32;
        let token = Token::of(&self.settings.secret, generation);
        self.reason = format!("generation {generation}: {world} workers, {origin}");
        self.note(self.reason.clone());
        for (worker, rank) in self.members.by_rank().iter().map(|(id, m)| (*id, m.rank)).collect::<Vec<_>>() {
            let shard = shards::deal(u64::from(self.settings.global_batch), world, rank.0);
            let formation = Formation {
                generation,
                rank,
                peers: peers.clone(),
                token,
                shard: shard.start as u32..shard.end as u32,
                source,
                restore: restore.clone().filter(|_| rank == source),
                position,
            };
            self.send(worker, ToWorker::Form(formation));
        }
        self.phase = Phase::Forming { position, waiting: self.members.ids().into_iter().collect() };
    }

    /// Words about a worker that only its own host could reach although there are others.
    fn unreachable_peer(&self) -> Option<String> {
        let loopback = |m: &&Member| {
            let host = m.hello.ring_address.parse::<std::net::SocketAddr>().map(|address| address.ip());
            host.is_ok_and(|ip| ip.is_loopback())
        };
        let members: Vec<_> = self.members.iter().map(|(_, m)| m).collect();
        let (own, others): (Vec<_>, Vec<_>) = members.into_iter().partition(loopback);
        match (own.first(), others.first()) {
            (Some(own), Some(other)) => Some(format!(
                "{} is reached at {}, which {} cannot reach: start it with --advertise HOST, the name that the other \
                 hosts know it by",
                own.describe(),
                own.hello.ring_address,
                other.describe()
            )),
            _ => None,
        }
    }

    /// Where the next generation's state comes from, cheapest first: a live worker that has gone
    /// furthest, the newest checkpoint, the beginning. And that as words.
    fn source(&mut self) -> (Rank, Option<Restore>, Position, String) {
        if let Some((worker, position)) = self.furthest()
            && let Some(Member { rank, .. }) = self.members.get(worker)
        {
            return (*rank, None, position, format!("going on in memory from worker {rank} at {position}"));
        }
        if let Some(newest) = self.history.newest() {
            let (restore, position) = (Restore::from(newest), newest.position);
            // What was validated after it will be done again.
            self.history.validated.retain(|epoch, _| *epoch < position.epoch);
            let origin = format!("going on from checkpoint {} at {position}", restore.file);
            return (Rank(0), Some(restore), position, origin);
        }
        let position = Position { epoch: self.settings.start_epoch, step: 0 };
        let origin = match position.epoch {
            _ if self.settings.test_only => "evaluating the weights of worker 0".into(),
            0 => "starting afresh".into(),
            // As people count them in every other line.
            epoch => format!("starting afresh with epoch {}", epoch + 1),
        };
        (Rank(0), None, position, origin)
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
            member.holding = Holding::At(held);
        }
        self.epoch_loss = epoch_loss.unwrap_or(f64::NAN);
        if complete {
            self.failed_formations = 0;
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
        self.warn(format!("checkpoint {file} cannot be used: {reason}"));
        self.persist(Fact::Retired { files: vec![file] });
        if self.history.checkpoints.is_empty() {
            return self.fail(format!(
                "no checkpoint is left to resume from ({reason}): start afresh in another --run-dir"
            ));
        }
        self.failed_formations = 0;
        self.held(worker, generation, None, &[], "falling back to the checkpoint before");
    }

    /// A worker is out of the ring and says what it holds: because it was asked, or because its ring broke.
    pub(super) fn held(
        &mut self,
        worker: WorkerId,
        generation: Generation,
        held: Option<Position>,
        steps: &[StepReport],
        reason: &str,
    ) {
        if generation != self.generation {
            return;
        }
        self.show(steps);
        let Some(member) = self.members.get_mut(worker) else { return };
        let who = member.describe();
        let asked = matches!(member.holding, Holding::Asked);
        let holding = held.map_or(Holding::Nothing, Holding::At);
        member.holding = holding;
        if !matches!(self.phase, Phase::Gathering { .. }) {
            // A worker that was lost meanwhile is another matter: its successor may do better.
            if matches!(self.phase, Phase::Forming { .. }) {
                self.failed_formations += 1;
                if self.failed_formations >= FORMATIONS {
                    return self.fail(format!(
                        "{FORMATIONS} generations in a row could not be formed: {who}: {reason}"
                    ));
                }
            }
            self.regroup(format!("{who} left the ring: {reason}"));
            if let Some(member) = self.members.get_mut(worker) {
                member.holding = holding;
            }
        } else if !asked {
            return;
        }
        self.stop_when_saved();
        self.try_form();
    }

    /// Ends the generation: everybody is told to leave the ring and asked what they hold.
    pub(super) fn regroup(&mut self, reason: String) {
        let missing = self.members.missing(self.settings.workers);
        self.warn(match &missing {
            Some(missing) => format!("{reason}; waiting for {missing}"),
            None => reason.clone(),
        });
        self.dissolve(reason);
    }

    /// Has everybody leave the ring and say what they hold.
    pub(super) fn dissolve(&mut self, reason: String) {
        self.phase = Phase::Gathering { since: self.now };
        self.reason = reason.clone();
        self.send_all(&ToWorker::Dissolve { generation: self.generation, reason });
        for (_, member) in self.members.iter_mut() {
            member.holding = Holding::Asked;
        }
    }
}
