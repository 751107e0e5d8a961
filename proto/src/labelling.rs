//! The messages of a labelling: wire to valid values and back.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use relabel_config::LabelOptions;
use relabel_core::labelling::{FromLabeller, RangeReport, Seen};

use crate::Invalid;
use crate::convert::{duration, ordered, required};
use crate::text::{name, sentence, word};
use crate::v1;
use crate::v1::label_coordinator_message::Message as Down;
use crate::v1::label_worker_message::Message as Up;

/// How a worker that labels introduces itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelHello {
    pub version: String,
    pub host: String,
    pub pid: u32,
}

/// What a worker that labels is told.
#[derive(Debug, Clone, PartialEq)]
pub enum ToLabeller {
    /// First of all, and only then.
    Welcome { heartbeat: Duration, options: LabelOptions },
    /// Label these images.
    Range(Range<u32>),
    /// Exit: all is done, or why not.
    Over(Option<String>),
}

fn up(message: Up) -> v1::LabelWorkerMessage {
    v1::LabelWorkerMessage { message: Some(message) }
}

impl From<LabelHello> for v1::LabelWorkerMessage {
    fn from(LabelHello { version, host, pid }: LabelHello) -> Self {
        up(Up::Hello(v1::LabelHello { version, host, pid }))
    }
}

impl From<FromLabeller> for v1::LabelWorkerMessage {
    fn from(message: FromLabeller) -> Self {
        up(match message {
            FromLabeller::Alive => Up::Alive(v1::LabelAlive {}),
            FromLabeller::Ready(Seen { samples, fingerprint, recipe }) => {
                Up::Ready(v1::LabelReady { samples, fingerprint, recipe })
            }
            FromLabeller::Done(RangeReport { range, made, there, unreadable }) => {
                Up::Done(v1::LabelDone { first: range.start, end: range.end, made, there, unreadable })
            }
            FromLabeller::Fault(reason) => Up::Fault(v1::LabelFault { reason }),
        })
    }
}

/// The first message of a worker that labels: a LabelHello and nothing else.
pub fn label_hello(message: v1::LabelWorkerMessage) -> Result<LabelHello, Invalid> {
    match message.message {
        Some(Up::Hello(v1::LabelHello { version, host, pid })) => Ok(LabelHello {
            version: word(version, "LabelHello.version")?,
            host: name(host, "LabelHello.host")?,
            pid,
        }),
        _ => Err(Invalid::Unexpected("the first message was no LabelHello: another message")),
    }
}

/// Any later message of a worker that labels.
pub fn from_labeller(message: v1::LabelWorkerMessage) -> Result<FromLabeller, Invalid> {
    Ok(match required(message.message, "LabelWorkerMessage.message")? {
        Up::Hello(_) => return Err(Invalid::Unexpected("a second LabelHello")),
        Up::Alive(v1::LabelAlive {}) => FromLabeller::Alive,
        Up::Ready(v1::LabelReady { samples, fingerprint, recipe }) => {
            number(samples, "LabelReady.samples")?;
            FromLabeller::Ready(Seen {
                samples,
                fingerprint: word(fingerprint, "LabelReady.fingerprint")?,
                recipe: word(recipe, "LabelReady.recipe")?,
            })
        }
        Up::Done(v1::LabelDone { first, end, made, there, unreadable }) => {
            let range = ordered(first, end, "LabelDone.first..end")?;
            let unreadable = unreadable.iter().map(|line| sentence(line)).collect();
            FromLabeller::Done(RangeReport { range, made, there, unreadable })
        }
        Up::Fault(v1::LabelFault { reason }) => FromLabeller::Fault(sentence(&reason)),
    })
}

impl From<ToLabeller> for v1::LabelCoordinatorMessage {
    fn from(message: ToLabeller) -> Self {
        let message = match message {
            ToLabeller::Welcome { heartbeat, options } => Down::Welcome(v1::LabelWelcome {
                heartbeat: heartbeat.as_secs_f64(),
                options: Some(to_wire(options)),
            }),
            ToLabeller::Range(range) => {
                Down::Range(v1::LabelRange { first: range.start.into(), end: range.end.into() })
            }
            ToLabeller::Over(reason) => Down::Over(v1::LabelOver { reason }),
        };
        v1::LabelCoordinatorMessage { message: Some(message) }
    }
}

/// What the coordinator said to a worker that labels.
pub fn to_labeller(message: v1::LabelCoordinatorMessage) -> Result<ToLabeller, Invalid> {
    Ok(match required(message.message, "LabelCoordinatorMessage.message")? {
        Down::Welcome(v1::LabelWelcome { heartbeat: seconds, options }) => {
            let heartbeat = duration(seconds, "LabelWelcome.heartbeat")?;
            if heartbeat.is_zero() {
                return Err(out_of_range("LabelWelcome.heartbeat", seconds));
            }
            ToLabeller::Welcome { heartbeat, options: from_wire(required(options, "LabelWelcome.options")?)? }
        }
        Down::Range(v1::LabelRange { first, end }) => {
            let end = number(end, "LabelRange.end")?;
            ToLabeller::Range(ordered(number(first, "LabelRange.first")?, end, "LabelRange.first..end")?)
        }
        Down::Over(v1::LabelOver { reason }) => ToLabeller::Over(reason.as_deref().map(sentence)),
    })
}

fn to_wire(options: LabelOptions) -> v1::LabelOptions {
    let LabelOptions { data, out, weights, arch, head, size, map, top_k, batch, half } = options;
    // The coordinator has refused names that are not Unicode.
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    v1::LabelOptions {
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
    }
}

/// The ranges are those of the flags.
fn from_wire(options: v1::LabelOptions) -> Result<LabelOptions, Invalid> {
    let v1::LabelOptions { data, out, weights, arch, head, size, map, top_k, batch, half } = options;
    let within = |value: u32, range: std::ops::RangeInclusive<u32>, field| match range.contains(&value) {
        true => Ok(value),
        false => Err(out_of_range(field, value)),
    };
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
    })
}

/// An absolute path: a worker runs in another folder than the coordinator.
fn path(text: String, field: &'static str) -> Result<PathBuf, Invalid> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(out_of_range(field, path.display())) }
}

/// Images are numbered with 32 bits.
fn number(value: u64, field: &'static str) -> Result<u32, Invalid> {
    u32::try_from(value).map_err(|_| out_of_range(field, value))
}

fn out_of_range(field: &'static str, value: impl ToString) -> Invalid {
    Invalid::Range { field, value: value.to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

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
        }
    }

    #[test]
    fn what_is_said_survives_the_wire() {
        let hello = LabelHello { version: "1".into(), host: "h".into(), pid: 7 };
        assert_eq!(label_hello(hello.clone().into()).unwrap(), hello);
        let seen = Seen { samples: 9, fingerprint: "f".into(), recipe: "r".into() };
        let report = RangeReport { range: 3..5, made: 1, there: 0, unreadable: vec!["u".into()] };
        for message in [
            FromLabeller::Alive,
            FromLabeller::Ready(seen),
            FromLabeller::Done(report),
            FromLabeller::Fault("r".into()),
        ] {
            assert_eq!(from_labeller(message.clone().into()).unwrap(), message);
        }
        let heartbeat = Duration::from_secs(2);
        for message in [
            ToLabeller::Welcome { heartbeat, options: options() },
            ToLabeller::Range(4..9),
            ToLabeller::Over(None),
            ToLabeller::Over(Some("r".into())),
        ] {
            assert_eq!(to_labeller(message.clone().into()).unwrap(), message);
        }
    }

    #[test]
    fn nonsense_is_refused_and_named() {
        assert!(label_hello(FromLabeller::Alive.into()).is_err(), "a LabelHello must come first");
        let forged = LabelHello { version: "1".into(), host: "h\nINFO all is done".into(), pid: 7 };
        assert!(
            label_hello(forged.into()).unwrap_err().to_string().starts_with("LabelHello.host is `h\\nINFO")
        );
        let seen = Seen { samples: 1 << 32, fingerprint: String::new(), recipe: String::new() };
        let error = from_labeller(FromLabeller::Ready(seen).into()).unwrap_err();
        assert!(error.to_string().contains("LabelReady.samples"), "{error}");
        for (options, field) in [
            (LabelOptions { top_k: 0, ..options() }, "top_k"),
            (LabelOptions { batch: 0, ..options() }, "batch"),
            (LabelOptions { size: Some(31), ..options() }, "size"),
            (LabelOptions { map: Some(129), ..options() }, "map"),
            (LabelOptions { data: "data".into(), ..options() }, "data"),
        ] {
            let welcome = ToLabeller::Welcome { heartbeat: Duration::from_secs(1), options };
            let error = to_labeller(welcome.into()).unwrap_err();
            assert!(error.to_string().contains(&format!("LabelOptions.{field} is")), "{error}");
        }
        let welcome = ToLabeller::Welcome { heartbeat: Duration::ZERO, options: options() };
        assert!(to_labeller(welcome.into()).unwrap_err().to_string().contains("heartbeat"));
        let range = v1::LabelRange { first: 5, end: 4 };
        let message = v1::LabelCoordinatorMessage { message: Some(Down::Range(range)) };
        assert!(to_labeller(message).unwrap_err().to_string().contains("LabelRange.first..end"));
    }
}
