//! Whole runs with the options that change what is trained on, and how.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use relabel_tests::{
    Scratch, assert_each_sample_once, assert_same_curve, consumed, losses, metrics, run, start,
};

/// Runs to the end.
fn done(mut command: Command, flags: &[&str]) {
    command.args(flags);
    let ended = run(command);
    assert!(ended.status.success(), "{}", ended.stderr);
}

#[test]
fn the_number_of_workers_does_not_change_what_cutmix_mixes() {
    let scratch = Scratch::with_data(50, 8);
    // With its statistics frozen, BatchNorm does not see how the batch is cut. The last batch has two images.
    let common = ["--optim.bn.frozen", "true", "--optim.lr.init", "0.0005", "--optim.label_smoothing", "0.1"];
    let cutmix = ["--data.cutmix.prob", "0.7", "--data.cutmix.beta", "1", "--data.cutmix.off_epoch", "1"];
    let with = [&common[..], &cutmix[..]].concat();
    done(scratch.local("one", 1), &with);
    done(scratch.local("two", 2), &with);
    done(scratch.local("plain", 1), &common);
    assert_each_sample_once(&scratch.path("two"), 3, 50);
    let [one, two, plain] = ["one", "two", "plain"].map(|name| losses(&scratch.path(name)));
    assert_eq!(one.len(), 12);
    assert_same_curve(&one, &two, 1e-4);
    // In two epochs most batches are mixed, and their first one has nothing else to differ by.
    let differs = |at: &(u64, u64)| (one[at] - plain[at]).abs() > 1e-3;
    assert!(one.keys().filter(|at| at.0 < 2 && differs(at)).count() >= 4, "{one:?} {plain:?}");
}

#[test]
fn a_successor_takes_adamp_s_moments_and_the_average() {
    let scratch = Scratch::with_data(96, 30);
    let flags = ["--optim.optimizer", "adamp", "--optim.lr.init", "0.001", "--optim.ema.decay", "0.8"];
    let run_dir = scratch.path("run");
    let mut command = scratch.local("run", 2);
    command.args(flags);
    let mut running = start(command);
    let workers = running.worker_pids(2);
    running.wait_for("some steps", |_| (metrics(&run_dir, "step").len() >= 3).then_some(()));
    kill(workers[1], Signal::SIGKILL).unwrap();
    let ended = running.wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(ended.stderr.contains("going on in memory from worker"), "{}", ended.stderr);
    done(scratch.local("undisturbed", 2), &flags);
    assert_same_curve(&losses(&scratch.path("undisturbed")), &losses(&run_dir), 1e-4);
    assert_same_validation(&scratch.path("undisturbed"), &run_dir);

    // The weights themselves are ahead of their average: that is not what was validated.
    done(scratch.local("weights", 2), &flags[..4]);
    let of = |name: &str| metrics(&scratch.path(name), "epoch")[0]["val_loss"].as_f64().unwrap();
    let (average, weights) = (of("undisturbed"), of("weights"));
    assert!((average - weights).abs() > 1e-3, "{average} {weights}");
}

fn assert_same_validation(a: &Path, b: &Path) {
    let of =
        |run_dir| metrics(run_dir, "epoch").iter().map(|line| line["val_loss"].as_f64().unwrap()).collect();
    let [a, b]: [Vec<f64>; 2] = [of(a), of(b)];
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4 * a), "{a:?} against {b:?}");
}

#[test]
fn the_cutmix_recipe_trains_and_begins_where_it_is_told_to() {
    let scratch = Scratch::with_data(32, 8);
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/relabel_train_resnet50_cutmix.yaml");
    let mut command = scratch.local("run", 2);
    // Its own rate and warmup again, over those that the test data has otherwise.
    command.arg("--config").arg(recipe).args(["--optim.lr.init", "0.002", "--optim.warmup.epochs", "5"]);
    done(command, &["--optim.epochs", "7", "--optim.start_epoch", "1"]);
    let run_dir = scratch.path("run");
    let steps = metrics(&run_dir, "step");
    assert_eq!((steps[0]["epoch"].as_u64(), steps.len()), (Some(1), 12));
    let rate = steps[0]["lr"].as_f64().unwrap();
    assert!((rate - 0.002 / 5.0).abs() < 1e-9, "{rate} is not the second epoch's of a warmup over five");
    let config = std::fs::read_to_string(run_dir.join("config.yaml")).unwrap();
    assert!(config.contains("optimizer: adamp") && config.contains("prob: 1.0"), "{config}");
    let consumed = consumed(&run_dir);
    assert_eq!(consumed.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert!(consumed.values().all(|counts| counts.len() == 32 && counts.values().all(|&n| n == 1)));
}

#[test]
fn each_way_of_teaching_is_another() {
    let scratch = Scratch::with_data(16, 8);
    let ways: [(&str, &[&str]); 5] = [
        ("localized", &[]),
        ("global", &["--data.relabel.mode", "global"]),
        ("single", &["--data.relabel.mode", "localized_single"]),
        ("smoothed", &["--optim.label_smoothing", "0.2"]),
        ("baseline", &["--data.relabel.use", "false"]),
    ];
    let first_loss = |(name, flags): (&str, &[&str])| {
        done(scratch.local(name, 1), &[flags, &["--optim.epochs", "1"]].concat());
        losses(&scratch.path(name))[&(0, 0)]
    };
    let mut found = ways.map(first_loss);
    found.sort_by(f64::total_cmp);
    assert!(found.windows(2).all(|pair| pair[1] - pair[0] > 1e-4), "{found:?}");
}
