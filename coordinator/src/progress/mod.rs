//! What a person sees of a run: bars on a terminal, plain lines elsewhere. Log lines and bars go through
//! one [`Screen`], so that neither tears the other.

mod leases;
mod tail;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

pub use leases::LeaseProgress;
pub use tail::{Line, Tail};

use crate::view::StepDone;

/// Where lines go, and the bars that stand below them. Cheap to clone; give one to tracing as its writer
/// (`.with_writer(screen.clone())`) and one to [`Progress`].
#[derive(Clone)]
pub struct Screen {
    /// None where there is no terminal to draw on.
    bars: Option<MultiProgress>,
    out: Arc<Mutex<dyn Write + Send>>,
    tail: Tail,
}

impl Screen {
    /// Standard error, with bars if it is a terminal.
    pub fn stderr() -> Self {
        let bars = io::stderr().is_terminal();
        Self::new(io::stderr(), bars.then(ProgressDrawTarget::stderr))
    }

    /// Lines to `out`, bars to `bars`, if to anything.
    pub fn new(out: impl Write + Send + 'static, bars: Option<ProgressDrawTarget>) -> Self {
        let bars = bars.map(MultiProgress::with_draw_target);
        Self { bars, out: Arc::new(Mutex::new(out)), tail: Tail::default() }
    }

    /// The newest lines, those of the log among them where its layer was given to tracing.
    pub fn tail(&self) -> &Tail {
        &self.tail
    }

    /// Writes a line above the bars. That nobody reads it is no reason to end a run: errors are dropped.
    pub fn line(&self, line: &str) {
        self.tail.push("", line.to_owned());
        let _ = self.write_whole(format!("{line}\n").as_bytes());
    }

    /// Writes whole lines with the bars out of the way.
    fn write_whole(&self, bytes: &[u8]) -> io::Result<()> {
        let write = || {
            let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
            out.write_all(bytes).and_then(|()| out.flush())
        };
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }
}

impl<'a> MakeWriter<'a> for Screen {
    type Writer = LogLine<'a>;

    fn make_writer(&'a self) -> LogLine<'a> {
        LogLine { screen: self, bytes: Vec::new() }
    }
}

/// One event of the log, written to the screen as a whole when it is complete.
pub struct LogLine<'a> {
    screen: &'a Screen,
    bytes: Vec<u8>,
}

impl Write for LogLine<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogLine<'_> {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            let _ = self.screen.write_whole(&self.bytes);
        }
    }
}

/// An epoch that is done, validation included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EpochDone {
    /// From 0.
    pub epoch: u32,
    /// Mean loss an image over the epoch, nats.
    pub train_loss: f64,
    /// Of the validation images, nats.
    pub val_loss: f64,
    /// Percent, 0 to 100.
    pub top1: f64,
    /// Percent, 0 to 100.
    pub top5: f64,
    /// The best top1 so far and the epoch that reached it, from 0.
    pub best: (f64, u32),
    pub seconds: f64,
}

/// The run as it goes on.
pub struct Progress {
    screen: Screen,
    /// Epochs of the run.
    epochs: u32,
    /// Steps between two lines where there are no bars.
    print_freq: u64,
    /// The bar that stands now, and what it is about.
    bar: Option<(Stage, ProgressBar)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Train(u32),
    Validate(u32),
}

impl Progress {
    /// Shows a run of `epochs` epochs on `screen`, with a line every `print_freq` steps where it has no bars.
    pub fn new(screen: Screen, epochs: u32, print_freq: u64) -> Self {
        Self { screen, epochs, print_freq: print_freq.max(1), bar: None }
    }

    /// Shows a step; to be called at each.
    pub fn train_step(&mut self, step: &StepDone) {
        let label = format!("epoch {}/{}", step.epoch + 1, self.epochs);
        let rate = format!(
            "loss {:.3}  lr {}  {:.0} img/s  eta {}",
            step.loss,
            four_digits(step.lr),
            step.images_per_second,
            duration(step.left.unwrap_or(f64::NAN), "s")
        );
        if let Some(bar) = self.bar(Stage::Train(step.epoch), &label, step.steps) {
            bar.set_message(rate);
            bar.set_position(step.done);
        } else if step.done.is_multiple_of(self.print_freq) || step.done == step.steps {
            self.screen.line(&format!("{label}  step {}/{}  {rate}", step.done, step.steps));
        }
    }

    /// Shows how many of the `total` validation images of an epoch (from 0) are done.
    pub fn validating(&mut self, epoch: u32, done: u64, total: u64) {
        if let Some(bar) = self.bar(Stage::Validate(epoch), "validation", total) {
            bar.set_message("images");
            bar.set_position(done);
        }
    }

    /// Ends an epoch with a line that stays.
    pub fn epoch_done(&mut self, done: &EpochDone) {
        self.finish();
        self.screen.line(&format!(
            "epoch {}/{}  train loss {:.3}  val loss {:.3}  top-1 {:.1}%  top-5 {:.1}%  (best {:.1}% at epoch {})  {}",
            done.epoch + 1,
            self.epochs,
            done.train_loss,
            done.val_loss,
            done.top1,
            done.top5,
            done.best.0,
            done.best.1 + 1,
            duration(done.seconds, " s"),
        ));
    }

    /// Takes the bar away: the run is over, or something else is to be shown.
    pub fn finish(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// The bar of `stage`, newly begun where another stood; None where there are no bars.
    fn bar(&mut self, stage: Stage, label: &str, length: u64) -> Option<&ProgressBar> {
        let bars = self.screen.bars.clone()?;
        if self.bar.as_ref().is_none_or(|(current, _)| *current != stage) {
            self.finish();
            self.bar = Some((stage, bar(&bars, length, label)));
        }
        let (_, bar) = self.bar.as_ref()?;
        bar.set_length(length);
        Some(bar)
    }
}

/// A new bar below the lines.
fn bar(bars: &MultiProgress, length: u64, label: &str) -> ProgressBar {
    let bar = bars.add(ProgressBar::new(length));
    // The template is fixed: where it could not be read, the default is as good.
    let style = ProgressStyle::with_template("{prefix} {wide_bar:.cyan/dim} {pos}/{len}  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─");
    bar.set_style(style);
    bar.set_prefix(label.to_owned());
    bar
}

/// Four significant digits, without trailing zeros.
pub(crate) fn four_digits(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-4 {
        return format!("{value:.2e}");
    }
    let before = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    let text = format!("{value:.*}", usize::try_from(3 - before).unwrap_or(0));
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Seconds as 41s, 1m12s, 2h05m or 3d04h; `unit` stands behind seconds alone.
pub(crate) fn duration(seconds: f64, unit: &str) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".to_owned();
    }
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s}{unit}"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86400, s % 86400 / 3600),
    }
}
