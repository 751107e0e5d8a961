//! The messages of workers that have ranges of images: wire to valid values and back. What stands in them depends on
//! the work: `labelling.rs` and `evaluation.rs` say how it goes over the wire.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use relabel_core::leases::{FromHolder, Piece, Work};

use crate::Invalid;
use crate::text::{name, sentence, word};
use crate::v1;
use crate::v1::lease_coordinator_message::Message as Down;
pub(crate) use crate::v1::lease_done::Report;
pub(crate) use crate::v1::lease_ready::Seen;
pub(crate) use crate::v1::lease_welcome::Options;
use crate::v1::lease_worker_message::Message as Up;
use crate::values::{duration, ordered, required};

/// Work of which options, views and reports go over the wire.
pub trait WireWork: Work<Seen: Send, Report: Send> + Send + 'static {
    /// The subcommand of both programs that does it: `label`.
    const COMMAND: &'static str;
    /// How it is done.
    type Options: Debug + Clone + PartialEq + Send + Sync + 'static;

    fn options_to_wire(options: Self::Options) -> Options;
    fn options_from_wire(options: Options) -> Result<Self::Options, Invalid>;
    fn seen_to_wire(seen: Self::Seen) -> Seen;
    fn seen_from_wire(seen: Seen) -> Result<Self::Seen, Invalid>;
    fn report_to_wire(report: Self::Report) -> Report;
    fn report_from_wire(report: Report) -> Result<Self::Report, Invalid>;
}

/// How a worker introduces itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseHello {
    pub version: String,
    pub host: String,
    pub pid: u32,
    /// The subcommand that it is.
    pub command: String,
}

/// What a worker is told.
#[derive(Debug, Clone, PartialEq)]
pub enum ToHolder<W: WireWork> {
    /// First of all, and only then.
    Welcome { heartbeat: Duration, options: W::Options },
    /// See to these images.
    Range(Piece),
    /// Exit: all is done, or why not.
    Over(Option<String>),
}

impl From<LeaseHello> for v1::LeaseWorkerMessage {
    fn from(LeaseHello { version, host, pid, command }: LeaseHello) -> Self {
        Self { message: Some(Up::Hello(v1::LeaseHello { version, host, pid, command })) }
    }
}

impl<W: WireWork> From<FromHolder<W>> for v1::LeaseWorkerMessage {
    fn from(message: FromHolder<W>) -> Self {
        let message = match message {
            FromHolder::Alive => Up::Alive(v1::LeaseAlive {}),
            FromHolder::Ready(seen) => Up::Ready(v1::LeaseReady { seen: Some(W::seen_to_wire(seen)) }),
            FromHolder::Done { piece, report } => {
                let report = Some(W::report_to_wire(report));
                Up::Done(v1::LeaseDone { range: Some(piece.into()), report })
            }
            FromHolder::Fault { reason, hopeless } => Up::Fault(v1::LeaseFault { reason, hopeless }),
        };
        Self { message: Some(message) }
    }
}

/// A worker's first message. Its version is looked at first: another one may say the rest in other words.
#[derive(Debug)]
pub struct FirstLeaseMessage {
    pub version: String,
    rest: v1::LeaseHello,
}

impl FirstLeaseMessage {
    /// How the worker introduces itself.
    ///
    /// # Errors
    /// What cannot be.
    pub fn hello(self) -> Result<LeaseHello, Invalid> {
        let v1::LeaseHello { version: _, host, pid, command } = self.rest;
        Ok(LeaseHello {
            version: self.version,
            host: name(host, "LeaseHello.host")?,
            pid,
            command: word(command, "LeaseHello.command")?,
        })
    }
}

/// The first message of a worker: a LeaseHello and nothing else.
pub fn lease_hello(message: v1::LeaseWorkerMessage) -> Result<FirstLeaseMessage, Invalid> {
    let Some(Up::Hello(mut rest)) = message.message else {
        return Err(Invalid::Unexpected("the first message was no LeaseHello: another message"));
    };
    let version = word(std::mem::take(&mut rest.version), "LeaseHello.version")?;
    Ok(FirstLeaseMessage { version, rest })
}

/// Any later message of a worker.
pub fn from_holder<W: WireWork>(message: v1::LeaseWorkerMessage) -> Result<FromHolder<W>, Invalid> {
    Ok(match required(message.message, "LeaseWorkerMessage.message")? {
        Up::Hello(_) => return Err(Invalid::Unexpected("a second LeaseHello")),
        Up::Alive(v1::LeaseAlive {}) => FromHolder::Alive,
        Up::Ready(v1::LeaseReady { seen }) => {
            FromHolder::Ready(W::seen_from_wire(required(seen, "LeaseReady.seen")?)?)
        }
        Up::Done(v1::LeaseDone { range, report }) => FromHolder::Done {
            piece: required(range, "LeaseDone.range")?.try_into()?,
            report: W::report_from_wire(required(report, "LeaseDone.report")?)?,
        },
        Up::Fault(v1::LeaseFault { reason, hopeless }) => {
            FromHolder::Fault { reason: sentence(&reason), hopeless }
        }
    })
}

impl<W: WireWork> From<ToHolder<W>> for v1::LeaseCoordinatorMessage {
    fn from(message: ToHolder<W>) -> Self {
        let message = match message {
            ToHolder::Welcome { heartbeat, options } => Down::Welcome(v1::LeaseWelcome {
                heartbeat: heartbeat.as_secs_f64(),
                options: Some(W::options_to_wire(options)),
            }),
            ToHolder::Range(piece) => Down::Range(piece.into()),
            ToHolder::Over(reason) => Down::Over(v1::LeaseOver { reason }),
        };
        Self { message: Some(message) }
    }
}

/// What the coordinator said to a worker.
pub fn to_holder<W: WireWork>(message: v1::LeaseCoordinatorMessage) -> Result<ToHolder<W>, Invalid> {
    Ok(match required(message.message, "LeaseCoordinatorMessage.message")? {
        Down::Welcome(v1::LeaseWelcome { heartbeat: seconds, options }) => {
            let heartbeat = duration(seconds, "LeaseWelcome.heartbeat")?;
            if heartbeat.is_zero() {
                return Err(out_of_range("LeaseWelcome.heartbeat", seconds));
            }
            let options = W::options_from_wire(required(options, "LeaseWelcome.options")?)?;
            ToHolder::Welcome { heartbeat, options }
        }
        Down::Range(range) => ToHolder::Range(range.try_into()?),
        Down::Over(v1::LeaseOver { reason }) => ToHolder::Over(reason.as_deref().map(sentence)),
    })
}

impl From<Piece> for v1::LeaseRange {
    fn from(Piece { folder, samples }: Piece) -> Self {
        Self { folder, first: samples.start, end: samples.end }
    }
}

impl TryFrom<v1::LeaseRange> for Piece {
    type Error = Invalid;

    fn try_from(v1::LeaseRange { folder, first, end }: v1::LeaseRange) -> Result<Self, Invalid> {
        let samples = ordered(first, images(end, "LeaseRange.end")?, "LeaseRange.first..end")?;
        Ok(Self { folder, samples })
    }
}

/// Images are numbered with 32 bits.
pub(crate) fn images(value: u64, field: &'static str) -> Result<u64, Invalid> {
    match u32::try_from(value) {
        Ok(_) => Ok(value),
        Err(_) => Err(out_of_range(field, value)),
    }
}

/// An absolute path: a worker runs in another folder than the coordinator.
pub(crate) fn path(text: String, field: &'static str) -> Result<PathBuf, Invalid> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(out_of_range(field, path.display())) }
}

/// A path as text; the coordinator has refused names that are not Unicode.
pub(crate) fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_string_lossy().into_owned()
}

/// A number that is as the flags have it.
pub(crate) fn within<T: PartialOrd + ToString>(
    value: T,
    range: impl std::ops::RangeBounds<T>,
    field: &'static str,
) -> Result<T, Invalid> {
    match range.contains(&value) {
        true => Ok(value),
        false => Err(out_of_range(field, value)),
    }
}

pub(crate) fn out_of_range(field: &'static str, value: impl ToString) -> Invalid {
    crate::text::out_of_range(field, &value.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use relabel_core::evaluation::Evaluation;
    use relabel_core::labelling::{LabelReport, Labelling};

    use super::*;

    fn labels(made: u64) -> FromHolder<Labelling> {
        let piece = Piece { folder: 0, samples: 3..5 };
        let report = LabelReport { made, there: 0, unreadable: vec!["u".into()] };
        FromHolder::Done { piece, report }
    }

    #[test]
    fn what_is_said_survives_the_wire() {
        let hello =
            LeaseHello { version: "1".into(), host: "h".into(), pid: 7, command: Labelling::COMMAND.into() };
        assert_eq!(lease_hello(hello.clone().into()).unwrap().hello().unwrap(), hello);
        let fault = |hopeless| FromHolder::Fault { reason: "r".into(), hopeless };
        for message in [FromHolder::Alive, labels(1), fault(false), fault(true)] {
            assert_eq!(from_holder::<Labelling>(message.clone().into()).unwrap(), message);
        }
        let range = Piece { folder: 2, samples: 4..9 };
        for message in [ToHolder::Range(range), ToHolder::Over(None), ToHolder::Over(Some("r".into()))] {
            assert_eq!(to_holder::<Labelling>(message.clone().into()).unwrap(), message);
        }
    }

    #[test]
    fn what_a_person_is_to_read_stays_in_its_line() {
        let said = "a\nb\u{1b}[2J";
        let fault = FromHolder::<Labelling>::Fault { reason: said.into(), hopeless: true };
        let heard = from_holder::<Labelling>(fault.into()).unwrap();
        assert_eq!(heard, FromHolder::Fault { reason: "a b [2J".into(), hopeless: true });
        let over = ToHolder::<Labelling>::Over(Some(said.into()));
        assert_eq!(to_holder::<Labelling>(over.into()).unwrap(), ToHolder::Over(Some("a b [2J".into())));
    }

    #[test]
    fn nonsense_is_refused_and_named() {
        let hello = lease_hello(FromHolder::<Labelling>::Alive.into());
        assert!(hello.is_err(), "a LeaseHello must come first");
        let hello = |host: &str, command: &str| LeaseHello {
            version: "1".into(),
            host: host.into(),
            pid: 7,
            command: command.into(),
        };
        for (forged, start) in [
            (hello("h\nINFO all is done", "label"), "LeaseHello.host is `h\\nINFO"),
            (hello("h", "label\u{1b}[2J"), "LeaseHello.command is `label\\u{1b}"),
        ] {
            let first = lease_hello(forged.into()).unwrap();
            assert_eq!(first.version, "1", "it is known, whatever else is said");
            let error = first.hello().unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
        }
        let other = from_holder::<Evaluation>(labels(1).into()).unwrap_err();
        assert!(other.to_string().contains("LeaseDone.report"), "{other}");
        for (folder, first, end, field) in [(0, 5, 4, "first..end"), (0, 5, 1 << 32, "end is")] {
            let range = Down::Range(v1::LeaseRange { folder, first, end });
            let error = to_holder::<Labelling>(v1::LeaseCoordinatorMessage { message: Some(range) });
            assert!(error.unwrap_err().to_string().contains(field), "{field}");
        }
    }
}
