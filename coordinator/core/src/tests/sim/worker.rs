//! A worker's process and its session, after `worker/src/session/link.rs`: the stream, what is kept for the next one,
//! and what reaches the training thread at once.

use std::collections::VecDeque;

use super::network::{Down, Status, Up};
use super::trainer::{Duty, Pending, Work};
use super::world::{Due, World};
use super::*;

const HEARTBEAT: u64 = 1000;
const ATTEMPT: u64 = 5000;
const DRAIN_DEADLINE: u64 = 20_000;
const WAIT_FOR_COORDINATOR: u64 = 300_000;

pub(super) struct Worker {
    /// Its host is gone without a word: peers and the coordinator hear nothing of it any more.
    pub dead: bool,
    pub frozen: bool,
    /// How many times slower than others it is.
    pub slow: u64,
    hello: Hello,
    seat: Option<Rank>,
    link: Link,
    /// A coordinator has welcomed it.
    welcomed: bool,
    put_out: u32,
    /// Whether the training thread takes orders, and a stream stands.
    pub following: bool,
    pub connected: Option<u64>,
    pub dataset: bool,
    kept: Vec<FromWorker>,
    pub leaving: bool,
    pub over: Option<Generation>,
    pub draining: Generation,
    /// The generation whose ring an abort is for, and whether it has come.
    pub guarded: Generation,
    pub aborted: bool,
    pub orders: VecDeque<ToWorker>,

    // The training thread's.
    pub state: State,
    pub held: Option<Position>,
    pub generation: Generation,
    pub place: Option<Standing>,
    /// It stands in the ring of its generation.
    pub member: bool,
    pub formation: Option<Formation>,
    pub work: Work,
    pub pending: Option<Pending>,
    pub token: u64,
    pub duties: Vec<Duty>,
    /// What the saver has still to write.
    pub saves: VecDeque<(Duty, Position, State)>,
    pub recent: VecDeque<Position>,
    pub unreported: usize,
    pub reported: u64,
    pub reported_to: Option<u64>,
    pub pace: Pace,
}

enum Link {
    /// On this stream.
    Up(u64),
    /// Looking for the coordinator: since when, the next pause, the longest one, and the attempt under way.
    Away { since: u64, pause: u64, longest: u64, attempt: Option<u64>, token: u64 },
}

impl World {
    /// A worker's process starts.
    pub fn spawn(&mut self) {
        let instance = self.number();
        let slow = if self.rng.one_in(12) { 3 } else { 1 };
        self.note(|| format!("worker {instance} starts, {slow} times slower"));
        let link = Link::Away { since: self.now, pause: 250, longest: 8000, attempt: None, token: 0 };
        let worker = Worker {
            dead: false,
            frozen: false,
            slow,
            hello: hello(instance, None),
            seat: None,
            link,
            welcomed: false,
            put_out: 0,
            following: false,
            connected: None,
            dataset: false,
            kept: Vec::new(),
            leaving: false,
            over: None,
            draining: Generation(0),
            guarded: Generation(0),
            aborted: false,
            orders: VecDeque::new(),
            state: State::BEGINNING,
            held: None,
            generation: Generation(0),
            place: None,
            member: false,
            formation: None,
            work: Work::Indexing,
            pending: None,
            token: 0,
            duties: Vec::new(),
            saves: VecDeque::new(),
            recent: VecDeque::new(),
            unreported: 0,
            reported: 0,
            reported_to: None,
            pace: Pace::default(),
        };
        self.workers.insert(instance, worker);
        self.after(1, Due::Dial(instance, 0));
        self.after(HEARTBEAT, Due::Heartbeat(instance));
    }

    pub fn worker(&mut self, id: u64) -> &mut Worker {
        self.workers.get_mut(&id).expect("a worker that runs")
    }

    /// Whether a worker's process runs; one that stands still is looked at again when it goes on.
    pub fn runs(&mut self, id: u64, otherwise: Due) -> bool {
        match self.workers.get(&id) {
            Some(worker) if worker.frozen => {
                self.after(300, otherwise);
                false
            }
            Some(worker) => !worker.dead,
            None => false,
        }
    }

    pub fn dial(&mut self, id: u64, token: u64) {
        if !self.runs(id, Due::Dial(id, token)) {
            return;
        }
        let hello = {
            let worker = self.worker(id);
            match &worker.link {
                Link::Away { attempt: None, token: mine, .. } if *mine == token => {}
                _ => return,
            }
            let rank = worker.seat.filter(|_| worker.place.is_some());
            Hello { rank, standing: worker.place.clone(), ..worker.hello.clone() }
        };
        match self.connect(id) {
            Some(stream) => {
                let worker = self.worker(id);
                let first = !worker.welcomed;
                if let Link::Away { attempt, .. } = &mut worker.link {
                    *attempt = Some(stream);
                }
                self.put_up(stream, Up::Hello(Box::new(hello)));
                if !first {
                    self.after(ATTEMPT, Due::AttemptOver(id, stream));
                }
            }
            None => self.try_again(id),
        }
    }

    pub fn attempt_over(&mut self, id: u64, stream: u64) {
        if !self.runs(id, Due::AttemptOver(id, stream)) {
            return;
        }
        if matches!(self.worker(id).link, Link::Away { attempt: Some(mine), .. } if mine == stream) {
            self.put_up(stream, Up::End);
            self.try_again(id);
        }
    }

    fn try_again(&mut self, id: u64) {
        let (now, next) = (self.now, self.number());
        let worker = self.worker(id);
        let Link::Away { since, pause, longest, attempt, token } = &mut worker.link else { return };
        (*attempt, *token) = (None, next);
        *pause = (*pause * 2).clamp(100, *longest);
        let (pause, waited) = (*pause, now - *since);
        if waited > WAIT_FOR_COORDINATOR {
            return self.exit(id, "no coordinator");
        }
        self.after(pause, Due::Dial(id, next));
    }

    pub fn heartbeat(&mut self, id: u64) {
        let Some(worker) = self.workers.get(&id).filter(|worker| !worker.dead) else { return };
        if let (Link::Up(stream), false) = (&worker.link, worker.frozen) {
            let stream = *stream;
            if let Some(stream) = self.streams.get(&stream).map(|_| stream) {
                self.put_up(stream, Up::Say(FromWorker::Heartbeat));
            }
        }
        self.after(HEARTBEAT, Due::Heartbeat(id));
    }

    /// A message of the coordinator has come on one of the worker's streams.
    pub fn hear(&mut self, id: u64, stream: u64, message: Down) {
        let worker = self.worker(id);
        let current = match worker.link {
            Link::Up(mine) => mine == stream,
            Link::Away { attempt, .. } => attempt == Some(stream),
        };
        if worker.dead || !current {
            return;
        }
        match message {
            Down::Welcome(rank) => self.welcomed(id, stream, rank),
            Down::Order(order) => self.ordered(id, order),
            Down::End(status) => {
                self.put_up(stream, Up::End);
                self.stream_ended(id, status);
            }
        }
    }

    fn welcomed(&mut self, id: u64, stream: u64, rank: Rank) {
        let worker = self.worker(id);
        worker.seat = Some(rank);
        let first = !std::mem::replace(&mut worker.welcomed, true);
        worker.link = Link::Up(stream);
        worker.connected = Some(stream);
        let kept = std::mem::take(&mut worker.kept);
        let indexed = worker.dataset.then(|| FromWorker::Indexed(dataset()));
        let leaving = worker.leaving.then(|| FromWorker::Leaving { reason: "SIGTERM".into() });
        for report in indexed.into_iter().chain(kept).chain(leaving) {
            self.put_up(stream, Up::Say(report));
        }
        if first {
            let indexing = self.rng.between(10, 3000);
            self.wait(id, Pending::Indexed, indexing);
        }
    }

    fn stream_ended(&mut self, id: u64, status: Status) {
        let now = self.now;
        let token = self.number();
        let worker = self.worker(id);
        match (status, &worker.link) {
            (Status::ForGood, _) => return self.exit(id, "not wanted any more"),
            (Status::Refused, _) if !worker.welcomed => return self.exit(id, "refused"),
            (_, Link::Away { .. }) => return self.try_again(id),
            (_, Link::Up(_)) => {}
        }
        let believed = worker.connected.take().zip(worker.held);
        let outside = status == Status::PutOut;
        worker.put_out = if outside { worker.put_out + 1 } else { 0 };
        let (first, longest) = if outside { (1000, 300_000) } else { (100, 2000) };
        let pause = (first << worker.put_out.min(8)).min(longest);
        worker.link = Link::Away { since: now, pause, longest, attempt: None, token };
        self.believed.extend(believed);
        self.after(pause, Due::Dial(id, token));
        self.leave_while_away(id);
    }

    /// One that is to go, and is in no ring, does not wait for a coordinator that is away.
    pub fn leave_while_away(&mut self, id: u64) {
        let worker = self.worker(id);
        let in_ring = worker.place.as_ref().is_some_and(|place| place.in_ring);
        if matches!(worker.link, Link::Away { .. }) && worker.welcomed && worker.leaving && !in_ring {
            self.exit(id, "to leave, and the coordinator is away");
        }
    }

    /// What the session does about an order before the training thread gets it.
    fn ordered(&mut self, id: u64, order: ToWorker) {
        let worker = self.worker(id);
        match &order {
            ToWorker::Dissolve { generation, .. } => self.fence(id, *generation),
            ToWorker::Drain { generation, .. } => worker.draining = worker.draining.max(*generation),
            ToWorker::Finish { .. } => self.fence(id, Generation(u64::MAX)),
            ToWorker::Release { .. } if !worker.following => return self.exit(id, "released"),
            _ => {}
        }
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.orders.push_back(order);
            self.follow(id);
        }
    }

    fn fence(&mut self, id: u64, generation: Generation) {
        let worker = self.worker(id);
        worker.over = Some(generation);
        if worker.guarded <= generation {
            worker.aborted = true;
            self.ring_changed_for(id);
        }
    }

    /// A report of the training thread or the saver.
    pub fn report(&mut self, id: u64, report: FromWorker) {
        let worker = self.worker(id);
        match (&worker.link, &report) {
            (Link::Up(stream), _) => {
                let stream = *stream;
                self.put_up(stream, Up::Say(report));
            }
            (Link::Away { .. }, FromWorker::CheckpointWritten { .. } | FromWorker::Fault { .. }) => {
                worker.kept.push(report);
            }
            (Link::Away { .. }, _) => self.leave_while_away(id),
        }
    }

    /// SIGTERM.
    pub fn told_to_leave(&mut self, id: u64) {
        let worker = self.worker(id);
        if worker.leaving || !worker.welcomed {
            return;
        }
        worker.leaving = true;
        if let Link::Up(stream) = worker.link {
            self.put_up(stream, Up::Say(FromWorker::Leaving { reason: "SIGTERM".into() }));
        }
        self.after(DRAIN_DEADLINE, Due::Deadline(id));
        self.leave_while_away(id);
    }

    /// The process ends in good order: what its saver has to write is written.
    pub fn exit(&mut self, id: u64, reason: &str) {
        if self.workers.get(&id).is_none_or(|worker| worker.dead) {
            return;
        }
        self.note(|| format!("worker {id} exits: {reason}"));
        while self.workers.get(&id).is_some_and(|worker| !worker.saves.is_empty()) {
            self.write_file(id);
        }
        let stream = match self.worker(id).link {
            Link::Up(stream) => Some(stream),
            Link::Away { attempt, .. } => attempt,
        };
        if let Some(stream) = stream {
            self.put_up(stream, Up::End);
        }
        self.left_ring(id);
        self.workers.remove(&id);
        self.keep_manned();
    }

    /// The process is killed; or its host is gone, and nothing says so.
    pub fn crash(&mut self, id: u64, silently: bool) {
        let worker = self.worker(id);
        if silently {
            worker.dead = true;
            self.rings_changed();
        } else {
            let held = worker.held;
            let stream = match worker.link {
                Link::Up(stream) => Some(stream),
                Link::Away { attempt, .. } => attempt,
            };
            if let Some(stream) = stream {
                self.believed.extend(held.map(|held| (stream, held)));
                self.lose_stream(stream);
            }
            self.left_ring(id);
            self.workers.remove(&id);
        }
        self.keep_manned();
    }

    /// The stream breaks; the process goes on.
    pub fn break_stream(&mut self, id: u64) {
        if let Link::Up(stream) = self.worker(id).link {
            self.lose_stream(stream);
        }
    }

    pub fn thaw(&mut self, id: u64) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.frozen = false;
            self.deliver_what_waits(id);
            self.rings_changed();
        }
    }

    /// Whoever starts workers sees that there are enough.
    pub fn keep_manned(&mut self) {
        let alive = self.workers.values().filter(|worker| !worker.dead && !worker.leaving).count() as u32;
        let wanted = match self.rng.one_in(2) {
            true => self.settings.workers,
            false => self.settings.min_workers,
        };
        for _ in alive..wanted {
            let delay = self.rng.between(10, 5000);
            self.after(delay, Due::Spawn);
        }
    }

    /// Whether a worker is in touch with the coordinator: seated, and heard.
    pub fn in_touch(&self, id: u64) -> bool {
        let Some(worker) = self.workers.get(&id) else { return false };
        let seated = |stream: u64| {
            let coordinator = self.coordinator.as_ref();
            coordinator.is_some_and(|coordinator| coordinator.seated.values().any(|mine| *mine == stream))
        };
        let up = worker.connected.is_some_and(seated);
        up && !worker.dead && !worker.frozen && !self.is_cut(id, 0)
    }
}
