//! What is measured, and how it is shown.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

/// Buckets of an octave: a percentile is exact to a twelfth.
const PARTS: f64 = 8.0;

/// Times from a microsecond on, counted in buckets that grow by a twelfth. Many tasks count into one.
pub struct Times([AtomicU64; 256]);

impl Default for Times {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Times {
    pub fn note(&self, time: Duration) {
        let bucket = (time.as_secs_f64() * 1e6).max(1.0).log2() * PARTS;
        self.0[(bucket as usize).min(self.0.len() - 1)].fetch_add(1, Ordering::Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.0.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// The time that a share of all times is not above, in milliseconds; the upper end of its bucket.
    pub fn percentile(&self, share: f64) -> f64 {
        let wanted = (self.count() as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.0.iter().enumerate() {
            seen += count.load(Ordering::Relaxed);
            if seen >= wanted {
                return ((bucket + 1) as f64 / PARTS).exp2() / 1e3;
            }
        }
        0.0
    }
}

/// A stretch of time. Latencies in milliseconds; CPU in seconds of one core.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Stretch {
    pub seconds: f64,
    /// CPU seconds of the coordinator.
    pub cpu: f64,
    /// Messages that the coordinator was sent and sent.
    pub messages: u64,
    /// From a request to its answer by way of the driver's queue.
    pub latency_p50: f64,
    pub latency_p99: f64,
    /// Samples that these percentiles are of.
    pub probes: u64,
    /// How late the generator's own timers were.
    pub lag_p99: f64,
}

impl Stretch {
    /// Cores that it kept busy.
    pub fn cores(&self) -> f64 {
        self.cpu / self.seconds.max(1e-9)
    }

    fn cpu_a_message(&self) -> f64 {
        1e6 * self.cpu / self.messages.max(1) as f64
    }
}

/// What was found at one number of workers. Times in seconds, memory in bytes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    pub workers: u32,
    pub heartbeat: f64,
    /// From the first connection to the last seat.
    pub join: Stretch,
    /// From the last seat to the first step.
    pub form: f64,
    /// CPU seconds of that.
    pub form_cpu: f64,
    pub steady: Stretch,
    /// With everybody seated.
    pub resident: u64,
    pub resident_most: u64,
    /// The same of this process.
    pub generator: u64,
    /// From a lost worker to the first step of the others, each time.
    pub losses: Vec<f64>,
    pub loss_cpu: f64,
    /// From the last step of those that train to the first with one more, each time.
    pub admissions: Vec<f64>,
    /// All workers' status as `coordinator status` asks for it, in milliseconds.
    pub status_p50: f64,
    pub status_p99: f64,
    pub crowd: Option<Crowd>,
    pub churn: Option<Churn>,
    /// From the order to stop to the coordinator's end.
    pub stop: f64,
    pub exit: Option<i32>,
    /// Streams that the coordinator ended although their worker was well.
    pub put_out: u64,
}

/// What a crowd that is lost together does. Times in seconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Crowd {
    pub lost: u32,
    /// From their death to the first step of the others, and the coordinator's CPU seconds of that.
    pub loss: f64,
    pub loss_cpu: f64,
    /// From the first connection of as many others to the first step of all.
    pub back: f64,
}

/// What workers that leave and come do.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Churn {
    pub stretch: Stretch,
    /// Workers that died, that left in good order, and that came.
    pub died: u32,
    pub left: u32,
    pub came: u32,
    /// Generations that came to train.
    pub generations: usize,
    /// Their median pause.
    pub pause: f64,
    /// Steps that were taken, and the share of the time that they took.
    pub steps: u64,
    pub training: f64,
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The figures as a table in Markdown, a column for each number of workers.
pub fn table(all: &[Figures]) -> String {
    type Row<T> = (&'static str, fn(&T) -> String);
    let churn = |f: &Figures, show: fn(&Churn) -> String| f.churn.as_ref().map_or_else(String::new, show);
    let rows: [Row<Figures>; 14] = [
        ("all seated after, s (CPU s)", |f| format!("{:.1} ({:.1})", f.join.seconds, f.join.cpu)),
        ("a generation formed, s (CPU s)", |f| format!("{:.2} ({:.2})", f.form, f.form_cpu)),
        ("memory, MB (KB a worker)", |f| {
            format!("{:.0} ({:.0})", f.resident as f64 / 1e6, f.resident as f64 / 1e3 / f64::from(f.workers))
        }),
        ("most memory, MB", |f| format!("{:.0}", f.resident_most as f64 / 1e6)),
        ("the generator's memory, MB", |f| format!("{:.0}", f.generator as f64 / 1e6)),
        ("messages/s", |f| format!("{:.0}", f.steady.messages as f64 / f.steady.seconds)),
        ("cores busy (µs a message)", |f| {
            format!("{:.2} ({:.0})", f.steady.cores(), f.steady.cpu_a_message())
        }),
        ("heartbeat latency p50 / p99, ms", |f| {
            format!("{:.1} / {:.1}", f.steady.latency_p50, f.steady.latency_p99)
        }),
        ("generator's timers late, p99, ms", |f| format!("{:.0}", f.steady.lag_p99)),
        ("from a loss to the next step, s (CPU s)", |f| {
            format!("{:.2} ({:.2})", median(&f.losses), f.loss_cpu)
        }),
        ("pause to admit a worker, s", |f| format!("{:.2}", median(&f.admissions))),
        ("from the loss of many together, s (CPU s)", |f| match &f.crowd {
            Some(crowd) => format!("{} lost: {:.2} ({:.2})", crowd.lost, crowd.loss, crowd.loss_cpu),
            None => String::new(),
        }),
        ("status of all workers p50 / p99, ms", |f| format!("{:.1} / {:.1}", f.status_p50, f.status_p99)),
        ("stop to exit, s", |f| format!("{:.2}", f.stop)),
    ];
    let mut lines = vec![row("workers", all.iter().map(|f| f.workers.to_string()))];
    lines.push(row("---", all.iter().map(|_| "---:".into())));
    lines.extend(rows.iter().map(|(name, show)| row(name, all.iter().map(show))));
    if all.iter().any(|f| f.churn.is_some()) {
        let rows: [Row<Churn>; 5] = [
            ("churn: died, left, came", |c| format!("{}, {}, {}", c.died, c.left, c.came)),
            ("generations formed, median pause, s", |c| match c.generations {
                0 => "0".into(),
                formed => format!("{formed}, {:.2}", c.pause),
            }),
            ("time spent training", |c| format!("{:.0}%", 100.0 * c.training)),
            ("cores busy", |c| format!("{:.2}", c.stretch.cores())),
            ("heartbeat latency p50 / p99, ms", |c| {
                format!("{:.1} / {:.1}", c.stretch.latency_p50, c.stretch.latency_p99)
            }),
        ];
        lines.extend(rows.iter().map(|(name, show)| row(name, all.iter().map(|f| churn(f, *show)))));
    }
    lines.push(row("workers put out though well", all.iter().map(|f| f.put_out.to_string())));
    lines.join("\n")
}

fn row(name: &str, cells: impl Iterator<Item = String>) -> String {
    format!("| {name} | {} |", cells.collect::<Vec<_>>().join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_exact_to_a_bucket() {
        let times = Times::default();
        for ms in 1..=100 {
            times.note(Duration::from_millis(ms));
        }
        for (share, exact) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            let found = times.percentile(share);
            assert!((exact..exact * 1.1).contains(&found), "{share}: {found}");
        }
        assert_eq!(times.count(), 100);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }
}
