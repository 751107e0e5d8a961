#![allow(clippy::unwrap_used)]

use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Fact {
    Started { run: String },
    Committed { epoch: u32, best: f64 },
    Finished,
}

fn facts() -> Vec<Fact> {
    vec![
        Fact::Started { run: "a line\nbreak, \"quotes\" and ü".into() },
        Fact::Committed { epoch: 1, best: 0.25 },
        Fact::Finished,
    ]
}

fn open(dir: &Path) -> Result<(Journal<Fact>, Vec<Fact>), JournalError> {
    Journal::open(dir)
}

/// The bytes of a journal with [`facts`] in it.
fn bytes() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path()).unwrap();
    facts().iter().for_each(|fact| journal.append(fact).unwrap());
    std::fs::read(dir.path().join(JOURNAL)).unwrap()
}

/// A run directory whose journal has these bytes.
fn holding(bytes: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(JOURNAL), bytes).unwrap();
    dir
}

#[test]
fn facts_come_back_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("runs/new");
    for n in 0..facts().len() {
        let (mut journal, known) = open(&run).unwrap();
        assert_eq!(known, facts()[..n]);
        journal.append(&facts()[n]).unwrap();
    }
    assert_eq!(open(&run).unwrap().1, facts());
    let text = String::from_utf8(bytes()).unwrap();
    assert_eq!(text.lines().count(), 3);
    assert_eq!(
        text.lines().last().unwrap(),
        format!("{:08x} \"Finished\"", crc32fast::hash(b"\"Finished\""))
    );
}

#[test]
fn a_journal_torn_at_any_byte_keeps_its_whole_lines_and_goes_on() {
    let whole = bytes();
    for cut in 0..=whole.len() {
        let dir = holding(&whole[..cut]);
        let lines = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
        let (mut journal, known) = open(dir.path()).unwrap();
        assert_eq!(known, facts()[..lines], "cut at {cut}");
        journal.append(&Fact::Finished).unwrap();
        drop(journal);
        let expected = [&facts()[..lines], &[Fact::Finished]].concat();
        assert_eq!(open(dir.path()).unwrap().1, expected, "cut at {cut}");
    }
}

#[test]
fn a_flipped_bit_is_an_error_that_names_the_line_or_costs_the_last_line() {
    let whole = bytes();
    let ends: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').collect();
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << bit;
            let dir = holding(&damaged);
            let line = ends.iter().filter(|end| **end < at).count();
            match open(dir.path()) {
                Err(JournalError::Damaged { line: named, .. }) => {
                    assert_eq!(named, line + 1, "byte {at} bit {bit}")
                }
                Err(other) => panic!("byte {at} bit {bit}: {other}"),
                // Only what cannot be told from a torn append may be cut: the last line, and the line before
                // where the end between them is gone.
                Ok((_, known)) => {
                    let last = if at == ends[1] { 1 } else { 2 };
                    assert!(line >= last, "byte {at} bit {bit} was overlooked");
                    assert_eq!(known, facts()[..last], "byte {at} bit {bit}");
                }
            }
        }
    }
}

#[test]
fn a_whole_line_of_an_unknown_fact_is_not_cut() {
    let json = "{\"Merged\":{}}";
    let dir = holding(format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes())).as_bytes());
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, JournalError::Unknown { line: 1, .. }), "{error}");
    assert!(std::fs::metadata(dir.path().join(JOURNAL)).unwrap().len() > 0);
}

#[test]
fn a_second_coordinator_is_told_who_holds_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _) = open(dir.path()).unwrap();
    let message = open(dir.path()).unwrap_err().to_string();
    assert!(message.contains(&format!("pid {}", std::process::id())), "{message}");
    assert!(message.contains(dir.path().to_str().unwrap()) && !message.contains('\n'), "{message}");
    drop(first);
    open(dir.path()).unwrap();
}

#[test]
fn a_write_that_fails_is_an_error_and_so_is_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path()).unwrap();
    journal.append(&Fact::Finished).unwrap();
    // A file that is open for reading refuses the write, and to take it back.
    journal.file = File::open(dir.path().join(JOURNAL)).unwrap();
    let first = journal.append(&Fact::Finished).unwrap_err().to_string();
    assert!(first.starts_with("cannot append to "), "{first}");
    assert!(matches!(journal.append(&Fact::Finished), Err(JournalError::Broken { .. })));
    drop(journal);
    assert_eq!(open(dir.path()).unwrap().1, [Fact::Finished]);
}
