//! An evaluation's part of the messages: wire to valid values and back.

use std::collections::BTreeMap;

use relabel_config::{EvalOptions, NamedSet, NetworkOptions};
use relabel_core::evaluation::counts::{Counts, Found, MultiLabelCounts, RealCounts};
use relabel_core::evaluation::{EvalSeen, Evaluation, Folder};

use crate::Invalid;
use crate::leases::{Options, Report, Seen, WireWork, images, out_of_range, path, text, within};
use crate::precision;
use crate::text::{name, word};
use crate::v1;
use crate::values::required;

impl WireWork for Evaluation {
    const COMMAND: &'static str = "eval";
    type Options = EvalOptions;

    /// Without the errors that normalize others: only who prints the report needs them.
    fn options_to_wire(options: EvalOptions) -> Options {
        let EvalOptions { network, sets, real, multi_label, fgsm, corruption_baseline: _, all_outputs } =
            options;
        let set = |NamedSet { name, dir }| v1::EvalSet { name, dir: text(dir) };
        Options::Eval(v1::EvalOptions {
            weights: text(network.weights),
            arch: network.arch,
            classes: network.classes.map(text),
            image_size: network.image_size,
            crop_ratio: network.crop_ratio,
            exact_resize: network.exact_resize,
            bn_eps: network.bn_eps,
            batch_size: network.batch_size,
            sets: sets.into_iter().map(set).collect(),
            real: real.map(text),
            multi_label: multi_label.map(text),
            fgsm,
            all_outputs,
            precision: precision::to_wire(network.precision),
        })
    }

    /// The ranges are those of the flags.
    fn options_from_wire(options: Options) -> Result<EvalOptions, Invalid> {
        let Options::Eval(options) = options else {
            return Err(Invalid::Unexpected("LeaseWelcome.options of other work"));
        };
        let set = |v1::EvalSet { name, dir }| Ok(NamedSet { name, dir: path(dir, "EvalSet.dir")? });
        let positive = |value: f64, field| match value > 0.0 && value <= 1.0 {
            true => Ok(value),
            false => Err(out_of_range(field, value)),
        };
        Ok(EvalOptions {
            network: NetworkOptions {
                weights: path(options.weights, "EvalOptions.weights")?,
                arch: options.arch,
                classes: options.classes.map(|file| path(file, "EvalOptions.classes")).transpose()?,
                image_size: within(options.image_size, 1..=4096, "EvalOptions.image_size")?,
                crop_ratio: positive(options.crop_ratio, "EvalOptions.crop_ratio")?,
                exact_resize: options.exact_resize,
                bn_eps: options.bn_eps,
                batch_size: within(options.batch_size, 1..=65536, "EvalOptions.batch_size")?,
                precision: precision::from_wire(options.precision, "EvalOptions.precision")?,
            },
            sets: options.sets.into_iter().map(set).collect::<Result<_, _>>()?,
            real: options.real.map(|file| path(file, "EvalOptions.real")).transpose()?,
            multi_label: options.multi_label.map(|file| path(file, "EvalOptions.multi_label")).transpose()?,
            fgsm: options
                .fgsm
                .into_iter()
                .map(|epsilon| positive(epsilon, "EvalOptions.fgsm"))
                .collect::<Result<_, _>>()?,
            corruption_baseline: None,
            all_outputs: options.all_outputs,
        })
    }

    fn seen_to_wire(EvalSeen { arch, outputs, weights, labels, folders }: EvalSeen) -> Seen {
        let folder = |folder| {
            let Folder { set, below, corruption, samples, fingerprint, classes, restricted } = folder;
            let corruption = corruption.map(|(name, severity)| v1::EvalCorruption { name, severity });
            v1::EvalFolder { set, below, corruption, samples, fingerprint, classes, restricted }
        };
        let folders = folders.into_iter().map(folder).collect();
        Seen::Eval(v1::EvalSeen { arch, outputs, weights, labels, folders })
    }

    fn seen_from_wire(seen: Seen) -> Result<EvalSeen, Invalid> {
        let Seen::Eval(v1::EvalSeen { arch, outputs, weights, labels, folders }) = seen else {
            return Err(Invalid::Unexpected("LeaseReady.seen of other work"));
        };
        let mut all = 0;
        let folder = |folder| {
            let v1::EvalFolder { set, below, corruption, samples, fingerprint, classes, restricted } = folder;
            let named = |v1::EvalCorruption { name: corruption, severity }| {
                Ok::<_, Invalid>((name(corruption, "EvalCorruption.name")?, severity))
            };
            // Bounded all together: there is a range for each few hundred of them.
            all = images(all + images(samples, "EvalFolder.samples")?, "EvalFolder.samples, all together,")?;
            Ok(Folder {
                set,
                below: crate::text::below(below, "EvalFolder.below")?,
                corruption: corruption.map(named).transpose()?,
                samples,
                fingerprint: word(fingerprint, "EvalFolder.fingerprint")?,
                classes,
                restricted,
            })
        };
        let folders = folders.into_iter().map(folder).collect::<Result<_, _>>()?;
        Ok(EvalSeen {
            arch: crate::text::arch(arch, "EvalSeen.arch")?,
            outputs,
            weights: word(weights, "EvalSeen.weights")?,
            labels: word(labels, "EvalSeen.labels")?,
            folders,
        })
    }

    fn report_to_wire(Found { counts, real, multi_label, attacked }: Found) -> Report {
        let attacked = attacked.into_iter().map(|(epsilon, counts)| {
            let counts = Some(counts_to_wire(counts));
            v1::AttackedCounts { epsilon, counts }
        });
        let labels = |MultiLabelCounts { images, correct, by_class }| {
            let by_class = by_class.into_iter();
            let by_class = by_class.map(|(class, (images, right))| v1::ClassCounts { class, images, right });
            v1::MultiLabelCounts { images, correct, by_class: by_class.collect() }
        };
        Report::Eval(v1::EvalReport {
            counts: Some(counts_to_wire(counts)),
            real: real.map(|RealCounts { images, right }| v1::RealCounts { images, right }),
            multi_label: multi_label.map(labels),
            attacked: attacked.collect(),
        })
    }

    /// Whether the numbers fit each other and their range is seen to where they are added.
    fn report_from_wire(report: Report) -> Result<Found, Invalid> {
        let Report::Eval(v1::EvalReport { counts, real, multi_label, attacked }) = report else {
            return Err(Invalid::Unexpected("LeaseDone.report of other work"));
        };
        let attacked = attacked.into_iter().map(|v1::AttackedCounts { epsilon, counts }| {
            Ok((epsilon, counts_from_wire(required(counts, "AttackedCounts.counts")?)?))
        });
        let labels = |v1::MultiLabelCounts { images, correct, by_class }| {
            let mut classes = BTreeMap::new();
            for v1::ClassCounts { class, images, right } in by_class {
                if classes.insert(class, (images, right)).is_some() {
                    return Err(out_of_range("ClassCounts.class, the second time,", class));
                }
            }
            Ok(MultiLabelCounts { images, correct, by_class: classes })
        };
        Ok(Found {
            counts: counts_from_wire(required(counts, "EvalReport.counts")?)?,
            real: real.map(|v1::RealCounts { images, right }| RealCounts { images, right }),
            multi_label: multi_label.map(labels).transpose()?,
            attacked: attacked.collect::<Result<_, _>>()?,
        })
    }
}

fn counts_to_wire(Counts { samples, top1, top5, loss_sum }: Counts) -> v1::EvalCounts {
    v1::EvalCounts { samples, top1, top5, loss_sum }
}

/// A loss may be infinite or no number: then it is shown to be.
fn counts_from_wire(counts: v1::EvalCounts) -> Result<Counts, Invalid> {
    let v1::EvalCounts { samples, top1, top5, loss_sum } = counts;
    Ok(Counts { samples: images(samples, "EvalCounts.samples")?, top1, top5, loss_sum })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use std::time::Duration;

    use relabel_core::leases::{FromHolder, Piece};

    use super::*;
    use crate::{ToHolder, from_holder, to_holder};

    fn network() -> NetworkOptions {
        NetworkOptions {
            weights: "/weights.pth".into(),
            arch: Some("resnet50".into()),
            classes: Some("/classes.json".into()),
            image_size: 224,
            crop_ratio: 0.875,
            exact_resize: true,
            bn_eps: Some(1e-3),
            batch_size: 64,
            precision: relabel_config::Precision::Bf16,
        }
    }

    fn options() -> EvalOptions {
        EvalOptions {
            network: network(),
            sets: vec![NamedSet { name: "v2".into(), dir: "/sets/v2".into() }],
            real: Some("/real.json".into()),
            multi_label: None,
            fgsm: vec![1.0 / 255.0, 1.0],
            corruption_baseline: None,
            all_outputs: true,
        }
    }

    fn welcome(options: EvalOptions) -> ToHolder<Evaluation> {
        ToHolder::Welcome { heartbeat: Duration::from_secs(2), options }
    }

    fn seen(samples: u64) -> FromHolder<Evaluation> {
        let folder = |set, corruption| Folder {
            set,
            below: "fog/1".into(),
            corruption,
            samples,
            fingerprint: "f".into(),
            classes: 7,
            restricted: true,
        };
        FromHolder::Ready(EvalSeen {
            arch: "resnet50".into(),
            outputs: 9,
            weights: "w".into(),
            labels: "l".into(),
            folders: vec![folder(0, None), folder(1, Some(("fog".into(), 1)))],
        })
    }

    fn report() -> Found {
        let counts = Counts { samples: 2, top1: 1, top5: 2, loss_sum: 0.1 + 0.2 };
        Found {
            counts,
            real: Some(RealCounts { images: 2, right: 1 }),
            multi_label: Some(MultiLabelCounts {
                images: 2,
                correct: 1,
                by_class: [(3, (1, 0)), (5, (1, 1))].into(),
            }),
            attacked: vec![(1.0 / 255.0, counts), (1.0, Counts { top1: 0, ..counts })],
        }
    }

    fn done(report: Found) -> FromHolder<Evaluation> {
        FromHolder::Done { piece: Piece { folder: 1, samples: 3..5 }, report }
    }

    #[test]
    fn what_is_said_survives_the_wire() {
        for message in [seen(9), done(report()), done(Found::default())] {
            assert_eq!(from_holder(message.clone().into()).unwrap(), message);
        }
        assert_eq!(to_holder(welcome(options()).into()).unwrap(), welcome(options()));
        // The report is printed by who sends this.
        let more = EvalOptions { corruption_baseline: Some("/baseline.json".into()), ..options() };
        assert_eq!(to_holder(welcome(more).into()).unwrap(), welcome(options()));
    }

    #[test]
    fn nonsense_is_refused_and_named() {
        let with = |network| EvalOptions { network, ..options() };
        let set = NamedSet { name: "v2".into(), dir: "v2".into() };
        for (options, field) in [
            (with(NetworkOptions { image_size: 0, ..network() }), "EvalOptions.image_size"),
            (with(NetworkOptions { crop_ratio: f64::NAN, ..network() }), "EvalOptions.crop_ratio"),
            (with(NetworkOptions { batch_size: 0, ..network() }), "EvalOptions.batch_size"),
            (with(NetworkOptions { weights: "w".into(), ..network() }), "EvalOptions.weights"),
            (EvalOptions { fgsm: vec![1.5], ..options() }, "EvalOptions.fgsm"),
            (EvalOptions { sets: vec![set], ..options() }, "EvalSet.dir"),
        ] {
            let error = to_holder::<Evaluation>(welcome(options).into()).unwrap_err();
            assert!(error.to_string().contains(&format!("{field} is")), "{error}");
        }
        let error = from_holder::<Evaluation>(seen(1 << 32).into()).unwrap_err();
        assert!(error.to_string().starts_with("EvalFolder.samples is"), "{error}");
        let error = from_holder::<Evaluation>(seen(u64::from(u32::MAX)).into()).unwrap_err();
        assert!(error.to_string().starts_with("EvalFolder.samples, all together, is"), "{error}");
        type Forge = fn(&mut EvalSeen);
        let forgeries: [(Forge, &str); 6] = [
            (|seen| seen.arch = "a\nINFO all is done".into(), "EvalSeen.arch is `a\\nINFO"),
            (|seen| seen.weights = "a b".into(), "EvalSeen.weights"),
            (|seen| seen.labels = "\u{1b}[2J".into(), "EvalSeen.labels"),
            (|seen| seen.folders[0].fingerprint = "f".repeat(129), "EvalFolder.fingerprint"),
            (|seen| seen.folders[0].below = "../../etc".into(), "EvalFolder.below"),
            (|seen| seen.folders[1].corruption = Some(("fog\r".into(), 1)), "EvalCorruption.name"),
        ];
        for (forge, start) in forgeries {
            let FromHolder::Ready(mut seen) = seen(9) else { panic!("it is not ready") };
            forge(&mut seen);
            let error = from_holder::<Evaluation>(FromHolder::<Evaluation>::Ready(seen).into()).unwrap_err();
            assert!(error.to_string().starts_with(start), "{error}");
        }
        let class = v1::ClassCounts { class: 3, images: 1, right: 0 };
        let labels = v1::MultiLabelCounts { images: 2, correct: 0, by_class: vec![class, class] };
        let counts = Some(counts_to_wire(Counts::default()));
        let twice = v1::EvalReport { counts, multi_label: Some(labels), ..v1::EvalReport::default() };
        let error = Evaluation::report_from_wire(Report::Eval(twice)).unwrap_err();
        assert!(error.to_string().contains("ClassCounts.class"), "{error}");
        let nothing = Evaluation::report_from_wire(Report::Eval(v1::EvalReport::default())).unwrap_err();
        assert!(nothing.to_string().contains("EvalReport.counts"), "{nothing}");
    }
}
