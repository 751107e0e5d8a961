//! A run as text for a terminal.

use std::collections::BTreeMap;

use crate::progress::{duration, four_digits};
use crate::table::{Side, Table};
use crate::view::{View, WorkerView, standing_out};

/// Decisions that are shown.
const DECISIONS: usize = 6;
/// Most workers that are named one by one.
pub(super) const NAMED: usize = 32;
/// Characters of the bar.
const BAR: usize = 30;

/// The run, a fact a line, then its workers and the newest decisions.
pub(super) fn draw(view: &View) -> String {
    let mut lines = vec![
        format!("run        {} in {}", view.run_id, view.run_dir),
        format!("phase      {} ({})", view.phase, view.reason),
        position(view),
    ];
    lines.extend(progress(view));
    lines.extend(view.loss.map(|loss| format!("loss       {loss:.4}  {}", spark(&view.recent_losses))));
    lines.extend(speed(view));
    lines.extend(view.last_epoch.as_ref().map(|epoch| {
        format!(
            "epoch {:<4} train loss {:.3}  val loss {:.3}  top-1 {:.2}%  top-5 {:.2}%  {}",
            epoch.epoch + 1,
            epoch.train_loss,
            epoch.val_loss,
            100.0 * epoch.top1,
            100.0 * epoch.top5,
            duration(epoch.seconds, " s")
        )
    }));
    lines.extend(view.best_top1.map(|top1| {
        let epoch = view.best_epoch.map_or_else(String::new, |epoch| format!(" at epoch {}", epoch + 1));
        format!("best       {:.2}% top-1{epoch}", 100.0 * top1)
    }));
    lines.extend(view.checkpoint.as_ref().map(|file| format!("checkpoint {file}{}", checkpoint(view, file))));
    let train = view.training.map_or_else(String::new, |n| format!("{n} train, "));
    let least = view.min_workers.filter(|least| *least < view.world);
    let least = least.map_or_else(String::new, |least| format!("; {least} are enough"));
    lines.push(format!("workers    {train}{} of {} seats are taken{least}", view.seated, view.world));
    if view.workers.len() > NAMED {
        lines.push(format!("           {}; below, who stands out", counted(&view.workers)));
    }
    let mut text = lines.iter().map(|line| format!("{}\n", line.trim_end())).collect::<String>();
    if !view.workers.is_empty() {
        text.push_str(&workers(&standing_out(&view.workers, NAMED)));
    }
    if !view.decisions.is_empty() {
        text.push_str("decisions\n");
        for decision in &view.decisions[view.decisions.len().saturating_sub(DECISIONS)..] {
            let ago = duration((view.time - decision.time).max(0.0), " s");
            let mark = if decision.warning { "! " } else { "" };
            text.push_str(&format!("  {ago:>7} ago  {mark}{}\n", decision.words));
        }
    }
    text
}

fn position(view: &View) -> String {
    let position = match (&view.position, view.steps_per_epoch) {
        (Some(p), Some(steps)) => {
            let epoch = (p.epoch + 1).min(view.epochs.max(1));
            format!("epoch {epoch}/{}, step {}/{steps}", view.epochs, p.step)
        }
        _ => "not begun".into(),
    };
    let lives = view.lives.filter(|lives| *lives > 1);
    let lives = lives.map_or_else(String::new, |n| format!(", life {n} of the coordinator"));
    format!("position   {position}, generation {}{lives}", view.generation)
}

/// How much of the run is done, and how long the rest takes.
fn progress(view: &View) -> Option<String> {
    let (position, steps) = (view.position?, view.steps_per_epoch?);
    let total = f64::from(view.epochs) * steps as f64;
    let done = (f64::from(position.epoch) * steps as f64 + position.step as f64) / total.max(1.0);
    let done = done.clamp(0.0, 1.0);
    let full = (done * BAR as f64) as usize;
    let bar = format!("{}{}", "█".repeat(full), "░".repeat(BAR - full));
    let left = view.eta_seconds.map_or_else(String::new, |left| format!(", {} left", duration(left, " s")));
    let validating =
        view.validating.map_or_else(String::new, |(n, of)| format!(", validated {n} of {of} images"));
    Some(format!("progress   {bar} {:.0}%{left}{validating}", 100.0 * done))
}

fn speed(view: &View) -> Option<String> {
    let (rate, step) = (view.images_per_second?, view.step_seconds?);
    let waits = view.data_wait_seconds.map_or(0.0, |wait| 100.0 * wait / step.max(1e-9));
    let lr = view.learning_rate.map_or_else(String::new, |lr| format!(", learning rate {}", four_digits(lr)));
    Some(format!(
        "speed      {rate:.0} img/s, {} a step, {waits:.0}% of it waiting for images{lr}",
        seconds(step)
    ))
}

/// Size and age of a checkpoint, where they are known.
fn checkpoint(view: &View, file: &str) -> String {
    let Some(known) = view.checkpoints.iter().find(|known| known.file == file) else { return String::new() };
    let age = known.time.map(|time| duration((view.time - time).max(0.0), " s"));
    let age = age.map_or_else(String::new, |age| format!(", {age} ago"));
    format!(" ({:.1} MB{age})", known.bytes as f64 / 1e6)
}

/// `9990 training, 10 waiting, 2 slow`.
pub(super) fn counted(workers: &[WorkerView]) -> String {
    let mut states = BTreeMap::new();
    for w in workers {
        *states.entry(w.state.as_str()).or_insert(0_u32) += 1;
        if w.slow == Some(true) {
            *states.entry("slow").or_insert(0) += 1;
        }
    }
    states.iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ")
}

/// The columns that somebody has something in.
fn workers(workers: &[&WorkerView]) -> String {
    type Column = (&'static str, Side, fn(&WorkerView) -> Option<String>);
    let columns: [Column; 12] = [
        ("rank", Side::Right, |w| Some(w.rank.to_string())),
        ("host", Side::Left, |w| Some(w.host.clone())),
        ("process", Side::Right, |w| Some(w.pid.to_string())),
        ("device", Side::Left, |w| Some(w.device.clone())),
        ("state", Side::Left, |w| {
            let slow = if w.slow == Some(true) { ", slow" } else { "" };
            Some(format!("{}{slow}", w.state))
        }),
        ("step", Side::Right, |w| w.step_seconds.map(seconds)),
        ("compute", Side::Right, |w| w.compute_seconds.map(seconds)),
        ("data", Side::Right, |w| w.data_wait_seconds.map(seconds)),
        ("peers", Side::Right, |w| w.peer_wait_seconds.map(seconds)),
        ("lost", Side::Right, |w| w.lost_share.map(|share| format!("{:.0}%", 100.0 * share))),
        ("memory", Side::Right, |w| w.memory_bytes.map(|bytes| format!("{:.1} GB", bytes as f64 / 1e9))),
        ("heard", Side::Right, |w| Some(format!("{:.1} s ago", w.silent_seconds))),
    ];
    let used: Vec<_> =
        columns.into_iter().filter(|(_, _, value)| workers.iter().any(|w| value(w).is_some())).collect();
    let headings: Vec<_> = used.iter().map(|(name, side, _)| (*name, *side)).collect();
    let mut table = Table::new(&headings).indented(2);
    for worker in workers {
        table.row(used.iter().map(|(_, _, value)| value(worker).unwrap_or_else(|| "-".to_owned())).collect());
    }
    table.to_string()
}

/// A short time, in the unit that suits it.
pub(super) fn seconds(value: f64) -> String {
    match value {
        v if v < 0.001 => format!("{:.0} us", 1e6 * v),
        v if v < 1.0 => format!("{:.0} ms", 1e3 * v),
        v => format!("{v:.2} s"),
    }
}

/// A line of bars from the least to the greatest of `values`.
pub(super) fn spark(values: &[f64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let (low, high) =
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
    let bar = |value: &f64| {
        let part = if high > low { (value - low) / (high - low) } else { 0.0 };
        BARS[((part * 8.0) as usize).min(7)]
    };
    values.iter().map(bar).collect()
}
