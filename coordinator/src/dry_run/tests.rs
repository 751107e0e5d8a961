#![allow(clippy::unwrap_used)]

use relabel_config::Config;

use super::images::Count;
use super::*;

fn resolved(flags: &[(&str, &str)]) -> Resolved {
    let flags: Vec<_> = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    config::load(None, None, std::iter::empty(), &flags).unwrap()
}

fn counts(train: u64, val: u64) -> (Option<Count>, Option<Count>) {
    (Some(Count { classes: 10, images: train }), Some(Count { classes: 10, images: val }))
}

#[test]
fn what_is_printed_is_a_configuration_that_reads_back_as_it_was() {
    let flags = [("data.data_path", "it's: # odd"), ("optim.lr.init", "0.00002"), ("optim.nesterov", "no")];
    let flags = [&flags[..], &[("model.num_classes", "12"), ("model.arch", "script:a b.pt")]].concat();
    let first = resolved(&flags);
    let text = options(&first).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dry.yaml");
    std::fs::write(&file, &text).unwrap();
    let again = config::load(None, Some(&file), std::iter::empty(), &[]).unwrap();
    assert_eq!(again.config, first.config, "{text}");
    assert!(
        text.lines()
            .any(|line| line.trim_start().starts_with("init: ") && line.ends_with("# flag --optim.lr.init"))
    );
    assert_eq!(text.lines().filter(|line| line.contains("# flag ")).count(), flags.len(), "{text}");
}

#[test]
fn steps_memory_and_disk_are_those_of_the_options() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("0001");
    let mut config = Config::default();
    config.model.arch = "resnet18".into();
    config.optim.batch_size = 32;
    config.optim.epochs = 6;
    config.checkpoint.every_epochs = 2;
    config.checkpoint.every_steps = 10;
    let fresh = estimate::estimate(&config, 2, &run_dir, Position::default(), counts(1000, 50));
    assert_eq!((fresh.steps_per_epoch, fresh.last_batch, fresh.steps), (Some(32), Some(8), Some(192)));
    // After epochs 2, 4 and 6, and after steps 10, 20 and 30 of each.
    assert_eq!(fresh.checkpoints_written, Some(3 + 18));
    assert_eq!(fresh.parameters, Some(11_181_642));
    // Weights, gradients and momentum; a checkpoint has no gradients.
    assert_eq!(fresh.worker_state_bytes, Some(3 * 4 * 11_181_642));
    assert_eq!(fresh.checkpoint_bytes, Some(2 * 4 * 11_181_642));
    assert_eq!(fresh.disk_bytes, Some(5 * 2 * 4 * 11_181_642));
    assert!(fresh.disk_free_bytes.unwrap() > 0 && fresh.seconds.is_none());

    let from = Position { epoch: 4, step: 12 };
    let resumed = estimate::estimate(&config, 2, &run_dir, from, counts(1000, 50));
    assert_eq!((resumed.steps, resumed.checkpoints_written), (Some(192 - 4 * 32 - 12), Some(1 + 6)));
    config.optim.ema.decay = 0.9;
    config.optim.optimizer = relabel_config::OptimizerKind::AdamP;
    let adamp = estimate::estimate(&config, 2, &run_dir, from, (None, None));
    assert_eq!((adamp.steps, adamp.parameters), (None, None));
    config.model.num_classes = Some(10);
    let adamp = estimate::estimate(&config, 2, &run_dir, from, (None, None));
    assert_eq!(adamp.worker_state_bytes, Some(5 * 4 * 11_181_642));
}

/// A run beside it of the same network, which did ten images a second and took two seconds for a validation.
#[test]
fn the_time_is_by_the_speed_of_a_run_that_is_alike() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.model.arch = "resnet18".into();
    config.optim.batch_size = 10;
    config.optim.epochs = 3;
    let other = dir.path().join("0001-other");
    let (mut journal, _) = crate::journal::Journal::open(&other).unwrap();
    let json = serde_json::to_string(&config).unwrap();
    let dataset = relabel_core::Dataset {
        train_samples: 100,
        train_fingerprint: String::new(),
        val_samples: 1,
        val_fingerprint: String::new(),
        classes: 10,
    };
    for fact in [
        relabel_core::Fact::Started { run_id: "a".into(), version: "1".into(), seed: 1, config: json },
        relabel_core::Fact::Agreed { dataset },
    ] {
        journal.append(&fact).unwrap();
    }
    std::fs::write(
        other.join("metrics.jsonl"),
        r#"{"kind":"step","epoch":0,"step":9,"global_step":9,"loss":1,"lr":0.1,"images_per_second":10,"data_wait":0,"time":1}
{"kind":"epoch","epoch":0,"train_loss":1,"val_loss":1,"top1":1,"top5":1,"best_top1":1,"seconds":12}
"#,
    )
    .unwrap();
    let run_dir = dir.path().join("0002-new");
    let alike = estimate::estimate(&config, 1, &run_dir, Position::default(), counts(200, 50));
    assert_eq!(alike.speed_of.as_deref(), Some(other.as_path()));
    assert_eq!(alike.seconds, Some(3.0 * (20.0 + 2.0)));
    config.data.image_size = 96;
    let unlike = estimate::estimate(&config, 1, &run_dir, Position::default(), counts(200, 50));
    assert_eq!((unlike.speed_of, unlike.seconds), (None, None));
}

#[test]
fn images_are_counted_as_the_index_takes_them() {
    let dir = tempfile::tempdir().unwrap();
    for file in [
        "a/1.JPEG",
        "a/2.jpg",
        "a/3.png",
        "a/.4.jpg",
        "a/5.txt",
        "a/b.jpg/6.jpg",
        "c/7.jpeg",
        ".d/8.jpg",
        "9.jpg",
    ] {
        let path = dir.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    assert_eq!(count(dir.path(), &|_| ()).unwrap(), Some(Count { classes: 2, images: 4 }));
    assert_eq!(count(&dir.path().join("nowhere"), &|_| ()).unwrap(), None);
    let shards = tempfile::tempdir().unwrap();
    std::fs::write(shards.path().join("000.tar"), "").unwrap();
    assert_eq!(count(shards.path(), &|_| ()).unwrap(), None);
}
