//! What is done to the coordinator and its workers, and when.

use super::world::{Due, World};
use super::*;

/// Trouble comes within so many milliseconds.
const TROUBLED: u64 = 14_000;

/// Who it befalls is drawn when its time has come.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trouble {
    /// A worker's process is killed; its sockets close.
    Crash,
    /// A worker's host is gone, and nothing says so.
    HostGone,
    /// A worker's stream breaks.
    StreamBreaks,
    /// A worker is cut off from the coordinator, and from nobody else.
    CutFromCoordinator,
    /// Two workers are cut off from each other, and from nobody else.
    CutFromPeer,
    StandsStill,
    /// A worker is told to leave.
    Leaves,
    /// One more comes than there need be.
    Joins,
    /// The coordinator is killed, now or between two of the next commands.
    CoordinatorDies,
    /// The coordinator is to make way for another.
    HandOver,
    Save,
    Stop,
    DiskIsFull,
    /// The newest checkpoint is damaged.
    Damage,
}

const USUAL: [Trouble; 12] = [
    Trouble::Crash,
    Trouble::Crash,
    Trouble::HostGone,
    Trouble::StreamBreaks,
    Trouble::CutFromCoordinator,
    Trouble::CutFromPeer,
    Trouble::StandsStill,
    Trouble::Leaves,
    Trouble::Joins,
    Trouble::CoordinatorDies,
    Trouble::CoordinatorDies,
    Trouble::Save,
];
const RARE: [Trouble; 3] = [Trouble::Stop, Trouble::DiskIsFull, Trouble::Damage];

impl World {
    pub fn plan_trouble(&mut self) {
        self.calm = TROUBLED + 12_000;
        for _ in 0..self.rng.below(9) {
            let trouble = match self.rng.one_in(12) {
                true => RARE[self.rng.below(RARE.len())],
                false => USUAL[self.rng.below(USUAL.len())],
            };
            let at = self.rng.between(0, TROUBLED);
            self.after(at, Due::Trouble(trouble));
        }
        // Drawn apart: the seeds that once failed go on playing what they did.
        let mut apart = Rng(self.seed ^ 0x6861_6e64_6f76_6572);
        if self.seed.is_multiple_of(10) {
            for _ in 0..1 + apart.below(3) {
                self.after(apart.between(0, TROUBLED), Due::Trouble(Trouble::HandOver));
            }
        }
    }

    fn somebody(&mut self) -> Option<u64> {
        let alive: Vec<_> = self.workers.iter().filter(|(_, w)| !w.dead).map(|(id, _)| *id).collect();
        (!alive.is_empty()).then(|| alive[self.rng.below(alive.len())])
    }

    pub fn disturb(&mut self, trouble: Trouble) {
        let somebody = self.somebody();
        self.note(|| format!("{trouble:?}, {somebody:?}"));
        match (trouble, somebody) {
            (Trouble::Crash, Some(id)) => self.crash(id, false),
            (Trouble::HostGone, Some(id)) => self.crash(id, true),
            (Trouble::StreamBreaks, Some(id)) => self.break_stream(id),
            (Trouble::CutFromCoordinator, Some(id)) => {
                let long = self.rng.between(300, 12_000);
                self.cut(0, id, long);
            }
            (Trouble::CutFromPeer, Some(id)) => {
                let other = self.somebody().filter(|other| *other != id);
                if let Some(other) = other {
                    self.note(|| format!("between {id} and {other}"));
                    let long = self.rng.between(300, 12_000);
                    self.cut(id, other, long);
                }
            }
            (Trouble::StandsStill, Some(id)) => {
                self.worker(id).frozen = true;
                let long = self.rng.between(300, 8000);
                self.after(long, Due::Thaw(id));
            }
            (Trouble::Leaves, Some(id)) => {
                self.told_to_leave(id);
                self.keep_manned();
            }
            (Trouble::Joins, _) => self.spawn(),
            (Trouble::CoordinatorDies, _) => match (self.rng.one_in(3), &mut self.coordinator) {
                (true, Some(_)) => self.kill_coordinator(),
                (false, Some(coordinator)) => {
                    let commands = self.rng.below(9);
                    coordinator.dies_after = Some(commands);
                }
                _ => {}
            },
            (Trouble::Save, _) => self.event(Event::Save { reason: "asked".into() }),
            (Trouble::HandOver, _) => {
                self.check.hand_over_asked.get_or_insert(self.now);
                self.event(Event::HandOver { reason: "asked".into() });
            }
            (Trouble::Stop, _) => {
                // Asked twice, it waits for nothing.
                self.check.stopped_at = self.check.stopped_at.map_or(Some(Some(self.now)), |_| Some(None));
                self.event(Event::Stop { reason: "asked".into() });
            }
            (Trouble::DiskIsFull, _) => (self.disk_is_full, self.check.was_full) = (true, true),
            (Trouble::Damage, _) => {
                let newest = History::replay(&self.journal).newest().cloned();
                if let Some(file) = newest.and_then(|newest| self.disk.get_mut(&newest.file)) {
                    (file.damaged, self.check.damaged) = (true, true);
                }
            }
            (_, None) => {}
        }
    }
}
