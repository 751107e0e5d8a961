//! A worker's training thread, after `worker/src/train/trainer.rs` and `trainer/epoch.rs`: orders are followed one
//! after the other, within an epoch they are looked for at step boundaries.

use std::ops::Range;

use super::ring::FORM;
use super::world::{Due, File, World};
use super::*;

/// Least time between two reports, of the first rank and of the others; step reports that are kept.
const REPORT_EVERY: [u64; 2] = [50, 1000];
const RECENT: usize = 64;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Work {
    /// It reads the names of its images, and follows no orders.
    Indexing,
    Idle,
    /// It looks for its neighbours; then the state goes round.
    Joining,
    Sharing,
    /// It computes the gradient of its slice; then the sum goes round.
    Computing,
    InStep,
    Validating {
        epoch: u32,
        range: Range<u64>,
    },
}

/// What a worker's timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pending {
    Indexed,
    Joined,
    NotFormed,
    /// The operation is through.
    Done,
    Lost,
    Silent,
    Aborted,
    Computed,
    Evaluated,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Duty {
    id: DutyId,
    at: Position,
}

impl World {
    pub fn wait(&mut self, id: u64, pending: Pending, delay: u64) {
        let token = self.number();
        let worker = self.worker(id);
        (worker.pending, worker.token) = (Some(pending), token);
        self.after(delay, Due::Timer(id, token));
    }

    pub fn stop_waiting(&mut self, id: u64) {
        let token = self.number();
        let worker = self.worker(id);
        (worker.pending, worker.token) = (None, token);
    }

    pub fn timer(&mut self, id: u64, token: u64) {
        if self.workers.get(&id).is_none_or(|worker| worker.token != token)
            || !self.runs(id, Due::Timer(id, token))
        {
            return;
        }
        let worker = self.worker(id);
        let Some(pending) = worker.pending.take() else { return };
        match pending {
            Pending::Indexed => {
                (worker.dataset, worker.following, worker.work) = (true, true, Work::Idle);
                self.report(id, FromWorker::Indexed(dataset()));
                self.follow(id);
            }
            Pending::Joined => self.joined_ring(id),
            Pending::Computed => self.computed(id),
            Pending::Done if worker.work == Work::Sharing => self.shared(id),
            Pending::Done => self.stepped(id),
            Pending::Evaluated => self.evaluated(id),
            Pending::NotFormed | Pending::Lost | Pending::Silent | Pending::Aborted => {
                let blamed = self.blamed(id, pending);
                self.leave(id, blamed);
                self.follow(id);
            }
        }
    }

    /// Follows the orders that have come, as far as what is being done allows.
    pub fn follow(&mut self, id: u64) {
        loop {
            let Some(worker) = self.workers.get_mut(&id) else { return };
            if !matches!(worker.work, Work::Idle | Work::Validating { .. }) || worker.dead {
                return;
            }
            let Some(order) = worker.orders.pop_front() else { return };
            let waits =
                matches!(order, ToWorker::Form(_) | ToWorker::Train { .. } | ToWorker::Validate { .. });
            if waits && worker.work != Work::Idle {
                // That order comes first.
                worker.work = Work::Idle;
                self.stop_waiting(id);
            }
            self.obey(id, order);
        }
    }

    fn obey(&mut self, id: u64, order: ToWorker) {
        let worker = self.worker(id);
        let here = |generation: Generation, worker: &super::worker::Worker| {
            worker.member && generation == worker.generation
        };
        match order {
            ToWorker::Form(formation) => self.form(id, formation),
            ToWorker::Train { generation, epoch, first_step } => {
                let first = Position { epoch, step: first_step };
                if !here(generation, worker) {
                    // It has left that ring, and said so.
                    return;
                }
                if worker.held.is_some_and(|held| held > first) {
                    return self.progress(id);
                }
                worker.held = Some(first);
                self.stand(id);
                self.boundary(id);
            }
            ToWorker::Validate { generation, epoch, range } => {
                if !here(generation, worker) {
                    return;
                }
                worker.work = Work::Validating { epoch, range };
                self.progress(id);
                let delay = self.rng.between(50, 800);
                self.wait(id, Pending::Evaluated, delay);
            }
            order => drop(self.heed(id, order)),
        }
    }

    /// Does what can be done at any step boundary; false if the worker has left its ring, or is gone.
    fn heed(&mut self, id: u64, order: ToWorker) -> bool {
        let worker = self.worker(id);
        match order {
            ToWorker::Checkpoint { duty, at, .. } => {
                worker.duties.push(Duty { id: duty, at });
                self.do_duties(id);
            }
            // No worker here says that it has NCCL.
            ToWorker::NcclId { generation, .. } => panic!("an id of NCCL for generation {generation}"),
            ToWorker::Remove { files } => self.disk.retain(|name, _| !files.contains(name)),
            ToWorker::Dissolve { generation, .. } | ToWorker::Drain { generation, .. }
                if generation >= worker.generation =>
            {
                self.leave(id, None);
                return false;
            }
            ToWorker::Release { .. } | ToWorker::Finish { .. } => {
                self.exit(id, "released, or the run is over");
                return false;
            }
            _ => {}
        }
        true
    }

    fn form(&mut self, id: u64, formation: Formation) {
        self.left_ring(id);
        let worker = self.worker(id);
        let Formation { generation, position, world, .. } = formation;
        worker.generation = generation;
        worker.guarded = generation;
        worker.aborted = worker.over.is_some_and(|over| over >= generation);
        worker.recent.retain(|step| *step < position);
        worker.unreported = worker.unreported.min(worker.recent.len());
        worker.place = Some(Standing {
            run_id: "run".into(),
            generation,
            rank: formation.rank,
            world,
            in_ring: false,
            held: worker.held,
        });
        worker.work = Work::Joining;
        worker.formation = Some(formation.clone());
        if world == 1 {
            // There is nobody to look for; an abort is noticed in the first step.
            self.join_ring(id, &formation);
            return self.wait(id, Pending::Joined, 1);
        }
        self.wait(id, Pending::NotFormed, FORM);
        self.join_ring(id, &formation);
        self.look_at_ring(id);
    }

    fn joined_ring(&mut self, id: u64) {
        let Some(formation) = self.worker(id).formation.clone() else { return };
        let own = formation.rank == formation.source;
        if let Some(restore) = &formation.restore {
            assert!(own, "seed {}: only the source restores", self.seed);
            let file = self.disk.get(&restore.file).copied();
            let right = file.filter(|file| blake3_of(file.state) == restore.blake3 && !file.damaged);
            let worker = self.worker(id);
            worker.held = None;
            let Some(file) = right else {
                // An order that comes late may name a file that was removed meanwhile.
                let late =
                    self.coordinator.as_ref().is_none_or(|c| !c.run.is_generation(formation.generation));
                assert!(
                    self.check.damaged || late,
                    "seed {}: {} cannot be restored: {file:?}",
                    self.seed,
                    restore.file
                );
                let (generation, file) = (formation.generation, restore.file.clone());
                self.worker(id).work = Work::Idle;
                self.left_ring(id);
                self.report(id, FromWorker::RestoreFailed { generation, file, reason: "checksum".into() });
                return self.follow(id);
            };
            worker.state = file.state;
        }
        if formation.transfer && formation.world > 1 {
            self.worker(id).work = Work::Sharing;
            self.begin_operation(formation.generation, formation.rank);
            if own {
                let state = self.worker(id).state;
                self.rings.get_mut(&formation.generation).expect("its ring").shared = Some(state);
            }
            self.rings_changed();
            return;
        }
        self.is_ready(id);
    }

    /// The source's state has come.
    fn shared(&mut self, id: u64) {
        let generation = self.worker(id).generation;
        let state = self.rings.get(&generation).and_then(|ring| ring.shared).expect("the source has begun");
        self.worker(id).state = state;
        self.is_ready(id);
    }

    fn is_ready(&mut self, id: u64) {
        let seed = self.seed;
        let start = self.settings.start_epoch;
        let worker = self.worker(id);
        let Some(Formation { generation, position, .. }) = worker.formation.clone() else { return };
        let steps = State::undisturbed(start, position);
        let state = worker.state;
        assert_eq!(state.steps, steps, "seed {seed}: worker {id} holds the state of {position}");
        (worker.held, worker.member, worker.work) = (Some(position), true, Work::Idle);
        self.check.same_state(generation, state);
        self.stand(id);
        self.report(id, FromWorker::Ready { generation, held: position, epoch_loss: None });
        self.follow(id);
    }

    /// A step boundary: orders first, then the next step.
    fn boundary(&mut self, id: u64) {
        let generation = self.worker(id).generation;
        loop {
            let worker = self.worker(id);
            let Some(order) = worker.orders.pop_front() else { break };
            let has_next_step = worker.held.is_some_and(|held| held.step < STEPS);
            match order {
                ToWorker::Drain { .. } if has_next_step => continue,
                ToWorker::Train { generation: again, .. } if again == generation => continue,
                ToWorker::Form(_) | ToWorker::Train { .. } | ToWorker::Validate { .. } => {
                    // The ring is given up for it.
                    worker.work = Work::Idle;
                    worker.orders.push_front(order);
                    self.left_ring(id);
                    return self.follow(id);
                }
                order => {
                    if !self.heed(id, order) {
                        return self.follow(id);
                    }
                }
            }
        }
        let worker = self.worker(id);
        if worker.held.is_some_and(|held| held.step >= STEPS) {
            worker.work = Work::Idle;
            self.progress(id);
            return self.follow(id);
        }
        worker.work = Work::Computing;
        let slow = worker.slow;
        let delay = self.rng.between(60, 120) * slow;
        let worker = self.worker(id);
        worker.pace.steps += 1;
        worker.pace.compute += Duration::from_millis(delay);
        self.wait(id, Pending::Computed, delay);
    }

    fn computed(&mut self, id: u64) {
        let seed = self.seed;
        let worker = self.worker(id);
        let (Some(formation), Some(held)) = (worker.formation.clone(), worker.held) else { return };
        let generation = formation.generation;
        let leave = worker.draining >= generation || worker.leaving;
        worker.work = Work::InStep;
        let operation = self.begin_operation(generation, formation.rank);
        let ring = self.rings.get_mut(&generation).expect("its ring");
        let step = ring.steps.entry(operation).or_insert((held, false, None));
        assert_eq!(step.0, held, "seed {seed}: all ranks do the same step");
        step.1 |= leave;
        self.rings_changed();
        self.look_at_ring(id);
    }

    fn stepped(&mut self, id: u64) {
        let (seed, now) = (self.seed, self.now);
        let worker = self.worker(id);
        let (Some(formation), Some(step)) = (worker.formation.clone(), worker.held) else { return };
        worker.state = worker.state.after(step, formation.generation);
        let (state, held) = (worker.state, Position { step: step.step + 1, ..step });
        worker.held = Some(held);
        worker.recent.push_back(step);
        worker.unreported += 1;
        while worker.recent.len() > RECENT.max(worker.unreported) {
            worker.recent.pop_front();
        }
        let every = REPORT_EVERY[usize::from(formation.rank.0 != 0)];
        let report = now - worker.reported >= every && held.step < STEPS;
        let ring = self.rings.get_mut(&formation.generation).expect("its ring");
        let operation = ring.steps.values_mut().find(|(at, ..)| *at == step).expect("its step");
        let same = *operation.2.get_or_insert(state);
        let leaving = operation.1;
        assert_eq!(same, state, "seed {seed}: a step leads all ranks to the same state");
        self.stand(id);
        self.do_duties(id);
        if leaving {
            self.leave(id, None);
            return self.follow(id);
        }
        if report {
            self.progress(id);
            self.worker(id).reported = now;
        }
        self.boundary(id);
    }

    fn progress(&mut self, id: u64) {
        let worker = self.worker(id);
        let (Some(position), Some(stream)) = (worker.held, worker.connected) else { return };
        if worker.reported_to.replace(stream).is_some_and(|before| before != stream) {
            worker.unreported = worker.recent.len();
        }
        let first = worker.formation.as_ref().is_some_and(|formation| formation.rank == Rank(0));
        let skip = worker.recent.len() - worker.unreported;
        let steps =
            if first { worker.recent.iter().skip(skip).copied().map(report).collect() } else { Vec::new() };
        worker.unreported = 0;
        let (generation, pace) = (worker.generation, std::mem::take(&mut worker.pace));
        self.report(id, FromWorker::Progress { generation, position, steps, pace });
    }

    fn evaluated(&mut self, id: u64) {
        let worker = self.worker(id);
        let Work::Validating { epoch, range } = worker.work.clone() else { return };
        worker.work = Work::Idle;
        let generation = worker.generation;
        // Every second image is right, and each costs its number.
        let top1 = range.clone().filter(|image| image % 2 == 0).count() as u64;
        let loss_sum = range.clone().sum::<u64>() as f64;
        let part = validation::Part { epoch, top1, top5: 0, range, loss_sum };
        self.report(id, FromWorker::Validated { generation, part });
        self.follow(id);
    }

    fn leave(&mut self, id: u64, blamed: Option<Rank>) {
        self.left_ring(id);
        self.stop_waiting(id);
        let worker = self.worker(id);
        worker.work = Work::Idle;
        let steps = worker.recent.iter().copied().map(report).collect();
        let (generation, held) = (worker.generation, worker.held);
        self.stand(id);
        self.report(id, FromWorker::Held { generation, held, steps, reason: "ring".into(), blamed });
    }

    /// Notes where this worker stands, for a coordinator that was away.
    fn stand(&mut self, id: u64) {
        let worker = self.worker(id);
        let (member, held) = (worker.member, worker.held);
        if let Some(place) = &mut worker.place {
            (place.in_ring, place.held) = (member, held);
        }
    }

    fn do_duties(&mut self, id: u64) {
        let worker = self.worker(id);
        let Some(held) = worker.held else { return };
        let turns = |at: Position| held.step == STEPS && at == Position { epoch: held.epoch + 1, step: 0 };
        let due = |duty: &Duty| held >= duty.at || turns(duty.at);
        while let Some(index) = worker.duties.iter().position(due) {
            let duty = worker.duties.remove(index);
            let position = if held >= duty.at { held } else { duty.at };
            worker.saves.push_back((duty, position, worker.state));
            if worker.saves.len() == 1 {
                let delay = self.rng.between(10, 600);
                return self.after_first_save(id, delay);
            }
        }
    }

    fn after_first_save(&mut self, id: u64, delay: u64) {
        self.after(delay, Due::Written(id));
        self.do_duties(id);
    }

    /// The saver has written what was first in its queue.
    pub fn written(&mut self, id: u64) {
        if !self.runs(id, Due::Written(id)) {
            return;
        }
        if let Some(report) = self.write_file(id) {
            self.report(id, report);
        }
        if self.workers.get(&id).is_some_and(|worker| !worker.saves.is_empty()) {
            let delay = self.rng.between(10, 600);
            self.after(delay, Due::Written(id));
        }
    }

    pub fn write_file(&mut self, id: u64) -> Option<FromWorker> {
        let (duty, position, state) = self.worker(id).saves.pop_front()?;
        if std::mem::take(&mut self.disk_is_full) {
            return Some(FromWorker::CheckpointFailed {
                duty: duty.id,
                reason: "no space left on device".into(),
            });
        }
        let right = State::undisturbed(self.settings.start_epoch, position);
        assert_eq!(state.steps, right, "seed {}: the checkpoint is that of {position}", self.seed);
        let file = format!("e{}-s{}", position.epoch, position.step);
        self.disk.insert(file.clone(), File { position, state, damaged: false });
        let written = Written { file, bytes: 1, blake3: blake3_of(state), position };
        Some(FromWorker::CheckpointWritten { duty: duty.id, written })
    }
}

fn blake3_of(state: State) -> String {
    format!("{:016x}", state.bits)
}
