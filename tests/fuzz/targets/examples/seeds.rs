//! Writes the seeds in `tests/fuzz/corpus` that no test data of other crates is: `cargo run --release -p relabel-fuzz
//! --example seeds`. What it writes is committed; run it again where a format has changed. Files of other names in
//! the corpus, those that fuzzing found, are left alone.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message as _;
use relabel_core as core;
use relabel_core::evaluation::counts::{Counts, Found, MultiLabelCounts, RealCounts};
use relabel_core::evaluation::{EvalSeen, Evaluation, Folder};
use relabel_core::labelling::{LabelReport, LabelSeen, Labelling};
use relabel_core::leases::{FromHolder, Piece};
use relabel_core::{
    DutyId, Fact, Formation, FromWorker, Generation, Outcome, Position, Rank, ToWorker, Token,
};
use relabel_fuzz::{config, frames, journal, jpeg, label_map, packed, pickle, wire};
use relabel_proto::{LeaseHello, ToHolder, v1};
use worker::collective::tcp::frame::{Header, Op};
use worker::labels::LabelMap;
use worker::labels::packed::{Packer, Precision};
use worker::pt::pickle::{Dtype, TensorRef, Value};

/// Where this repository is.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..")
}

/// Puts a seed into the folder of a target.
fn seed(target: &str, name: &str, parts: &[&[u8]]) {
    let folder = root().join("tests/fuzz/corpus").join(target);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(format!("seed-{name}")), parts.concat()).unwrap();
}

fn main() {
    pickles();
    images();
    stores();
    journals();
    configurations();
    rings();
    messages();
    whole_runs();
}

fn map() -> LabelMap {
    let classes = vec![3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8];
    let logits = (0..12).map(|i| i as f32 / 4.0 - 1.0).collect();
    LabelMap { k: 3, height: 2, width: 2, logits, classes }
}

fn pickles() {
    for dtype in [Dtype::F16, Dtype::F32] {
        seed(label_map::TARGET.name, &format!("small-{dtype}"), &[&map().to_pt(dtype).unwrap()]);
    }
    let mut extreme = map();
    extreme.logits = [f32::MAX, f32::MIN, f32::MIN_POSITIVE].iter().copied().cycle().take(12).collect();
    seed(label_map::TARGET.name, "extreme", &[&extreme.to_pt(Dtype::F32).unwrap()]);
    let same = LabelMap { logits: vec![f32::MAX; 12], classes: vec![7; 12], ..map() };
    seed(label_map::TARGET.name, "one-class", &[&same.to_pt(Dtype::F32).unwrap()]);
    let tensor = |key, shape| Value::Tensor(TensorRef::dense(key, Dtype::F32, shape).into());
    let text = |text: &str| Value::Str(text.into());
    let state = Value::Dict(vec![
        (text("module.fc.weight"), tensor(0, vec![2, 3])),
        (text("module.fc.bias"), tensor(1, vec![2])),
    ]);
    let root = Value::Dict(vec![
        (text("state_dict"), state),
        (text("epoch"), Value::Int(7)),
        (text("best_acc1"), Value::Float(76.5)),
        (text("arch"), text("resnet18")),
        (text("args"), Value::List(vec![Value::None, Value::Bool(true), Value::Int(i128::MIN)])),
    ]);
    let mut file = std::io::Cursor::new(Vec::new());
    worker::pt::write(&mut file, &root, &[&[1; 24], &[2; 8]]).unwrap();
    seed(pickle::TARGET.name, "checkpoint", &[&file.into_inner()]);
    seed(pickle::TARGET.name, "bare", &[&worker::pt::pickle::write(&root).unwrap()]);
    // Weights in safetensors: the length of the header, the header, two tensors.
    let header = r#"{"a.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"a.bias":{"dtype":"F16","shape":[2],"data_offsets":[8,12]}}"#;
    let length = (header.len() as u64).to_le_bytes();
    seed(pickle::TARGET.name, "safetensors", &[&length, header.as_bytes(), &[0; 12]]);
}

fn images() {
    // Which crop, side and resize: see `jpeg::CONTROL`.
    let controls: [[u8; jpeg::CONTROL]; 3] = [
        [0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff, 31, 0, 1, 2],
        [0, 64, 0, 128, 0, 32, 0, 96, 7, 1, 3, 4],
        [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 63, 0xff, 5, 6],
    ];
    let folder = root().join("worker/src/data/testdata");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.retain(|file| file.extension().is_some_and(|ending| ending != "rgb"));
    for (file, control) in files.iter().zip(controls.iter().cycle()) {
        let name = file.file_name().unwrap().to_str().unwrap();
        seed(jpeg::TARGET.name, name, &[control, &std::fs::read(file).unwrap()]);
    }
    // A resize makes pictures of one pixel in height as high as the network wants before it makes them narrower.
    for (name, width, height) in
        [("line.png", 2_000_000, 1), ("column.png", 1, 2_000_000), ("longest.png", 65_535, 1)]
    {
        let mut png = std::io::Cursor::new(Vec::new());
        let pixels = image::GrayImage::new(width, height);
        let encoder = image::codecs::png::PngEncoder::new_with_quality(
            &mut png,
            image::codecs::png::CompressionType::Best,
            image::codecs::png::FilterType::NoFilter,
        );
        pixels.write_with_encoder(encoder).unwrap();
        let control = [0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff, 223, 0, 0, 0];
        seed(jpeg::TARGET.name, name, &[&control, &png.into_inner()]);
    }
}

fn stores() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("maps");
    for (name, precision, keys) in [
        ("half", Precision::Half, &["n01/a", "n01/b", "n02/ü"][..]),
        ("full", Precision::Full, &["n01/a"][..]),
        ("empty", Precision::Half, &[][..]),
    ] {
        let mut packer = Packer::create(&path, precision).unwrap();
        keys.iter().for_each(|key| packer.push(key, &map()).unwrap());
        packer.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for (which, mends) in [("", 0), ("-mended", packed::HEAD_AND_INDEX | packed::RECORDS)] {
            seed(packed::TARGET.name, &format!("{name}{which}"), &[&[mends], &bytes]);
        }
    }
}

fn journals() {
    let name = || "resnet18-e0003-s00000017.safetensors".to_owned();
    let position = Position { epoch: 3, step: 17 };
    let facts = [
        Fact::Started {
            run_id: "0001-resnet18".into(),
            version: relabel_proto::VERSION.into(),
            seed: u64::MAX,
            config: r#"{"model":{"arch":"resnet18"}}"#.into(),
        },
        Fact::Agreed {
            dataset: core::Dataset {
                train_samples: 1200,
                train_fingerprint: "f".into(),
                val_samples: 300,
                val_fingerprint: "e".into(),
                classes: 10,
            },
        },
        Fact::Committed { written: core::Written { file: name(), bytes: 7, blake3: "b".into(), position } },
        Fact::Validated { epoch: 3, top1: 0.1, top5: 2.0 / 3.0 },
        Fact::BestLost { epoch: 3 },
        Fact::Retired { files: vec![name()] },
        Fact::Finished,
    ];
    let lines: String = facts.iter().map(|fact| serde_json::to_string(fact).unwrap() + "\n").collect();
    for (kind, fact) in facts.iter().enumerate() {
        let control = [journal::SUMS, kind as u8, 1, 2, 3, 4, 5, 6, 7, 8];
        let line = serde_json::to_string(fact).unwrap();
        seed(journal::TARGET.name, &format!("fact-{kind}"), &[&control, line.as_bytes(), b"\n"]);
    }
    let whole = journal::with_sums(lines.as_bytes());
    seed(journal::TARGET.name, "whole", &[&[0; 10], &whole]);
    seed(journal::TARGET.name, "torn", &[&[0; 10], &whole[..whole.len() - 5]]);
}

fn configurations() {
    let yaml = "model:\n  arch: resnet18\ndata: {data_path: d, cutmix: {prob: .5, beta: 1.e0}}\noptim.lr.init: 1e-3\n\
                compute:\n  distributed:\n    use: True\n";
    let rest: &[&[u8]] = &[
        yaml.as_bytes(),
        b"\0--optim.epochs=1_0\0--optim.nesterov\0--data.relabel.path\0maps\0--workers\x002",
        b"\0RELABEL__OPTIM__BATCH_SIZE=512.0\0RELABEL__MODEL__NUM_CLASSES=none",
    ];
    seed(config::TARGET.name, "layers", rest);
    seed(config::TARGET.name, "anchors", &[b"data: &a {data_path: x}\noptim: {<<: *a}\nutil: *a\n"]);
    seed(
        config::TARGET.name,
        "strings",
        &[b"data:\n  data_path: \"\\u00e9\\t\\\"\"\n  relabel: {path: 'it''s', use: 'on'}\n"],
    );
    seed(
        config::TARGET.name,
        "block",
        &[b"data:\n  data_path: |\n    a\n    b\n  relabel:\n    path: >-\n      c\n      d\n"],
    );
}

fn rings() {
    let target = frames::TARGET.name;
    for op in [Op::AllReduce, Op::Broadcast, Op::AllGather] {
        let header = Header { op, step: 3, generation: 5, sequence: 9, total: 1 << 20 };
        seed(target, &format!("header-{op}"), &[&[frames::HEADER], &header.encode()]);
    }
    // What rank 0 says to rank 1 of three: magic, version, generation, world, both ranks, and a nonce; a proof.
    let numbers: Vec<u8> = [2_u32, 5, 0, 3, 0, 1].iter().flat_map(|word| word.to_le_bytes()).collect();
    let hello = [b"RELABEL\n", numbers.as_slice(), &[9; 32]].concat();
    seed(target, "hello", &[&[frames::TO_ACCEPTOR], &hello, &[1; 32]]);
    seed(target, "nonce", &[&[frames::TO_DIALER], &[3; 64]]);
    seed(target, "unchanged", &[&[frames::BETWEEN], &[255, 0, 31, 0, 7, 0]]);
    seed(target, "changed", &[&[frames::BETWEEN], &[3, 0, 255, 0, 255, 0, 255, 0, 255, 0, 255, 1]]);
}

fn report() -> core::StepReport {
    core::StepReport {
        position: Position { epoch: 0, step: 0 },
        loss: 1.25,
        learning_rate: 0.05,
        samples: 8,
        skipped: 0,
        duration: Duration::from_millis(250),
        data_wait: Duration::from_millis(10),
        epoch_loss_sum: 10.0,
        epoch_samples: 8,
        loss_scale: Some(65536.0),
    }
}

fn dataset() -> core::Dataset {
    core::Dataset {
        train_samples: 16,
        train_fingerprint: "t".into(),
        val_samples: 5,
        val_fingerprint: "v".into(),
        classes: 3,
    }
}

fn written(position: Position) -> core::Written {
    core::Written { file: "resnet18-e0001.safetensors".into(), bytes: 7, blake3: "ab".into(), position }
}

fn encoded(message: impl Into<v1::WorkerMessage>) -> Vec<u8> {
    message.into().encode_to_vec()
}

/// A worker that has come back.
fn first() -> core::Hello {
    core::Hello {
        rank: Some(Rank(1)),
        host: "h".into(),
        pid: 7,
        device: "cpu".into(),
        nccl: None,
        ring_address: "h:1".into(),
        instance: 9,
        standing: Some(core::Standing {
            run_id: "run".into(),
            generation: Generation(1),
            rank: Rank(1),
            world: 2,
            in_ring: true,
            held: Some(Position { epoch: 0, step: 1 }),
        }),
    }
}

fn messages() {
    let target = wire::TARGET.name;
    let (generation, position) = (Generation(2), Position { epoch: 1, step: 1 });
    let part = core::validation::Part { epoch: 1, range: 0..5, top1: 2, top5: 4, loss_sum: 3.5 };
    let pace = core::Pace { steps: 2, compute: Duration::from_millis(80), ..core::Pace::default() };
    let said = [
        FromWorker::Indexed(dataset()),
        FromWorker::Ready { generation, held: position, epoch_loss: Some(1.25) },
        FromWorker::RestoreFailed { generation, file: "f".into(), reason: "r".into() },
        FromWorker::Progress { generation, position, steps: vec![report(), report()], pace },
        FromWorker::Held {
            generation,
            held: Some(position),
            steps: vec![report()],
            reason: "r".into(),
            blamed: Some(Rank(0)),
        },
        FromWorker::Leaving { reason: "r".into() },
        FromWorker::Validating { generation, done: 7 },
        FromWorker::Validated { generation, part },
        FromWorker::CheckpointWritten { duty: DutyId(4), written: written(position) },
        FromWorker::CheckpointFailed { duty: DutyId(4), reason: "r".into() },
        FromWorker::Fault { reason: "r".into() },
    ];
    for (number, message) in said.into_iter().enumerate() {
        seed(target, &format!("worker-{number}"), &[&[wire::WORKER], &encoded(message)]);
    }
    seed(target, "hello", &[&[wire::WORKER], &encoded(first())]);

    let restore = Some(core::Restore { file: "f".into(), blake3: "b".into() });
    let formation = Formation {
        generation,
        rank: Rank(1),
        world: 2,
        previous: "a:1".into(),
        next: "a:1".into(),
        transfer: true,
        nccl: true,
        token: Token([7; 32]),
        shard: 32..64,
        source: Rank(0),
        restore,
        position,
    };
    let orders = [
        ToWorker::Form(formation),
        ToWorker::Train { generation, epoch: 1, first_step: 5 },
        ToWorker::Validate { generation, epoch: 1, range: 3..8 },
        ToWorker::Checkpoint { duty: DutyId(1), at: position, best: true, top1: Some(0.5) },
        ToWorker::Remove { files: vec!["f".into(), "g".into()] },
        ToWorker::Dissolve { generation, reason: "r".into() },
        ToWorker::Drain { generation, reason: "r".into() },
        ToWorker::Release { reason: "r".into() },
        ToWorker::Finish { outcome: Outcome::Interrupted { reason: "r".into(), saved: Some(position) } },
        ToWorker::Finish { outcome: Outcome::Failed { reason: "r".into() } },
    ];
    for (number, order) in orders.into_iter().enumerate() {
        let message = v1::CoordinatorMessage::from(order).encode_to_vec();
        seed(target, &format!("coordinator-{number}"), &[&[wire::COORDINATOR], &message]);
    }
    let welcome = relabel_proto::welcome(relabel_proto::Welcome {
        rank: Rank(1),
        world: 2,
        run_id: "r".into(),
        config: "{}".into(),
        run_dir: "/d".into(),
    });
    seed(target, "welcome", &[&[wire::COORDINATOR], &welcome.encode_to_vec()]);

    leases();
}

/// Of both kinds of work that workers have ranges of.
fn leases() {
    let target = wire::TARGET.name;
    let hello = LeaseHello { version: "1".into(), host: "h".into(), pid: 7, command: "label".into() };
    let piece = || Piece { folder: 0, samples: 3..5 };
    let seen = LabelSeen { samples: 9, fingerprint: "f".into(), recipe: "r".into() };
    let report = LabelReport { made: 1, there: 0, unreadable: vec!["u".into()] };
    let evaluates = EvalSeen {
        arch: "resnet18".into(),
        outputs: 4,
        weights: "w".into(),
        labels: "l".into(),
        folders: vec![Folder {
            set: 0,
            below: "val".into(),
            corruption: Some(("fog".into(), 3)),
            samples: 9,
            fingerprint: "f".into(),
            classes: 4,
            restricted: true,
        }],
    };
    let found = Found {
        counts: Counts { samples: 2, top1: 1, top5: 2, loss_sum: 1.5 },
        real: Some(RealCounts { images: 2, right: 1 }),
        multi_label: Some(MultiLabelCounts { images: 2, correct: 1, by_class: [(3, (2, 1))].into() }),
        attacked: vec![(0.01, Counts { samples: 2, top1: 0, top5: 1, loss_sum: 9.5 })],
    };
    let messages: [v1::LeaseWorkerMessage; 6] = [
        hello.into(),
        FromHolder::<Labelling>::Ready(seen).into(),
        FromHolder::<Labelling>::Done { piece: piece(), report }.into(),
        FromHolder::<Labelling>::Fault { reason: "r".into(), hopeless: true }.into(),
        FromHolder::<Evaluation>::Ready(evaluates).into(),
        FromHolder::<Evaluation>::Done { piece: piece(), report: found }.into(),
    ];
    for (number, message) in messages.into_iter().enumerate() {
        seed(target, &format!("holder-{number}"), &[&[wire::HOLDER], &message.encode_to_vec()]);
    }
    let options = relabel_config::LabelOptions {
        data: "/d".into(),
        out: "/o".into(),
        weights: Some("/w".into()),
        arch: "resnet18".into(),
        head: Some("/h".into()),
        size: Some(475),
        map: Some(15),
        top_k: 5,
        batch: 8,
        half: true,
        precision: relabel_config::Precision::Bf16,
    };
    let orders = [
        ToHolder::<Labelling>::Welcome { heartbeat: Duration::from_millis(500), options },
        ToHolder::Range(piece()),
        ToHolder::Over(Some("r".into())),
    ];
    for (number, order) in orders.into_iter().enumerate() {
        let message = v1::LeaseCoordinatorMessage::from(order).encode_to_vec();
        seed(target, &format!("leases-{number}"), &[&[wire::LEASES], &message]);
    }
}

/// A run of two workers from the beginning to the end of its first epoch, and one that ends early.
fn whole_runs() {
    let event = |worker: u8, kind: u8| vec![worker, kind];
    let said = |worker: u8, message: FromWorker| {
        let message = encoded(message);
        [&[worker, wire::SAID], (message.len() as u16).to_le_bytes().as_slice(), &message].concat()
    };
    let generation = Generation(1);
    let at = |epoch, step| Position { epoch, step };
    let ready = |worker| said(worker, FromWorker::Ready { generation, held: at(0, 0), epoch_loss: None });
    let step = |number: u64| core::StepReport { position: at(0, number), ..report() };
    let progress = |worker, to: u64| {
        let steps = if worker == 0 { vec![step(to - 1)] } else { Vec::new() };
        said(
            worker,
            FromWorker::Progress { generation, position: at(0, to), steps, pace: core::Pace::default() },
        )
    };
    let duty = |number, position| {
        said(0, FromWorker::CheckpointWritten { duty: DutyId(number), written: written(position) })
    };
    let part = |worker, range: std::ops::Range<u64>| {
        let part = core::validation::Part { epoch: 0, range, top1: 1, top5: 2, loss_sum: 3.5 };
        said(worker, FromWorker::Validated { generation, part })
    };
    let begin = [
        event(0, wire::JOINED),
        event(1, wire::JOINED),
        said(0, FromWorker::Indexed(dataset())),
        said(1, FromWorker::Indexed(dataset())),
        ready(0),
        ready(1),
        progress(0, 1),
        progress(1, 1),
    ];
    let end = [
        duty(1, at(0, 1)),
        event(0, wire::TICK | 1 << 3),
        progress(0, 2),
        progress(1, 2),
        said(0, FromWorker::Validating { generation, done: 2 }),
        part(0, 0..3),
        part(1, 3..5),
        duty(2, at(1, 0)),
        duty(3, at(1, 0)),
        progress(0, 3),
    ];
    let target = wire::TARGET.name;
    seed(target, "run", &[&[wire::RUN], &begin.concat(), &end.concat()]);
    let held = |worker| {
        let reason = "the ring broke".to_owned();
        said(
            worker,
            FromWorker::Held { generation, held: Some(at(0, 1)), steps: vec![step(0)], reason, blamed: None },
        )
    };
    let regroup =
        [event(1, wire::LEFT), held(0), event(2, wire::JOINED), said(2, FromWorker::Indexed(dataset()))];
    seed(target, "run-loss", &[&[wire::RUN], &begin.concat(), &regroup.concat()]);
    let hello = encoded(first());
    let back = [&[1, wire::BACK], (hello.len() as u16).to_le_bytes().as_slice(), &hello].concat();
    let back = [event(1, wire::LEFT), back, held(0), held(1), event(0, wire::SAVE)];
    seed(target, "run-back", &[&[wire::RUN], &begin.concat(), &back.concat()]);
    let stop = [event(0, wire::STOP), held(0), held(1), duty(1, at(0, 1)), event(0, wire::TICK | 31 << 3)];
    seed(target, "run-stop", &[&[wire::RUN], &begin.concat(), &stop.concat()]);
}
