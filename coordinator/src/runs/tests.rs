#![allow(clippy::unwrap_used)]

use relabel_config::Config;

use super::*;
use crate::journal::Journal;

fn run(dir: &Path, facts: &[Fact]) -> Journal<Fact> {
    let (mut journal, _) = Journal::open(dir).unwrap();
    let config = serde_json::to_string(&Config::default()).unwrap();
    journal.append(&Fact::Started { run_id: "a".into(), version: "1".into(), seed: 1, config }).unwrap();
    facts.iter().for_each(|fact| journal.append(fact).unwrap());
    journal
}

#[test]
fn a_run_is_told_by_its_folder_whether_or_not_somebody_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let validated = |epoch, top1| Fact::Validated { epoch, top1, top5: 1.0 };
    let held = run(&dir.path().join("a"), &[validated(0, 0.5), validated(1, 0.25)]);
    drop(run(&dir.path().join("b"), &[Fact::Finished]));
    drop(run(&dir.path().join("c"), &[]));
    std::fs::create_dir(dir.path().join("no run")).unwrap();
    std::fs::write(dir.path().join("a file"), "").unwrap();
    drop(run(&dir.path().join("damaged"), &[]));
    std::fs::write(dir.path().join("damaged/journal.jsonl"), "00000000 {}\n00000000 {}\n").unwrap();

    let (runs, unreadable) = list(dir.path()).unwrap();
    let told: Vec<_> = runs.iter().map(|run| (run.name.as_str(), run.state, run.epochs_done)).collect();
    assert_eq!(told, [("a", State::Running, 2), ("b", State::Finished, 0), ("c", State::Stopped, 0)]);
    assert_eq!((runs[0].best_top1, runs[0].best_epoch), (Some(0.5), Some(0)));
    assert_eq!(unreadable.len(), 1);
    assert!(unreadable[0].1.to_string().contains("is damaged"), "{}", unreadable[0].1);
    let table = command::table(&runs, runs[0].updated + 70.0);
    let line = table.lines().nth(1).unwrap();
    assert!(
        line.starts_with("a    running   resnet50   2/100      50.00%         1     -      -"),
        "{table}"
    );
    drop(held);
    assert_eq!(summary(&dir.path().join("a")).unwrap().unwrap().state, State::Stopped);
}

#[test]
fn a_torn_journal_is_told_of_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    drop(run(dir.path(), &[Fact::Finished]));
    let path = dir.path().join("journal.jsonl");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    assert_eq!(summary(dir.path()).unwrap().unwrap().state, State::Stopped, "the last fact is torn");
    assert_eq!(std::fs::read(&path).unwrap().len(), whole.len() - 3);
    assert!(summary(&dir.path().join("nowhere")).unwrap().is_none());
}

#[test]
fn options_that_differ_are_named() {
    let here = Config::default();
    let mut there = here.clone();
    assert_eq!(differences(&here, &there), []);
    there.optim.epochs = 7;
    there.model.num_classes = Some(3);
    let found = differences(&here, &there);
    let words: Vec<_> = found.iter().map(|d| format!("{} {} {}", d.key, d.here, d.there)).collect();
    assert_eq!(words, ["model.num_classes none 3", "optim.epochs 100 7"]);
}
