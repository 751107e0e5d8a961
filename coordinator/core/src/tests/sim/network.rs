//! Streams between workers and the coordinator. Each direction is in order; what is on its way is lost where the
//! stream breaks, and waits where hosts are cut off from each other.

use std::collections::VecDeque;

use super::world::{Due, World};
use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Up,
    Down,
}

/// From a worker.
#[derive(Debug, Clone)]
pub(super) enum Up {
    Hello(Box<Hello>),
    Say(FromWorker),
    End,
}

/// From the coordinator.
#[derive(Debug, Clone)]
pub(super) enum Down {
    Welcome(Rank),
    Order(ToWorker),
    End(Status),
}

/// How a stream ends, as a worker sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// The connection broke.
    Broken,
    /// There is no seat; one that has had one tries again.
    Refused,
    /// The coordinator has put it out for now.
    PutOut,
    /// It is not wanted any more.
    ForGood,
}

pub(super) struct Stream {
    pub instance: u64,
    /// The life of the coordinator that it leads to.
    life: u32,
    worker: Option<WorkerId>,
    up: VecDeque<Up>,
    down: VecDeque<Down>,
    /// When the newest message of either direction arrives.
    arrives: [u64; 2],
}

impl World {
    /// A new connection to the coordinator that is there.
    pub fn connect(&mut self, instance: u64) -> Option<u64> {
        let life = self.coordinator.as_ref()?.life;
        if self.is_cut(instance, 0) {
            return None;
        }
        let (up, down) = (VecDeque::new(), VecDeque::new());
        let number = self.number();
        self.streams.insert(number, Stream { instance, life, worker: None, up, down, arrives: [0; 2] });
        Some(number)
    }

    /// How long a message takes: most are fast, some late.
    fn latency(&mut self) -> u64 {
        match self.rng.one_in(25) {
            true => self.rng.between(30, 900),
            false => self.rng.between(1, 20),
        }
    }

    fn schedule(&mut self, number: u64, direction: Direction) {
        let at = self.now + self.latency();
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let last = &mut stream.arrives[direction as usize];
        *last = at.max(*last);
        let delay = *last - self.now;
        self.after(delay, Due::Deliver(number, direction));
    }

    pub fn put_up(&mut self, number: u64, up: Up) {
        // Whatever is said may come twice.
        let twice = matches!(up, Up::Say(_)) && self.now < self.calm && self.rng.one_in(20);
        for _ in 0..=usize::from(twice) {
            if let Some(stream) = self.streams.get_mut(&number) {
                stream.up.push_back(up.clone());
                self.schedule(number, Direction::Up);
            }
        }
    }

    pub fn put_down(&mut self, number: u64, down: Down) {
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.down.push_back(down);
            self.schedule(number, Direction::Down);
        }
    }

    /// The stream breaks: of what is on its way, in either direction, the rest is lost.
    pub fn lose_stream(&mut self, number: u64) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let (up, down) = (stream.up.len(), stream.down.len());
        let (up, down) = (self.rng.below(up + 1), self.rng.below(down + 1));
        let Some(stream) = self.streams.get_mut(&number) else { return };
        stream.up.truncate(up);
        stream.down.truncate(down);
        self.put_up(number, Up::End);
        self.put_down(number, Down::End(Status::Broken));
    }

    /// A message arrives, if nothing holds it up.
    pub fn deliver(&mut self, number: u64, direction: Direction) {
        let Some(stream) = self.streams.get(&number) else { return };
        let instance = stream.instance;
        if self.is_cut(instance, 0) {
            return;
        }
        match direction {
            Direction::Up => self.arrive_up(number),
            Direction::Down => self.arrive_down(number, instance),
        }
    }

    fn arrive_up(&mut self, number: u64) {
        let Some(stream) = self.streams.get_mut(&number) else { return };
        let Some(message) = stream.up.pop_front() else { return };
        if self.coordinator.as_ref().is_none_or(|coordinator| coordinator.life != stream.life) {
            return;
        }
        match (message, stream.worker) {
            (Up::Hello(hello), None) => {
                let Some(worker) = self.register(number) else { return };
                if let Some(stream) = self.streams.get_mut(&number) {
                    stream.worker = Some(worker);
                }
                self.event(Event::Joined { worker, hello: *hello });
            }
            (Up::Say(message), Some(worker)) => self.event(Event::Said { worker, message }),
            (Up::End, Some(worker)) => self.event(Event::Left { worker, reason: "its stream ended".into() }),
            (Up::Hello(_) | Up::Say(_) | Up::End, _) => {}
        }
    }

    fn arrive_down(&mut self, number: u64, instance: u64) {
        let Some(worker) = self.workers.get(&instance) else { return };
        if worker.frozen {
            return;
        }
        let message = self.streams.get_mut(&number).and_then(|stream| stream.down.pop_front());
        let Some(message) = message else { return };
        self.hear(instance, number, message);
    }

    /// Whether nothing passes between two hosts; 0 is the coordinator's.
    pub fn is_cut(&self, a: u64, b: u64) -> bool {
        !self.cuts.is_empty() && self.cuts.contains(&(a.min(b), a.max(b)))
    }

    pub fn cut(&mut self, a: u64, b: u64, milliseconds: u64) {
        self.cuts.insert((a.min(b), a.max(b)));
        self.after(milliseconds, Due::Heal(a.min(b), a.max(b)));
        self.rings_changed();
    }

    pub fn heal(&mut self, a: u64, b: u64) {
        self.note(|| format!("{a} and {b} reach each other again"));
        self.cuts.remove(&(a, b));
        self.rings_changed();
        if a == 0 {
            self.deliver_what_waits(b);
        }
    }

    /// What was held up arrives.
    pub fn deliver_what_waits(&mut self, instance: u64) {
        let waits: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, s)| s.instance == instance)
            .map(|(n, s)| (*n, s.up.len(), s.down.len()))
            .collect();
        for (number, up, down) in waits {
            (0..up).for_each(|_| self.schedule(number, Direction::Up));
            (0..down).for_each(|_| self.schedule(number, Direction::Down));
        }
    }
}
