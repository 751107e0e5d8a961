//! Where the readers of a run find it: what was added up so far, and the news as they come.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use relabel_config::Config;
use relabel_core::{Observation, Outcome, Status};
use tokio::sync::broadcast;

use super::{About, News, Tally, View, unix_time};
use crate::progress::Tail;

/// News that a slow reader may fall behind before it is told that it has missed some.
const NEWS: usize = 1024;

/// One run's, shared by all who show it. Cheap to clone.
#[derive(Clone)]
pub struct Board(Arc<Shared>);

struct Shared {
    run_dir: PathBuf,
    config: Config,
    about: Mutex<About>,
    tally: Mutex<Tally>,
    outcome: Mutex<Option<Outcome>>,
    news: broadcast::Sender<News>,
    tail: Tail,
}

impl Board {
    /// The board of a run in `run_dir`; `tail` has the newest lines of the log.
    pub fn new(run_dir: PathBuf, config: Config, tail: Tail) -> Self {
        let about = About {
            run_dir: run_dir.display().to_string(),
            arch: config.model.arch.clone(),
            batch_size: config.optim.batch_size,
            started: unix_time(),
            ..About::default()
        };
        Self(Arc::new(Shared {
            run_dir,
            about: Mutex::new(about),
            tally: Mutex::new(Tally::new(&config)),
            outcome: Mutex::new(None),
            config,
            news: broadcast::Sender::new(NEWS),
            tail,
        }))
    }

    /// Says what the run is called, and its folder as others should know it.
    pub fn name(&self, run_id: &str, run_dir: &str) {
        let mut about = self.0.about.lock().unwrap_or_else(PoisonError::into_inner);
        about.run_id = run_id.to_owned();
        about.run_dir = run_dir.to_owned();
    }

    /// Adds an observation and passes on what news it is.
    pub fn observe(&self, observation: &Observation) -> Option<News> {
        let news =
            self.0.tally.lock().unwrap_or_else(PoisonError::into_inner).observe(observation, unix_time());
        if let Some(news) = &news {
            // Nobody may be listening.
            let _ = self.0.news.send(news.clone());
        }
        news
    }

    /// The run is over.
    pub fn end(&self, outcome: &Outcome) {
        *self.0.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome.clone());
        let _ = self.0.news.send(News::Ended(words(outcome)));
    }

    /// How the run ended, if it has.
    pub fn outcome(&self) -> Option<Outcome> {
        self.0.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The run as it is now, given what the core says of itself.
    pub fn view(&self, status: &Status) -> View {
        let about = self.0.about.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let tally = self.0.tally.lock().unwrap_or_else(PoisonError::into_inner);
        View::new(&about, status, &tally, unix_time())
    }

    /// All news from now on.
    pub fn news(&self) -> broadcast::Receiver<News> {
        self.0.news.subscribe()
    }

    pub fn tail(&self) -> &Tail {
        &self.0.tail
    }

    pub fn config(&self) -> &Config {
        &self.0.config
    }

    pub fn run_dir(&self) -> &Path {
        &self.0.run_dir
    }
}

/// How a run ended, in words.
pub fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Done => "all is done".to_owned(),
        Outcome::Interrupted { reason, saved: Some(at) } => format!("stopped ({reason}), saved at {at}"),
        Outcome::Interrupted { reason, saved: None } => format!("stopped ({reason}), nothing saved"),
        Outcome::Failed { reason } => format!("failed: {reason}"),
    }
}
