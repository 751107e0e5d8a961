//! `coordinator status`, `stop` and `checkpoint`: the operator's side of a running coordinator.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use relabel_proto::security::{Access, Unreached};
use relabel_proto::v1::admin_client::AdminClient;
use relabel_proto::v1::{SaveRequest, StatusReply, StatusRequest, StopRequest, Worker};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::cli::{CheckpointArgs, StatusArgs, StopArgs, Target};

/// Newest decisions that a table shows.
const DECISIONS: usize = 8;

/// Most workers that a table names one by one.
const NAMED: usize = 32;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The operator's end of a connection.
struct Operator {
    access: Access,
    client: AdminClient<Channel>,
}

impl Operator {
    async fn connect(target: &Target) -> Result<Self> {
        let access = target.access.to(&target.coordinator)?;
        let channel = access.connect(PATIENCE, Some(PATIENCE)).await.map_err(|error| match error {
            Unreached::Mistrust(words) => anyhow::anyhow!(words),
            Unreached::Absent(_) => anyhow::anyhow!(
                "no coordinator answers at {}: name it with --coordinator, or start one",
                access.url()
            ),
        })?;
        Ok(Self { access, client: AdminClient::new(channel) })
    }

    /// How the run is doing, with the workers from rank `first` on, as many as come at once.
    async fn ask(&mut self, first: u32) -> Result<StatusReply> {
        let request = self.access.request(StatusRequest { first, most: None });
        let reply = self.client.status(request).await.map_err(|status| self.failed(status))?;
        Ok(reply.into_inner())
    }

    /// A refusal in the coordinator's words, or what the connection broke of.
    fn failed(&self, status: Status) -> anyhow::Error {
        let words = self.access.mistrust(&status);
        let words = words.unwrap_or_else(|| relabel_proto::sentence(status.message()));
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied | Code::FailedPrecondition => {
                anyhow::anyhow!("the coordinator refused this: {words}")
            }
            _ => anyhow::anyhow!(words),
        }
    }
}

/// Asks for the run to end after a checkpoint.
pub async fn stop(args: StopArgs) -> Result<ExitCode> {
    let mut operator = Operator::connect(&args.target).await?;
    let request = operator.access.request(StopRequest { reason: args.reason });
    operator.client.stop(request).await.map_err(|status| operator.failed(status))?;
    println!("the run will stop after a checkpoint");
    Ok(ExitCode::SUCCESS)
}

/// Asks for a checkpoint.
pub async fn checkpoint(args: CheckpointArgs) -> Result<ExitCode> {
    let mut operator = Operator::connect(&args.target).await?;
    let request = operator.access.request(SaveRequest { reason: args.reason });
    operator.client.save(request).await.map_err(|status| operator.failed(status))?;
    println!("a checkpoint will be written at the next step");
    Ok(ExitCode::SUCCESS)
}

/// Prints how the run is doing.
pub async fn status(args: StatusArgs) -> Result<ExitCode> {
    let mut operator = Operator::connect(&args.target).await?;
    let status = relabel_proto::whole_status(async |first| operator.ask(first).await).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&json(&status))?);
    } else {
        print!("{}", table(&status));
    }
    Ok(ExitCode::SUCCESS)
}

fn json(status: &StatusReply) -> serde_json::Value {
    let position = |p: &Option<relabel_proto::v1::Position>| {
        p.as_ref().map(|p| serde_json::json!({ "epoch": p.epoch, "step": p.step }))
    };
    let workers: Vec<_> = status
        .workers
        .iter()
        .map(|w| {
            serde_json::json!({
                "rank": w.rank, "host": w.host, "pid": w.pid, "device": w.device,
                "silent_seconds": w.silent, "position": position(&w.position), "state": w.state, "slow": w.slow,
                "step_seconds": w.pace.as_ref().map(|pace| serde_json::json!({
                    "compute": pace.compute, "data": pace.data, "peers": pace.peers,
                })),
                "lost_share": w.pace.as_ref().map(|pace| pace.lost),
            })
        })
        .collect();
    let decisions: Vec<_> = status
        .decisions
        .iter()
        .map(|d| serde_json::json!({ "seconds_ago": d.ago, "words": d.words }))
        .collect();
    let checkpoints: Vec<_> = status
        .checkpoints
        .iter()
        .map(|c| serde_json::json!({ "file": c.file, "bytes": c.bytes, "position": position(&c.position) }))
        .collect();
    serde_json::json!({
        "run_id": status.run_id, "run_dir": status.run_dir, "version": status.version,
        "phase": status.phase, "reason": status.reason, "generation": status.generation,
        "position": position(&status.position), "steps_per_epoch": status.steps_per_epoch,
        "epochs": status.epochs, "world": status.world, "loss": status.loss,
        "best_top1": status.best_top1, "checkpoint": status.checkpoint, "workers": workers,
        "min_workers": status.min_workers, "training": status.training, "lives": status.lives,
        "decisions": decisions, "checkpoints": checkpoints,
    })
}

fn table(status: &StatusReply) -> String {
    let position = match (&status.position, status.steps_per_epoch) {
        (Some(p), Some(steps)) => format!("epoch {}/{}, step {}/{steps}", p.epoch + 1, status.epochs, p.step),
        _ => "not begun".into(),
    };
    let mut lines = vec![
        format!("run        {} in {}", status.run_id, status.run_dir),
        format!("phase      {} ({})", status.phase, status.reason),
        format!("position   {position}, generation {}", status.generation),
    ];
    lines.extend(status.loss.map(|loss| format!("loss       {loss:.4}")));
    lines.extend(status.best_top1.map(|top1| format!("best       {:.2}% top-1", 100.0 * top1)));
    lines.extend(status.checkpoint.as_ref().map(|file| format!("checkpoint {file}")));
    lines.push(format!(
        "workers    {} train, {} of {} seats are taken; at least {} are needed",
        status.training, status.seated, status.world, status.min_workers
    ));
    if status.workers.len() > NAMED {
        lines.push(format!("  {}; below, who stands out", counted(&status.workers)));
    }
    for w in standing_out(&status.workers) {
        let pace = w.pace.as_ref().map_or_else(String::new, |pace| {
            let ms = |seconds: f64| format!("{:.0}", 1e3 * seconds);
            let (compute, data, peers) = (ms(pace.compute), ms(pace.data), ms(pace.peers));
            format!(", a step: {compute} ms own, {data} waiting for data, {peers} for peers")
        });
        let slow = match (&w.pace, w.slow) {
            (Some(pace), true) => {
                format!(", SLOW: the ring loses {:.0}% of its time to it", 100.0 * pace.lost)
            }
            _ => String::new(),
        };
        lines.push(format!(
            "  rank {:<4} {} ({}, process {}, {}), heard {:.1} s ago{pace}{slow}",
            w.rank, w.state, w.host, w.pid, w.device, w.silent
        ));
    }
    if !status.decisions.is_empty() {
        lines.push("decisions".into());
    }
    for decision in status.decisions.iter().rev().take(DECISIONS).rev() {
        lines.push(format!("  {:>8} ago  {}", ago(decision.ago), decision.words));
    }
    lines.join("\n") + "\n"
}

/// The workers that a table names: all of a small run; of a large one those that are slow, those that are not
/// training, and those that have been silent for longest, in the order of their ranks.
fn standing_out(workers: &[Worker]) -> Vec<&Worker> {
    let mut named: Vec<_> = workers.iter().collect();
    if named.len() > NAMED {
        named.sort_by(|a, b| {
            let key = |w: &Worker| (w.slow, w.state != "training", w.silent);
            key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal)
        });
        named.truncate(NAMED);
        named.sort_by_key(|w| w.rank);
    }
    named
}

/// `9990 training, 10 waiting, 2 slow`.
fn counted(workers: &[Worker]) -> String {
    let mut states = BTreeMap::new();
    for w in workers {
        *states.entry(w.state.as_str()).or_insert(0_u32) += 1;
        if w.slow {
            *states.entry("slow").or_insert(0) += 1;
        }
    }
    states.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ")
}

/// `12 s`, `7 min` or `3.5 h`.
fn ago(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workers(count: u32) -> Vec<Worker> {
        (0..count).map(|rank| Worker { rank, state: "training".into(), ..Worker::default() }).collect()
    }

    #[test]
    fn of_a_large_run_those_are_named_who_stand_out() {
        let ranks = |workers: &[Worker]| standing_out(workers).iter().map(|w| w.rank).collect::<Vec<_>>();
        assert_eq!(ranks(&workers(NAMED as u32)), (0..NAMED as u32).collect::<Vec<_>>());
        let mut many = workers(1000);
        many[700].slow = true;
        many[300].state = "waiting".into();
        for silent in &mut many[500..500 + NAMED - 2] {
            silent.silent = 2.0;
        }
        let mut expected: Vec<_> = (500..500 + NAMED as u32 - 2).chain([700, 300]).collect();
        expected.sort_unstable();
        assert_eq!(ranks(&many), expected);
        assert_eq!(counted(&many), "1 slow, 999 training, 1 waiting");
    }
}
