//! `worker label --coordinator URL` and `worker eval --coordinator URL`: take ranges of images from `coordinator label`
//! or `coordinator eval` until all are done.
//!
//! A worker whose coordinator is gone looks for it again, and begins anew with what that one wants. What came of
//! its ranges is either on the disk (label maps, which are not made twice) or was reported with each.

mod own;
mod stream;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use relabel_core::leases::{FromHolder, Piece, Work};
use relabel_proto::WireWork;
use relabel_proto::security::Access;

use crate::print::one_line;
use crate::session::SessionError;
pub(crate) use own::Own;
use stream::{Order, Stream};

/// Before a coordinator that was lost is looked for.
const PAUSE: Duration = Duration::from_secs(1);

/// What a worker does with ranges, everything that it needs being open.
pub(crate) trait Holder: Sized {
    /// What is done, as the coordinator knows it.
    type Work: WireWork;

    /// Opens data and weights.
    ///
    /// # Errors
    /// What cannot be opened here, or does not fit.
    fn open(options: <Self::Work as WireWork>::Options, threads: usize) -> Result<Self>;

    /// What all workers must see alike.
    ///
    /// # Errors
    /// A file that can no longer be read.
    fn seen(&self) -> Result<<Self::Work as Work>::Seen>;

    /// Sees to a range. Where `over` is set meanwhile it may end early, and its report is dropped.
    ///
    /// # Errors
    /// It cannot be done.
    fn work(&self, piece: &Piece, over: &AtomicBool) -> Result<<Self::Work as Work>::Report>;

    /// Whether an error that [`work`](Self::work) returned would meet every other worker too.
    fn is_hopeless(_error: &anyhow::Error) -> bool {
        false
    }
}

/// Works until the coordinator that `access` leads to says that it is over.
///
/// # Errors
/// No coordinator within `patience`, a refusal, work that cannot be done here, and work that has failed altogether.
pub(crate) fn run<H: Holder>(access: &Access, patience: Duration, threads: usize) -> Result<()> {
    let name = H::Work::NAME;
    loop {
        let (stream, options) = Stream::<H::Work>::open(access, patience)?;
        let error = match take_part::<H>(&stream, options, threads) {
            Ok(None) => {
                tracing::info!("the {name} is over");
                return Ok(());
            }
            Ok(Some(reason)) => bail!("the {name} has failed: {reason}"),
            Err(error) => error,
        };
        match error.downcast_ref() {
            Some(SessionError::Lost(reason)) => {
                tracing::warn!("the coordinator is gone ({reason}); looking for it again");
                std::thread::sleep(PAUSE);
            }
            Some(_) => return Err(error),
            None => {
                stream.last_words(one_line(&error), H::is_hopeless(&error));
                return Err(error);
            }
        }
    }
}

/// Returns why it has failed altogether, if it has.
fn take_part<H: Holder>(
    stream: &Stream<H::Work>,
    options: <H::Work as WireWork>::Options,
    threads: usize,
) -> Result<Option<String>> {
    let holder = H::open(options, threads)?;
    stream.say(FromHolder::Ready(holder.seen()?));
    loop {
        match stream.next_order()? {
            Order::Over(reason) => return Ok(reason),
            Order::Range(piece) => {
                tracing::debug!("{piece:?}");
                let report = holder.work(&piece, stream.over())?;
                // What was cut short is no range that is done; the next order says why.
                if !stream.over().load(Ordering::Relaxed) {
                    stream.say(FromHolder::Done { piece, report });
                }
            }
        }
    }
}

/// BLAKE3 of a file's content, in hexadecimal: whether two hosts have the same.
///
/// # Errors
/// It cannot be read.
pub(crate) fn content_hash(file: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let read = std::fs::File::open(file).and_then(|file| hasher.update_reader(file).map(drop));
    read.with_context(|| format!("{} cannot be read", file.display()))?;
    Ok(hasher.finalize().to_hex().to_string())
}
