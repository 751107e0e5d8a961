//! How far work on ranges of images is: a bar on a terminal, a line now and then elsewhere.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use relabel_core::leases::LeaseTally;

use super::{Screen, bar, duration};

/// Between two lines where there are no bars.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// The work as it goes on.
pub struct LeaseProgress {
    screen: Screen,
    /// What is done with an image: `labelled`.
    past: &'static str,
    bar: Option<ProgressBar>,
    /// When it was first shown, with how many images that took time; the speed is that of those since.
    first: Option<(Instant, u64)>,
    /// When a line was last written.
    line: Option<Instant>,
}

impl LeaseProgress {
    /// Nothing is shown yet; `past` is what is done with an image: `labelled`.
    pub fn new(screen: Screen, past: &'static str) -> Self {
        Self { screen, past, bar: None, first: None, line: None }
    }

    /// Shows how many images are done; to be called at each change.
    pub fn show(&mut self, tally: &LeaseTally) {
        let &LeaseTally { samples, done, worked } = tally;
        let (now, past) = (Instant::now(), self.past);
        let (began, before) = *self.first.get_or_insert((now, worked));
        let rate = (worked - before) as f64 / (now - began).as_secs_f64();
        let left = duration((samples - done) as f64 / rate, "s");
        let rate = if rate.is_finite() { format!("{rate:.1} img/s  eta {left}") } else { String::new() };
        if let Some(bars) = &self.screen.bars {
            let bar = self.bar.get_or_insert_with(|| bar(bars, samples, past));
            bar.set_message(rate);
            bar.set_position(done);
        } else if self.line.is_none_or(|line| now - line >= BETWEEN_LINES) {
            self.line = Some(now);
            self.screen.line(format!("{past} {done} of {samples} images  {rate}").trim_end());
        }
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
