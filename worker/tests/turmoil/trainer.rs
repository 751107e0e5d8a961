//! A worker: the real session with the real link, and after it a training thread that follows orders as
//! `worker/src/train/trainer.rs` does, with numbers in the place of weights.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use relabel_core::validation::Part;
use relabel_core::{
    DutyId, Formation, FromWorker, Generation, Pace, Position, Rank, StepReport, ToWorker, Written,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use worker::collective::AbortHandle;
use worker::session::{Place, Reports, Session, SessionError};

use super::ring::{Left, Seat};
use super::state::{STEPS, Saved, State, dataset, report};
use super::world::Shared;

/// Between two looks for an order.
const LOOK: Duration = Duration::from_millis(3);

/// As in `worker/src/train/trainer/epoch.rs`.
const RECENT: usize = 64;
const REPORT_EVERY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// What to go on with.
enum Next {
    Continue,
    Order(ToWorker),
    Ended,
}

struct Duty {
    id: DutyId,
    at: Position,
}

pub struct Trainer {
    shared: Shared,
    instance: u64,
    session: Session,
    saver: mpsc::UnboundedSender<(DutyId, Saved)>,
    state: State,
    held: Option<Position>,
    place: Place,
    seat: Option<Seat>,
    recent: VecDeque<StepReport>,
    unreported: usize,
    reported_to: Option<u64>,
    pace: Pace,
    duties: VecDeque<Duty>,
}

impl Trainer {
    pub fn new(shared: Shared, instance: u64, session: Session) -> Self {
        let (saver, saves) = mpsc::unbounded_channel();
        tokio::task::spawn_local(save(shared.clone(), saves, session.reports().clone()));
        let place = Place { generation: Generation(0), rank: Rank(0), world: 1, in_ring: false, held: None };
        Self {
            shared,
            instance,
            session,
            saver,
            state: State::BEGINNING,
            held: None,
            place,
            seat: None,
            recent: VecDeque::new(),
            unreported: 0,
            reported_to: None,
            pace: Pace::default(),
            duties: VecDeque::new(),
        }
    }

    /// Follows orders until the run is over.
    pub async fn run(mut self) -> Result<(), SessionError> {
        self.work(10, 500).await;
        self.session.reports().send(FromWorker::Indexed(dataset()));
        self.session.shared().follow();
        let mut first = None;
        loop {
            let order = match first.take() {
                Some(order) => order,
                None => self.next_order().await?,
            };
            let next = match order {
                ToWorker::Form(formation) => {
                    if let Err(Left { reason, blamed }) = self.form(formation).await {
                        self.leave(reason, blamed);
                    }
                    Next::Continue
                }
                ToWorker::Train { generation, epoch, first_step } if self.is_in(generation) => {
                    let at = Position { epoch, step: first_step };
                    match self.held.is_some_and(|held| held > at) {
                        true => {
                            self.report();
                            Next::Continue
                        }
                        false => self.train(at).await?,
                    }
                }
                ToWorker::Validate { generation, epoch, range } if self.is_in(generation) => {
                    self.validate(epoch, range).await?
                }
                // It has left that ring, and said so.
                ToWorker::Train { .. } | ToWorker::Validate { .. } => Next::Continue,
                order => self.heed(order),
            };
            match next {
                Next::Continue => {}
                Next::Order(order) => first = Some(order),
                Next::Ended => return Ok(()),
            }
        }
    }

    fn is_in(&self, generation: Generation) -> bool {
        self.seat.is_some() && generation == self.place.generation
    }

    async fn next_order(&self) -> Result<ToWorker, SessionError> {
        loop {
            if let Some(order) = self.session.waiting_order()? {
                return Ok(order);
            }
            sleep(LOOK).await;
        }
    }

    /// Does what can be done at any step boundary.
    fn heed(&mut self, order: ToWorker) -> Next {
        match order {
            ToWorker::Checkpoint { duty, at, .. } => {
                self.duties.push_back(Duty { id: duty, at });
                self.do_duties();
            }
            // No worker here says that it has NCCL.
            ToWorker::NcclId { .. } => {}
            ToWorker::Remove { files } => {
                for file in files {
                    // Gone is gone.
                    let _ = std::fs::remove_file(self.shared.borrow().checkpoints().join(file));
                }
            }
            ToWorker::Dissolve { generation, reason } | ToWorker::Drain { generation, reason }
                if generation >= self.place.generation =>
            {
                self.leave(reason, None);
            }
            ToWorker::Dissolve { .. } | ToWorker::Drain { .. } => {}
            ToWorker::Release { .. } | ToWorker::Finish { .. } => return Next::Ended,
            order => return Next::Order(order),
        }
        Next::Continue
    }

    async fn form(&mut self, formation: Formation) -> Result<(), Left> {
        let Formation { generation, rank, world, source, transfer, position, .. } = formation;
        let before = self.place.generation;
        assert!(
            generation > before,
            "worker {} goes from generation {before} back to {generation}",
            self.instance
        );
        self.seat = None;
        self.stand(Place { generation, rank, world, in_ring: false, held: self.held });
        self.recent.retain(|step| step.position < position);
        self.unreported = self.unreported.min(self.recent.len());
        let abort = AbortHandle::new();
        self.session.fence().guard(generation, abort.clone());
        let mut seat = Seat::join(self.shared.clone(), self.instance, &formation, abort).await?;
        if let Some(restore) = formation.restore {
            let path = self.shared.borrow().checkpoints().join(&restore.file);
            self.hold(None);
            let Some(saved) = Saved::read(&path, &restore.blake3) else {
                let (file, reason) = (restore.file, "it is another file".into());
                self.session.reports().send(FromWorker::RestoreFailed { generation, file, reason });
                return Ok(());
            };
            self.state = saved.state;
        }
        if transfer && world > 1 {
            let own = (rank == source).then_some(self.state);
            let state = seat.share(own).await?;
            self.hold(None);
            self.state = state;
        }
        let right = State::undisturbed(position);
        assert_eq!(self.state.steps, right, "worker {} holds the state of {position}", self.instance);
        self.shared.borrow_mut().checks.same_state(generation, self.state);
        self.seat = Some(seat);
        self.hold(Some(position));
        self.stand(Place { in_ring: true, ..self.place });
        self.session.reports().send(FromWorker::Ready { generation, held: position, epoch_loss: None });
        Ok(())
    }

    /// Trains from `first` to the end of its epoch.
    async fn train(&mut self, first: Position) -> Result<Next, SessionError> {
        let generation = self.place.generation;
        self.hold(Some(first));
        let every = REPORT_EVERY[usize::from(self.place.rank.0 != 0)];
        let mut reported = Instant::now();
        for step in first.step.. {
            while let Some(order) = self.session.waiting_order()? {
                match order {
                    ToWorker::Drain { .. } if step < STEPS => continue,
                    ToWorker::Train { generation: again, .. } if again == generation => continue,
                    order => match self.heed(order) {
                        Next::Continue if self.seat.is_none() => return Ok(Next::Continue),
                        Next::Continue => {}
                        next => {
                            self.seat = None;
                            return Ok(next);
                        }
                    },
                }
            }
            if step == STEPS {
                break;
            }
            let position = Position { epoch: first.epoch, step };
            let began = Instant::now();
            self.work(60, 140).await;
            let compute = began.elapsed();
            let leave = self.session.fence().is_draining(generation);
            let Some(seat) = &mut self.seat else { return Ok(Next::Continue) };
            let leaving = match seat.step(position, leave).await {
                Ok(leaving) => leaving,
                Err(Left { reason, blamed }) => {
                    self.leave(reason, blamed);
                    return Ok(Next::Continue);
                }
            };
            self.stepped(position, compute, began.elapsed());
            self.do_duties();
            if leaving {
                self.leave("the generation ends in good order".into(), None);
                return Ok(Next::Continue);
            }
            if reported.elapsed() >= every && step + 1 < STEPS {
                self.report();
                reported = Instant::now();
            }
        }
        self.report();
        Ok(Next::Continue)
    }

    fn stepped(&mut self, position: Position, compute: Duration, all: Duration) {
        self.state = self.state.after(position, self.place.generation);
        self.hold(Some(Position { step: position.step + 1, ..position }));
        self.pace.steps += 1;
        self.pace.compute += compute;
        self.pace.peers += all.saturating_sub(compute);
        self.recent.push_back(report(position, all));
        self.unreported += 1;
        while self.recent.len() > RECENT.max(self.unreported) {
            self.recent.pop_front();
        }
    }

    fn report(&mut self) {
        let (Some(position), Some(stream)) = (self.held, self.session.shared().stream()) else { return };
        if self.reported_to.replace(stream).is_some_and(|before| before != stream) {
            self.unreported = self.recent.len();
        }
        let skip = self.recent.len() - self.unreported;
        let first = self.place.rank.0 == 0;
        let steps = if first { self.recent.iter().skip(skip).cloned().collect() } else { Vec::new() };
        self.unreported = 0;
        let (generation, pace) = (self.place.generation, std::mem::take(&mut self.pace));
        self.session.reports().send(FromWorker::Progress { generation, position, steps, pace });
    }

    /// Every second image is right, and each costs its number.
    async fn validate(&mut self, epoch: u32, range: Range<u64>) -> Result<Next, SessionError> {
        let generation = self.place.generation;
        self.report();
        let takes = self.shared.borrow_mut().between(50, 500);
        let until = Instant::now() + Duration::from_millis(takes);
        while Instant::now() < until {
            while let Some(order) = self.session.waiting_order()? {
                match self.heed(order) {
                    Next::Continue if self.seat.is_none() => return Ok(Next::Continue),
                    Next::Continue => {}
                    next => return Ok(next),
                }
            }
            sleep(LOOK).await;
        }
        let top1 = range.clone().filter(|image| image % 2 == 0).count() as u64;
        let loss_sum = range.clone().sum::<u64>() as f64;
        let part = Part { epoch, top1, top5: 0, range, loss_sum };
        self.session.reports().send(FromWorker::Validated { generation, part });
        Ok(Next::Continue)
    }

    /// Gives the ring up and says what is held.
    fn leave(&mut self, reason: String, blamed: Option<Rank>) {
        self.seat = None;
        self.stand(Place { in_ring: false, ..self.place });
        let steps = self.recent.iter().cloned().collect();
        let (generation, held) = (self.place.generation, self.held);
        self.session.reports().send(FromWorker::Held { generation, held, steps, reason, blamed });
    }

    fn hold(&mut self, held: Option<Position>) {
        self.held = held;
        self.stand(Place { held, ..self.place });
    }

    fn stand(&mut self, place: Place) {
        self.place = place;
        self.session.shared().set_place(place);
    }

    fn do_duties(&mut self) {
        let Some(held) = self.held else { return };
        let turns = |at: Position| held.step == STEPS && at == Position { epoch: held.epoch + 1, step: 0 };
        let due = |duty: &Duty| held >= duty.at || turns(duty.at);
        while let Some(duty) = self.duties.iter().position(due).and_then(|next| self.duties.remove(next)) {
            let Position { epoch, step } = if held >= duty.at { held } else { duty.at };
            // It lives as long as this does.
            let _ = self.saver.send((duty.id, Saved { epoch, step, state: self.state }));
        }
    }

    async fn work(&self, least: u64, most: u64) {
        let takes = self.shared.borrow_mut().between(least, most);
        sleep(Duration::from_millis(takes)).await;
    }
}

/// The thread that writes checkpoints.
async fn save(shared: Shared, mut saves: mpsc::UnboundedReceiver<(DutyId, Saved)>, reports: Reports) {
    while let Some((duty, saved)) = saves.recv().await {
        let takes = shared.borrow_mut().between(10, 300);
        sleep(Duration::from_millis(takes)).await;
        let position = Position { epoch: saved.epoch, step: saved.step };
        let right = State::undisturbed(position);
        assert_eq!(saved.state.steps, right, "the checkpoint is that of {position}");
        let file = format!("e{}-s{}", position.epoch, position.step);
        let path = shared.borrow().checkpoints().join(&file);
        let (bytes, blake3) = saved.write(&path).expect("a folder that can be written to");
        let written = Written { file, bytes, blake3, position };
        reports.send(FromWorker::CheckpointWritten { duty, written });
    }
}
