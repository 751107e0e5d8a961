//! A labelling's part of the messages: wire to valid values and back.

use relabel_config::LabelOptions;
use relabel_core::labelling::{LabelReport, LabelSeen, Labelling};

use crate::Invalid;
use crate::leases::{Options, Report, Seen, WireWork, images, path, text, within};
use crate::precision;
use crate::text::{sentence, word};
use crate::v1;

impl WireWork for Labelling {
    const COMMAND: &'static str = "label";
    type Options = LabelOptions;

    fn options_to_wire(options: LabelOptions) -> Options {
        let LabelOptions { data, out, weights, arch, head, size, map, top_k, batch, half, precision } =
            options;
        Options::Label(v1::LabelOptions {
            data: text(data),
            out: text(out),
            weights: weights.map(text),
            arch,
            head: head.map(text),
            size,
            map,
            top_k: top_k.into(),
            batch: batch.into(),
            half,
            precision: precision::to_wire(precision),
        })
    }

    /// The ranges are those of the flags.
    fn options_from_wire(options: Options) -> Result<LabelOptions, Invalid> {
        let Options::Label(options) = options else {
            return Err(Invalid::Unexpected("LeaseWelcome.options of other work"));
        };
        let v1::LabelOptions { data, out, weights, arch, head, size, map, top_k, batch, half, precision } =
            options;
        Ok(LabelOptions {
            data: path(data, "LabelOptions.data")?,
            out: path(out, "LabelOptions.out")?,
            weights: weights.map(|file| path(file, "LabelOptions.weights")).transpose()?,
            arch,
            head: head.map(|file| path(file, "LabelOptions.head")).transpose()?,
            size: size.map(|size| within(size, 32..=4096, "LabelOptions.size")).transpose()?,
            map: map.map(|map| within(map, 1..=128, "LabelOptions.map")).transpose()?,
            top_k: within(top_k, 1..=1000, "LabelOptions.top_k")? as u16,
            batch: within(batch, 1..=u32::from(u16::MAX), "LabelOptions.batch")? as u16,
            half,
            precision: precision::from_wire(precision, "LabelOptions.precision")?,
        })
    }

    fn seen_to_wire(LabelSeen { samples, fingerprint, recipe }: LabelSeen) -> Seen {
        Seen::Label(v1::LabelSeen { samples, fingerprint, recipe })
    }

    fn seen_from_wire(seen: Seen) -> Result<LabelSeen, Invalid> {
        let Seen::Label(v1::LabelSeen { samples, fingerprint, recipe }) = seen else {
            return Err(Invalid::Unexpected("LeaseReady.seen of other work"));
        };
        Ok(LabelSeen {
            samples: images(samples, "LabelSeen.samples")?,
            fingerprint: word(fingerprint, "LabelSeen.fingerprint")?,
            recipe: word(recipe, "LabelSeen.recipe")?,
        })
    }

    fn report_to_wire(LabelReport { made, there, unreadable }: LabelReport) -> Report {
        Report::Label(v1::LabelReport { made, there, unreadable })
    }

    fn report_from_wire(report: Report) -> Result<LabelReport, Invalid> {
        let Report::Label(v1::LabelReport { made, there, unreadable }) = report else {
            return Err(Invalid::Unexpected("LeaseDone.report of other work"));
        };
        let unreadable = unreadable.iter().map(|line| sentence(line)).collect();
        Ok(LabelReport { made, there, unreadable })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use relabel_core::leases::FromHolder;

    use super::*;
    use crate::{ToHolder, from_holder, to_holder};

    fn options() -> LabelOptions {
        LabelOptions {
            data: "/data".into(),
            out: "/out".into(),
            weights: Some("/weights.pth".into()),
            arch: "resnet50".into(),
            head: None,
            size: Some(475),
            map: None,
            top_k: 5,
            batch: 8,
            half: true,
            precision: relabel_config::Precision::Fp16,
        }
    }

    #[test]
    fn what_is_said_survives_the_wire() {
        let seen = LabelSeen { samples: 9, fingerprint: "f".into(), recipe: "r".into() };
        let ready = FromHolder::<Labelling>::Ready(seen);
        assert_eq!(from_holder(ready.clone().into()).unwrap(), ready);
        let report = |line: &str| LabelReport { made: 1, there: 2, unreadable: vec![line.into()] };
        let heard = Labelling::report_from_wire(Labelling::report_to_wire(report("u\nv\u{1b}[2J")));
        assert_eq!(heard.unwrap(), report("u v [2J"), "a line stays one");
        let welcome =
            ToHolder::<Labelling>::Welcome { heartbeat: Duration::from_secs(2), options: options() };
        assert_eq!(to_holder(welcome.clone().into()).unwrap(), welcome);
    }

    #[test]
    fn nonsense_is_refused_and_named() {
        let seen = LabelSeen { samples: 1 << 32, fingerprint: String::new(), recipe: String::new() };
        let error = from_holder::<Labelling>(FromHolder::<Labelling>::Ready(seen).into()).unwrap_err();
        assert!(error.to_string().contains("LabelSeen.samples"), "{error}");
        let seen = LabelSeen { samples: 1, fingerprint: "f".into(), recipe: "r\nINFO all is done".into() };
        let error = from_holder::<Labelling>(FromHolder::<Labelling>::Ready(seen).into()).unwrap_err();
        assert!(error.to_string().starts_with("LabelSeen.recipe is `r\\nINFO"), "{error}");
        for (options, field) in [
            (LabelOptions { top_k: 0, ..options() }, "top_k"),
            (LabelOptions { batch: 0, ..options() }, "batch"),
            (LabelOptions { size: Some(31), ..options() }, "size"),
            (LabelOptions { map: Some(129), ..options() }, "map"),
            (LabelOptions { data: "data".into(), ..options() }, "data"),
        ] {
            let welcome = ToHolder::<Labelling>::Welcome { heartbeat: Duration::from_secs(1), options };
            let error = to_holder::<Labelling>(welcome.into()).unwrap_err();
            assert!(error.to_string().contains(&format!("LabelOptions.{field} is")), "{error}");
        }
        let welcome = ToHolder::<Labelling>::Welcome { heartbeat: Duration::ZERO, options: options() };
        let error = to_holder::<Labelling>(welcome.into()).unwrap_err();
        assert!(error.to_string().contains("heartbeat"), "{error}");
    }
}
