//! What was decided about who trains and from where, each with its reason, for people.

use std::collections::VecDeque;
use std::time::Duration;

/// Decisions that are kept.
const KEPT: usize = 32;

/// The newest decisions.
#[derive(Debug, Default)]
pub(crate) struct Decisions(VecDeque<(Duration, String)>);

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// How long ago it was made.
    pub ago: Duration,
    /// What was decided, and why, in a sentence.
    pub words: String,
}

impl Decisions {
    pub fn note(&mut self, now: Duration, words: String) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back((now, words));
    }

    /// All that are kept, oldest first.
    pub fn newest(&self, now: Duration) -> Vec<Decision> {
        let ago = |at: &Duration| now.saturating_sub(*at);
        self.0.iter().map(|(at, words)| Decision { ago: ago(at), words: words.clone() }).collect()
    }
}
