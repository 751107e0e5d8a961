//! Wire to core and back. `From` where it cannot fail, `TryFrom` where a peer may have sent nonsense.

use relabel_core as core;
use relabel_core::{DutyId, Formation, FromWorker, Generation, Outcome, Rank, ToWorker, Token};

use crate::text::{address, file_name, folder, name, sentence, word};
use crate::v1;
use crate::v1::coordinator_message::Message as Down;
use crate::v1::worker_message::Message as Up;
use crate::values::{Invalid, duration, ordered, required};

/// Bytes of NCCL's unique id.
const NCCL_ID: usize = 128;

/// A worker's first message. Its version is looked at first: another one may say the rest in other words.
#[derive(Debug)]
pub struct FirstMessage {
    pub version: String,
    rest: v1::Hello,
}

impl FirstMessage {
    /// How the worker introduces itself.
    ///
    /// # Errors
    /// What cannot be.
    pub fn hello(self) -> Result<core::Hello, Invalid> {
        let v1::Hello { version: _, rank, host, pid, device, ring_address, instance, standing, nccl } =
            self.rest;
        Ok(core::Hello {
            rank: rank.map(Rank),
            host: name(host, "Hello.host")?,
            pid,
            device: name(device, "Hello.device")?,
            nccl,
            ring_address: address(ring_address, "Hello.ring_address")?,
            instance,
            standing: standing.map(TryInto::try_into).transpose()?,
        })
    }
}

/// What a seated worker is told first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    pub rank: Rank,
    /// Number of seats.
    pub world: u32,
    pub run_id: String,
    /// The run's options as JSON.
    pub config: String,
    pub run_dir: String,
}

/// The worker's first message: a Hello and nothing else.
pub fn hello(message: v1::WorkerMessage) -> Result<FirstMessage, Invalid> {
    let Some(Up::Hello(mut rest)) = message.message else {
        return Err(Invalid::Unexpected("the first message was no Hello: another message"));
    };
    let version = word(std::mem::take(&mut rest.version), "Hello.version")?;
    Ok(FirstMessage { version, rest })
}

/// Any later message of a worker.
pub fn from_worker(message: v1::WorkerMessage) -> Result<FromWorker, Invalid> {
    Ok(match required(message.message, "WorkerMessage.message")? {
        Up::Hello(_) => return Err(Invalid::Unexpected("a second Hello")),
        Up::Heartbeat(v1::Heartbeat {}) => FromWorker::Heartbeat,
        Up::Indexed(m) => FromWorker::Indexed(core::Dataset {
            train_samples: m.train_samples,
            train_fingerprint: word(m.train_fingerprint, "Indexed.train_fingerprint")?,
            val_samples: m.val_samples,
            val_fingerprint: word(m.val_fingerprint, "Indexed.val_fingerprint")?,
            classes: m.classes,
        }),
        Up::NcclId(m) => {
            let (generation, id) = nccl_id(m)?;
            FromWorker::NcclId { generation, id }
        }
        Up::Ready(m) => FromWorker::Ready {
            generation: Generation(m.generation),
            held: required(m.held, "Ready.held")?.into(),
            epoch_loss: m.epoch_loss,
        },
        Up::RestoreFailed(m) => FromWorker::RestoreFailed {
            generation: Generation(m.generation),
            file: file_name(m.file)?,
            reason: sentence(&m.reason),
        },
        Up::Progress(m) => FromWorker::Progress {
            generation: Generation(m.generation),
            position: required(m.position, "Progress.position")?.into(),
            steps: steps(m.steps)?,
            pace: core::Pace {
                steps: m.paced_steps,
                compute: duration(m.compute, "Progress.compute")?,
                data: duration(m.data, "Progress.data")?,
                peers: duration(m.peers, "Progress.peers")?,
            },
        },
        Up::Held(m) => FromWorker::Held {
            generation: Generation(m.generation),
            held: m.held.map(Into::into),
            steps: steps(m.steps)?,
            reason: sentence(&m.reason),
            blamed: m.blamed.map(Rank),
        },
        Up::Validating(m) => FromWorker::Validating { generation: Generation(m.generation), done: m.done },
        Up::Validated(m) => FromWorker::Validated {
            generation: Generation(m.generation),
            part: core::validation::Part {
                epoch: m.epoch,
                range: ordered(m.first, m.end, "Validated.first..end")?,
                top1: m.top1,
                top5: m.top5,
                loss_sum: m.loss_sum,
            },
        },
        Up::CheckpointWritten(m) => FromWorker::CheckpointWritten {
            duty: DutyId(m.duty),
            written: core::Written {
                file: file_name(m.file)?,
                bytes: m.bytes,
                blake3: word(m.blake3, "CheckpointWritten.blake3")?,
                position: required(m.position, "CheckpointWritten.position")?.into(),
            },
        },
        Up::CheckpointFailed(m) => {
            FromWorker::CheckpointFailed { duty: DutyId(m.duty), reason: sentence(&m.reason) }
        }
        Up::Fault(m) => FromWorker::Fault { reason: sentence(&m.reason) },
        Up::Leaving(m) => FromWorker::Leaving { reason: sentence(&m.reason) },
    })
}

fn steps(steps: Vec<v1::StepReport>) -> Result<Vec<core::StepReport>, Invalid> {
    steps.into_iter().map(TryInto::try_into).collect()
}

/// What the worker is told first, on the wire.
pub fn welcome(welcome: Welcome) -> v1::CoordinatorMessage {
    let Welcome { rank, world, run_id, config, run_dir } = welcome;
    let message = Down::Welcome(v1::Welcome { rank: rank.0, world, run_id, config, run_dir });
    v1::CoordinatorMessage { message: Some(message) }
}

/// What the coordinator says: the first message is a welcome, every other one an order.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    Welcome(Welcome),
    Order(ToWorker),
}

/// What the coordinator said.
pub fn to_worker(message: v1::CoordinatorMessage) -> Result<Told, Invalid> {
    Ok(Told::Order(match required(message.message, "CoordinatorMessage.message")? {
        Down::Welcome(m) => {
            return Ok(Told::Welcome(Welcome {
                rank: Rank(m.rank),
                world: m.world,
                run_id: name(m.run_id, "Welcome.run_id")?,
                config: m.config,
                run_dir: folder(m.run_dir, "Welcome.run_dir")?,
            }));
        }
        Down::Form(m) => ToWorker::Form(formation(m)?),
        Down::NcclId(m) => {
            let (generation, id) = nccl_id(m)?;
            ToWorker::NcclId { generation, id }
        }
        Down::Train(m) => {
            ToWorker::Train { generation: Generation(m.generation), epoch: m.epoch, first_step: m.first_step }
        }
        Down::Validate(m) => ToWorker::Validate {
            generation: Generation(m.generation),
            epoch: m.epoch,
            range: ordered(m.first, m.end, "Validate.first..end")?,
        },
        Down::Checkpoint(m) => ToWorker::Checkpoint {
            duty: DutyId(m.duty),
            at: required(m.at, "Checkpoint.at")?.into(),
            best: m.best,
            top1: m.top1,
        },
        Down::Remove(m) => {
            ToWorker::Remove { files: m.files.into_iter().map(file_name).collect::<Result<_, _>>()? }
        }
        Down::Dissolve(m) => {
            ToWorker::Dissolve { generation: Generation(m.generation), reason: sentence(&m.reason) }
        }
        Down::Drain(m) => {
            ToWorker::Drain { generation: Generation(m.generation), reason: sentence(&m.reason) }
        }
        Down::Release(m) => ToWorker::Release { reason: sentence(&m.reason) },
        Down::Finish(m) => ToWorker::Finish {
            outcome: match required(m.outcome, "Finish.outcome")? {
                v1::finish::Outcome::Done(_) => Outcome::Done,
                v1::finish::Outcome::Interrupted(i) => {
                    Outcome::Interrupted { reason: sentence(&i.reason), saved: i.saved.map(Into::into) }
                }
                v1::finish::Outcome::Failed(f) => Outcome::Failed { reason: sentence(&f.reason) },
            },
        },
    }))
}

/// Opaque but for its length.
fn nccl_id(m: v1::NcclId) -> Result<(Generation, Vec<u8>), Invalid> {
    match m.id.len() {
        NCCL_ID => Ok((Generation(m.generation), m.id)),
        other => Err(Invalid::Range { field: "NcclId.id", value: format!("{other} bytes long") }),
    }
}

fn formation(m: v1::Form) -> Result<Formation, Invalid> {
    let world = m.world;
    let seat = |rank: u32, field| match rank < world {
        true => Ok(Rank(rank)),
        false => Err(Invalid::Range { field, value: rank.to_string() }),
    };
    let token = m.token.try_into().map_err(|bytes: Vec<u8>| Invalid::Range {
        field: "Form.token",
        value: format!("{} bytes long", bytes.len()),
    })?;
    Ok(Formation {
        generation: Generation(m.generation),
        rank: seat(m.rank, "Form.rank")?,
        source: seat(m.source, "Form.source")?,
        world,
        previous: address(m.previous, "Form.previous")?,
        next: address(m.next, "Form.next")?,
        transfer: m.transfer,
        token: Token(token),
        nccl: m.nccl,
        shard: ordered(m.shard_first, m.shard_end, "Form.shard_first..shard_end")?,
        restore: match m.restore {
            Some(r) => {
                Some(core::Restore { file: file_name(r.file)?, blake3: word(r.blake3, "Restore.blake3")? })
            }
            None => None,
        },
        position: required(m.position, "Form.position")?.into(),
    })
}

impl From<core::Hello> for v1::WorkerMessage {
    fn from(h: core::Hello) -> Self {
        let core::Hello { rank, host, pid, device, nccl, ring_address, instance, standing } = h;
        let (version, rank, standing) = (crate::VERSION.into(), rank.map(|r| r.0), standing.map(Into::into));
        let hello = v1::Hello { version, rank, host, pid, device, ring_address, instance, standing, nccl };
        v1::WorkerMessage { message: Some(Up::Hello(hello)) }
    }
}

impl From<FromWorker> for v1::WorkerMessage {
    fn from(message: FromWorker) -> Self {
        let steps = |steps: Vec<core::StepReport>| steps.into_iter().map(Into::into).collect();
        let message = match message {
            FromWorker::Heartbeat => Up::Heartbeat(v1::Heartbeat {}),
            FromWorker::Indexed(d) => Up::Indexed(v1::Indexed {
                train_samples: d.train_samples,
                train_fingerprint: d.train_fingerprint,
                val_samples: d.val_samples,
                val_fingerprint: d.val_fingerprint,
                classes: d.classes,
            }),
            FromWorker::NcclId { generation, id } => Up::NcclId(v1::NcclId { generation: generation.0, id }),
            FromWorker::Ready { generation, held, epoch_loss } => {
                Up::Ready(v1::Ready { generation: generation.0, held: Some(held.into()), epoch_loss })
            }
            FromWorker::RestoreFailed { generation, file, reason } => {
                Up::RestoreFailed(v1::RestoreFailed { generation: generation.0, file, reason })
            }
            FromWorker::Progress { generation, position, steps: reports, pace } => {
                Up::Progress(v1::Progress {
                    generation: generation.0,
                    position: Some(position.into()),
                    steps: steps(reports),
                    paced_steps: pace.steps,
                    compute: pace.compute.as_secs_f64(),
                    data: pace.data.as_secs_f64(),
                    peers: pace.peers.as_secs_f64(),
                })
            }
            FromWorker::Held { generation, held, steps: reports, reason, blamed } => Up::Held(v1::Held {
                generation: generation.0,
                held: held.map(Into::into),
                steps: steps(reports),
                reason,
                blamed: blamed.map(|rank| rank.0),
            }),
            FromWorker::Validating { generation, done } => {
                Up::Validating(v1::Validating { generation: generation.0, done })
            }
            FromWorker::Validated { generation, part } => Up::Validated(v1::Validated {
                generation: generation.0,
                epoch: part.epoch,
                first: part.range.start,
                end: part.range.end,
                top1: part.top1,
                top5: part.top5,
                loss_sum: part.loss_sum,
            }),
            FromWorker::CheckpointWritten { duty, written } => Up::CheckpointWritten(v1::CheckpointWritten {
                duty: duty.0,
                file: written.file,
                bytes: written.bytes,
                blake3: written.blake3,
                position: Some(written.position.into()),
            }),
            FromWorker::CheckpointFailed { duty, reason } => {
                Up::CheckpointFailed(v1::CheckpointFailed { duty: duty.0, reason })
            }
            FromWorker::Fault { reason } => Up::Fault(v1::Fault { reason }),
            FromWorker::Leaving { reason } => Up::Leaving(v1::Leaving { reason }),
        };
        v1::WorkerMessage { message: Some(message) }
    }
}

impl From<ToWorker> for v1::CoordinatorMessage {
    fn from(message: ToWorker) -> Self {
        let message = match message {
            ToWorker::Form(f) => Down::Form(v1::Form {
                generation: f.generation.0,
                rank: f.rank.0,
                world: f.world,
                previous: f.previous,
                next: f.next,
                transfer: f.transfer,
                token: f.token.0.to_vec(),
                nccl: f.nccl,
                shard_first: f.shard.start,
                shard_end: f.shard.end,
                source: f.source.0,
                restore: f.restore.map(|r| v1::Restore { file: r.file, blake3: r.blake3 }),
                position: Some(f.position.into()),
            }),
            ToWorker::NcclId { generation, id } => Down::NcclId(v1::NcclId { generation: generation.0, id }),
            ToWorker::Train { generation, epoch, first_step } => {
                Down::Train(v1::Train { generation: generation.0, epoch, first_step })
            }
            ToWorker::Validate { generation, epoch, range } => Down::Validate(v1::Validate {
                generation: generation.0,
                epoch,
                first: range.start,
                end: range.end,
            }),
            ToWorker::Checkpoint { duty, at, best, top1 } => {
                Down::Checkpoint(v1::Checkpoint { duty: duty.0, at: Some(at.into()), best, top1 })
            }
            ToWorker::Remove { files } => Down::Remove(v1::Remove { files }),
            ToWorker::Dissolve { generation, reason } => {
                Down::Dissolve(v1::Dissolve { generation: generation.0, reason })
            }
            ToWorker::Drain { generation, reason } => {
                Down::Drain(v1::Drain { generation: generation.0, reason })
            }
            ToWorker::Release { reason } => Down::Release(v1::Release { reason }),
            ToWorker::Finish { outcome } => Down::Finish(v1::Finish {
                outcome: Some(match outcome {
                    Outcome::Done => v1::finish::Outcome::Done(v1::Done {}),
                    Outcome::Interrupted { reason, saved } => {
                        v1::finish::Outcome::Interrupted(v1::Interrupted {
                            reason,
                            saved: saved.map(Into::into),
                        })
                    }
                    Outcome::Failed { reason } => v1::finish::Outcome::Failed(v1::Failed { reason }),
                }),
            }),
        };
        v1::CoordinatorMessage { message: Some(message) }
    }
}

#[cfg(test)]
mod tests;
