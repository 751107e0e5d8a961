//! What the coordinator decides, as pure functions of state and event.
//!
//! ```text
//!   gRPC streams ─┐                        ┌─ Send      a message to one worker
//!   lost sockets ─┤                        ├─ Expel     close a worker's stream, with the reason
//!   signals, CLI ─┼─ Event ─▶ Run ─▶ Command ┼─ Persist   a fact into the journal, synced before what follows
//!   a timer ──────┘   handle(now, event)   ├─ Observe   what people and metrics see
//!                                          ├─ End       the run is over, and how
//!                                          └─ HandOver  the run goes on under the coordinator that is started next
//! ```
//!
//! [`Run::handle`] is all there is: the driver around it (`coordinator/src/driver.rs`) queues events,
//! passes the time in, and carries the commands out in order. This crate can do no I/O because it
//! depends on nothing that can; the same events at the same times give the same commands, on any machine.
//!
//! # Glossary
//!
//! - **Worker**: one process with one device. A [`WorkerId`] is one life of it; a [`Rank`] is the seat it takes.
//! - **World size**: the number of seats.
//! - **Generation**: a fixed set of ranks with one ring between them. Any loss or arrival ends it.
//! - **Global batch**: the samples of one optimizer step, all ranks together.
//! - **Shard**: the part of every global batch that one rank takes ([`shards`]).
//! - **Position**: the next step to be done, as epoch and step within it ([`Position`]). All that has been
//!   consumed is one number, whatever the world size was on the way.
//! - **Source**: the rank whose weights, optimizer state and buffers a new generation starts from.
//! - **Duty**: a checkpoint that one worker has been told to write ([`checkpoint`]).
//!
//! # The way of a run
//!
//! ```text
//!              ┌──────── not all came back, or their ring broke ────────┐
//!              │                                                        ▼
//!   Reuniting ─┴─ all ranks are back, their ring stands ─▶ Training   Gathering ──enough are here, data agreed──▶ Forming
//!   (a coordinator that was away)                                       ▲                                           │
//!                                                                       │ a worker lost, a ring broken,        all ready
//!                                                                       │ one joins, leaves or is slow              ▼
//!                                                                       ├──────────────────────────── Training ◀─────┤
//!                                                                       │                              │    ▲       │
//!                                                                       │                      last step    next epoch
//!                                                                       │                              ▼    │       │
//!                                                                       └──────────────────────────── Validating ◀───┘
//!   Ended ◀── last checkpoint committed ── Saving ◀── after the last epoch ────────────────────────────┘
//! ```
//!
//! A stop while training dissolves the generation, a fault does by itself; what is held is saved, and the run
//! ends as soon as that is committed. A coordinator that has to go where the run need not has a checkpoint written, and
//! makes way for another.
//!
//! # What is done when something goes wrong, cheapest first
//!
//! 1. *Keep going*: the coordinator was away, all ranks trained on and come back (`run/reuniting.rs`); a checkpoint
//!    within training could not be written; a rank is slow.
//! 2. *Form anew, in memory*: enough workers are left. They go on from the one that has gone furthest; whoever holds
//!    another state, or none, is sent it. No step is lost while one worker lives. Whoever comes back from a generation
//!    that is over leaves its ring and is asked what it holds first; where that is more than the others have, they go
//!    on from there.
//! 3. *The newest checkpoint*: nobody is left who holds a state, or nobody one that is as far.
//! 4. *The one before*: that one is damaged.
//!
//! Each decision is a sentence with its reason, in the log and in [`Status::decisions`].
//!
//! # Work without a run
//!
//! [`leases`] decides likewise which worker has which range of samples where no step waits for all: for
//! `coordinator label` ([`labelling`]) and for `coordinator eval` ([`evaluation`], whose sums and report are those of
//! `worker eval` too).

mod command;
mod decision;
mod event;
mod id;
mod run;
mod settings;
mod status;
mod straggler;

pub mod checkpoint;
pub mod evaluation;
pub mod history;
pub mod labelling;
pub mod leases;
pub mod membership;
pub mod shards;
pub mod validation;

pub use command::{Command, EpochSummary, Formation, Observation, Outcome, Restore, ToWorker};
pub use decision::Decision;
pub use event::{Dataset, Event, FromWorker, Hello, Pace, Standing, StepReport, Written};
pub use history::{Fact, History};
pub use id::{DutyId, Generation, Position, Rank, Token, WorkerId};
pub use membership::Rejection;
pub use run::Run;
pub use settings::{Settings, StragglerAction, StragglerPolicy};
pub use status::{Status, WorkerState, WorkerStatus};
pub use straggler::StepTimes;

#[cfg(test)]
mod tests;
