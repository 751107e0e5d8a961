#![allow(clippy::unwrap_used)]
use super::*;

fn report() -> core::StepReport {
    core::StepReport {
        position: Position { epoch: 3, step: 17 },
        loss: 1.25,
        learning_rate: 0.05,
        samples: 63,
        skipped: 1,
        duration: Duration::from_millis(250),
        data_wait: Duration::from_millis(10),
        epoch_loss_sum: 99.5,
        epoch_samples: 1150,
    }
}

#[test]
fn what_a_worker_says_survives_the_wire() {
    let position = Position { epoch: 3, step: 18 };
    let generation = Generation(2);
    let part = core::validation::Part { epoch: 3, range: 5..9, top1: 2, top5: 4, loss_sum: 3.5 };
    let written =
        core::Written { file: "resnet18-e0003.safetensors".into(), bytes: 7, blake3: "ab".into(), position };
    let dataset = core::Dataset {
        train_samples: 1,
        train_fingerprint: "t".into(),
        val_samples: 2,
        val_fingerprint: "v".into(),
        classes: 3,
    };
    let ms = Duration::from_millis;
    let pace = core::Pace { steps: 3, compute: ms(30), data: ms(20), peers: ms(10) };
    for message in [
        FromWorker::Heartbeat,
        FromWorker::Indexed(dataset),
        FromWorker::Ready { generation, held: position, epoch_loss: Some(1.25) },
        FromWorker::RestoreFailed { generation, file: "f".into(), reason: "r".into() },
        FromWorker::Progress { generation, position, steps: vec![report()], pace },
        FromWorker::Held { generation, held: None, steps: vec![], reason: "r".into(), blamed: None },
        FromWorker::Held {
            generation,
            held: Some(position),
            steps: vec![report()],
            reason: "r".into(),
            blamed: Some(Rank(2)),
        },
        FromWorker::Leaving { reason: "r".into() },
        FromWorker::Validating { generation, done: 7 },
        FromWorker::Validated { generation, part },
        FromWorker::CheckpointWritten { duty: DutyId(4), written },
        FromWorker::CheckpointFailed { duty: DutyId(4), reason: "r".into() },
        FromWorker::Fault { reason: "r".into() },
    ] {
        assert_eq!(from_worker(message.clone().into()).unwrap(), message);
    }
}

#[test]
fn what_a_worker_is_told_survives_the_wire() {
    let at = Position { epoch: 1, step: 0 };
    let generation = Generation(2);
    let formation = Formation {
        generation,
        rank: Rank(1),
        world: 2,
        previous: "a:1".into(),
        next: "a:1".into(),
        transfer: true,
        token: Token([7; 32]),
        shard: 32..64,
        source: Rank(0),
        restore: Some(core::Restore { file: "f".into(), blake3: "b".into() }),
        position: at,
    };
    for message in [
        ToWorker::Form(formation),
        ToWorker::Train { generation, epoch: 1, first_step: 5 },
        ToWorker::Validate { generation, epoch: 1, range: 3..8 },
        ToWorker::Checkpoint { duty: DutyId(1), at, best: true, top1: Some(0.5) },
        ToWorker::Remove { files: vec!["f".into()] },
        ToWorker::Dissolve { generation, reason: "r".into() },
        ToWorker::Drain { generation, reason: "r".into() },
        ToWorker::Release { reason: "r".into() },
        ToWorker::Finish { outcome: Outcome::Done },
        ToWorker::Finish { outcome: Outcome::Interrupted { reason: "r".into(), saved: Some(at) } },
        ToWorker::Finish { outcome: Outcome::Failed { reason: "r".into() } },
    ] {
        assert_eq!(to_worker(message.clone().into()).unwrap(), Told::Order(message));
    }
}

#[test]
fn nonsense_is_refused_and_named() {
    let empty = v1::WorkerMessage { message: None };
    assert!(from_worker(empty.clone()).unwrap_err().to_string().contains("WorkerMessage.message"));
    assert!(hello(empty).is_err());

    let message = FromWorker::Heartbeat.into();
    assert!(matches!(hello(message), Err(Invalid::Unexpected(_))), "a Hello must come first");

    for name in ["../../etc/passwd", "", "/abs", "a/b", ".hidden", "new\nline"] {
        let message: v1::CoordinatorMessage = ToWorker::Remove { files: vec![name.into()] }.into();
        assert!(matches!(to_worker(message), Err(Invalid::Range { field: "file", .. })), "{name:?}");
    }

    let report = v1::StepReport { duration: f64::NAN, ..report().into() };
    let progress = v1::Progress {
        generation: 1,
        position: Some(v1::Position::default()),
        steps: vec![report],
        ..Default::default()
    };
    let message = v1::WorkerMessage { message: Some(Up::Progress(progress)) };
    assert!(from_worker(message).unwrap_err().to_string().contains("StepReport.duration"));

    let form = v1::Form {
        rank: 2,
        world: 2,
        token: vec![0; 32],
        position: Some(v1::Position::default()),
        ..Default::default()
    };
    let of = |form| to_worker(v1::CoordinatorMessage { message: Some(Down::Form(form)) });
    assert!(of(form.clone()).unwrap_err().to_string().contains("Form.rank"), "rank 2 of 2");
    let short = v1::Form { rank: 0, token: vec![0; 31], ..form };
    assert!(of(short).unwrap_err().to_string().contains("Form.token"));
}

#[test]
fn a_worker_that_comes_back_says_where_it_stands() {
    let standing = core::Standing {
        run_id: "run".into(),
        generation: Generation(4),
        rank: Rank(1),
        world: 2,
        in_ring: true,
        held: Some(Position { epoch: 1, step: 2 }),
    };
    let told = core::Hello {
        rank: Some(Rank(5)),
        host: "host".into(),
        pid: 7,
        device: "cpu".into(),
        ring_address: "host:1".into(),
        instance: u64::MAX,
        standing: Some(standing.clone()),
    };
    assert_eq!(hello(told.clone().into()).unwrap().hello, told);
    let wrong = core::Hello { standing: Some(core::Standing { rank: Rank(2), ..standing }), ..told };
    assert!(hello(wrong.into()).is_err_and(|error| error.to_string().contains("Standing.rank")));
}
