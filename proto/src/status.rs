//! The status on the wire.

use relabel_core as core;
use relabel_core::WorkerState;

use crate::v1;

/// The status with all workers, page by page: `ask` gets the page whose first worker is on this rank or a later one.
///
/// # Errors
/// As `ask` fails.
pub async fn whole_status<E>(
    mut ask: impl AsyncFnMut(u32) -> Result<v1::StatusReply, E>,
) -> Result<v1::StatusReply, E> {
    let mut status = ask(0).await?;
    while let Some(last) = status.workers.last().map(|worker| worker.rank)
        && status.workers.len() < status.seated as usize
    {
        let next = ask(last.saturating_add(1)).await?.workers;
        // Some have left between two pages.
        if next.is_empty() {
            break;
        }
        status.workers.extend(next);
    }
    Ok(status)
}

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
        // The coordinator knows more than the core says, and adds it.
        view: String::new(),
    }
}

/// What a worker is doing, as a word.
pub fn state_word(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Indexing => "indexing",
        WorkerState::Waiting => "waiting",
        WorkerState::InRing => "training",
        WorkerState::Leaving => "leaving",
    }
}

fn worker(w: core::WorkerStatus) -> v1::Worker {
    v1::Worker {
        rank: w.rank.0,
        host: w.host,
        pid: w.pid,
        device: w.device,
        silent: w.silent.as_secs_f64(),
        position: w.position.map(Into::into),
        state: state_word(w.state).into(),
        pace: w.pace.map(|times| v1::StepTimes {
            compute: times.compute.as_secs_f64(),
            data: times.data.as_secs_f64(),
            peers: times.peers.as_secs_f64(),
            lost: times.lost,
        }),
        slow: w.slow,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// A status of workers on these seats, of which `seated` were there once, two a page; and the pages asked for.
    async fn pages(seats: &[u32], seated: u32) -> (Vec<u32>, Vec<u32>) {
        let mut asked = Vec::new();
        let status = whole_status(async |first| {
            asked.push(first);
            let seats = seats.iter().filter(|seat| **seat >= first).take(2);
            let workers = seats.map(|rank| v1::Worker { rank: *rank, ..Default::default() }).collect();
            Ok::<_, Infallible>(v1::StatusReply { seated, workers, ..Default::default() })
        });
        let Ok(status) = status.await;
        (status.workers.iter().map(|worker| worker.rank).collect(), asked)
    }

    #[tokio::test]
    async fn all_pages_are_asked_for_once() {
        assert_eq!(pages(&[], 0).await, (vec![], vec![0]));
        assert_eq!(pages(&[0, 1], 2).await, (vec![0, 1], vec![0]));
        // Seats may be empty between those that are taken.
        assert_eq!(pages(&[0, 3, 4, 9, 10], 5).await, (vec![0, 3, 4, 9, 10], vec![0, 4, 10]));
        // One has left meanwhile.
        assert_eq!(pages(&[0, 3, 4], 4).await, (vec![0, 3, 4], vec![0, 4, 5]));
    }
}
