#![allow(clippy::unwrap_used)]
use std::time::Duration;

use relabel_core::Position;

use super::hello as hello_of;
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
        loss_scale: Some(65536.0),
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
        FromWorker::NcclId { generation: Generation(2), id: (0..128).collect() },
    ] {
        assert_eq!(from_worker(message.clone().into()).unwrap(), message);
    }
}

fn formation() -> Formation {
    Formation {
        generation: Generation(2),
        rank: Rank(1),
        world: 2,
        previous: "a:1".into(),
        next: "a:1".into(),
        transfer: true,
        token: Token([7; 32]),
        nccl: true,
        shard: 32..64,
        source: Rank(0),
        restore: Some(core::Restore { file: "f".into(), blake3: "b".into() }),
        position: Position { epoch: 1, step: 0 },
    }
}

#[test]
fn what_a_worker_is_told_survives_the_wire() {
    let at = Position { epoch: 1, step: 0 };
    let generation = Generation(2);
    for message in [
        ToWorker::Form(formation()),
        ToWorker::NcclId { generation, id: (0..128).collect() },
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

    for name in ["../../etc/passwd", "..", "", "/abs", "a/b", ".hidden", "new\nline", "nul\0"] {
        let refused =
            |result| assert!(matches!(result, Err(Invalid::Range { field: "file", .. })), "{name:?}");
        let told = |message: ToWorker| refused(to_worker(message.into()).map(drop));
        told(ToWorker::Remove { files: vec!["good".into(), name.into()] });
        let restore = core::Restore { file: name.into(), blake3: "b".into() };
        told(ToWorker::Form(Formation { restore: Some(restore), ..formation() }));
        let said = |message: FromWorker| refused(from_worker(message.into()).map(drop));
        let position = Position::default();
        let written = core::Written { file: name.into(), bytes: 7, blake3: "ab".into(), position };
        said(FromWorker::CheckpointWritten { duty: DutyId(4), written });
        let (generation, reason) = (Generation(2), "r".into());
        said(FromWorker::RestoreFailed { generation, file: name.into(), reason });
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

    for length in [0, 127, 129] {
        let id = FromWorker::NcclId { generation: Generation(1), id: vec![7; length] };
        assert!(from_worker(id.into()).unwrap_err().to_string().contains("NcclId.id"), "{length} bytes");
        let id = ToWorker::NcclId { generation: Generation(1), id: vec![7; length] };
        assert!(to_worker(id.into()).unwrap_err().to_string().contains("NcclId.id"), "{length} bytes");
    }

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
fn how_a_worker_introduces_itself_is_checked_and_what_it_is_welcomed_with() {
    let good = v1::Hello {
        version: crate::VERSION.into(),
        rank: Some(3),
        host: "node-7".into(),
        pid: 4321,
        device: "cuda:0".into(),
        ring_address: "10.0.0.7:33211".into(),
        instance: 7,
        standing: None,
        nccl: Some(23003),
    };
    let said = |hello: v1::Hello| hello_of(v1::WorkerMessage { message: Some(Up::Hello(hello)) });
    let first = said(good.clone()).unwrap();
    assert_eq!(
        v1::WorkerMessage::from(first.hello().unwrap()),
        v1::WorkerMessage { message: Some(Up::Hello(good.clone())) }
    );
    let forged = "node-7\n2025-01-01T00:00:00Z  INFO the run is over".to_owned();
    let long = "x".repeat(10_000);
    for (field, hello) in [
        ("Hello.version", v1::Hello { version: forged.clone(), ..good.clone() }),
        ("Hello.version", v1::Hello { version: long.clone(), ..good.clone() }),
        ("Hello.host", v1::Hello { host: forged.clone(), ..good.clone() }),
        ("Hello.host", v1::Hello { host: String::new(), ..good.clone() }),
        ("Hello.host", v1::Hello { host: long.clone(), ..good.clone() }),
        ("Hello.device", v1::Hello { device: "\u{1b}[2J".into(), ..good.clone() }),
        ("Hello.device", v1::Hello { device: long.clone(), ..good.clone() }),
        ("Hello.ring_address", v1::Hello { ring_address: "10.0.0.7".into(), ..good.clone() }),
        ("Hello.ring_address", v1::Hello { ring_address: format!("{long}:1"), ..good.clone() }),
    ] {
        let words = said(hello).and_then(FirstMessage::hello).unwrap_err().to_string();
        assert!(words.starts_with(&format!("{field} is `")) && words.len() < 250, "{words}");
        assert!(!words.contains(char::is_control), "{words:?}");
    }

    let good = Welcome {
        rank: Rank(0),
        world: 2,
        run_id: "0001-resnet50-00ff00".into(),
        config: "{}".into(),
        run_dir: "/shared/run".into(),
    };
    let told = |w: Welcome| to_worker(welcome(w));
    assert_eq!(told(good.clone()).unwrap(), Told::Welcome(good.clone()));
    assert!(told(Welcome { run_dir: "run".into(), ..good.clone() }).is_err(), "relative to which folder?");
    assert!(told(Welcome { run_id: forged, ..good }).is_err());
    let next = "/etc/passwd".into();
    assert!(to_worker(ToWorker::Form(Formation { next, ..formation() }).into()).is_err());
}

#[test]
fn reasons_come_as_one_line() {
    let reason = "CUDA error:\n  out of memory\u{1b}[0m";
    let message: v1::WorkerMessage = FromWorker::Fault { reason: reason.into() }.into();
    let FromWorker::Fault { reason: heard } = from_worker(message).unwrap() else {
        panic!("another message")
    };
    assert_eq!(heard, "CUDA error: out of memory [0m");
    let failed = Outcome::Failed { reason: reason.into() };
    let Told::Order(ToWorker::Finish { outcome }) =
        to_worker(ToWorker::Finish { outcome: failed }.into()).unwrap()
    else {
        panic!("another message")
    };
    assert_eq!(outcome, Outcome::Failed { reason: heard });
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
        nccl: Some(23003),
        ring_address: "host:1".into(),
        instance: u64::MAX,
        standing: Some(standing.clone()),
    };
    assert_eq!(hello_of(told.clone().into()).unwrap().hello().unwrap(), told);
    let wrong = core::Hello { standing: Some(core::Standing { rank: Rank(2), ..standing }), ..told };
    assert!(
        hello_of(wrong.into())
            .unwrap()
            .hello()
            .is_err_and(|error| error.to_string().contains("Standing.rank"))
    );
}
