//! What is done to hosts and network.

use std::time::Duration;

use turmoil::Sim;

use super::world::{COORDINATOR, DEAD_AFTER, Shared, WORKERS, World};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// The links of some workers are slow, so that messages of different streams overtake each other.
    Late,
    /// Nothing passes between the coordinator and a worker, and what was sent arrives when that is over.
    ShortCut,
    LongCut,
    /// What is sent between the coordinator and a worker is lost, and neither end is told: later on the connection is
    /// there and nothing passes on it, but another could be made.
    HalfOpen,
    /// A worker's process is killed, or its host is gone without a word; another is started there.
    WorkerCrash,
    CoordinatorCrash,
    /// Several of these, at random moments.
    All,
}

#[derive(Debug, Clone, Copy)]
pub enum Deed {
    Slow(u32, u64),
    Hold(u32),
    Release(u32),
    Cut(u32),
    Mend(u32),
    Kill(u32),
    /// The host is gone: nothing it sends arrives.
    Vanish(u32),
    Start(u32),
    KillCoordinator,
    StartCoordinator,
}

/// What is still to be done, and when; the next one last.
pub type Plan = Vec<(Duration, Deed)>;

pub fn name(worker: u32) -> String {
    format!("worker-{worker}")
}

pub fn plan(scenario: Scenario, world: &mut World) -> Plan {
    let mut plan = Vec::new();
    match scenario {
        Scenario::All => {
            let mut at = 0;
            for _ in 0..world.between(2, 5) {
                at += world.between(300, 4000);
                let scenario = [
                    Scenario::Late,
                    Scenario::ShortCut,
                    Scenario::LongCut,
                    Scenario::HalfOpen,
                    Scenario::WorkerCrash,
                    Scenario::CoordinatorCrash,
                ][world.below(6) as usize];
                at = trouble(scenario, at, world, &mut plan).max(at);
            }
        }
        scenario => {
            let at = world.between(200, 7000);
            trouble(scenario, at, world, &mut plan);
        }
    }
    plan.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    plan
}

/// Plans one trouble from `at` on, in milliseconds; returns when it is over.
fn trouble(scenario: Scenario, at: u64, world: &mut World, plan: &mut Plan) -> u64 {
    let worker = world.below(u64::from(WORKERS)) as u32;
    let dead = DEAD_AFTER.as_millis() as u64;
    let (begin, end, lasts) = match scenario {
        Scenario::Late | Scenario::All => {
            let slow = Deed::Slow(worker, world.between(100, 700));
            plan.push((Duration::ZERO, Deed::Slow((worker + 1) % WORKERS, world.between(50, 300))));
            (slow, Deed::Slow(worker, world.between(5, 100)), world.between(500, 6000))
        }
        Scenario::ShortCut => (Deed::Hold(worker), Deed::Release(worker), world.between(100, dead)),
        Scenario::LongCut => (Deed::Hold(worker), Deed::Release(worker), world.between(dead, 5 * dead)),
        Scenario::HalfOpen => (Deed::Cut(worker), Deed::Mend(worker), world.between(1, 3 * dead)),
        Scenario::WorkerCrash => {
            let silent = world.below(2) == 0;
            let crash = if silent { Deed::Vanish(worker) } else { Deed::Kill(worker) };
            (crash, Deed::Start(worker), world.between(1, 6000))
        }
        Scenario::CoordinatorCrash => (Deed::KillCoordinator, Deed::StartCoordinator, world.between(1, 6000)),
    };
    plan.push((Duration::from_millis(at), begin));
    plan.push((Duration::from_millis(at + lasts), end));
    at + lasts
}

/// Does what is due.
pub fn disturb(plan: &mut Plan, sim: &mut Sim<'_>, shared: &Shared) {
    while plan.last().is_some_and(|(at, _)| *at <= sim.elapsed()) {
        let Some((at, deed)) = plan.pop() else { return };
        {
            let mut world = shared.borrow_mut();
            if world.outcome.is_some() && matches!(deed, Deed::KillCoordinator | Deed::StartCoordinator) {
                // It would find that all is done.
                continue;
            }
            world.trace.push(format!("{:>7.3} {deed:?}", at.as_secs_f64()));
        }
        match deed {
            Deed::Slow(worker, most) => {
                sim.set_link_max_message_latency(COORDINATOR, name(worker), Duration::from_millis(most));
            }
            Deed::Hold(worker) => sim.hold(COORDINATOR, name(worker)),
            Deed::Release(worker) => sim.release(COORDINATOR, name(worker)),
            Deed::Cut(worker) => sim.partition(COORDINATOR, name(worker)),
            Deed::Mend(worker) => sim.repair(COORDINATOR, name(worker)),
            Deed::Kill(worker) => sim.crash(name(worker)),
            Deed::Vanish(worker) => {
                let process = shared.borrow().processes.get(&name(worker)).copied();
                shared.borrow_mut().gone.extend(process);
                sim.partition(COORDINATOR, name(worker));
                sim.crash(name(worker));
            }
            Deed::Start(worker) => {
                sim.repair(COORDINATOR, name(worker));
                shared.borrow_mut().through.remove(&name(worker));
                sim.bounce(name(worker));
            }
            Deed::KillCoordinator => sim.crash(COORDINATOR),
            Deed::StartCoordinator => sim.bounce(COORDINATOR),
        }
    }
}
