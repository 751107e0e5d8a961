//! The rings of the generations, which are no part of what is tested: they stand in the memory of the simulation, and
//! behave as `worker/src/collective/tcp` does.

use std::collections::BTreeMap;
use std::time::Duration;

use relabel_core::{Formation, Generation, Position, Rank};
use tokio::time::{Instant, sleep};
use worker::collective::AbortHandle;

use super::state::State;
use super::world::Shared;

/// `cluster.ring_timeout`, and how long the ranks look for each other.
pub const PEER: Duration = Duration::from_secs(2);
const FORM: Duration = Duration::from_secs(5);

/// Between two looks at what the others have done.
const LOOK: Duration = Duration::from_millis(3);

#[derive(Default)]
pub struct Ring {
    /// Who has come, by rank, and who has gone again, closing its connections.
    joined: Vec<Option<u64>>,
    left: Vec<bool>,
    /// Operations that a rank has begun.
    begun: Vec<u64>,
    source: Option<State>,
    /// By operation: the step, and whether a rank wants to leave after it.
    steps: BTreeMap<u64, (Position, bool)>,
}

/// Why a rank is out of its ring, and which other one is to blame.
#[derive(Debug)]
pub struct Left {
    pub reason: String,
    pub blamed: Option<Rank>,
}

/// A rank's end of its ring; dropped, its connections close.
pub struct Seat {
    shared: Shared,
    instance: u64,
    abort: AbortHandle,
    generation: Generation,
    rank: usize,
    world: usize,
    operation: u64,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut world = self.shared.borrow_mut();
        // Nobody hears of it when a whole host is gone.
        if !world.gone.contains(&self.instance)
            && let Some(ring) = world.rings.get_mut(&self.generation)
        {
            ring.left[self.rank] = true;
        }
    }
}

impl Seat {
    /// Looks for the other ranks until all are there.
    pub async fn join(
        shared: Shared,
        instance: u64,
        formation: &Formation,
        abort: AbortHandle,
    ) -> Result<Self, Left> {
        let (generation, rank, size) =
            (formation.generation, formation.rank.0 as usize, formation.world as usize);
        {
            let mut world = shared.borrow_mut();
            let ring = world.rings.entry(generation).or_insert_with(|| Ring {
                joined: vec![None; size],
                left: vec![false; size],
                begun: vec![0; size],
                ..Ring::default()
            });
            assert_eq!(
                ring.joined.len(),
                size,
                "all ranks of generation {generation} know how many they are"
            );
            assert_eq!(ring.joined[rank], None, "one worker is rank {rank} of generation {generation}");
            ring.joined[rank] = Some(instance);
        }
        let seat = Self { shared, instance, abort, generation, rank, world: size, operation: 0 };
        let began = Instant::now();
        loop {
            seat.check()?;
            let (previous, next) = (seat.beside(size - 1), seat.beside(1));
            let missing = |rank: usize| {
                let world = seat.shared.borrow();
                let ring = &world.rings[&generation];
                ring.joined[rank].is_none_or(|peer| world.gone.contains(&peer)) || ring.left[rank]
            };
            if !(0..size).any(missing) {
                return Ok(seat);
            }
            if began.elapsed() > FORM {
                let blamed = match (missing(previous), missing(next)) {
                    (true, false) => Some(previous),
                    (false, true) => Some(next),
                    _ => Some(next).filter(|next| *next == previous),
                };
                return Err(Left {
                    reason: "the ring did not form".into(),
                    blamed: blamed.map(|r| Rank(r as u32)),
                });
            }
            sleep(LOOK).await;
        }
    }

    /// Gives every rank the state of the source, which alone brings one.
    pub async fn share(&mut self, state: Option<State>) -> Result<State, Left> {
        if state.is_some() {
            self.ring(|ring| ring.source = state);
        }
        self.together().await?;
        Ok(self.ring(|ring| ring.source.expect("the source has begun")))
    }

    /// Does the step at `at` together with all others; returns whether one of them wants it to be the last.
    pub async fn step(&mut self, at: Position, leave: bool) -> Result<bool, Left> {
        let operation = self.operation + 1;
        self.ring(|ring| {
            let step = ring.steps.entry(operation).or_insert((at, false));
            assert_eq!(step.0, at, "all ranks do the same step");
            step.1 |= leave;
        });
        self.together().await?;
        Ok(self.ring(|ring| ring.steps[&operation].1))
    }

    /// Waits until all ranks have come to the same operation.
    async fn together(&mut self) -> Result<(), Left> {
        self.operation += 1;
        let (operation, rank) = (self.operation, self.rank);
        self.ring(|ring| ring.begun[rank] = operation);
        let began = Instant::now();
        let lost = || Left { reason: "the ring was closed".into(), blamed: None };
        let left = |ring: &mut Ring| (0..ring.left.len()).any(|r| ring.left[r] && ring.begun[r] <= operation);
        loop {
            self.check()?;
            if self.ring(|ring| ring.begun.iter().all(|begun| *begun >= operation)) {
                break;
            }
            if self.ring(|ring| left(ring)) {
                return Err(lost());
            }
            let previous = self.beside(self.world - 1);
            let peer = self.ring(|ring| ring.joined[previous]);
            if began.elapsed() > PEER && peer.is_some_and(|peer| self.shared.borrow().gone.contains(&peer)) {
                let blamed = Some(Rank(previous as u32));
                return Err(Left { reason: "the previous rank is silent".into(), blamed });
            }
            sleep(LOOK).await;
        }
        // The last of it is still under way: it may come to nothing for some, and not for others.
        let wire = self.shared.borrow_mut().below(6);
        sleep(Duration::from_millis(wire)).await;
        self.check()?;
        let unlucky = self.shared.borrow_mut().below(2) == 0;
        if unlucky && self.ring(|ring| left(ring)) { Err(lost()) } else { Ok(()) }
    }

    fn check(&self) -> Result<(), Left> {
        self.abort.check().map_err(|error| Left { reason: error.to_string(), blamed: None })
    }

    fn beside(&self, ranks: usize) -> usize {
        (self.rank + ranks) % self.world
    }

    fn ring<T>(&self, look: impl FnOnce(&mut Ring) -> T) -> T {
        look(self.shared.borrow_mut().rings.get_mut(&self.generation).expect("its ring"))
    }
}
