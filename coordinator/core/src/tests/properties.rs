//! Whatever events come, in whatever order: nothing panics, the run does not contradict itself, its status can be
//! asked for, and its journal can be taken up at any point.

use proptest::prelude::*;

use super::*;

/// One thing that is done to a run.
#[derive(Debug, Clone)]
enum Act {
    /// One of the orders that have not been followed is followed as it should be.
    Follow(usize),
    /// Somebody comes, perhaps back with a standing.
    Join(Hello),
    /// Somebody says something, whether or not it makes sense.
    Say(u64, FromWorker),
    Leave(u64),
    Stop,
    Save,
    /// Time passes, in milliseconds.
    Wait(u64),
    /// The coordinator is killed and started again.
    Restart,
}

fn position() -> impl Strategy<Value = Position> {
    let step = prop_oneof![9 => 0..12_u64, 1 => Just(u64::MAX)];
    let epoch = prop_oneof![9 => 0..4_u32, 1 => Just(u32::MAX)];
    (epoch, step).prop_map(|(epoch, step)| Position { epoch, step })
}

fn generation() -> impl Strategy<Value = Generation> {
    prop_oneof![9 => 0..8_u64, 1 => Just(u64::MAX)].prop_map(Generation)
}

fn steps() -> impl Strategy<Value = Vec<StepReport>> {
    let step = (position(), any::<f64>(), any::<u64>()).prop_map(|(position, loss, samples)| StepReport {
        position,
        loss,
        learning_rate: loss,
        samples,
        skipped: samples,
        duration: Duration::MAX,
        data_wait: Duration::MAX,
        epoch_loss_sum: loss,
        epoch_samples: samples,
        loss_scale: None,
    });
    proptest::collection::vec(step, 0..3)
}

fn data() -> impl Strategy<Value = Dataset> {
    prop_oneof![
        12 => Just(dataset()),
        1 => (0..3_u64, 0..3_u64).prop_map(|(train_samples, val_samples)| Dataset {
            train_samples,
            val_samples,
            ..dataset()
        }),
    ]
}

fn introduction() -> impl Strategy<Value = Hello> {
    let standing =
        (generation(), 0..5_u32, 0..5_u32, any::<bool>(), proptest::option::of(position()), 0..20_u32);
    let standing = standing.prop_map(|(generation, rank, world, in_ring, held, run)| Standing {
        run_id: if run == 0 { "another".into() } else { "run".into() },
        generation,
        rank: Rank(rank),
        world,
        in_ring,
        held,
    });
    (1..8_u64, proptest::option::of(0..6_u32), proptest::option::of(standing))
        .prop_map(|(instance, rank, standing)| Hello { standing, ..hello(instance, rank) })
}

fn duty() -> impl Strategy<Value = DutyId> {
    prop_oneof![9 => 0..6_u64, 1 => any::<u64>()].prop_map(DutyId)
}

fn written() -> impl Strategy<Value = Written> {
    let file = (0..4_u32).prop_map(|n| format!("file{n}"));
    (file, position()).prop_map(|(file, position)| Written { file, bytes: 1, blake3: "b".into(), position })
}

fn message() -> impl Strategy<Value = FromWorker> {
    let pace = (any::<u32>(), any::<u32>()).prop_map(|(steps, ms)| Pace {
        steps,
        compute: Duration::from_millis(u64::from(ms)),
        data: Duration::MAX / 4,
        peers: Duration::MAX / 4,
    });
    let words = || Just("words".to_owned());
    let blamed = proptest::option::of((0..5_u32).prop_map(Rank));
    let part = (0..5_u32, any::<u64>(), any::<u64>(), any::<u64>(), any::<f64>());
    let part = part.prop_map(|(epoch, start, end, top1, loss_sum)| {
        let range = if top1 % 2 == 0 { shards::deal(33, 2, (start % 2) as u32) } else { start..end };
        validation::Part { epoch, range, top1, top5: top1, loss_sum }
    });
    prop_oneof![
        1 => Just(FromWorker::Heartbeat),
        3 => data().prop_map(FromWorker::Indexed),
        2 => (generation(), position(), any::<Option<f64>>())
            .prop_map(|(generation, held, epoch_loss)| FromWorker::Ready { generation, held, epoch_loss }),
        1 => (generation(), (0..4_u32).prop_map(|n| format!("file{n}")), words())
            .prop_map(|(generation, file, reason)| FromWorker::RestoreFailed { generation, file, reason }),
        3 => (generation(), position(), steps(), pace).prop_map(|(generation, position, steps, pace)| {
            FromWorker::Progress { generation, position, steps, pace }
        }),
        3 => (generation(), proptest::option::of(position()), steps(), words(), blamed).prop_map(
            |(generation, held, steps, reason, blamed)| FromWorker::Held { generation, held, steps, reason, blamed }
        ),
        1 => (generation(), any::<u64>())
            .prop_map(|(generation, done)| FromWorker::Validating { generation, done }),
        1 => (generation(), part).prop_map(|(generation, part)| FromWorker::Validated { generation, part }),
        1 => (duty(), written()).prop_map(|(duty, written)| FromWorker::CheckpointWritten { duty, written }),
        1 => (duty(), words()).prop_map(|(duty, reason)| FromWorker::CheckpointFailed { duty, reason }),
        1 => (generation(), proptest::collection::vec(any::<u8>(), 128))
            .prop_map(|(generation, id)| FromWorker::NcclId { generation, id }),
        1 => words().prop_map(|reason| FromWorker::Leaving { reason }),
        1 => words().prop_map(|reason| FromWorker::Fault { reason }),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        60 => (0..16_usize).prop_map(Act::Follow),
        10 => introduction().prop_map(Act::Join),
        12 => (1..12_u64, message()).prop_map(|(worker, message)| Act::Say(worker, message)),
        2 => (1..12_u64).prop_map(Act::Leave),
        6 => (0..3000_u64).prop_map(Act::Wait),
        1 => Just(Act::Save),
        1 => prop_oneof![3 => Just(Act::Restart), 1 => Just(Act::Stop)],
    ]
}

/// A run with what its workers have been told and not yet done.
struct Play {
    settings: Settings,
    run: Run,
    now: Duration,
    next: u64,
    journal: Vec<Fact>,
    orders: Vec<(WorkerId, ToWorker)>,
}

impl Play {
    fn new(workers: u32, least: u32) -> Self {
        let settings = Settings {
            min_workers: least.min(workers),
            spares: 1,
            gather_for: Duration::from_millis(10),
            checkpoint_every: Some(Duration::from_secs(1)),
            stragglers: StragglerPolicy { factor: 1.5, action: StragglerAction::Drop },
            ..settings(workers)
        };
        let run = Run::new(settings.clone(), History::default());
        Self { settings, run, now: Duration::ZERO, next: 1, journal: Vec::new(), orders: Vec::new() }
    }

    fn act(&mut self, act: Act) {
        let event = match act {
            Act::Follow(_) if self.orders.is_empty() => Event::Tick,
            Act::Follow(index) => {
                let (worker, order) = self.orders.remove(index % self.orders.len());
                match answer(order) {
                    Some(message) => Event::Said { worker, message },
                    None => return,
                }
            }
            Act::Join(hello) => {
                let worker = WorkerId(self.next);
                self.next += 1;
                self.handle(Event::Joined { worker, hello });
                Event::Said { worker, message: FromWorker::Indexed(dataset()) }
            }
            Act::Say(worker, message) => Event::Said { worker: WorkerId(worker), message },
            Act::Leave(worker) => Event::Left { worker: WorkerId(worker), reason: "gone".into() },
            Act::Stop => Event::Stop { reason: "asked".into() },
            Act::Save => Event::Save { reason: "asked".into() },
            Act::Wait(ms) => {
                self.now += Duration::from_millis(ms);
                Event::Tick
            }
            Act::Restart => {
                self.journal.push(Fact::Resumed);
                self.run = Run::new(self.settings.clone(), History::replay(&self.journal));
                (self.now, self.next) = (Duration::ZERO, 1);
                self.orders.clear();
                Event::Tick
            }
        };
        self.handle(event);
    }

    fn handle(&mut self, event: Event) {
        for command in self.run.handle(self.now, event) {
            match command {
                Command::Persist(fact) => self.journal.push(fact),
                Command::Send { worker, message } => self.orders.push((worker, message)),
                _ => {}
            }
        }
        self.run.check();
        let status = self.run.status(self.now);
        assert!(status.workers.len() <= (self.settings.workers + self.settings.spares) as usize);
        assert!(status.training <= self.settings.workers.max(5));
    }
}

/// What a worker says that follows its order.
fn answer(order: ToWorker) -> Option<FromWorker> {
    let held = |generation, reason| {
        let held = Some(Position { epoch: 0, step: 3 });
        Some(FromWorker::Held { generation, held, steps: vec![], reason, blamed: Some(Rank(0)) })
    };
    match order {
        ToWorker::Form(Formation { generation, position: held, .. }) => {
            Some(FromWorker::Ready { generation, held, epoch_loss: Some(1.0) })
        }
        ToWorker::Train { generation, epoch, .. } => {
            let (position, pace) = (Position { epoch, step: 10 }, Pace { steps: 10, ..Pace::default() });
            Some(FromWorker::Progress { generation, position, steps: vec![], pace })
        }
        ToWorker::Validate { generation, epoch, range } => {
            let part = validation::Part { epoch, range, top1: 1, top5: 1, loss_sum: 1.0 };
            Some(FromWorker::Validated { generation, part })
        }
        ToWorker::Checkpoint { duty, at: position, .. } => {
            let written = Written { file: format!("{position}"), bytes: 1, blake3: "b".into(), position };
            Some(FromWorker::CheckpointWritten { duty, written })
        }
        ToWorker::Dissolve { generation, reason } | ToWorker::Drain { generation, reason } => {
            held(generation, reason)
        }
        ToWorker::NcclId { .. }
        | ToWorker::Remove { .. }
        | ToWorker::Release { .. }
        | ToWorker::Finish { .. } => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_events_make_a_run_panic_or_contradict_itself(
        workers in 1..5_u32,
        least in 1..5_u32,
        acts in proptest::collection::vec(act(), 0..120),
    ) {
        let mut play = Play::new(workers, least);
        for act in acts {
            play.act(act);
        }
    }

    /// A coordinator that was killed after any of its facts goes on to the end.
    #[test]
    fn any_part_of_a_journal_can_be_gone_on_with(
        workers in 1..4_u32,
        acts in proptest::collection::vec(act(), 0..120),
        kept in any::<prop::sample::Index>(),
    ) {
        let mut play = Play::new(workers, workers);
        for act in acts {
            play.act(act);
        }
        let facts = &play.journal[..kept.index(play.journal.len() + 1)];
        // What was agreed on nonsense, or trained beyond the end, is no run of these workers.
        let sound = |fact: &Fact| match fact {
            Fact::Agreed { dataset: agreed } => *agreed == dataset(),
            Fact::Committed { written } => written.position <= Position { epoch: 3, step: 0 } && written.position.step <= 10,
            Fact::Formed { position, .. } => position.epoch <= 3 && position.step <= 10,
            _ => true,
        };
        prop_assume!(facts.iter().all(sound));
        let mut next = Play { journal: facts.to_vec(), ..Play::new(workers, workers) };
        next.act(Act::Restart);
        let mut over = false;
        for worker in 1..=u64::from(workers) {
            next.act(Act::Join(hello(worker, None)));
        }
        for _ in 0..2000 {
            for worker in 1..=u64::from(workers) {
                next.act(Act::Say(worker, FromWorker::Heartbeat));
            }
            next.act(Act::Follow(0));
            next.act(Act::Wait(100));
            over = next.run.status(next.now).phase == "ended";
            if over {
                break;
            }
        }
        prop_assert!(over, "{:?}", next.run);
        prop_assert_eq!(next.run.status(next.now).reason, "all epochs are done");
    }
}
