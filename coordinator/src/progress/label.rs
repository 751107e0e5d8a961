//! How far a labelling is: a bar on a terminal, a line now and then elsewhere.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use relabel_core::labelling::LabelTally;

use super::{Screen, bar, duration};

/// Between two lines where there are no bars.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// The labelling as it goes on.
pub struct LabelProgress {
    screen: Screen,
    bar: Option<ProgressBar>,
    /// When it was first shown, with how many maps; the speed is that of the maps made since.
    first: Option<(Instant, u64)>,
    /// When a line was last written.
    line: Option<Instant>,
}

impl LabelProgress {
    pub fn new(screen: Screen) -> Self {
        Self { screen, bar: None, first: None, line: None }
    }

    /// Shows how many images are done; to be called at each change.
    pub fn show(&mut self, tally: &LabelTally) {
        let now = Instant::now();
        let (began, before) = *self.first.get_or_insert((now, tally.made));
        let rate = (tally.made - before) as f64 / (now - began).as_secs_f64();
        let left = duration((tally.samples - tally.done()) as f64 / rate, "s");
        let rate = if rate.is_finite() { format!("{rate:.1} img/s  eta {left}") } else { String::new() };
        if let Some(bars) = &self.screen.bars {
            let bar = self.bar.get_or_insert_with(|| bar(bars, tally.samples, "labelled"));
            bar.set_message(rate);
            bar.set_position(tally.done());
        } else if self.line.is_none_or(|line| now - line >= BETWEEN_LINES) {
            self.line = Some(now);
            self.screen
                .line(format!("labelled {} of {} images  {rate}", tally.done(), tally.samples).trim_end());
        }
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
