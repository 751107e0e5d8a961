//! The protocol: messages of either side as bytes, and a whole run that is told such. The first byte of an input
//! says which.

use std::fmt::Debug;
use std::time::Duration;

use prost::Message;
use relabel_core::evaluation::Evaluation;
use relabel_core::labelling::Labelling;
use relabel_core::{
    Command, Event, Fact, Hello, History, Run, Settings, StragglerAction, StragglerPolicy, WorkerId,
};
use relabel_proto::{
    FirstLeaseMessage, FirstMessage, Invalid, Told, from_holder, from_worker, hello, lease_hello, to_holder,
    to_worker, v1, welcome,
};

use crate::{Target, split};

pub const TARGET: Target = Target {
    name: "wire",
    run,
    seeds: &[],
    // Two bytes are an empty report of a step, which takes a hundred, in a list that doubles.
    amplification: 1024,
};

/// The first byte of an input: whose message the rest is.
pub const WORKER: u8 = 0;
pub const COORDINATOR: u8 = 1;
pub const HOLDER: u8 = 2;
pub const LEASES: u8 = 3;
/// The rest is events: worker, kind, and for a message its length in two bytes and itself.
pub const RUN: u8 = 4;

/// Kinds of events, in the byte after the worker's; the upper bits are tenths of seconds that pass before it.
pub const SAID: u8 = 0;
pub const JOINED: u8 = 1;
pub const LEFT: u8 = 2;
pub const TICK: u8 = 3;
pub const STOP: u8 = 4;
pub const BACK: u8 = 5;
pub const SAVE: u8 = 6;

fn run(input: &[u8]) {
    let ([kind], bytes) = split::<1>(input);
    match kind % 5 {
        WORKER => {
            let Ok(message) = v1::WorkerMessage::decode(bytes) else { return };
            survives(message.clone(), from_worker, Into::into);
            survives(message, |message| hello(message).and_then(FirstMessage::hello), Into::into);
        }
        COORDINATOR => {
            let Ok(message) = v1::CoordinatorMessage::decode(bytes) else { return };
            survives(message, to_worker, |told| match told {
                Told::Welcome(told) => welcome(told),
                Told::Order(order) => order.into(),
            });
        }
        HOLDER => {
            let Ok(message) = v1::LeaseWorkerMessage::decode(bytes) else { return };
            survives(message.clone(), from_holder::<Labelling>, Into::into);
            survives(message.clone(), from_holder::<Evaluation>, Into::into);
            survives(message, |message| lease_hello(message).and_then(FirstLeaseMessage::hello), Into::into);
        }
        LEASES => {
            let Ok(message) = v1::LeaseCoordinatorMessage::decode(bytes) else { return };
            survives(message.clone(), to_holder::<Labelling>, Into::into);
            survives(message, to_holder::<Evaluation>, Into::into);
        }
        _ => whole_run(bytes),
    }
}

/// What is taken for valid is so on the other side as well, and means the same there.
fn survives<M, T>(message: M, take: fn(M) -> Result<T, Invalid>, say: fn(T) -> M)
where
    M: Message + Default + Clone + Debug,
{
    let Ok(valid) = take(message) else { return };
    let said = say(valid);
    let bytes = said.encode_to_vec();
    let heard = M::decode(bytes.as_slice()).expect("what was encoded is decoded");
    let valid = take(heard).unwrap_or_else(|error| panic!("what was valid is not: {error}\n{said:?}"));
    // As bytes, because a number may be none.
    assert_eq!(say(valid).encode_to_vec(), bytes, "{said:?}");
}

/// A run of two epochs for two workers, who say whatever a message can say. It goes on, or ends by itself, and its
/// facts can be written down.
fn whole_run(mut bytes: &[u8]) {
    let settings = Settings {
        run_id: "run".into(),
        workers: 2,
        min_workers: 1,
        spares: 1,
        epochs: 2,
        start_epoch: 0,
        test_only: false,
        global_batch: 8,
        checkpoint_every_steps: 1,
        checkpoint_every_epochs: 1,
        checkpoint_every: Some(Duration::from_secs(1)),
        keep_checkpoints: 1,
        dead_after: Duration::from_secs(4),
        wait_for_workers: Duration::from_secs(10),
        gather_for: Duration::from_secs(1),
        admit_after: Duration::from_secs(1),
        reunite_for: Duration::from_secs(5),
        stragglers: StragglerPolicy { factor: 1.5, action: StragglerAction::Replace },
        stop_deadline: Duration::from_secs(10),
        secret: [7; 32],
    };
    let mut run = Run::new(settings, History::default());
    let mut now = Duration::ZERO;
    while !bytes.is_empty() {
        let ([worker, kind], rest) = split::<2>(bytes);
        bytes = rest;
        now += Duration::from_millis(100) * u32::from(kind >> 3);
        let worker = WorkerId(u64::from(worker % 4));
        let reason = || "it is so".to_owned();
        let event = match kind & 7 {
            SAID => {
                let Some(Ok(message)) = message(&mut bytes).map(from_worker) else { continue };
                Event::Said { worker, message }
            }
            JOINED => {
                let host = format!("host{}", worker.0);
                let (device, ring_address, instance) = ("cpu".into(), "h:1".into(), worker.0);
                let hello = Hello {
                    rank: None,
                    host,
                    pid: 1,
                    device,
                    ring_address,
                    instance,
                    standing: None,
                    nccl: None,
                };
                Event::Joined { worker, hello }
            }
            BACK => {
                let Some(Ok(first)) = message(&mut bytes).map(hello) else { continue };
                let Ok(hello) = first.hello() else { continue };
                Event::Joined { worker, hello }
            }
            SAVE => Event::Save { reason: reason() },
            LEFT => Event::Left { worker, reason: reason() },
            STOP => Event::Stop { reason: reason() },
            _ => Event::Tick,
        };
        for command in run.handle(now, event) {
            carried_out(command);
        }
    }
    let _ = run.status(now);
}

/// Takes a message, with its length before it, off `bytes`.
fn message(bytes: &mut &[u8]) -> Option<v1::WorkerMessage> {
    let (length, rest) = split::<2>(bytes);
    let length = usize::from(u16::from_le_bytes(length)).min(rest.len());
    let (message, rest) = rest.split_at(length);
    *bytes = rest;
    v1::WorkerMessage::decode(message).ok()
}

fn carried_out(command: Command) {
    match command {
        Command::Persist(fact) => {
            let json = serde_json::to_string(&fact).expect("a fact has words");
            let again: Fact = serde_json::from_str(&json)
                .unwrap_or_else(|error| panic!("a resume could not read {json}: {error}"));
            assert_eq!(again, fact);
        }
        Command::Send { message, .. } => {
            let sent: v1::CoordinatorMessage = message.into();
            to_worker(sent).expect("a worker takes what a coordinator says");
        }
        _ => {}
    }
}
