//! The newest lines of a run's log, for readers that come later.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::broadcast;
use tracing::field::{Field, Visit};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Lines that are kept.
const KEPT: usize = 500;
/// Characters of a line that are kept.
const LONGEST: usize = 2000;

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Its number, from 1.
    pub number: u64,
    /// Unix time, seconds.
    pub time: f64,
    /// INFO, WARN and so on; empty for a line of the progress.
    pub level: &'static str,
    pub text: String,
}

/// Keeps the newest lines and passes new ones on. Cheap to clone. As a layer of tracing it takes what is logged.
#[derive(Clone)]
pub struct Tail {
    kept: Arc<Mutex<(u64, VecDeque<Line>)>>,
    fresh: broadcast::Sender<Line>,
}

impl Default for Tail {
    fn default() -> Self {
        Self { kept: Arc::default(), fresh: broadcast::Sender::new(KEPT) }
    }
}

impl Tail {
    /// Adds a line.
    pub(super) fn push(&self, level: &'static str, mut text: String) {
        if let Some((end, _)) = text.char_indices().nth(LONGEST) {
            text.truncate(end);
            text.push_str("...");
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, lines) = &mut *kept;
        *last += 1;
        let line = Line { number: *last, time: crate::view::unix_time(), level, text };
        lines.push_back(line.clone());
        if lines.len() > KEPT {
            lines.pop_front();
        }
        // Nobody may be listening.
        let _ = self.fresh.send(line);
    }

    /// The newest lines, oldest first.
    pub fn lines(&self) -> Vec<Line> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).1.iter().cloned().collect()
    }

    /// All lines from now on.
    pub fn follow(&self) -> broadcast::Receiver<Line> {
        self.fresh.subscribe()
    }
}

impl<S: tracing::Subscriber> Layer<S> for Tail {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut words = Words::default();
        event.record(&mut words);
        self.push(event.metadata().level().as_str(), words.0);
    }
}

/// The message of an event, and its fields after it.
#[derive(Default)]
struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        if field.name() == "message" {
            self.0.insert_str(0, &format!("{value:?}"));
        } else {
            let _ = write!(self.0, " {}={value:?}", field.name());
        }
    }
}
