#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::counts::{Counts, MultiLabelCounts, RealCounts};
use super::*;

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-6, "{a} against {b}");
}

#[test]
fn corruption_errors_are_divided_by_the_baseline_s_and_averaged() {
    let path = PathBuf::from("baseline.json");
    let text = r#"{"fog": 0.8, "snow": [0.2, 0.3, 0.4, 0.5, 0.6]}"#;
    let baseline = Baseline::parse(&path, text).unwrap();
    let corruption = |name: &str, errors: &[f64]| CorruptionErrors {
        name: name.into(),
        errors: (1..).zip(errors.iter().copied()).collect(),
    };
    let fog = corruption("fog", &[0.1, 0.2, 0.3, 0.4, 0.5]);
    let snow = corruption("snow", &[0.5; 5]);
    let extra = corruption("spatter", &[1.0; 5]);
    close(fog.mean(), 0.3);
    close(fog.normalized(&baseline).unwrap(), 0.3 / 0.8);
    assert_eq!(extra.normalized(&baseline), None);
    let all = [fog.clone(), snow, extra];
    let mean = mean_error(&all, &baseline);
    close(mean.mean, (0.3 + 0.5 + 1.0) / 3.0);
    close(mean.normalized.unwrap(), (0.3 / 0.8 + 0.5 / 0.4) / 2.0);

    // With severities missing the published means are of something else.
    let some = mean_error(&[fog, corruption("snow", &[0.5; 3])], &baseline);
    assert_eq!((some.normalized, some.missing), (None, vec!["snow".to_owned()]));
    assert_eq!(mean_error(&all, &Baseline::alexnet()).missing.len(), 13);

    let error = Baseline::parse(&path, r#"{"fog": 80}"#).unwrap_err().to_string();
    assert!(error.contains("fog has 80") && error.contains("baseline.json"), "{error}");
}

fn folder(set: u32, below: &str, corruption: Option<(&str, u32)>, samples: u64) -> Folder {
    Folder {
        set,
        below: below.into(),
        corruption: corruption.map(|(name, severity)| (name.to_owned(), severity)),
        samples,
        fingerprint: "aaaa".into(),
        classes: 3,
        restricted: set == 1,
    }
}

/// A set of two ranges and one of another layout, ImageNet-C's, between them on the command line.
fn seen() -> EvalSeen {
    EvalSeen {
        arch: "resnet18".into(),
        outputs: 4,
        weights: "bbbb".into(),
        labels: "cccc".into(),
        folders: vec![
            folder(0, "val", None, 10),
            folder(2, "", None, 4),
            folder(1, "fog/1", Some(("fog", 1)), 4),
            folder(1, "fog/2", Some(("fog", 2)), 4),
            folder(1, "snow/1", Some(("snow", 1)), 4),
        ],
    }
}

fn sets() -> Vec<AskedSet> {
    ["imagenet", "c", "v2"]
        .map(|name| AskedSet { name: name.into(), dir: format!("sets/{name}").into() })
        .into()
}

fn counts(samples: u64, top1: u64, loss_sum: f64) -> Counts {
    Counts { samples, top1, top5: samples, loss_sum }
}

fn found(counts: Counts) -> Found {
    Found { counts, ..Found::default() }
}

/// Images `first..end` of folder number `folder`.
fn piece(folder: u32, first: u64, end: u64) -> Piece {
    Piece { folder, samples: first..end }
}

fn judged(top1: u64, loss_sum: f64, by_class: &[(u32, (u64, u64))]) -> Found {
    let images = by_class.iter().map(|(_, (images, _))| images).sum();
    Found {
        counts: counts(5, top1, loss_sum),
        real: Some(RealCounts { images: 4, right: top1 }),
        multi_label: Some(MultiLabelCounts {
            images,
            correct: 1,
            by_class: by_class.iter().copied().collect(),
        }),
        attacked: vec![(2.0 / 255.0, counts(5, 0, 9.5))],
    }
}

#[test]
fn ranges_add_up_to_one_report_in_whatever_order_they_come() {
    // Sums that differ by their order: 0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1.
    let pieces = [
        (piece(0, 0, 5), judged(3, 0.1, &[(0, (2, 1)), (1, (1, 1))])),
        (piece(0, 5, 10), judged(1, 0.2, &[(1, (3, 0))])),
        (piece(1, 0, 2), found(counts(2, 1, 0.1))),
        (piece(1, 2, 3), found(counts(1, 0, 0.2))),
        (piece(1, 3, 4), found(counts(1, 0, 0.3))),
        (piece(2, 0, 4), found(counts(4, 3, 1.0))),
        (piece(3, 0, 4), found(counts(4, 1, 1.0))),
        (piece(4, 0, 4), found(counts(4, 2, 1.0))),
    ];
    let weights = Path::new("w.pth");
    let report = |order: &mut dyn Iterator<Item = &(Piece, Found)>| {
        let mut evaluation = Evaluation::new(sets());
        assert_eq!(evaluation.report(weights, None, Baseline::alexnet()), None, "nobody knows the folders");
        assert_eq!(evaluation.admit(seen()).unwrap(), [10, 4, 4, 4, 4]);
        for (piece, found) in order {
            assert_eq!(evaluation.add(piece, found.clone()), Ok(piece.len()));
        }
        evaluation.report(weights, None, Baseline::alexnet()).unwrap()
    };
    let forth = report(&mut pieces.iter());
    let back = report(&mut pieces.iter().rev());
    assert_eq!(forth, back);
    assert_eq!(forth.to_json().to_string(), back.to_json().to_string());

    let json = forth.to_json();
    assert_eq!((&json["weights"], &json["arch"]), (&json!("w.pth"), &json!("resnet18")));
    let first = &json["sets"][0];
    assert_eq!((&first["name"], &first["path"]), (&json!("imagenet"), &json!("sets/imagenet/val")));
    assert_eq!((&first["images"], &first["top1"]), (&json!(10), &json!(40.0)));
    assert_eq!(first["real"], json!({ "images": 8, "accuracy": 50.0 }));
    // Class 0 is half right, class 1 a quarter.
    assert_eq!(
        first["multi_label"],
        json!({ "images": 6, "class_mean": 37.5, "correct": 100.0 * (2.0 / 6.0) })
    );
    assert_eq!(first["fgsm"], json!([{ "epsilon": 2.0, "loss": 1.9, "top1": 0.0, "top5": 100.0 }]));
    let second = &json["sets"][1];
    assert_eq!((&second["name"], &second["path"]), (&json!("v2"), &json!("sets/v2")));
    assert_eq!(second["loss"], json!((0.1 + 0.2 + 0.3) / 4.0));
    let c = &json["corrupted"][0];
    assert_eq!((&c["name"], &c["path"]), (&json!("c"), &json!("sets/c")));
    let severities = json!([{ "severity": 1, "error": 25.0 }, { "severity": 2, "error": 75.0 }]);
    assert_eq!(c["corruptions"][0]["severities"], severities);
    assert_eq!((&c["corruptions"][0]["error"], &c["mean_error"]), (&json!(50.0), &json!(50.0)));
    let text = forth.to_text();
    assert!(text.starts_with("set       images") && text.contains("\n\nc: errors in percent\n"), "{text}");
}

#[test]
fn who_sees_something_else_is_told_what() {
    let mut evaluation = Evaluation::new(sets());
    evaluation.admit(seen()).unwrap();
    assert!(evaluation.admit(seen()).is_ok());
    let mut missing = seen();
    missing.folders.pop();
    let mut fewer = seen();
    fewer.folders[3].samples = 3;
    let mut renamed = seen();
    renamed.folders[1].fingerprint = "dddd".into();
    let mut open = seen();
    open.folders[1].restricted = true;
    for (other, wanted) in [
        (missing, "it sees other folders than the first worker did (4 against 5)"),
        (fewer, "it sees other images in fog 2 of c than the first worker did (3 against 4)"),
        (renamed, "it sees other images in v2 than"),
        (EvalSeen { weights: "dddd".into(), ..seen() }, "its weights are not"),
        (EvalSeen { arch: "resnet34".into(), ..seen() }, "its weights are not"),
        (EvalSeen { labels: "dddd".into(), ..seen() }, "its classes, or the labels"),
        (open, "its classes, or the labels"),
    ] {
        let refused = evaluation.admit(other).unwrap_err();
        assert!(refused.starts_with(wanted), "{refused}");
    }
    let more = EvalSeen { folders: vec![folder(3, "", None, 1)], ..seen() };
    assert!(Evaluation::new(sets()).admit(more).is_err(), "three sets are asked for");
}

#[test]
fn a_report_that_cannot_be_is_not_added() {
    let mut evaluation = Evaluation::new(sets());
    evaluation.admit(seen()).unwrap();
    let labels = |images, correct, class| MultiLabelCounts { images, correct, by_class: [(7, class)].into() };
    let of = |labels| Found { multi_label: Some(labels), ..found(counts(4, 1, 1.0)) };
    for (wrong, what) in [
        (found(counts(3, 1, 1.0)), "of fewer images"),
        (found(counts(4, 5, 1.0)), "more right than images"),
        (found(Counts { top5: 0, ..counts(4, 1, 1.0) }), "more first than among the first five"),
        (
            Found { real: Some(RealCounts { images: 5, right: 1 }), ..found(counts(4, 1, 1.0)) },
            "more labels than images",
        ),
        (of(labels(5, 1, (5, 1))), "more annotations than images"),
        (of(labels(3, 4, (3, 1))), "more correct than annotated"),
        (of(labels(3, 1, (2, 1))), "classes that do not add up"),
        (of(labels(3, 1, (3, 4))), "more right in a class than images"),
        (of(labels(u64::MAX, 1, (u64::MAX, 4))), "more than can be"),
        (of(labels(0, 0, (0, 0))), "a class of no images"),
        (Found { attacked: vec![(0.1, counts(3, 1, 1.0))], ..found(counts(4, 1, 1.0)) }, "fewer attacked"),
    ] {
        assert!(evaluation.add(&piece(1, 0, 4), wrong).is_err(), "{what}");
    }
    assert!(evaluation.add(&piece(5, 0, 4), found(counts(4, 1, 1.0))).is_err(), "there is no such folder");
    evaluation.add(&piece(0, 0, 5), judged(3, 0.1, &[(0, (2, 1))])).unwrap();
    let other = evaluation.add(&piece(0, 5, 10), found(counts(5, 1, 1.0))).unwrap_err();
    assert!(other.contains("judged the images by something else"), "{other}");
}
