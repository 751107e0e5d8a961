#![allow(clippy::unwrap_used)]

use indicatif::TermLike;

use super::*;

/// What was written, to be looked at.
#[derive(Debug, Clone, Default)]
struct Paper(Arc<Mutex<String>>);

impl Paper {
    fn add(&self, text: &str) -> io::Result<()> {
        self.0.lock().unwrap().push_str(text);
        Ok(())
    }

    fn take(&self) -> String {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.add(std::str::from_utf8(bytes).unwrap())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A terminal that notes what it is told to do.
impl TermLike for Paper {
    fn width(&self) -> u16 {
        120
    }
    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn write_line(&self, text: &str) -> io::Result<()> {
        self.add(&format!("{text}\n"))
    }
    fn write_str(&self, text: &str) -> io::Result<()> {
        self.add(text)
    }
    fn clear_line(&self) -> io::Result<()> {
        self.add("<clear>")
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

fn step(epoch: u32, done: u64) -> StepDone {
    let left = Some(80.0 - done as f64);
    StepDone { epoch, done, steps: 35, loss: 1.234, lr: 0.0951, images_per_second: 162.4, left }
}

fn summary() -> EpochDone {
    EpochDone {
        epoch: 2,
        train_loss: 1.2,
        val_loss: 1.35,
        top1: 54.2,
        top5: 91.04,
        best: (55.0, 1),
        seconds: 41.3,
    }
}

#[test]
fn without_a_terminal_there_is_a_line_every_so_many_steps() {
    let paper = Paper::default();
    let mut progress = Progress::new(Screen::new(paper.clone(), None), 8, 10);
    (1..=35).for_each(|done| progress.train_step(&step(2, done)));
    progress.validating(2, 100, 400);
    progress.epoch_done(&summary());
    assert_eq!(
        paper.take(),
        "epoch 3/8  step 10/35  loss 1.234  lr 0.0951  162 img/s  eta 1m10s\n\
         epoch 3/8  step 20/35  loss 1.234  lr 0.0951  162 img/s  eta 1m00s\n\
         epoch 3/8  step 30/35  loss 1.234  lr 0.0951  162 img/s  eta 50s\n\
         epoch 3/8  step 35/35  loss 1.234  lr 0.0951  162 img/s  eta 45s\n\
         epoch 3/8  train loss 1.200  val loss 1.350  top-1 54.2%  top-5 91.0%  (best 55.0% at epoch 2)  41 s\n"
    );
}

#[test]
fn on_a_terminal_lines_stand_above_the_bar_and_do_not_tear_it() {
    let paper = Paper::default();
    let screen =
        Screen::new(paper.clone(), Some(ProgressDrawTarget::term_like_with_hz(Box::new(paper.clone()), 255)));
    let mut progress = Progress::new(screen.clone(), 8, 10);
    progress.train_step(&step(2, 1));
    assert!(paper.take().contains("epoch 3/8"));

    let log = tracing_subscriber::fmt().with_writer(screen).with_ansi(false).without_time().finish();
    tracing::subscriber::with_default(log, || tracing::warn!("worker 1 is late"));
    let text = paper.take();
    let (cleared, line, bar) = (
        text.find("<clear>").unwrap(),
        text.find("worker 1 is late\n").unwrap(),
        text.rfind("epoch 3/8").unwrap(),
    );
    assert!(cleared < line && line < bar, "{text}");

    progress.validating(2, 10, 400);
    let text = paper.take();
    assert!(text.contains("validation") && text.contains("10/400"), "{text}");
    progress.epoch_done(&summary());
    let text = paper.take();
    // The bar went, and the line stays with nothing after it.
    assert!(text.ends_with("(best 55.0% at epoch 2)  41 s\n"), "{text}");
}

#[test]
fn numbers_are_short() {
    for (value, text) in [
        (0.0951, "0.0951"),
        (0.1, "0.1"),
        (0.0, "0"),
        (1.5, "1.5"),
        (0.00012345, "0.0001234"),
        (2.5e-5, "2.50e-5"),
        (100.0, "100"),
    ] {
        assert_eq!(four_digits(value), text);
    }
    for (seconds, text) in [
        (8.4, "8s"),
        (72.0, "1m12s"),
        (7500.0, "2h05m"),
        (280_000.0, "3d05h"),
        (f64::INFINITY, "?"),
        (f64::NAN, "?"),
    ] {
        assert_eq!(duration(seconds, "s"), text);
    }
}
