//! What the session's thread and the training thread know of each other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use relabel_core::{Generation, Position, Rank};

/// Known to both threads; clones are the same one.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    place: Option<Place>,
    following: bool,
    /// Streams that have been opened, and whether the last of them stands.
    streams: u64,
    connected: bool,
    leaving: Option<u8>,
}

/// A rank's place in the newest generation that it was in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub generation: Generation,
    pub rank: Rank,
    pub world: u32,
    /// Whether its ring still stands.
    pub in_ring: bool,
    /// The next step of the state that it holds, if that is whole.
    pub held: Option<Position>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in it can be half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The training thread follows orders from now on.
    pub fn follow(&self) {
        self.state().following = true;
    }

    pub(super) fn is_followed(&self) -> bool {
        self.state().following
    }

    /// Notes where this rank stands; it is what a coordinator that was away is told.
    pub fn set_place(&self, place: Place) {
        self.state().place = Some(place);
    }

    pub(super) fn place(&self) -> Option<Place> {
        self.state().place
    }

    /// The number of the stream that stands; none while the coordinator is away.
    pub fn stream(&self) -> Option<u64> {
        let state = self.state();
        state.connected.then_some(state.streams)
    }

    pub(super) fn opened(&self) {
        let mut state = self.state();
        state.streams += 1;
        state.connected = true;
    }

    pub(super) fn broken(&self) {
        self.state().connected = false;
    }

    /// The number of the signal that has told this process to leave, if one has.
    pub fn leaving(&self) -> Option<u8> {
        self.state().leaving
    }

    pub(super) fn leave(&self, signal: u8) {
        self.state().leaving = Some(signal);
    }
}
