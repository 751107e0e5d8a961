//! Every target over the committed corpus, which has an input for each fault that fuzzing found, and over seeded
//! mutations of it. So a fault that comes back fails here, with no special flags.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use relabel_fuzz::mutate::mutated;
use relabel_fuzz::{TARGETS, Target};

/// Runs the corpus and `mutations`. An input is written to a file before it is run, because not every fault is a
/// panic that can say which it was.
fn replay(target: &Target, mutations: u64) {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}", target.name));
    let check = |what: &str, input: &[u8]| {
        std::fs::write(&file, input).unwrap();
        let checked = std::panic::catch_unwind(|| target.check(input));
        assert!(checked.is_ok(), "{}: {what} is a fault; it stands in {}", target.name, file.display());
    };
    println!("an input that ends the whole test stands in {}", file.display());
    let files = target.corpus().unwrap();
    assert!(files.len() > 1, "{} has no corpus", target.name);
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    check("nothing", &[]);
    for (file, input) in files.iter().zip(&corpus) {
        check(&file.display().to_string(), input);
    }
    // Those of some size are for the corpus alone.
    let short: Vec<Vec<u8>> = corpus.into_iter().filter(|input| input.len() <= 4096).collect();
    for seed in 0..mutations {
        check(&format!("mutation {seed}"), &mutated(&short, seed));
    }
    std::fs::remove_file(&file).unwrap();
}

macro_rules! replayed {
    ($($name:ident $mutations:literal)*) => {
        $(
            #[test]
            fn $name() {
                replay(&relabel_fuzz::$name::TARGET, $mutations);
            }
        )*

        #[test]
        fn every_target_is_replayed() {
            let names = TARGETS.map(|target| target.name);
            assert_eq!(names.as_slice(), [$(stringify!($name)),*]);
            let script = include_str!("../../run.sh");
            assert!(script.contains(&format!("\ntargets=({})\n", names.join(" "))), "run.sh has others");
        }
    };
}

replayed! {
    label_map 3000
    pickle 3000
    jpeg 3000
    packed 3000
    journal 3000
    config 3000
    frames 3000
    wire 3000
}

#[test]
fn a_fault_is_seen() {
    let faulty = Target {
        name: "wire",
        run: |input| assert!(input.len() < 40, "a long input"),
        seeds: &[],
        amplification: 0,
    };
    assert!(std::panic::catch_unwind(|| replay(&faulty, 100)).is_err());
    let greedy = Target { run: |input| drop(vec![0_u8; (1 << 20) * input.len()]), ..faulty };
    assert!(std::panic::catch_unwind(|| replay(&greedy, 100)).is_err());
}

#[test]
fn a_seed_gives_its_mutation_again() {
    let corpus = [b"one input".to_vec(), b"and another".to_vec()];
    let made: Vec<_> = (0..100).map(|seed| mutated(&corpus, seed)).collect();
    assert!((0..100).all(|seed| mutated(&corpus, seed) == made[seed as usize]));
    let distinct: std::collections::BTreeSet<_> = made.iter().collect();
    assert!(distinct.len() > 80, "{} of 100", distinct.len());
}
