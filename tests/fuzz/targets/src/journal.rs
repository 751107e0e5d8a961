//! The journal: any file opens or is refused, and one that opens goes on. The first byte of an input says whether
//! its lines are given their checksums, and which fact is appended.

use coordinator::journal::Journal;
use relabel_core::{Dataset, Fact, History, Position, Written};

use crate::{Target, scratch, split};

pub const TARGET: Target = Target { name: "journal", run, seeds: &[], amplification: 256 };

/// The bit of the first byte that has every line given its checksum; the next byte is the fact.
pub const SUMS: u8 = 1;

fn run(input: &[u8]) {
    let (control, text) = split::<10>(input);
    let bytes = if control[0] & SUMS != 0 { with_sums(text) } else { text.to_vec() };
    let folder = scratch().expect("a folder for the run");
    let path = folder.path().join("journal.jsonl");
    std::fs::write(&path, &bytes).expect("a file for the journal");

    let Ok((mut journal, mut facts)) = Journal::<Fact>::open(folder.path()) else {
        assert_eq!(std::fs::read(&path).expect("it is still there"), bytes, "what is refused is left alone");
        return;
    };
    let before = std::fs::read(&path).expect("the journal");
    assert!(bytes.starts_with(&before), "only its tail may be cut");
    let history = History::replay(&facts);
    assert!(history.newest().is_none() || history.saved);

    let (_, number) = split::<2>(&control);
    let fact = fact(control[1], number);
    journal.append(&fact).expect("a disk that takes it");
    drop(journal);
    facts.push(fact);
    let (_, again) = Journal::<Fact>::open(folder.path()).expect("what was written is read");
    assert_eq!(again, facts);
    assert_eq!(History::replay(&again), History::replay(&facts));
}

/// `text` with the checksum of each line before it.
pub fn with_sums(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let json = line.strip_suffix(b"\n").unwrap_or(line);
        bytes.extend(format!("{:08x} ", crc32fast::hash(json)).as_bytes());
        bytes.extend(line);
    }
    bytes
}

/// A fact of each kind, whose numbers are made of `bytes`.
fn fact(kind: u8, bytes: &[u8]) -> Fact {
    let (word, _) = split::<8>(bytes);
    let number = u64::from_le_bytes(word);
    // Shares are of whole samples.
    let share = number as f64 / u64::MAX as f64;
    let name = String::from_utf8_lossy(bytes).into_owned();
    match kind % 7 {
        0 => Fact::Finished,
        1 => Fact::Validated { epoch: number as u32, top1: share, top5: share.sqrt() },
        2 => Fact::BestLost { epoch: number as u32 },
        3 => Fact::Retired { files: vec![name] },
        4 => Fact::Started { run_id: name.clone(), version: name.clone(), seed: number, config: name },
        5 => Fact::Agreed {
            dataset: Dataset {
                train_samples: number,
                train_fingerprint: name.clone(),
                val_samples: number,
                val_fingerprint: name,
                classes: number as u32,
            },
        },
        _ => Fact::Committed {
            written: Written {
                file: name.clone(),
                bytes: number,
                blake3: name,
                position: Position { epoch: number as u32, step: number },
            },
        },
    }
}
