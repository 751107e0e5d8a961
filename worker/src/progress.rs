//! How far a long command is: a bar on a terminal, a line now and then elsewhere. Nothing for what takes
//! no longer than two seconds.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Before this nothing is shown.
const QUIET: Duration = Duration::from_secs(2);
/// Between two lines where there is no terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Counts what is done of something. Shared by all threads that do it.
pub(crate) struct Progress {
    bar: ProgressBar,
    what: &'static str,
    terminal: bool,
    since: Instant,
    /// Milliseconds after `since` when something is to be shown next.
    due: AtomicU64,
}

impl Progress {
    /// `what` follows the numbers, as in "120 of 2000 `images labelled`".
    pub(crate) fn new(total: u64, what: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        let template = format!("{{bar:40}} {{pos}} of {{len}} {what}, {{per_sec}}, {{eta}} left");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        let terminal = std::io::stderr().is_terminal();
        Self { bar, what, terminal, since: Instant::now(), due: AtomicU64::new(millis(QUIET)) }
    }

    /// `n` more are done.
    pub(crate) fn advance(&self, n: u64) {
        self.bar.inc(n);
        let (now, due) = (millis(self.since.elapsed()), self.due.load(Ordering::Relaxed));
        if now < due || self.bar.position() == self.bar.length().unwrap_or_default() {
            return;
        }
        // A terminal needs the bar to be shown once; it then draws itself.
        let next = if self.terminal { u64::MAX } else { now + millis(BETWEEN_LINES) };
        if self.due.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return; // another thread shows it
        }
        if self.terminal {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        } else {
            let (done, total) = (self.bar.position(), self.bar.length().unwrap_or_default());
            let rate = done as f64 / self.since.elapsed().as_secs_f64();
            let left = Duration::from_secs_f64(total.saturating_sub(done) as f64 / rate.max(1e-9));
            let left = HumanDuration(left);
            tracing::info!("{done} of {total} {}, {rate:.1} a second, {left} left", self.what);
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}
