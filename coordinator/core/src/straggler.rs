//! Which ranks hold the others up.
//!
//! The ranks of a ring take their steps together, so a step lasts as long as the slowest of them. What each does
//! itself (computing, and waiting for its own data) tells them apart; a rank is slow where that lasts a factor longer
//! than the median rank's, for some seconds on end.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{Pace, StragglerPolicy, WorkerId};

/// Steps that must have been seen before a rank is judged.
const STEPS: u32 = 10;

/// How long a rank has to be slow, or no longer, before that is said.
const SUSTAINED: Duration = Duration::from_secs(5);

/// Steps after which an older step counts half as much.
const HALF_LIFE: f64 = 20.0;

/// Mean times of a rank's newest steps, and what it costs the others.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepTimes {
    pub compute: Duration,
    pub data: Duration,
    pub peers: Duration,
    /// Share of the ring's time, in [0, 1), that is lost to this rank's being slower than the median one.
    pub lost: f64,
}

impl StepTimes {
    /// What the rank does itself.
    pub fn own(&self) -> Duration {
        self.compute + self.data
    }

    /// A whole step.
    pub fn step(&self) -> Duration {
        self.own() + self.peers
    }
}

#[derive(Debug, Clone, Copy)]
struct Record {
    seen: u32,
    times: StepTimes,
    /// Since when it has been judged otherwise than it is known as.
    otherwise: Option<Duration>,
    slow: bool,
}

/// The ranks' times. Workers that are lost are forgotten.
#[derive(Debug)]
pub(crate) struct Stragglers {
    policy: StragglerPolicy,
    records: BTreeMap<WorkerId, Record>,
}

/// A rank that has become slow, or is so no longer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Verdict {
    pub worker: WorkerId,
    pub slow: bool,
    pub times: StepTimes,
    /// The median rank's own time.
    pub median: Duration,
}

impl Stragglers {
    pub fn new(policy: StragglerPolicy) -> Self {
        Self { policy, records: BTreeMap::new() }
    }

    pub fn policy(&self) -> StragglerPolicy {
        self.policy
    }

    /// Takes a rank's report into its means.
    pub fn note(&mut self, worker: WorkerId, pace: Pace) {
        if pace.steps == 0 {
            return;
        }
        let mean = |sum: Duration| sum / pace.steps;
        let new = StepTimes {
            compute: mean(pace.compute),
            data: mean(pace.data),
            peers: mean(pace.peers),
            ..Default::default()
        };
        let record = self.records.entry(worker).or_insert(Record {
            seen: 0,
            times: new,
            otherwise: None,
            slow: false,
        });
        record.seen = record.seen.saturating_add(pace.steps);
        let kept = 0.5_f64.powf(f64::from(pace.steps) / HALF_LIFE);
        let mix = |old: Duration, new: Duration| old.mul_f64(kept) + new.mul_f64(1.0 - kept);
        record.times = StepTimes {
            compute: mix(record.times.compute, new.compute),
            data: mix(record.times.data, new.data),
            peers: mix(record.times.peers, new.peers),
            lost: record.times.lost,
        };
    }

    /// Other ranks, other slices: what was measured before says little about what comes.
    pub fn begin(&mut self) {
        for record in self.records.values_mut() {
            (record.seen, record.otherwise) = (0, None);
        }
    }

    pub fn forget(&mut self, worker: WorkerId) {
        self.records.remove(&worker);
    }

    /// The means of a worker that has trained.
    pub fn pace(&self, worker: WorkerId) -> Option<StepTimes> {
        self.records.get(&worker).map(|record| record.times)
    }

    /// Judges all that have been seen long enough; returns what has changed for good.
    pub fn judge(&mut self, now: Duration) -> Vec<Verdict> {
        let mut own: Vec<Duration> =
            self.records.values().filter(|r| r.seen >= STEPS).map(|r| r.times.own()).collect();
        if own.len() < 2 {
            return Vec::new();
        }
        own.sort_unstable();
        // Of two, the faster: the slower cannot be its own measure.
        let median = own[(own.len() - 1) / 2];
        let factor = self.policy.factor;
        let mut verdicts = Vec::new();
        for (&worker, record) in self.records.iter_mut().filter(|(_, r)| r.seen >= STEPS) {
            let own = record.times.own();
            let step = record.times.step().max(own).as_secs_f64();
            record.times.lost = own.saturating_sub(median).as_secs_f64() / step.max(1e-9);
            let slow = own.as_secs_f64() > factor * median.as_secs_f64();
            if slow == record.slow {
                record.otherwise = None;
            } else if now.saturating_sub(*record.otherwise.get_or_insert(now)) >= SUSTAINED {
                (record.slow, record.otherwise) = (slow, None);
                verdicts.push(Verdict { worker, slow, times: record.times, median });
            }
        }
        verdicts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StragglerAction;

    fn pace(compute: u64, peers: u64) -> Pace {
        let ms = Duration::from_millis;
        Pace { steps: 10, compute: ms(10 * compute), data: Duration::ZERO, peers: ms(10 * peers) }
    }

    fn stragglers() -> Stragglers {
        Stragglers::new(StragglerPolicy { factor: 1.5, action: StragglerAction::Report })
    }

    #[test]
    fn a_rank_that_stays_slow_is_named_once_with_what_it_costs() {
        let mut stragglers = stragglers();
        let mut named = Vec::new();
        for second in 0..20 {
            for (worker, compute, peers) in [(1, 100, 100), (2, 200, 0), (3, 100, 100)] {
                stragglers.note(WorkerId(worker), pace(compute, peers));
            }
            named.extend(stragglers.judge(Duration::from_secs(second)));
        }
        assert_eq!(named.len(), 1, "{named:?}");
        assert_eq!((named[0].worker, named[0].slow), (WorkerId(2), true));
        assert!((named[0].times.lost - 0.5).abs() < 1e-6, "{named:?}");
        // It recovers, and that is said too.
        for second in 20..60 {
            for worker in [1, 2, 3] {
                stragglers.note(WorkerId(worker), pace(100, 0));
            }
            named.extend(stragglers.judge(Duration::from_secs(second)));
        }
        assert_eq!(named.len(), 2);
        assert!(!named[1].slow);
    }

    #[test]
    fn a_hiccup_or_two_equal_ranks_are_not_slow() {
        let mut stragglers = stragglers();
        for second in 0..20 {
            stragglers.note(WorkerId(1), pace(100, 0));
            stragglers.note(WorkerId(2), pace(if second == 7 { 400 } else { 110 }, 0));
            assert_eq!(stragglers.judge(Duration::from_secs(second)), []);
        }
    }
}
