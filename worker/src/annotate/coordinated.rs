//! `worker label --coordinator URL`: takes ranges of the images from `coordinator label` until all are done.
//!
//! Maps on the disk are the truth: a worker whose coordinator is gone looks for it again, a coordinator that is
//! started again has the ranges looked at again, and what is there is not made twice.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use relabel_config::LabelOptions;
use relabel_core::labelling::{FromLabeller, RangeReport, Seen};
use relabel_proto::security::Access;

use super::labeller::Labeller;
use super::stream::{Order, Stream};
use crate::session::SessionError;

/// Before a coordinator that was lost is looked for.
const PAUSE: Duration = Duration::from_secs(1);

/// Labels until the coordinator says that it is over.
///
/// # Errors
/// No coordinator within `patience`, a refusal, work that cannot be done here, and a labelling that has failed.
pub(super) fn run(access: &Access, patience: Duration, threads: usize) -> Result<()> {
    loop {
        let (stream, options) = Stream::open(access, patience)?;
        let error = match take_part(&stream, options, threads) {
            Ok(None) => {
                tracing::info!("the labelling is over");
                return Ok(());
            }
            Ok(Some(reason)) => bail!("the labelling has failed: {reason}"),
            Err(error) => error,
        };
        match error.downcast_ref() {
            Some(SessionError::Lost(reason)) => {
                tracing::warn!("the coordinator is gone ({reason}); looking for it again");
                std::thread::sleep(PAUSE);
            }
            Some(_) => return Err(error),
            None => {
                stream.last_words(format!("{error:#}"));
                return Err(error);
            }
        }
    }
}

/// Returns why the labelling has failed, if it has.
fn take_part(stream: &Stream, options: LabelOptions, threads: usize) -> Result<Option<String>> {
    let labeller = Labeller::open(options, threads)?;
    let split = labeller.split();
    stream.say(FromLabeller::Ready(Seen {
        samples: split.len() as u64,
        fingerprint: blake3::Hash::from(split.fingerprint()).to_hex().to_string(),
        recipe: labeller.recipe().hash()?,
    }));
    loop {
        match stream.next_order()? {
            Order::Over(reason) => return Ok(reason),
            Order::Range(range) => {
                ensure!(
                    range.end as usize <= split.len(),
                    "the coordinator handed out images {range:?} of {}",
                    split.len()
                );
                tracing::debug!("images {range:?}");
                let report = label(&labeller, range, stream)?;
                // What was cut short is no range that is done; the next order says why.
                if !stream.over().load(Ordering::Relaxed) {
                    stream.say(FromLabeller::Done(report));
                }
            }
        }
    }
}

fn label(labeller: &Labeller, range: Range<u32>, stream: &Stream) -> Result<RangeReport> {
    let samples: Vec<u32> = range.clone().collect();
    let missing = labeller.missing(&samples);
    let there = (samples.len() - missing.len()) as u64;
    let made = labeller.make(missing, stream.over())?;
    Ok(RangeReport {
        range: range.start.into()..range.end.into(),
        made: made.maps as u64,
        there,
        unreadable: made.unreadable,
    })
}
