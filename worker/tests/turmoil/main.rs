//! The real coordinator and the real sessions of its workers on a simulated network, in simulated time, from a seed:
//! the gRPC service, the driver, the core, the journal on a disk, the limits and the token of the port; and the link
//! that keeps a worker in touch. The parts:
//!
//! - [`world`]: the hosts: the coordinator's, the workers' and the operator's;
//! - [`trainer`]: a worker's training thread, after `worker/src/train`, on the real session;
//! - [`ring`] and [`state`]: what is simulated in the place of collectives, of weights and of their files;
//! - [`net`]: the network of turmoil, as the coordinator and the link take it;
//! - [`trouble`]: what is done to hosts and network;
//! - [`checks`]: what must hold whatever is done to them.
//!
//! A failing seed is printed, and played again with its trace:
//! `TURMOIL_SEED=n cargo test --release -p relabel-worker --test turmoil -- --nocapture NAME`. `TURMOIL_SEEDS` asks for
//! another number of seeds than [`SEEDS`], `TURMOIL_FIRST` for others. What is done and when is the seed's alone; which of
//! two things that are ready in one moment comes first, the libraries in between choose at random, so that a rare failure
//! may want several plays of its seed.

mod checks;
mod net;
mod ring;
mod state;
mod trainer;
mod trouble;
mod world;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use relabel_core::Outcome;
use trouble::Scenario;
use world::{COORDINATOR, WORKERS, World};

/// Seeds of each scenario.
const SEEDS: u64 = 12;

/// No run may take longer: all that it waits for has come or been given up by then.
const END: Duration = Duration::from_secs(150);

/// A part of a millisecond's grain would show nothing more: latencies are many times that.
const TICK: Duration = Duration::from_millis(5);

/// Plays one schedule.
fn play(scenario: Scenario, seed: u64) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let world = Rc::new(RefCell::new(World::new(seed, folder.path().to_owned())));
    std::fs::create_dir(world.borrow().checkpoints()).expect("a folder for checkpoints");
    let slowest = world.borrow_mut().between(5, 150);
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(2 * END)
        .max_message_latency(Duration::from_millis(slowest))
        .enable_tokio_io()
        .tcp_capacity(1024)
        .build();
    let shared = world.clone();
    sim.host(COORDINATOR, move || world::coordinator(shared.clone()));
    for index in 0..WORKERS {
        let (shared, name) = (world.clone(), trouble::name(index));
        sim.host(trouble::name(index), move || world::worker(shared.clone(), name.clone()));
    }
    let shared = world.clone();
    sim.host("operator", move || world::operator(shared.clone()));

    let mut plan = trouble::plan(scenario, &mut world.borrow_mut());
    let verbose = variable("TURMOIL_SEED").is_some();
    let mut printed = 0;
    let hosts = WORKERS as usize + 2;
    loop {
        let stepped = sim.step();
        if verbose {
            world.borrow().trace[printed..].iter().for_each(|line| println!("{line}"));
            printed = world.borrow().trace.len();
        }
        if let Err(error) = stepped {
            panic!("{error}");
        }
        trouble::disturb(&mut plan, &mut sim, &world);
        let world = world.borrow();
        if world.outcome.is_some() && world.through.len() == hosts {
            break;
        }
        assert!(sim.elapsed() < END, "something is waited for for ever; through: {:?}", world.through);
    }
    // The journal is held for as long as the coordinator's host.
    drop(sim);
    let world = world.borrow();
    assert_eq!(world.outcome, Some(Outcome::Done));
    // What was done while the coordinator was away is shown when its workers are back, as far as one of them knows of it;
    // where other trouble comes on top, that one may be gone.
    world.checks.ended(folder.path(), scenario != Scenario::All);
}

/// A number from the environment.
fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Plays a scenario with many seeds.
fn play_all(scenario: Scenario) {
    let (first, seeds) = match variable("TURMOIL_SEED") {
        Some(seed) => (seed, 1),
        None => (variable("TURMOIL_FIRST").unwrap_or(0), variable("TURMOIL_SEEDS").unwrap_or(SEEDS)),
    };
    let failed: Vec<_> = (first..first + seeds)
        .filter(|seed| catch_unwind(AssertUnwindSafe(|| play(scenario, *seed))).is_err())
        .collect();
    assert!(
        failed.is_empty(),
        "{scenario:?}: {} of {seeds} seeds failed: {failed:?}; play one again with TURMOIL_SEED=n cargo test --release \
         -p relabel-worker --test turmoil -- --nocapture",
        failed.len()
    );
}

#[test]
fn messages_are_late_and_overtake_each_other() {
    play_all(Scenario::Late);
}

#[test]
fn a_worker_is_cut_off_for_less_than_dead_after() {
    play_all(Scenario::ShortCut);
}

#[test]
fn a_worker_is_cut_off_for_longer_than_dead_after() {
    play_all(Scenario::LongCut);
}

#[test]
fn a_connection_is_half_open() {
    play_all(Scenario::HalfOpen);
}

#[test]
fn a_worker_crashes() {
    play_all(Scenario::WorkerCrash);
}

#[test]
fn the_coordinator_crashes() {
    play_all(Scenario::CoordinatorCrash);
}

#[test]
fn everything_at_once() {
    play_all(Scenario::All);
}
