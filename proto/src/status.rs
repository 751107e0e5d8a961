//! The status on the wire.

use relabel_core as core;
use relabel_core::WorkerState;

use crate::v1;

/// The status of a run at one moment.
pub fn status(status: core::Status, run_id: String, run_dir: String) -> v1::StatusReply {
    v1::StatusReply {
        run_id,
        run_dir,
        version: crate::VERSION.into(),
        phase: status.phase,
        reason: status.reason,
        generation: status.generation,
        position: status.position.map(Into::into),
        steps_per_epoch: status.steps_per_epoch,
        epochs: status.epochs,
        world: status.world,
        loss: status.loss,
        best_top1: status.best_top1,
        checkpoint: status.checkpoint,
        workers: status.workers.into_iter().map(worker).collect(),
        min_workers: status.min_workers,
        training: status.training,
        seated: status.seated,
        lives: status.lives,
        decisions: status
            .decisions
            .into_iter()
            .map(|d| v1::Decision { ago: d.ago.as_secs_f64(), words: d.words })
            .collect(),
        checkpoints: status
            .checkpoints
            .into_iter()
            .map(|c| v1::KnownCheckpoint { file: c.file, bytes: c.bytes, position: Some(c.position.into()) })
            .collect(),
    }
}

fn worker(w: core::WorkerStatus) -> v1::Worker {
    let state = match w.state {
        WorkerState::Indexing => "indexing",
        WorkerState::Waiting => "waiting",
        WorkerState::InRing => "training",
        WorkerState::Leaving => "leaving",
    };
    v1::Worker {
        rank: w.rank.0,
        host: w.host,
        pid: w.pid,
        device: w.device,
        silent: w.silent.as_secs_f64(),
        position: w.position.map(Into::into),
        state: state.into(),
        pace: w.pace.map(|times| v1::StepTimes {
            compute: times.compute.as_secs_f64(),
            data: times.data.as_secs_f64(),
            peers: times.peers.as_secs_f64(),
            lost: times.lost,
        }),
        slow: w.slow,
    }
}
