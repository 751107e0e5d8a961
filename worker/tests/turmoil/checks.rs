//! What must hold, whatever is done to the hosts and to the network between them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use coordinator::journal::Journal;
use relabel_core::{Fact, Generation, History, Position};
use relabel_proto::v1;

use super::state::{EPOCHS, STEPS, Saved, State};
use super::world::DEAD_AFTER;

/// The driver's tick, and some for the clock's grain.
const TICK: Duration = Duration::from_millis(200 + 5);

#[derive(Default)]
pub struct Checks {
    states: BTreeMap<Generation, State>,
    generation: u64,
    /// Times that the operator was answered.
    pub answers: u32,
}

impl Checks {
    /// After it is ready, a rank holds what all the others hold, bit for bit.
    pub fn same_state(&mut self, generation: Generation, state: State) {
        let first = *self.states.entry(generation).or_insert(state);
        assert_eq!(first, state, "all ranks of generation {generation} hold one state");
    }

    /// The operator has been answered.
    pub fn status(&mut self, status: &v1::StatusReply) {
        self.answers += 1;
        assert!(
            status.generation >= self.generation,
            "generations go forward: {} after {}",
            status.generation,
            self.generation
        );
        self.generation = status.generation;
        let mut ranks = BTreeSet::new();
        for worker in &status.workers {
            assert!(ranks.insert(worker.rank), "one worker a seat: {:?}", status.workers);
            let silent = Duration::from_secs_f64(worker.silent);
            assert!(
                silent <= DEAD_AFTER + TICK,
                "{} has been silent for {silent:?}, and counts as alive",
                worker.host
            );
        }
    }

    /// The run is done: looks at what it has left. `all_shown` says whether nothing may be missing of what is shown.
    pub fn ended(&self, folder: &Path, all_shown: bool) {
        assert!(self.answers > 10, "the operator was answered {} times", self.answers);
        let (_, facts) = Journal::<Fact>::open(folder).expect("a journal that nobody holds");
        let formed: Vec<_> = facts
            .iter()
            .filter_map(|fact| match fact {
                Fact::Formed { generation, .. } => Some(generation.0),
                _ => None,
            })
            .collect();
        assert!(formed.is_sorted_by(|a, b| a < b), "generations are formed once and in order: {formed:?}");
        let history = History::replay(&facts);
        assert!(history.finished, "the end is in the journal");
        let end = Position { epoch: EPOCHS, step: 0 };
        let newest = history.newest().expect("the end is saved");
        assert_eq!(newest.position, end, "the end is saved");
        let file = folder.join("checkpoints").join(&newest.file);
        let saved = Saved::read(&file, &newest.blake3).expect("the file that the journal names");
        assert_eq!(saved.state.steps, State::undisturbed(end), "each step was done once, in order");
        shown(folder, all_shown);
    }
}

/// The metrics have each step and each epoch once and in order.
fn shown(folder: &Path, all_shown: bool) {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).expect("metrics");
    let (mut steps, mut epochs) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("a line of metrics");
        let number = |key: &str| line[key].as_u64();
        match line["kind"].as_str() {
            Some("step") => steps.extend(number("epoch").zip(number("step"))),
            Some("epoch") => {
                epochs.extend(number("epoch"));
                // Every image counts its number: what is left out, or counted twice, shows.
                assert_eq!(line["val_loss"].as_f64(), Some(16.0), "a validation counts every image once");
            }
            _ => {}
        }
    }
    let all: Vec<_> =
        (0..u64::from(EPOCHS)).flat_map(|epoch| (0..STEPS).map(move |step| (epoch, step))).collect();
    if all_shown {
        assert_eq!(steps, all, "each step is shown once and in order");
        assert_eq!(epochs, (0..u64::from(EPOCHS)).collect::<Vec<_>>(), "each epoch is shown once");
    }
    assert!(steps.is_sorted_by(|a, b| a < b), "no step is shown twice, or late: {steps:?}");
    assert!(epochs.is_sorted_by(|a, b| a < b), "no epoch is shown twice, or late: {epochs:?}");
}
